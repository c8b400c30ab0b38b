"""Whether beams pass what the CT does not hold: a body cut by the field of view, or by the last slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.complexity import leaf_rows
from vmat_diffusion.field_of_view import SMALL_SHARE, FieldOfView, Sector, near_ends
from vmat_diffusion.geometry import BeamAxes, beam_axes
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan

# Rays at so many places along the opening of a leaf pair, every so many degrees of gantry. Ours.
_ALONG = np.array([0.1, 0.5, 0.9])
_ANGLE_DEG = 2.0
# So many control points of a beam that does not rotate.
_STATIC_POINTS = 10


def beams_beyond_ct(
    case: Case, plan: Plan, machine: Machine, targets: Sequence[str] | None = None
) -> list[str]:
    """Sentences on beams that pass what the CT does not hold, and on targets beside its last slice.

    Both dose calculations take what is missing for air, so that no comparison of doses sees it. Rays go from
    the open parts of every aperture to the source. `targets` are those of the plan, by default all. Empty
    where the CT holds what beams pass.
    """
    names = [t.name for t in case.targets] if targets is None else targets
    sentences = [
        f"{name} lies {away:.0f} mm from the {end} end of the CT, where the body goes on: scatter from "
        "beyond is missing, and beams with the couch turned may pass what the CT does not hold"
        for name, end, away in near_ends(case, [n for n in names if n in case.structures])
    ]
    if machine.mlc.pairs != plan.arcs[0].leaves_mm.shape[2]:
        return sentences
    view = FieldOfView.of(case)
    beams = np.array([row for arc in plan.arcs for row in _openings(view, arc, plan, machine)]).reshape(-1, 4)
    cut, whole = beams[:, 1].sum(), beams[:, 2].sum()
    for sector in _sectors(beams, 1.5 * max(map(_spacing_deg, plan.arcs))):
        sentences.append(
            f"the CT ends {sector.distance_mm:.0f} mm from the isocentre at {sector}, where the body goes "
            f"on: up to {100 * sector.share:.0f} % of the beam there, {100 * cut / whole:.1f} % of the whole "
            "plan, pass what the CT does not hold and are calculated as if it were air, so that the dose "
            "behind is too high; scan with a larger field of view or plan without these angles"
        )
    return sentences


def _sectors(beams: NDArray, gap_deg: float) -> list[Sector]:
    """Sectors of the angles from which beams pass the cut; those within `gap_deg` of each other are one.

    `beams` has rows of gantry angle, beam that passes, all beam, and where the CT ends.
    """
    share = np.divide(beams[:, 1], beams[:, 2], out=np.zeros(len(beams)), where=beams[:, 2] > 0)
    passing = np.column_stack([beams[:, 0], share, beams[:, 3]])[share > SMALL_SHARE]
    if not len(passing):
        return []
    passing = passing[np.argsort(passing[:, 0])]
    gaps = np.diff(passing[:, 0], prepend=passing[-1, 0] - 360.0)
    starts = np.flatnonzero(gaps > gap_deg)
    passing = np.roll(passing, -int(starts[0]) if len(starts) else 0, axis=0)
    parts = np.split(passing, (starts - starts[0])[1:]) if len(starts) else [passing]
    return [
        Sector(float(p[0, 0]), float(p[-1, 0]), float(p[:, 1].max()), float(p[:, 2].min())) for p in parts
    ]


def _spacing_deg(arc: Arc) -> float:
    """The largest angle between control points that are looked at."""
    return max(float(np.abs(np.diff(arc.gantry_deg)).max(initial=0.0)), 2 * _ANGLE_DEG)


def _openings(
    view: FieldOfView, arc: Arc, plan: Plan, machine: Machine
) -> list[tuple[float, float, float, float]]:
    """Gantry angle, beam that passes the cut, all beam (MU times mm2), and where the CT ends in mm.

    At control points with MU about 2 degrees apart; of a beam that does not rotate at some of them.
    """
    left, right, height = leaf_rows(arc, machine)
    weight = (np.append(arc.mu, 0.0) + np.append(0.0, arc.mu)) / 2
    edges = machine.row_edges_mm()
    low, high = (
        np.maximum(edges[:-1], arc.jaws_mm[:, 2, None]),
        np.minimum(edges[1:], arc.jaws_mm[:, 3, None]),
    )
    isocenter = np.array(plan.isocenter_mm)
    out = []
    for k in _thinned(arc, weight):
        gantry, rows = arc.gantry_deg[k], np.flatnonzero(height[k] > 0)
        if not rows.size:
            continue
        axes = beam_axes(gantry, arc.collimator_deg, arc.couch_deg, plan.patient_position)
        gap = right[k, rows] - left[k, rows]
        u = (left[k, rows, None] + gap[:, None] * _ALONG).ravel()
        v = np.repeat((low[k, rows] + high[k, rows]) / 2, len(_ALONG))
        area = np.repeat(gap * height[k, rows] / len(_ALONG), len(_ALONG))
        points = isocenter + u[:, None] * axes.x + v[:, None] * axes.y
        ahead = _ahead(points, isocenter, axes, machine.sad_mm)
        cut = view.passes_cut(points, ahead)
        end_mm = view.exit_mm(isocenter[None], axes.to_source[None])[0]
        beam = weight[k] * area
        out.append(
            (round(float(gantry % 360.0), 1), float(beam[cut].sum()), float(beam.sum()), float(end_mm))
        )
    return out


def _thinned(arc: Arc, weight: NDArray) -> list[int]:
    """Control points with MU: about 2 degrees apart, or some of a beam that does not rotate."""
    used = np.flatnonzero(weight > 0)
    if not arc.rotates:
        return [int(k) for k in used[:: max(len(used) // _STATIC_POINTS, 1)]]
    kept: list[int] = []
    for k in used:
        if not kept or abs(arc.gantry_deg[k] - arc.gantry_deg[kept[-1]]) > _ANGLE_DEG - 0.01:
            kept.append(int(k))
    return kept


def _ahead(points: NDArray, isocenter: NDArray, axes: BeamAxes, sad_mm: float) -> NDArray[np.float64]:
    way = isocenter + sad_mm * axes.to_source - points
    return way / np.linalg.norm(way, axis=1, keepdims=True)  # type: ignore[no-any-return]
