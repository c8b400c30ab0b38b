"""What a linac that is slightly wrong makes of a plan: pure functions from a plan to the plan delivered.

Errors are systematic, the same in every beam, as those of a calibration are. What comes out may break the
machine's limits: it is not asked to deliver it, it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Limits
from vmat_diffusion.plan import Arc, Plan, timing


def with_gap(plan: Plan, by_mm: float, *, closed_mm: float | None = None) -> Plan:
    """Every pair opened by `by_mm`, each of its leaves by half; leaves that would cross meet in the middle.

    Pairs with a gap of at most `closed_mm` stay as they are; with None all move, as in a wrong calibration.
    """

    def moved(arc: Arc) -> Arc:
        gap = arc.leaves_mm[:, 1] - arc.leaves_mm[:, 0]
        outward = np.maximum(by_mm, -np.maximum(gap, 0.0)) / 2.0
        if closed_mm is not None:
            outward = np.where(gap > closed_mm, outward, 0.0)
        return replace(arc, leaves_mm=arc.leaves_mm + np.stack([-outward, outward], axis=1))

    return _every(plan, moved)


def with_leaf_shift(plan: Plan, by_mm: float) -> Plan:
    """Both banks moved by `by_mm` towards X2; gaps stay."""
    return _every(plan, lambda arc: replace(arc, leaves_mm=arc.leaves_mm + by_mm))


def with_leaf_lag(plan: Plan, by_s: float, limits: Limits) -> Plan:
    """Every leaf where it should have been `by_s` seconds ago, at the plan's fastest pace.

    A leaf at speed v is v times `by_s` behind; one at rest is where it should be, and so is every leaf at the
    start of a beam and after a segment without MU, as a beam that is off waits for the leaves. Exact at
    control points; between them leaves move linearly.
    """

    def late(arc: Arc) -> Arc:
        moment = np.concatenate([[0.0], np.cumsum(timing(arc, limits, plan.dose_rate_mu_min).time_s)])
        leaves = _at(arc.leaves_mm, moment, moment - by_s)
        waited = np.append(True, arc.mu <= 0)
        return replace(arc, leaves_mm=np.where(waited[:, None, None], arc.leaves_mm, leaves))

    return _every(plan, late)


def _at(values: NDArray, moment_s: NDArray, asked_s: NDArray) -> NDArray[np.float64]:
    """`values[n, ...]` at other moments, linear in time between `moment_s`; before the first that one."""
    last = len(moment_s) - 1
    after = np.clip(np.searchsorted(moment_s, asked_s, side="right"), 1, last)
    length = moment_s[after] - moment_s[after - 1]
    share = np.divide(asked_s - moment_s[after - 1], length, out=np.ones_like(length), where=length > 0)
    share = np.clip(share, 0.0, 1.0).reshape((-1,) + (1,) * (values.ndim - 1))
    return values[after - 1] + share * (values[after] - values[after - 1])


def with_mu(plan: Plan, by_percent: float) -> Plan:
    """All monitor units scaled, as by a drift of the monitor chambers."""
    return _every(plan, lambda arc: replace(arc, mu=arc.mu * (1.0 + by_percent / 100.0)))


def with_gantry(plan: Plan, by_deg: float) -> Plan:
    """All beams from a gantry `by_deg` further clockwise."""
    return _every(plan, lambda arc: replace(arc, gantry_deg=arc.gantry_deg + by_deg))


def with_collimator(plan: Plan, by_deg: float) -> Plan:
    """All collimators turned by `by_deg`."""
    return _every(plan, lambda arc: replace(arc, collimator_deg=(arc.collimator_deg + by_deg) % 360.0))


def with_isocenter(plan: Plan, by_mm: Point) -> Plan:
    """The isocentre moved in the patient by (x, y, z): the patient lies as far off to the other side."""
    x, y, z = (float(at + by) for at, by in zip(plan.isocenter_mm, by_mm, strict=True))
    return replace(plan, isocenter_mm=(x, y, z))


def with_jaws(plan: Plan, x_mm: float = 0.0, y_mm: float = 0.0) -> Plan:
    """Each jaw moved outwards by `x_mm` or `y_mm`; jaws that would cross meet in the middle."""

    def moved(arc: Arc) -> Arc:
        jaws = np.array(arc.jaws_mm, np.float64)
        for first, by in ((0, x_mm), (2, y_mm)):
            outward = np.maximum(by, -np.maximum(jaws[:, first + 1] - jaws[:, first], 0.0) / 2.0)
            jaws[:, first] -= outward
            jaws[:, first + 1] += outward
        return replace(arc, jaws_mm=jaws)

    return _every(plan, moved)


def _every(plan: Plan, change: Callable[[Arc], Arc]) -> Plan:
    return replace(plan, arcs=tuple(change(arc) for arc in plan.arcs))
