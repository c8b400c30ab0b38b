"""Whether beams pass what the doses do not hold: a body that the CT cuts off, supports beside the body."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.complexity import leaf_rows
from vmat_diffusion.field_of_view import SMALL_SHARE, FieldOfView, Sector, near_ends
from vmat_diffusion.geometry import beam_axes, distance_to_mask_mm, mask_bounds_mm
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan

# Rays at so many places along the opening of a leaf pair, every so many degrees of gantry. Ours.
_ALONG = np.array([0.1, 0.5, 0.9])
_ANGLE_DEG = 2.0
# So many control points of a beam that does not rotate.
_STATIC_POINTS = 10
# AAPM TG-176 (Olch et al., Med Phys 41:061501, 2014) has what couches take from a beam; recalled, its text
# was not seen.
# Names of what holds a patient, and the step along rays in which it is looked for. Ours.
_SUPPORT = re.compile(r"couch|\btable|support|rails?\b|cradle|mattress|base ?plate", re.IGNORECASE)
_STEP_MM = 2.0


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
    view, rows = FieldOfView.of(case), []
    isocenter = np.array([plan.isocenter_mm])
    for gantry, points, ahead, beam in _rays(plan, machine):
        cut = view.passes_cut(points, ahead)
        straight = ahead.mean(axis=0, keepdims=True)
        end_mm = view.exit_mm(isocenter, straight / np.linalg.norm(straight))[0]
        rows.append((gantry, beam[cut].sum(), beam.sum(), end_mm))
    beams = np.array(rows).reshape(-1, 4)
    passing, whole = beams[:, 1].sum(), beams[:, 2].sum()
    for sector in _sectors(beams, 1.5 * max(map(_spacing_deg, plan.arcs))):
        sentences.append(
            f"the CT ends {sector.distance_mm:.0f} mm from the isocentre at {sector}, where the body goes "
            f"on: up to {100 * sector.share:.0f} % of the beam there, {100 * passing / whole:.1f} % of the "
            "whole plan, pass what the CT does not hold and are calculated as if it were air, so that the "
            "dose behind is too high; scan with a larger field of view or plan without these angles"
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


def supports_in_beam(case: Case, plan: Plan, machine: Machine) -> list[str]:
    """A sentence where beams pass a couch or another support that is drawn beside the body.

    Both dose calculations leave out what lies outside the body.
    """
    found = [s for s in case.structures.values() if s.role == "other" and _SUPPORT.search(s.name)]
    mask = case.union(s.name for s in found) & ~case.body.mask
    if not mask.any() or machine.mlc.pairs != plan.arcs[0].leaves_mm.shape[2]:
        return []
    low, high = (np.array(corner) for corner in mask_bounds_mm(mask, case.grid))
    middle, reach = (low + high) / 2, float(np.linalg.norm(high - low)) / 2
    rows = []
    for gantry, points, ahead, beam in _rays(plan, machine):
        # Only the part of each ray that lies in the ball around all supports.
        nearest = ((middle - points) * ahead).sum(axis=1)
        start = points + np.maximum(nearest - reach, 0.0)[:, None] * ahead
        met = ~np.isnan(
            distance_to_mask_mm(mask, case.grid, start, ahead, reach_mm=2 * reach, step_mm=_STEP_MM)
        )
        rows.append((gantry, beam[met].sum(), beam.sum(), 0.0))
    beams = np.array(rows).reshape(-1, 4)
    sectors = _sectors(beams, 1.5 * max(map(_spacing_deg, plan.arcs)))
    if not sectors:
        return []
    share = 100 * beams[:, 1].sum() / beams[:, 2].sum()
    names = ", ".join(s.name for s in found)
    return [
        f"{share:.0f} % of the beam, at {', '.join(map(str, sectors))}, pass {names}: no dose here knows of "
        "what lies outside the body, and a couch top takes some percent of a beam of 6 MV, a rail more; make "
        "it part of the body or leave these angles out"
    ]


def _rays(plan: Plan, machine: Machine) -> Iterator[tuple[float, NDArray, NDArray, NDArray]]:
    """Gantry angle, points, directions to the source and beam (MU times mm2) of rays through the apertures.

    The points lie in the plane of the isocentre. At control points with MU about 2 degrees apart; of a beam
    that does not rotate at some of them.
    """
    isocenter, edges = np.array(plan.isocenter_mm), machine.row_edges_mm()
    for arc in plan.arcs:
        left, right, height = leaf_rows(arc, machine)
        weight = (np.append(arc.mu, 0.0) + np.append(0.0, arc.mu)) / 2
        low = np.maximum(edges[:-1], arc.jaws_mm[:, 2, None])
        high = np.minimum(edges[1:], arc.jaws_mm[:, 3, None])
        for k in _thinned(arc, weight):
            rows = np.flatnonzero(height[k] > 0)
            if not rows.size:
                continue
            axes = beam_axes(arc.gantry_deg[k], arc.collimator_deg, arc.couch_deg, plan.patient_position)
            gap = right[k, rows] - left[k, rows]
            u = (left[k, rows, None] + gap[:, None] * _ALONG).ravel()
            v = np.repeat((low[k, rows] + high[k, rows]) / 2, len(_ALONG))
            area = np.repeat(gap * height[k, rows] / len(_ALONG), len(_ALONG))
            points = isocenter + u[:, None] * axes.x + v[:, None] * axes.y
            way = isocenter + machine.sad_mm * axes.to_source - points
            ahead = way / np.linalg.norm(way, axis=1, keepdims=True)
            yield round(float(arc.gantry_deg[k] % 360.0), 1), points, ahead, weight[k] * area


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
