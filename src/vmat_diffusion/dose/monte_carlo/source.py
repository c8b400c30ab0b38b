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
from vmat_diffusion.machine import BeamModel, Machine, Mlc

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
    the transmission, tongues beside an open gap with theirs, nothing behind a jaw. Leaves stand back by half
    the gap offset on each side."""
    mlc, edges, jaws = machine.mlc, machine.row_edges_mm(), exposed.jaws_mm
    low, high = _seen_edges(exposed, mlc)
    half = np.full(len(edges), mlc.tongue_mm / 2)
    half[[0, -1]] = 0.0  # beyond the outermost leaves is nothing to disagree with
    strips = [(_row_parts(low, high, jaws, mlc.transmission), edges[:-1] + half[:-1], edges[1:] - half[1:])]
    if mlc.tongue_mm:
        inner = edges[1:-1]
        strips.append((_tongue_parts(low, high, jaws, mlc), inner - half[1:-1], inner + half[1:-1]))
    # Rows outside the leaf banks but inside the jaws do not exist on the machines known here.
    y1, y2 = jaws[:, :, 2].mean(1)[:, None], jaws[:, :, 3].mean(1)[:, None]
    boxes, fluence, frame = [], [], []
    for parts, from_mm, to_mm in strips:
        bottom, top = np.clip(from_mm[None], y1, y2), np.clip(to_mm[None], y1, y2)
        for a, b, share in parts:
            box = np.stack([a[:, 0], b[:, 0], a[:, 1], b[:, 1], bottom, top], axis=-1)
            boxes.append(box.reshape(-1, 6))
            fluence.append(np.repeat(share * exposed.mu, len(from_mm)))
            frame.append(np.repeat(np.arange(len(exposed.mu)), len(from_mm)))
    axes = frames(exposed.gantry_deg, exposed.collimator_deg, exposed.couch_deg, patient_position)
    return _without_empty(
        Openings(np.concatenate(boxes), np.concatenate(fluence), np.concatenate(frame), axes)
    )


# A part of a strip: from and to, `[n, start|end, strips]` in mm, and its share of the open fluence.
_Part = tuple[NDArray[np.float64], NDArray[np.float64], float]


def _seen_edges(exposed: Exposures, mlc: Mlc) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low and high edges `[n, start|end, rows]` of the gaps in mm as the dose sees them between the jaws."""
    leaves = exposed.leaves_mm
    x1, x2 = exposed.jaws_mm[:, :, 0, None], exposed.jaws_mm[:, :, 1, None]
    shift = mlc.gap_offset_of(leaves) / 2
    low, high = leaves[:, :, 0] - shift[:, :, 0], leaves[:, :, 1] + shift[:, :, 1]
    return np.clip(low, x1, x2), np.clip(np.maximum(high, low), x1, x2)


def _row_parts(low: NDArray, high: NDArray, jaws: NDArray, transmission: float) -> tuple[_Part, ...]:
    """A leaf row from X1 to X2: behind the one leaf, open, behind the other."""
    x1, x2 = np.broadcast_to(jaws[:, :, 0, None], low.shape), np.broadcast_to(jaws[:, :, 1, None], low.shape)
    return (low, high, 1.0), (x1, low, transmission), (high, x2, transmission)


def _lower_and_higher(one: NDArray, other: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lower and the higher of two moving edges `[n, start|end, ...]`, each right in its mean.

    Edges that pass each other on the way bend both; the boxes have straight sides.
    """
    apart = np.abs(one - other)
    passing = ((one - other)[:, 0] * (one - other)[:, 1]) < 0
    size = np.maximum(2 * (apart[:, 0] + apart[:, 1]), 1e-9)
    bend = np.where(passing, apart[:, 0] * apart[:, 1] / size, 0.0)[:, None]
    return np.minimum(one, other) + bend, np.maximum(one, other) - bend


def _tongue_parts(low: NDArray, high: NDArray, jaws: NDArray, mlc: Mlc) -> tuple[_Part, ...]:
    """A boundary from X1 to X2: closed, one neighbour open, both (or none), one, closed."""
    first, begin = _lower_and_higher(low[..., :-1], low[..., 1:])
    end, last = _lower_and_higher(high[..., :-1], high[..., 1:])
    x1, x2 = (
        np.broadcast_to(jaws[:, :, 0, None], first.shape),
        np.broadcast_to(jaws[:, :, 1, None], first.shape),
    )
    inner, outer = np.minimum(begin, end), np.maximum(begin, end)
    return (
        (x1, first, mlc.transmission),
        (first, inner, mlc.tongue_transmission),
        (begin, outer, 1.0),  # empty where the two gaps do not meet
        (end, outer, mlc.transmission),  # empty where they do
        (outer, last, mlc.tongue_transmission),
        (last, x2, mlc.transmission),
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
