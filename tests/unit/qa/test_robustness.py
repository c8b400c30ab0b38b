"""What small errors of the linac do to a plan's dose, and what the gate makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import open_arc, small_case
from water import tank

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.evaluate.fractionation import eqd2_gy
from vmat_diffusion.evaluate.goal_types import Goal, GoalSheet
from vmat_diffusion.evaluate.goals import load_goals
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.qa import Outcome, Verdict, robustness_of, with_robustness
from vmat_diffusion.qa.robustness import mean_effective_gap_mm, scenarios
from vmat_diffusion.qa.robustness_result import Change, GoalChange, Robustness, ScenarioResult, not_computed

MACHINE = load_machine("generic_6mv")
MLC = MACHINE.mlc
NAMES = [s.name for s in scenarios(MACHINE.limits)]
ROWS = ["gap 0.5 mm", "gap 1 mm", "leaf banks 0.5 mm", "leaf lag 20 ms", "gantry 0.5 deg"]
ROWS += ["collimator 0.5 deg", "isocentre 1 mm", "MU 1 %"]


def named(found: Robustness, name: str) -> ScenarioResult:
    (result,) = [r for r in found.results if r.name == name]
    return result


def percent(found: Robustness, name: str, metric: str = "mean") -> float:
    (change,) = [c for c in named(found, name).changes if c.metric == metric]
    assert change.percent is not None
    return change.percent


def sweeping_gap(gap_mm: float, travel_mm: float = 100.0) -> Plan:
    """A gap that crosses a field of 6 x 6 cm from above, at even speed."""
    n = 121
    centre = np.linspace(-travel_mm / 2, travel_mm / 2, n)[:, None]
    leaves = np.stack([centre - gap_mm / 2, centre + gap_mm / 2], axis=1) * np.ones((1, 1, MLC.pairs))
    jaws = np.tile([-30.0, 30.0, -30.0, 30.0], (n, 1))
    arc = Arc(np.zeros(n), 0.0, 0.0, leaves, jaws, np.full(n - 1, 3.0))
    return Plan((arc,), (0.0, 100.0, 0.0), 1, MACHINE.name)


def tank_with_target() -> Case:
    """A tank with a small target in the middle of the field and at the isocentre."""
    case = tank(depth_mm=200.0, half_mm=100.0)
    near = np.linalg.norm(
        case.grid.points_mm(np.arange(np.prod(case.grid.shape))) - [0.0, 100.0, 0.0], axis=1
    )
    mask = (near < 9.0).reshape(case.grid.shape)
    structures = {**case.structures, "PTV": Structure("PTV", "target", mask)}
    return replace(case, structures=structures, prescription=Prescription(1, {"PTV": 2.0}))


def uniform(case: Case) -> Dose:
    return Dose(case.grid, np.full(case.grid.shape, 2.0, np.float32))


@pytest.mark.parametrize("gap_mm", [6.0, 20.0])
def test_a_gap_error_changes_a_sweeping_field_by_its_share_of_the_gap(gap_mm: float) -> None:
    """D / D0 = T + (1 - T)(g + offset) / L, so dD / D = e / (g + offset + T L / (1 - T))."""
    travel, t = 100.0, MLC.transmission
    found = robustness_of(
        tank_with_target(), None, sweeping_gap(gap_mm), MACHINE, uniform(tank_with_target())
    )
    effective = gap_mm + MLC.gap_offset_mm
    for e, name in ((0.5, "gaps 0.5 mm wider"), (-1.0, "gaps 1 mm narrower")):
        expected = 100.0 * e / (effective + t * travel / (1.0 - t))
        assert percent(found, name) == pytest.approx(expected, rel=0.03)
    # A gap that passes the field is the mean gap, but for the moments in which a jaw cuts it.
    assert found.mean_gap_mm == pytest.approx(effective, rel=0.02)
    assert found.expected_percent_mm == pytest.approx(100.0 / effective, rel=0.02)
    # Leaves of equal speed keep the time that a point is open, and so does a shift of the whole sweep.
    for name in ("leaves 20 ms late", "leaves 0.5 mm towards X2", "leaves 0.5 mm towards X1"):
        assert percent(found, name) == pytest.approx(0.0, abs=0.1)
    assert percent(found, "MU +1 %") == pytest.approx(1.0, abs=1e-4)
    assert percent(found, "MU -1 %") == pytest.approx(-1.0, abs=1e-4)
    assert percent(found, "isocentre +1 mm in z") == pytest.approx(0.0, abs=0.1)
    # 1 mm towards the source: inverse square of 1 m, and the depth stays.
    assert percent(found, "isocentre -1 mm in y") == pytest.approx(-0.2, abs=0.05)


def test_a_gap_behind_the_jaws_gains_nothing() -> None:
    (arc,) = sweeping_gap(20.0).arcs
    behind = arc.leaves_mm.copy()
    behind[:, 0], behind[:, 1] = -60.0, 60.0
    open_field = replace(sweeping_gap(20.0), arcs=(replace(arc, leaves_mm=behind),))
    assert mean_effective_gap_mm(open_field, MACHINE) is None
    one_bank = behind.copy()
    one_bank[:, 1] = 10.0
    half = replace(open_field, arcs=(replace(arc, leaves_mm=one_bank),))
    assert mean_effective_gap_mm(half, MACHINE) == pytest.approx(2 * (40.0 + MLC.gap_offset_mm / 2))


def musts(structure: str, metric: str, limit: float, **more: object) -> GoalSheet:
    """The easy C-shape's sheet with this must alone."""
    goal = Goal(structure, Metric.parse(metric), "<=", limit, "Gy", priority=1, **more)  # type: ignore[arg-type]
    return replace(load_goals("tg119_cshape_easy"), goals=(goal,))


