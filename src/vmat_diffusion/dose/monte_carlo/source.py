"""Where photons start: a machine's head as the Monte Carlo engine samples it.

Openings of all exposures are cut into boxes of equal photon density; a history draws one box by its
share of the photons, so every history carries the same weight whatever the plan's modulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.errors import MachineError
from vmat_diffusion.geometry import Point, beam_axes
from vmat_diffusion.machine import BeamModel, Machine

_OFF_AXIS_STEP_CM = 0.2


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
    n, rows = len(exposed.mu), leaves.shape[3]
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
        boxes.append(box.reshape(n * rows, 6))
        fluence.append(np.repeat(share * exposed.mu, rows))
        frame.append(np.repeat(np.arange(n), rows))
    axes = frames(exposed.gantry_deg, exposed.collimator_deg, exposed.couch_deg, patient_position)
    return _without_empty(
        Openings(np.concatenate(boxes), np.concatenate(fluence), np.concatenate(frame), axes)
    )


def _without_empty(openings: Openings) -> Openings:
    keep = (openings.area_cm2 * openings.fluence) > 0
    if not keep.any():
        raise MachineError("the plan delivers no photons: every opening is closed; open the leaves or jaws")
    return Openings(openings.box_mm[keep], openings.fluence[keep], openings.frame[keep], openings.axes)


class Source(NamedTuple):
    """The source of one plan as the compiled loop reads it: lengths in cm, energies in MeV.

    A history takes its opening from `photons_cm2[n]`, the running sum over the n openings of area times
    fluence. `box_cm[n, 6]`, `frame[n]` and `axes[k, 3, 3]` are those of `Openings`. Photon energies follow
    `energy_cdf[b + 1]` at the edges `energy_mev[b + 1]` of b bins. `off_axis_ratio[r]` holds the number of
    photons relative to the axis every `off_axis_step_cm` of radius at the isocentre plane.
    """

    photons_cm2: NDArray[np.float64]
    box_cm: NDArray[np.float64]
    frame: NDArray[np.int64]
    axes: NDArray[np.float64]
    isocenter_cm: NDArray[np.float64]
    energy_mev: NDArray[np.float64]
    energy_cdf: NDArray[np.float64]
    off_axis_ratio: NDArray[np.float64]
    off_axis_step_cm: float
    sad_cm: float
    collimator_cm: float  # distance of the collimator plane from the target
    focal_sigma_cm: float
    head_sigma_cm: float
    head_distance_cm: float  # distance of the head's scatter plane from the target
    head_share: float  # share of the histories that are photons scattered in the head
    electron_share: float  # share of the histories that are contaminant electrons
    electron_sigma_cm: float
    electron_mean_mev: float  # their spectrum: exponential from the least to the largest energy
    electron_min_mev: float
    electron_max_mev: float
    electron_cdf_max: float  # what the untruncated exponential has up to the largest energy
    electron_weight: float
    photon_weight: float
    softening_per_cm2: float
    isotropic: bool  # even in solid angle; otherwise even in the isocentre plane


_ELECTRON_MIN_MEV = 0.2  # slower electrons do not get through the air to the patient


def photon_source(openings: Openings, beam: BeamModel, isocenter_mm: Point, sad_mm: float) -> Source:
    """The source of a beam behind these openings, as `simulate` takes it."""
    edges = np.concatenate([[beam.spectrum_low_mev], beam.spectrum_upper_mev])
    cdf = np.concatenate([[0.0], np.cumsum(beam.spectrum_number)])
    radius_mm = np.arange(0.0, 50.0, _OFF_AXIS_STEP_CM) * 10
    electron_share = beam.electron_sampling if beam.electrons_per_photon > 0 else 0.0
    mean, top = beam.electron_mean_mev, beam.electron_max_mev
    return Source(
        photons_cm2=np.cumsum(openings.area_cm2 * openings.fluence),
        box_cm=np.ascontiguousarray(openings.box_mm / 10),
        frame=np.ascontiguousarray(openings.frame, np.int64),
        axes=np.ascontiguousarray(openings.axes),
        isocenter_cm=np.asarray(isocenter_mm, float) / 10,
        energy_mev=edges,
        energy_cdf=cdf / cdf[-1],
        off_axis_ratio=np.interp(radius_mm, beam.horn_radius_mm, beam.horn),
        off_axis_step_cm=_OFF_AXIS_STEP_CM,
        sad_cm=sad_mm / 10,
        collimator_cm=beam.collimator_mm / 10,
        focal_sigma_cm=beam.focal_sigma_mm / 10,
        head_sigma_cm=beam.head_sigma_mm / 10,
        head_distance_cm=beam.head_distance_mm / 10,
        head_share=beam.head_share * (1 - electron_share),
        electron_share=electron_share,
        electron_sigma_cm=beam.electron_sigma_mm / 10,
        electron_mean_mev=mean,
        electron_min_mev=_ELECTRON_MIN_MEV,
        electron_max_mev=top,
        electron_cdf_max=float(1 - np.exp(-(top - _ELECTRON_MIN_MEV) / mean)),
        electron_weight=beam.electrons_per_photon / electron_share if electron_share else 0.0,
        photon_weight=1.0 / (1 - electron_share),
        softening_per_cm2=beam.softening_per_mm2 * 100,
        isotropic=beam.angular == "isotropic",
    )
