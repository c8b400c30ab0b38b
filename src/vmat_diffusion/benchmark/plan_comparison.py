"""A plan's dose against the clinical dose of the same patient: DVH points, and criteria met by each.

Organs are compared at the same coverage: the plan's dose is multiplied by one number until D95 of the
target with the highest prescription is that of the clinical dose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vmat_diffusion.benchmark.statistics import Interval, Paired, compare_pairs, pooled_mean, pooled_median
from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.errors import PlanError
from vmat_diffusion.evaluate.dvh import structure_dose_gy
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate, group_results
from vmat_diffusion.evaluate.openkbp import dvh_points

Points = Mapping[str, Mapping[str, float]]
COVERAGE, MEAN = "D95", "mean"
# The last decimal of the challenge's doses: scaled to the same coverage, doses differ by rounding.
_EQUAL_GY = 1e-3
# Shares are of clinical means of at least this.
_LEAST_MEAN_GY = 1.0

# Lower limits of targets and upper limits of organs in Gy, as `plan_criteria_dict` of the published code of
# Babier et al., Phys Med Biol 67:185012 (2022), github.com/ababier/open-kbp-opt, has them.
CHALLENGE_LIMITS_GY: Mapping[tuple[str, str], float] = {
    ("PTV_70", "D99"): 66.5,
    ("PTV_63", "D99"): 59.85,
    ("PTV_56", "D99"): 53.2,
    ("Brainstem", "D0.1cc"): 50.0,
    ("SpinalCord", "D0.1cc"): 45.0,
    ("Bone_Mandible", "D0.1cc"): 73.5,
    ("Parotid_R", "mean"): 26.0,
    ("Parotid_L", "mean"): 26.0,
    ("Esophagus", "mean"): 45.0,
    ("Larynx", "mean"): 45.0,
}


@dataclass(frozen=True)
class Criterion:
    """A criterion's value on one dose, in its own unit, and whether its limit is kept."""

    value: float
    met: bool


@dataclass(frozen=True)
class JudgedDose:
    """DVH points in Gy by structure and metric, and criteria by their statement."""

    points: Points
    criteria: Mapping[str, Criterion]


@dataclass(frozen=True)
class PlanComparison:
    """A plan against the clinical dose.

    `factor` makes the `matched` dose of the `planned` one; `d95_percent` is by how much D95 of `target` is
    above the clinical one before that.
    """

    target: str
    factor: float
    d95_percent: float
    planned: JudgedDose
    matched: JudgedDose
    clinical: JudgedDose


@dataclass(frozen=True)
class CriterionCount:
    """In how many patients a criterion is met by the plan at matched coverage, as planned, and clinically."""

    patients: int
    matched: int
    planned: int
    clinical: int


def compare_plan(planned: Dose, clinical: Dose, case: Case, sheet: GoalSheet) -> PlanComparison:
    """The comparison on the voxels of the case, by a sheet that was fitted to it.

    Raises PlanError where either dose leaves 5 % of the target without dose, so that none can be matched.
    """
    target = highest_target(sheet.prescription)
    as_planned, reference = (judge_dose(dose, case, sheet) for dose in (planned, clinical))
    ours, theirs = (j.points[target][COVERAGE] for j in (as_planned, reference))
    if not min(ours, theirs) > 0:
        raise PlanError(
            f"{target} {COVERAGE} is {ours:.2f} Gy in the plan and {theirs:.2f} Gy in the clinical dose; "
            "both must be above 0 to be matched, leave the patient out"
        )
    factor = theirs / ours
    return PlanComparison(
        target=target,
        factor=factor,
        d95_percent=100 * (ours / theirs - 1),
        planned=as_planned,
        matched=judge_dose(scaled(planned, factor), case, sheet),
        clinical=reference,
    )


def highest_target(prescription: Prescription) -> str:
    """The target with the highest prescription, the first of them."""
    return max(prescription.target_gy, key=lambda name: prescription.target_gy[name])


def scaled(dose: Dose, factor: float) -> Dose:
    """The dose times a number, without the parts that it may be the mean of."""
    std_gy = None if dose.std_gy is None else dose.std_gy * factor
    return replace(dose, gy=dose.gy * factor, std_gy=std_gy, replicates_gy=None)


def judge_dose(dose: Dose, case: Case, sheet: GoalSheet) -> JudgedDose:
    """The challenge's DVH points of every target and organ, and the criteria on them and of the sheet."""
    points = {
        s.name: dvh_points(
            structure_dose_gy(dose, s, case.grid), target=s.role == "target", voxel_cc=case.grid.voxel_cc
        )
        for s in case.structures.values()
        if s.role in ("target", "organ") and s.voxels
    }
    results = evaluate(sheet, case, dose)
    own = {
        str(r.goal): Criterion(r.value, r.status == "pass")
        for r in results
        if r.value is not None and r.group is None
    }
    own |= {
        g.statement: Criterion(float(g.met), g.status == "pass")
        for g in group_results(results)
        if g.evaluated
    }
    # A goal that both name is one criterion.
    return JudgedDose(points, {**_on_points(points, case), **own})


def _on_points(points: Points, case: Case) -> dict[str, Criterion]:
    out: dict[str, Criterion] = {}
    for (name, metric), limit in CHALLENGE_LIMITS_GY.items():
        if name not in points:
            continue
        value, target = points[name][metric], case.structures[name].role == "target"
        # As a goal sheet writes it: D99 is of a share of the volume, D0.1cc is not.
        statement = f"{metric}%" if metric[1:].isdigit() else metric
        met = value >= limit if target else value <= limit
        out[f"{name} {statement} {'>=' if target else '<='} {limit:g} Gy"] = Criterion(value, met)
    return out


def _pairs(compared: Sequence[PlanComparison]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """The plan's value at matched coverage and the clinical one, Gy, per structure and DVH point."""
    out: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one in compared:
        for name, metrics in one.matched.points.items():
            for metric, value in metrics.items():
                out.setdefault((name, metric), []).append((value, one.clinical.points[name][metric]))
    return out


def metric_table(compared: Sequence[PlanComparison]) -> dict[str, dict[str, Paired]]:
    """Each DVH point by structure and metric: the plans at matched coverage against the clinical doses."""
    out: dict[str, dict[str, Paired]] = {}
    for (name, metric), both in sorted(_pairs(compared).items(), key=lambda pair: pair[0][0], reverse=True):
        ours, theirs = zip(*both, strict=True)
        out.setdefault(name, {})[metric] = compare_pairs(ours, theirs, equal_within=_EQUAL_GY)
    return out


def organ_changes_percent(one: PlanComparison) -> dict[str, float]:
    """By how much each organ's mean dose is above the clinical one at matched coverage.

    An organ whose clinical mean is below 1 Gy has none: such shares mean nothing.
    """
    theirs = {name: metrics[MEAN] for name, metrics in one.clinical.points.items() if MEAN in metrics}
    return {
        name: 100 * (one.matched.points[name][MEAN] / gy - 1)
        for name, gy in theirs.items()
        if gy >= _LEAST_MEAN_GY
    }


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


def differences_gy(compared: Sequence[PlanComparison]) -> dict[tuple[str, str], list[float]]:
    """Plan less clinical dose at matched coverage, Gy, per structure and DVH point, patient by patient."""
    pairs = sorted(_pairs(compared).items(), reverse=True)
    return {point: [ours - theirs for ours, theirs in both] for point, both in pairs}