def leaf_bound() -> Plan:
    """The open arc with X jaws that stand back, so that leaves bound its field; the organ lies beside it."""
    (arc,) = open_arc().arcs
    jaws = np.tile([-40.0, 40.0, -20.0, 20.0], (len(arc.gantry_deg), 1))
    return replace(open_arc(), arcs=(replace(arc, jaws_mm=jaws),))


@pytest.fixture(scope="module")
def planned() -> Dose:
    return PencilBeam(MACHINE)(leaf_bound(), small_case(), small_case().grid)


def core_gy(dose: Dose) -> float:
    return float(dose.gy[small_case().structures["Core"].mask].max())


def test_every_scenario_has_limits_and_a_source() -> None:
    assert list(dict.fromkeys(s.row for s in scenarios(MACHINE.limits))) == ROWS
    for scenario in scenarios(MACHINE.limits):
        assert scenario.source
        if scenario.row != "MU 1 %":
            assert scenario.accepted_percent is not None and scenario.limit_percent is not None
            assert scenario.accepted_percent < scenario.limit_percent


def test_a_plan_without_a_sheet_is_judged_by_its_targets(planned: Dose) -> None:
    found = robustness_of(small_case(), None, leaf_bound(), MACHINE, planned)
    assert [r.name for r in found.results] == NAMES
    assert {c.structure for r in found.results for c in r.changes} == {"PTV"}
    assert {c.group for c in found.checks(stops=False)} == {"robustness"}
    assert [c.name for c in found.checks(stops=False)] == [f"robustness: {row}" for row in ROWS]


def test_a_serial_organ_is_reported_though_no_goal_asks(planned: Dose) -> None:
    case = small_case()
    core = case.structures["Core"]
    cord = replace(core, name="SpinalCord")
    case = replace(case, structures={**case.structures, "SpinalCord": cord})
    found = robustness_of(case, None, leaf_bound(), MACHINE, planned)
    changes = named(found, "leaves 0.5 mm towards X1").changes
    (near_maximum,) = [c for c in changes if c.structure == "SpinalCord"]
    assert near_maximum.metric == "D0.03cc"
    assert near_maximum.planned_gy == pytest.approx(core_gy(planned), rel=0.02)
    assert near_maximum.gy != 0.0


def test_an_error_that_costs_a_must_of_an_organ_is_above_its_limit(planned: Dose) -> None:
    """The dose of the organ rises with the gap by some percent; its limit lies just above the plan's."""
    limit = 1.0005 * core_gy(planned)
    found = robustness_of(small_case(), musts("Core", "max", limit), leaf_bound(), MACHINE, planned)
    wider = named(found, "gaps 1 mm wider")
    assert wider.colour == "red" and wider.goals[0].delivered == "fail"
    assert "then missed: Core max" in wider.sentence
    assert not named(found, "gaps 1 mm narrower").goals_lost
    allowed = musts("Core", "D0.1cc", limit, variation=2 * limit)
    varied = named(robustness_of(small_case(), allowed, leaf_bound(), MACHINE, planned), "gaps 1 mm wider")
    assert varied.goals[0].delivered == "acceptable" and "variation alone" in varied.sentence
    # A goal that the plan misses anyway is not the linac's fault.
    missed = musts("Core", "max", 0.5 * limit)
    found = robustness_of(small_case(), missed, leaf_bound(), MACHINE, planned)
    assert all(g.planned == "fail" and not g.worse for r in found.results for g in r.goals)


