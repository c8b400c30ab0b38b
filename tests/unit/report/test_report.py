"""The report: whole, self-contained, honest about what is missing, and the right way round."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_case import open_arc

from vmat_diffusion.case import Case, Dose, Prescription, Source, Structure
from vmat_diffusion.evaluate.goals import DeliveryGoal, Goal, GoalResult, load_goals
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.origin import uid_code
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.report import Reported, plan_picture, write_report
from vmat_diffusion.report.charts import control_points_figure, png
from vmat_diffusion.report.looks import ShownDose, reference_gy, shown_structures
from vmat_diffusion.report.planes import planes_figure


@pytest.fixture(scope="module")
def machine() -> Machine:
    return load_machine("generic_6mv")


@pytest.fixture
def case() -> Case:
    grid = Grid((20, 30, 40), (3.0, 3.0, 4.0), (-58.5, -43.5, -38.0))
    x, y, z = grid.axes_mm
    r2 = x[None, None, :] ** 2 + y[None, :, None] ** 2 + 0 * z[:, None, None]
    target = (r2 < 15**2) & (np.abs(z) < 20)[:, None, None]
    cord = ((x[None, None, :] ** 2 + (y[None, :, None] - 28) ** 2) < 6**2) & np.ones((20, 1, 1), bool)
    structures = {
        "BODY": Structure("BODY", "body", r2 < 41**2),
        "PTV_70": Structure("PTV_70", "target", target, "ptv <script>alert(1)</script>"),
        "SpinalCord": Structure("SpinalCord", "organ", cord, "Cord"),
        "Ring": Structure("Ring", "other", r2 < 20**2),
        "Larynx": Structure("Larynx", "organ", np.zeros(grid.shape, bool)),
    }
    source = Source(study_uid="1.2.3.4", image_path="/secret/place", steps=("a named step",))
    hu = np.where(r2 < 41**2, 0, -1000).astype(np.int16)
    return Case(
        "case-1", "head_neck", grid, hu, structures, Prescription(35, {"PTV_70": 70.0}), source=source
    )


@pytest.fixture
def dose(case: Case) -> Dose:
    x, y, _ = case.grid.axes_mm
    r2 = x[None, None, :] ** 2 + y[None, :, None] ** 2
    gy = np.broadcast_to(73 * np.exp(-r2 / (2 * 30**2)), case.grid.shape)
    return Dose(case.grid, gy.astype(np.float32), provenance={"engine": "analytic"})


def _arc(machine: Machine, start: float, stop: float, number: int) -> Arc:
    n = 10
    leaves = np.zeros((n, 2, machine.mlc.pairs))
    leaves[:, 1] = 0.5
    leaves[:, 0, 25:35] = -20.0 + np.arange(n)[:, None]
    leaves[:, 1, 25:35] = 20.0
    jaws = np.tile([-30.0, 30.0, -40.0, 40.0], (n, 1))
    return Arc(
        np.linspace(start, stop, n), 10.0, 0.0, leaves, jaws, np.full(n - 1, 2.0), f"Arc {number}", number
    )


@pytest.fixture
def plan(machine: Machine) -> Plan:
    return Plan(
        (_arc(machine, 181.0, 199.0, 1), _arc(machine, 40.0, 40.0, 2)), (0.0, 0.0, 0.0), 35, machine.name
    )


def _results() -> tuple[GoalResult, ...]:
    def result(structure: str, metric: str, limit: float, value: float | None, status: str) -> GoalResult:
        m = Metric.parse(metric)
        goal = Goal(structure, m, "<=", limit, m.result_unit, limit + 3, 1, f"source of {structure}")
        note = "not contoured" if value is None else ""
        return GoalResult(goal, value, status, note)  # type: ignore[arg-type]

    return (
        result("PTV_70", "D2%", 77.0, 74.123, "pass"),
        result("SpinalCord", "D0.03cc", 45.0, 46.5, "acceptable"),
        result("Ring", "mean", 40.0, 50.0, "fail"),
        result("Larynx", "mean", 44.0, None, "not evaluated"),
    )


def test_goals_on_the_delivery_stand_in_the_report_with_value_status_and_source(
    tmp_path: Path, case: Case, plan: Plan, machine: Machine, dose: Dose
) -> None:
    """648 MU for 2 Gy are 324 MU/Gy: above the limit, acceptable, and above published plans."""
    plan = replace(plan, arcs=tuple(replace(arc, mu=18 * arc.mu) for arc in plan.arcs))
    goals = (
        DeliveryGoal("MU", 300.0, 350.0, source="our physicists", seen="chosen"),
        DeliveryGoal("open gap", 100.0, 90.0, priority=3, source="theirs"),
    )
    sheet = replace(load_goals("head_neck_70_63_56"), delivery=goals)
    path = write_report(
        tmp_path / "report.html",
        Reported(
            case=case,
            plan=plan,
            machine=machine,
            dose=dose,
            results=_results(),
            violations=[],
            provenance={},
            sheet=sheet,
        ),
    )
    page = path.read_text(encoding="utf-8")
    table = page[page.index("Goals on the delivery") :]
    table = table[: table.index("</table>")]
    for expected in (
        "MU ≤ 300 MU/Gy",
        "<div>Should</div>",
        "350 MU/Gy",
        "<strong>324 MU/Gy</strong>",
        "~ acceptable",
        "our physicists (chosen)",
        "open gap ≥ 100 mm",
        "<div>Wish</div>",
        "✗ fail",
    ):
        assert expected in table, expected
    assert "at most 275 MU/Gy (head neck)" in page and page.count(">outside<") == 1


def test_report_is_one_file_that_refers_to_nothing_else(
    tmp_path: Path, case: Case, plan: Plan, machine: Machine, dose: Dose
) -> None:
    path = write_report(
        tmp_path / "report.html",
        Reported(
            case=case,
            plan=plan,
            machine=machine,
            dose=dose,
            results=_results(),
            violations=["beam 1: leaf pair 3 is <too> fast"],
            provenance={
                "version": "9.8.7",
                "seed": 5,
                "configuration": {"arcs": 2, "when": Path("x"), "w": np.arange(2)},
            },
            history=[3.0, 2.0, 1.0],
            seconds={"optimise": 12.34},
        ),
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.pdf"]
    page = path.read_text(encoding="utf-8")
    for source in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert source.startswith(("data:image/", "#"))
    assert not re.search(r"https?://|@import|url\(", page)
    assert "<script" not in page
    assert "ptv &lt;script&gt;" in page and "is &lt;too&gt; fast" in page
    assert "/secret/place" not in page and "1.2.3.4" not in page
    for expected in (
        "For research. Not for clinical use.",
        "Modulation complexity score",
        "0.21 to 0.23: 217 prostate plans",
        "UNAPPROVED",
        "Not deliverable: 1 violation<",
        "2 required goals missed",
        "of 3 goals 1 pass, 1 acceptable, 1 fail; 1 not evaluated",
        "D2% ≤ 77 Gy",
        "74.12 Gy",
        "✗ fail",
        "~ acceptable",
        "source of SpinalCord",
        "Not evaluated, not contoured, though required: Larynx mean ≤ 44 Gy.",
        "36.0 MU per fraction",
        "181.0° → 199.0°",
        "clockwise, 18°",
        "static",
        "9.8.7",
        f"code {uid_code('1.2.3.4')}",
        "a named step",
        "optimise 12.3 s",
        '<th scope="row">engine</th><td><div>analytic</div></td>',
        '<th scope="row">arcs</th><td><div>2</div></td>',
    ):
        assert expected in page, expected
    # DVH, planes through two points and their surroundings, two pictures of two beams, and the history.
    assert page.count('src="data:image/') == 1 + 7 + 4 + 1
    assert "<details" not in page  # print would hide what is folded


def test_report_of_a_sound_plan_without_goals_history_or_prescription(
    tmp_path: Path, case: Case, plan: Plan, machine: Machine, dose: Dose
) -> None:
    bare = replace(case, prescription=None)
    page = write_report(
        tmp_path / "r.html",
        Reported(
            case=bare,
            plan=plan,
            machine=machine,
            dose=dose,
            results=(),
            violations=[],
            provenance={},
        ),
    ).read_text(encoding="utf-8")
    assert "Deliverable: 0 violations" in page and "No goal evaluated" in page
    assert "not given in 35 fractions" in page and "Optimisation" not in page
    assert reference_gy(dose, None) == pytest.approx(float(dose.gy.max()))


def test_a_report_of_no_dose_at_all_is_still_a_report(
    tmp_path: Path, case: Case, plan: Plan, machine: Machine
) -> None:
    nothing = Dose(case.grid, np.zeros(case.grid.shape, np.float32))
    assert write_report(
        tmp_path / "r.html",
        Reported(
            case=case,
            plan=plan,
            machine=machine,
            dose=nothing,
            results=(),
            violations=[],
            provenance={},
        ),
    ).is_file()


def test_figures_in_the_page_can_be_decoded(
    tmp_path: Path, case: Case, plan: Plan, machine: Machine, dose: Dose
) -> None:
    page = write_report(
        tmp_path / "r.html",
        Reported(
            case=case,
            plan=plan,
            machine=machine,
            dose=dose,
            results=_results(),
            violations=[],
            provenance={},
        ),
    ).read_text(encoding="utf-8")
    photos = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    svgs = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(photos) == 7 and len(svgs) == 5
    for data in photos:
        assert Image.open(io.BytesIO(base64.b64decode(data))).width > 1000
    assert all(b"</svg>" in base64.b64decode(data) for data in svgs)


def test_structures_are_ordered_and_coloured_once(case: Case, dose: Dose) -> None:
    shown = shown_structures(case, dose, _results(), case.prescription)
    # The ring is a helper that is shown because a goal is on it; the empty larynx is not.
    assert [s.name for s in shown] == ["PTV_70", "SpinalCord", "Ring", "BODY"]
    assert len({s.colour for s in shown}) == 4
    assert [s.name for s in shown_structures(case, dose)] == ["PTV_70", "SpinalCord", "BODY"]


@pytest.mark.parametrize(
    ("plane", "position", "expected"),
    [
        (0, (24.0, -21.0, 0.0), (+1, -1)),
        (1, (24.0, 0.0, 20.0), (+1, -1)),
        (2, (0.0, -21.0, 20.0), (-1, -1)),
    ],
    ids=["axial", "coronal", "sagittal"],
)
def test_planes_are_the_right_way_round(
    case: Case, plane: int, position: tuple[float, float, float], expected: tuple[int, int]
) -> None:
    """A dense marker at the patient's left, front or head lies where the letters say, to the mm.

    Axial: left is on the right of the picture, front on top. Coronal: left on the right, head on
    top. Sagittal: front on the left, head on top.
    """
    hu = case.hu.copy()
    index = np.round(case.grid.index(np.array(position))).astype(int)
    hu[tuple(slice(i - 1, i + 2) for i in index)] = 3000
    marked = replace(case, hu=hu)
    cold = Dose(case.grid, np.zeros(case.grid.shape, np.float32))
    figure = planes_figure(ShownDose(marked, cold, (), 70.0), (0.0, 0.0, 0.0), mark="")
    panel = figure.axes[plane]
    pixels = np.asarray(Image.open(io.BytesIO(png(figure, dpi=100))).convert("RGB")).astype(int)
    box = panel.get_window_extent()
    top = pixels.shape[0] - box.y1
    part = pixels[round(top) : round(top + box.height), round(box.x0) : round(box.x1)]
    rows, columns = np.nonzero(part.min(axis=-1) > 250)
    assert rows.size > 20
    x, y = columns.mean() - box.width / 2, rows.mean() - box.height / 2
    assert (np.sign(x), np.sign(y)) == expected
    # One scale for both directions: the marker's distance from the middle in mm.
    across, up = [k for k in (0, 1, 2) if k != (2, 1, 0)[plane]]
    mm = abs(panel.get_xlim()[1] - panel.get_xlim()[0]) / box.width
    assert mm == pytest.approx(abs(panel.get_ylim()[1] - panel.get_ylim()[0]) / box.height, rel=0.01)
    middle = np.mean(panel.get_xlim()), np.mean(panel.get_ylim())
    voxel = case.grid.points_mm(np.ravel_multi_index(tuple(index[:, None]), case.grid.shape))[0]
    assert abs(x) * mm == pytest.approx(abs(voxel[across] - middle[0]), abs=1.0)
    assert abs(y) * mm == pytest.approx(abs(voxel[up] - middle[1]), abs=1.0)


def test_picture_is_written_whole(tmp_path: Path, case: Case, plan: Plan, dose: Dose) -> None:
    path = plan_picture(tmp_path / "plan.png", case=case, plan=plan, dose=dose, results=_results())
    assert [p.name for p in tmp_path.iterdir()] == ["plan.png"]
    assert Image.open(path).size[0] == 1430


def test_a_failed_report_leaves_the_old_one(
    tmp_path: Path, case: Case, plan: Plan, machine: Machine, dose: Dose
) -> None:
    old = tmp_path / "report.html"
    old.write_text("old")
    with pytest.raises((TypeError, ValueError)):
        write_report(
            old,
            Reported(
                case=case,
                plan=plan,
                machine=machine,
                dose=dose,
                results=(),
                violations=[],
                provenance={},
                seconds={"read": "soon"},  # type: ignore[dict-item]
            ),
        )
    assert old.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_no_global_plotting_state_is_touched() -> None:
    code = "import sys, vmat_diffusion.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_segments_in_which_all_leaves_are_closed_are_drawn() -> None:
    """As where a stereotactic target is left alone from some angles."""
    plan = open_arc()
    (arc,) = plan.arcs
    leaves = arc.leaves_mm.copy()
    leaves[5:9, 0], leaves[5:9, 1] = -0.3, 0.3
    leaves[12:, :, 26:34] += 1.0
    figure = control_points_figure(replace(arc, leaves_mm=leaves), plan, load_machine("generic_6mv"))
    travel = figure.axes[-1].patches[0].get_data().values
    assert travel[5:8] == pytest.approx(0.0) and travel[11] == pytest.approx(1.0)
