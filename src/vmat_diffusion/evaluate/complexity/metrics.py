"""The metrics of a plan: modulation, apertures, leaf motion, MU and time. Equations: `docs/complexity.md`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Prescription
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan, timing
from vmat_diffusion.plan.timing import STILL_DEG

# A leaf pair with a smaller gap counts as closed: it is parked, or at the minimum gap.
OPEN_GAP_MM = 1.0
_SMALL_MM = (5.0, 10.0)
# An X jaw that stands before no leaf.
_WIDE_MM = 1e4


@dataclass(frozen=True)
class Complexity:
    """Metrics of a plan or of one beam; those of apertures are weighted by MU.

    `mcs` is 1 for a steady rectangle and falls with modulation (Masi 2013). `edge_per_mm` is the length of
    leaf sides over the area (Younge 2012). `small_5mm` and `small_10mm` are the shares of open pairs that
    have no larger gap (Crowe 2014). `leaf_travel_mm` is the travel of a leaf in the field, mean over leaves
    and beams. `smallest_gap_mm` and `mean_gap_mm` are the distance of the two leaves of pairs that are open
    in the field, the least of all and the mean; `leaf_motion_mm_deg` is the travel per degree of gantry of
    the fastest leaf in any segment with MU; `beam_on_s` the time of all beams at the fastest delivery. None
    where a metric has no meaning: without a dose, with a static gantry, or with no pair open.
    """

    mcs: float
    mean_area_cm2: float
    edge_per_mm: float
    small_5mm: float
    small_10mm: float
    smallest_gap_mm: float | None
    mean_gap_mm: float | None
    leaf_travel_mm: float
    leaf_travel_mm_deg: float | None
    leaf_motion_mm_deg: float | None
    mu_per_gy: float | None
    beam_on_s: float
    mean_dose_rate_mu_min: float
    mean_gantry_speed_deg_s: float | None

    def record(self) -> dict[str, float | None]:
        """Plain data."""
        return {name: None if v is None else round(float(v), 4) for name, v in asdict(self).items()}


def complexity(plan: Plan, machine: Machine, gy_per_fraction: float | None = None) -> Complexity:
    """Metrics of a plan over all its beams with MU; for one beam, give a plan of that beam alone.

    `gy_per_fraction` is the highest prescribed dose of a fraction. Aperture metrics are means over the beams
    weighted by MU, leaf travel a mean over the beams, speeds those of the fastest delivery.
    """
    arcs = [arc for arc in plan.arcs if arc.total_mu > 0]
    mu = np.array([arc.total_mu for arc in arcs])
    if not arcs:
        return Complexity(0.0, 0.0, 0.0, 0.0, 0.0, None, None, 0.0, None, None, None, 0.0, 0.0, None)
    shapes = np.array([_apertures(arc, machine) for arc in arcs])
    mcs, area_mm2, edge, *small = (float(v) for v in mu @ shapes / mu.sum())
    travel = np.array([_leaf_travel_mm(arc, machine) for arc in arcs])
    turn = np.array([np.abs(np.diff(arc.gantry_deg)).sum() for arc in arcs])
    seconds = sum(timing(arc, machine.limits, plan.dose_rate_mu_min).total_s for arc in arcs)
    turns = float(turn.sum()) > 0
    motion = [found for arc in arcs if (found := _leaf_motion_mm_deg(arc, machine)) is not None]
    smallest, mean_gap = _gaps_mm(arcs, machine)
    return Complexity(
        mcs=mcs,
        mean_area_cm2=area_mm2 / 100.0,
        edge_per_mm=edge,
        small_5mm=small[0],
        small_10mm=small[1],
        smallest_gap_mm=smallest,
        mean_gap_mm=mean_gap,
        leaf_travel_mm=float(travel.mean()),
        leaf_travel_mm_deg=float(travel.sum() / turn.sum()) if turns else None,
        leaf_motion_mm_deg=max(motion, default=None),
        mu_per_gy=plan.total_mu / gy_per_fraction if gy_per_fraction else None,
        beam_on_s=seconds,
        mean_dose_rate_mu_min=60.0 * plan.total_mu / seconds,
        mean_gantry_speed_deg_s=float(turn.sum() / seconds) if turns else None,
    )


def complexity_of(plan: Plan, machine: Machine, prescription: Prescription | None) -> Complexity | None:
    """The metrics of a plan for a prescription; None where the machine has other leaves than the plan.

    Without a prescription MU per Gy refer to the highest dose that the plan file itself prescribes.
    """
    if any(arc.leaves_mm.shape[2] != machine.mlc.pairs for arc in plan.arcs):
        return None
    stated = prescription.target_gy if prescription else plan.provenance.get("prescribed_gy")
    levels = list(stated.values()) if isinstance(stated, Mapping) else []
    return complexity(plan, machine, max(levels) / plan.fractions if levels else None)


def leaf_rows(arc: Arc, machine: Machine) -> tuple[NDArray, NDArray, NDArray]:
    """Left and right edge of the opening and its height `[n, rows]` in mm, of jaws and all layers.

    A leaf row lies between two neighbouring leaf boundaries of any layer; left = right where it is closed.
    """
    edges, pairs = machine.row_edges_mm(), machine.row_pairs()
    x1, x2, y1, y2 = (side[:, None] for side in arc.jaws_mm.T)
    left, right = (np.broadcast_to(x, (len(x), len(pairs))).copy() for x in (x1, x2))
    for layer in pairs.T:
        there = layer >= 0
        left[:, there] = np.maximum(left[:, there], arc.leaves_mm[:, 0, layer[there]])
        right[:, there] = np.minimum(right[:, there], arc.leaves_mm[:, 1, layer[there]])
    height = np.clip(np.minimum(edges[1:], y2) - np.maximum(edges[:-1], y1), 0.0, None)
    is_open = (right - left > OPEN_GAP_MM) & (height > 0)
    return np.where(is_open, left, 0.0), np.where(is_open, right, 0.0), np.where(is_open, height, 0.0)


def _gaps_mm(arcs: list[Arc], machine: Machine) -> tuple[float | None, float | None]:
    """The smallest and the mean distance of the leaves of pairs open in the field, while there are MU.

    The mean is weighted by MU. Where an X jaw stands before a leaf the leaf counts, not the jaw.
    """
    smallest, total, count = np.inf, 0.0, 0.0
    for arc in arcs:
        _, _, height = leaf_rows(arc, machine)
        wide = arc.jaws_mm.copy()
        wide[:, 0], wide[:, 1] = -_WIDE_MM, _WIDE_MM
        left, right, _ = leaf_rows(replace(arc, jaws_mm=wide), machine)
        gap, is_open = right - left, height > 0
        weight = ((np.append(arc.mu, 0.0) + np.append(0.0, arc.mu)) / 2)[:, None] * is_open
        if weight.any():
            smallest = min(smallest, float(gap[weight > 0].min()))
            total, count = total + float((weight * gap).sum()), count + float(weight.sum())
    return (smallest, total / count) if count > 0 else (None, None)


def _leaf_motion_mm_deg(arc: Arc, machine: Machine) -> float | None:
    """Travel per degree of the fastest leaf in any segment with MU; None where the gantry stands still.

    The leaves between the Y jaws count, also those that wait closed: they have to keep up as well.
    """
    turn = np.abs(np.diff(arc.gantry_deg))
    used = (turn > STILL_DEG) & (arc.mu > 0)
    if not used.any():
        return None
    between = _between_jaws(arc, machine)
    counted = (between[1:] | between[:-1])[:, None, :]
    travel = np.where(counted, np.abs(np.diff(arc.leaves_mm, axis=0)), 0.0).max(axis=(1, 2), initial=0.0)
    return float((travel[used] / turn[used]).max())


def _between_jaws(arc: Arc, machine: Machine) -> NDArray[np.bool_]:
    """Which pairs lie between the Y jaws, wholly or in part, `[n, pairs]`."""
    edges = [np.asarray(layer.boundaries_mm) for layer in machine.mlc.layers]
    low, high = (np.concatenate([e[side] for e in edges]) for side in (slice(None, -1), slice(1, None)))
    y1, y2 = arc.jaws_mm[:, 2, None], arc.jaws_mm[:, 3, None]
    return (high > y1) & (low < y2)


def _apertures(arc: Arc, machine: Machine) -> list[float]:
    """MCSv, mean area in mm2, edge metric in 1/mm and small aperture scores of one arc."""
    left, right, height = leaf_rows(arc, machine)
    gap, is_open = right - left, height > 0
    area = (gap * height).sum(axis=1)
    modulation = _between(_variability(left, right, is_open)) * _between(
        _area_variability(left, right, is_open)
    )
    share = arc.mu / arc.total_mu
    weight = (np.append(share, 0.0) + np.append(0.0, share)) / 2
    edge = np.divide(_sides_mm(left, right), area, out=np.zeros_like(area), where=area > 0)
    counted = np.maximum(is_open.sum(axis=1), 1)
    small = [((gap <= mm) & is_open).sum(axis=1) / counted for mm in _SMALL_MM]
    return [float(share @ modulation), *(float(weight @ values) for values in (area, edge, *small))]


def _between(values: NDArray) -> NDArray[np.float64]:
    """Mean of both ends of every segment."""
    return (values[1:] + values[:-1]) / 2


def _variability(left: NDArray, right: NDArray, is_open: NDArray) -> NDArray[np.float64]:
    """Leaf sequence variability of each control point (McNiven 2010, equation 1): product over both banks."""
    out = np.ones(len(left))
    for k, used in enumerate(is_open):
        for bank in (left[k, used], right[k, used]):
            spread = np.ptp(bank) if bank.size else 0.0
            if spread > 0:
                out[k] *= np.mean(spread - np.abs(np.diff(bank))) / spread
    return out * is_open.any(axis=1)


def _area_variability(left: NDArray, right: NDArray, is_open: NDArray) -> NDArray[np.float64]:
    """Aperture area variability (McNiven 2010, equation 2): openings over the widest ones of the arc."""
    outer = np.where(is_open, right, -np.inf).max(axis=0) - np.where(is_open, left, np.inf).min(axis=0)
    widest = np.where(is_open.any(axis=0), outer, 0.0).sum()
    return (right - left).sum(axis=1) / widest if widest > 0 else np.zeros(len(left))


def _sides_mm(left: NDArray, right: NDArray) -> NDArray[np.float64]:
    """Length of the leaf sides, and of jaws beyond the last leaf, that bound the opening."""
    closed = np.zeros((len(left), 1))
    a, b = (np.hstack([closed, edge, closed]) for edge in (left, right))
    overlap = np.clip(np.minimum(b[:, 1:], b[:, :-1]) - np.maximum(a[:, 1:], a[:, :-1]), 0.0, None)
    return ((b - a)[:, 1:] + (b - a)[:, :-1] - 2 * overlap).sum(axis=1)


def _leaf_travel_mm(arc: Arc, machine: Machine) -> float:
    """Travel of a leaf in the arc (Masi 2013), mean over both leaves of the pairs that open in the field."""
    wide = arc.leaves_mm[:, 1] - arc.leaves_mm[:, 0] > OPEN_GAP_MM
    used = (wide & _between_jaws(arc, machine)).any(axis=0)
    if not used.any():
        return 0.0
    return float(np.abs(np.diff(arc.leaves_mm[:, :, used], axis=0)).sum(axis=0).mean())