def test_goals_in_percent_and_eqd2_are_judged_in_physical_dose(planned: Dose) -> None:
    """The limit of 1.0005 times the planned maximum, as percent of the prescription and as EQD2."""
    limit = 1.0005 * core_gy(planned)
    percent_of = replace(musts("Core", "max", 1.0).goals[0], metric=Metric.parse("max[%]"), unit="%")
    sheet = load_goals("tg119_cshape_easy")
    eqd2 = float(eqd2_gy(limit, 2.0, sheet.prescription.fractions))
    for goal in (replace(percent_of, limit=2.0 * limit), musts("Core", "max", eqd2, eqd2=2.0).goals[0]):
        found = robustness_of(small_case(), replace(sheet, goals=(goal,)), leaf_bound(), MACHINE, planned)
        assert named(found, "gaps 1 mm wider").goals[0].delivered == "fail"
        assert named(found, "gaps 1 mm narrower").goals[0].delivered == "pass"


def test_a_plan_that_cannot_be_computed_is_said_to_be_so(planned: Dose) -> None:
    case, plan = small_case(), leaf_bound()
    dark = replace(plan, arcs=(replace(plan.arcs[0], mu=np.zeros(18)),))
    far = replace(plan, isocenter_mm=(0.0, 0.0, 400.0))
    no_target = replace(
        case, structures={n: s for n, s in case.structures.items() if s.role != "target"}, prescription=None
    )
    for found, why in (
        (robustness_of(case, None, dark, MACHINE, planned), "no beam with monitor units"),
        (robustness_of(case, None, far, MACHINE, planned), "outside the body"),
        (robustness_of(no_target, None, plan, MACHINE, planned), "no target"),
        (robustness_of(case, None, plan, replace(MACHINE, beam=None), planned), "beam"),
    ):
        assert not found.results and why in found.reason
        (warned,) = found.checks(stops=False)
        assert warned.warns and why in warned.why
        (open_,) = found.checks(stops=True)
        assert open_.undecided and not open_.passed
        assert found.record()["computed"] is False and found.gap_text == ""


def result(name: str, percent: float, goals: tuple[GoalChange, ...] = ()) -> ScenarioResult:
    """A scenario of one row whose target changes by so many percent; look above 1.5, limit 2.5 %."""
    change = Change("PTV", "mean", 50.0, 50.0 * (1 + percent / 100))
    return ScenarioResult("gap 0.5 mm", name, 0.5, "mm", 1.5, 2.5, "a source", (change,), goals)


@pytest.mark.parametrize(
    ("percents", "colour", "word"),
    [((1.0, -1.2), "green", "pass"), ((1.0, -2.0), "amber", "pass"), ((2.6, -2.0), "red", "warning")],
)
def test_the_worst_scenario_decides_its_row(percents: tuple[float, ...], colour: str, word: str) -> None:
    found = Robustness(tuple(result(f"error {k}", p) for k, p in enumerate(percents)))
    (check,) = found.checks(stops=False)
    worst = max(percents, key=abs)
    assert check.word == word and check.value == pytest.approx(abs(worst)) and check.limit == 2.5
    assert f"{worst:+.2f} %" in check.why and "a source" in check.why
    assert max(found.results, key=lambda r: abs(r.changes[0].percent or 0)).colour == colour
    (stopped,) = found.checks(stops=True)
    assert stopped.passed == (colour != "red")


def test_a_target_without_dose_is_above_every_limit() -> None:
    nothing = replace(result("x", 0.0), changes=(Change("PTV", "mean", 0.0, 0.0),))
    assert nothing.colour == "red" and "no target has a dose" in nothing.sentence


def test_the_verdict_takes_the_rows_and_stops_only_where_asked() -> None:
    before = Verdict(())
    found = Robustness((result("wide", 3.0),))
    warned = with_robustness(before, found, stops=False)
    assert warned.outcome is Outcome.PASSED and warned.robustness is found and warned.checks[0].warns
    assert with_robustness(before, found, stops=True).outcome is Outcome.FAILED
    assert with_robustness(before, not_computed("x"), stops=True).outcome is Outcome.INCONCLUSIVE
    assert with_robustness(before, not_computed("x"), stops=False).outcome is Outcome.PASSED


def test_names_are_replaced_everywhere() -> None:
    goal = GoalChange("Core max <= 20 Gy", "pass", "fail")
    coded = Robustness((result("wide", 3.0, (goal,)),)).renamed(str.lower, str.upper)
    assert coded.results[0].changes[0].structure == "ptv" and "CORE MAX" in coded.results[0].sentence
