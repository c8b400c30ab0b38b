"""Plans of many patients against their clinical doses: differences, criteria, sparing, intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmat_diffusion.evaluate.bootstrap import Interval, pooled_mean, pooled_median
from vmat_diffusion.evaluate.paired import Paired, compare_pairs
from vmat_diffusion.evaluate.plan_comparison import Criterion, PlanComparison

MEAN = "mean"
# The last decimal of the challenge's doses: scaled to the same coverage, doses differ by rounding.
_EQUAL_GY = 1e-3


@dataclass(frozen=True)
class CriterionCount:
    """In how many patients a criterion is met by the plan at matched coverage, as planned, and clinically."""

    patients: int
    matched: int
    planned: int
    clinical: int


def metric_table(compared: Sequence[PlanComparison]) -> dict[str, dict[str, Paired]]:
    """Each DVH point by structure and metric: the plans at matched coverage against the clinical doses."""
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in compared:
        for name, metrics in one.matched.points.items():
            for metric, value in metrics.items():
                both = (value, one.clinical.points[name][metric])
                pairs.setdefault(name, {}).setdefault(metric, []).append(both)
    return {
        name: {
            metric: compare_pairs([a for a, _ in both], [b for _, b in both], equal_within=_EQUAL_GY)
            for metric, both in metrics.items()
        }
        for name, metrics in sorted(pairs.items(), reverse=True)
    }


def organ_changes_percent(one: PlanComparison) -> dict[str, float]:
    """By how much each organ's mean dose is above the clinical one at matched coverage.

    An organ without any clinical dose has none.
    """
    theirs = {name: metrics[MEAN] for name, metrics in one.clinical.points.items() if MEAN in metrics}
    return {name: 100 * (one.matched.points[name][MEAN] / gy - 1) for name, gy in theirs.items() if gy > 0}


def organ_change(compared: Sequence[PlanComparison]) -> Interval | None:
    """The median of `organ_changes_percent` over organs and patients; None without any."""
    changes = [list(organ_changes_percent(one).values()) for one in compared]
    changes = [c for c in changes if c]
    return pooled_median(changes) if changes else None


def d95_difference(compared: Sequence[PlanComparison]) -> Interval:
    """The median of D95 of the highest target, in percent above the clinical one, before matching."""
    return pooled_median([[one.d95_percent] for one in compared])


def criteria_table(compared: Sequence[PlanComparison]) -> dict[str, CriterionCount]:
    """Each criterion over the patients in whom it can be judged."""
    out: dict[str, CriterionCount] = {}
    for one in compared:
        for label, criterion in one.matched.criteria.items():
            before = out.get(label, CriterionCount(0, 0, 0, 0))
            out[label] = CriterionCount(
                patients=before.patients + 1,
                matched=before.matched + criterion.met,
                planned=before.planned + one.planned.criteria[label].met,
                clinical=before.clinical + one.clinical.criteria[label].met,
            )
    return out


def criteria_shares(compared: Sequence[PlanComparison]) -> dict[str, Interval]:
    """The percent of all criteria that are met: at matched coverage, as planned, clinically."""
    doses: dict[str, list[Mapping[str, Criterion]]] = {
        "matched": [one.matched.criteria for one in compared],
        "planned": [one.planned.criteria for one in compared],
        "clinical": [one.clinical.criteria for one in compared],
    }
    return {
        which: pooled_mean([100.0 * criteria_met(c) for c in own], [len(c) for c in own])
        for which, own in doses.items()
    }


def criteria_met(criteria: Mapping[str, Criterion]) -> int:
    """How many are met."""
    return sum(c.met for c in criteria.values())
