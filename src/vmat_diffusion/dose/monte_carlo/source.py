"""Where photons start: a machine's head as the Monte Carlo engine samples it.

Openings of all exposures are cut into boxes of equal photon density; a history draws one box by its
share of the photons, so every history carries the same weight whatever the plan's modulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.fluence import Exposures
from vmat_diffusion.errors import MachineError
from vmat_diffusion.geometry import Point, beam_axes
from vmat_diffusion.machine import BeamModel, Machine

_HORN_STEP_CM = 0.2


@dataclass(frozen=True, eq=False)
class Openings:
    """Boxes of the collimator in mm at the isocentre plane, each with its fluence.

    `box_mm[n, 6]`: x1, x2 at the start, x1, x2 at the end of the exposure, y1, y2; `fluence[n]` photons
    per unit area relative to open field times MU; `frame[n]` index into `axes[k, 3, 3]`, whose rows
    are the device's x, y and the direction to the source in patient coordinates.
    """

    box_mm: NDArray[np.float64]
    fluence: NDArray[np.float64]
    frame: NDArray[np.int64]
    axes: NDArray[np.float64]

    @property
    def area_cm2(self) -> NDArray[np.float64]:
        """Mean area of each box over its exposure."""
        b = self.box_mm
        return 0.5 * (b[:, 1] - b[:, 0] + b[:, 3] - b[:, 2]) * (b[:, 5] - b[:, 4]) / 100.0


def frames(
    gantry_deg: NDArray, collimator_deg: NDArray, couch_deg: NDArray, patient_position: str
) -> NDArray:
    """Axes of each exposure, shape (n, 3, 3)."""
    out = []
    for gantry, collimator, couch in zip(gantry_deg, collimator_deg, couch_deg, strict=True):
        axes = beam_axes(float(gantry), float(collimator), float(couch), patient_position)
        out.append(np.stack([axes.x, axes.y, axes.to_source]))
    return np.array(out)


def plan_openings(exposed: Exposures, machine: Machine, patient_position: str = "HFS") -> Openings:
    """The openings of a delivered plan: open gaps with weight 1, closed leaves between the jaws with
    the transmission, nothing behind a jaw. Leaves stand back by half the gap offset on each side."""
    shift = machine.mlc.gap_offset_mm / 2
    jaws, leaves = exposed.jaws_mm, exposed.leaves_mm
    n, strips = len(exposed.mu), leaves.shape[3]
    x1, x2 = jaws[:, :, 0, None], jaws[:, :, 1, None]
    low = np.clip(leaves[:, :, 0] - shift, x1, x2)
    high = np.clip(np.maximum(leaves[:, :, 1] + shift, leaves[:, :, 0] - shift), x1, x2)
    edges = machine.row_edges_mm()
    y1, y2 = jaws[:, :, 2].mean(1)[:, None], jaws[:, :, 3].mean(1)[:, None]
    bottom, top = np.clip(edges[None, :-1], y1, y2), np.clip(edges[None, 1:], y1, y2)
    # Rows outside the leaf banks but inside the jaws do not exist on the machines known here.
    parts = ((low, high, 1.0), (np.broadcast_to(x1, low.shape), low, machine.mlc.transmission),
             (high, np.broadcast_to(x2, high.shape), machine.mlc.transmission))  # fmt: skip
    boxes, fluence, frame = [], [], []
    for a, b, share in parts:
        box = np.stack([a[:, 0], b[:, 0], a[:, 1], b[:, 1], bottom, top], axis=-1)
        boxes.append(box.reshape(n * strips, 6))
        fluence.append(np.repeat(share * exposed.mu, strips))
        frame.append(np.repeat(np.arange(n), strips))
    axes = frames(exposed.gantry_deg, exposed.collimator_deg, exposed.couch_deg, patient_position)
    return _without_empty(
        Openings(np.concatenate(boxes), np.concatenate(fluence), np.concatenate(frame), axes)
    )


def _without_empty(openings: Openings) -> Openings:
    keep = (openings.area_cm2 * openings.fluence) > 0
    if not keep.any():
        raise MachineError("the plan delivers no photons: every opening is closed; open the leaves or jaws")
    return Openings(openings.box_mm[keep], openings.fluence[keep], openings.frame[keep], openings.axes)


def sampled(openings: Openings, source: BeamModel, isocenter_mm: Point, sad_mm: float) -> tuple:
    """The source as the kernel reads it, lengths in cm; its first array ends with the total photon area."""
    edges = np.concatenate([[source.spectrum_low_mev], source.spectrum_upper_mev])
    cdf = np.concatenate([[0.0], np.cumsum(source.spectrum_number)])
    radius = np.arange(0.0, 50.0, _HORN_STEP_CM) * 10
    horn = np.interp(radius, source.horn_radius_mm, source.horn)
    q = source.electron_sampling if source.electrons_per_photon > 0 else 0.0
    low, high, mean = 0.2, source.electron_max_mev, source.electron_mean_mev
    n = np.array(
        [
            sad_mm / 10, source.collimator_mm / 10, source.focal_sigma_mm / 10, source.head_sigma_mm / 10,
            source.head_distance_mm / 10, source.head_share * (1 - q), q, source.electron_sigma_mm / 10,
            1.0 if source.angular == "isotropic" else 0.0, mean, high, 1 - np.exp(-(high - low) / mean), low,
            source.softening_per_mm2 * 100, _HORN_STEP_CM,
            source.electrons_per_photon / q if q else 0.0, 1.0 / (1 - q),
        ]
    )  # fmt: skip
    return (
        np.cumsum(openings.area_cm2 * openings.fluence),
        np.ascontiguousarray(openings.box_mm / 10),
        np.ascontiguousarray(openings.frame, np.int64),
        np.ascontiguousarray(openings.axes),
        np.asarray(isocenter_mm, float) / 10,
        edges,
        cdf / cdf[-1],
        horn,
        n,
    )
