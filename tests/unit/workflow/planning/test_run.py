"""Planning runs: what is written, what is refused, and that nothing is ever left half-written."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_case import StandIn, open_arc

from vmat_diffusion.dicom import read_dose, read_plan
from vmat_diffusion.errors import CaseError, GoalError, InputError, MachineError, PlanError
from vmat_diffusion.files import content_hash
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import timing
from vmat_diffusion.workflow import FILES, STAGES, PlanSettings, plan_case, plan_settings
from vmat_diffusion.workflow.output import appearing_whole
from vmat_diffusion.workflow.planning.run_files import (
    TRAJECTORIES,
    write_control_points,
    write_fluence,
)

SETTINGS = plan_settings(goals="tg119_cshape_easy")


def test_a_run_writes_every_file_and_its_record(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    seen: list[str] = []
    run = plan_case(
        case_folder,
        tmp_path / "a" / "out",
        SETTINGS,
        progress=lambda stage, fraction, note: seen.append(stage),
        tools=optimiser.tools,
    )
    out = tmp_path / "a" / "out"
    assert sorted(f.name for f in out.iterdir()) == sorted(FILES)
    assert [f.name for f in run.files] == list(FILES)
    assert all(f.is_file() for f in run.files)
    record = json.loads((out / "run.json").read_text())
    assert record["outcome"] == "CONVERGED"
    assert record["settings"]["grid_mm"] == 3.0
    assert record["inputs"]["sha256"] == content_hash(case_folder)
    assert record["history"][-1]["objective"] == 1.0
    statuses = [(g["structure"], g["goal"], g["status"]) for g in record["goals"]]
    assert statuses == [
        ("PTV", "D95% >= 50 Gy", "pass"),
        ("PTV", "D10% <= 55 Gy", "pass"),
        ("Core", "D10% <= 25 Gy", "fail"),
    ]
    assert set(record["seconds"]) == {*STAGES, "yardstick"} <= {*seen, "dose"}  # a goal is missed
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["out"]


def test_written_dicom_is_the_run_s_plan_and_dose(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    run = plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    back = read_plan(tmp_path / "out" / "RP.dcm", run.task.machine)
    np.testing.assert_allclose(back.arcs[0].mu, run.plan.arcs[0].mu, rtol=1e-6)
    np.testing.assert_array_equal(back.arcs[0].leaves_mm, run.plan.arcs[0].leaves_mm)
    np.testing.assert_allclose(read_dose(tmp_path / "out" / "RD.dcm").gy, run.dose.gy, rtol=1e-6)


def test_summary_has_exactly_the_documented_keys(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    summary = json.loads(
        json.dumps(plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools).summary())
    )
    assert set(summary) == {
        "outcome", "conflicts", "arrangement", "before", "goals", "mu", "delivery_s", "arc_delivery_s",
        "complexity", "violations", "verdict", "seconds", "peak_gb", "files", "groups", "remarks",
        "delivery_goals", "yardstick", "robustness",
    }  # fmt: skip
    assert set(summary["goals"][0]) == {
        "goal", "structure", "value", "limit", "unit", "status", "missed", "group", "excused",
    }  # fmt: skip
    assert summary["mu"] == pytest.approx(72.0)
    # 36 degrees at 6 deg/s take 6 s; 4 MU per 2 degrees at 600 MU/min take 0.4 s each, which is longer:
    # 5 deg/s. At 3 deg/s2 from rest and to rest the first and last two have sqrt(3) and sqrt(15) deg/s.
    assert summary["delivery_s"] == pytest.approx(14 * 0.4 + 4 / 3**0.5 + 4 / 15**0.5, abs=0.01)
    assert summary["arc_delivery_s"] == [summary["delivery_s"]]
    assert summary["complexity"]["mcs"] == 1.0 and summary["complexity"]["mu_per_gy"] == 36.0


def test_settings_reach_the_optimiser(case_folder: Path, tmp_path: Path, optimiser: StandIn) -> None:
    calls = optimiser()
    chosen = plan_settings(
        goals="tg119_cshape_easy",
        arcs=3,
        arc_start_deg=200,
        arc_stop_deg=20,
        collimator_deg=[15],
        couch_deg=[10, 0, 350 - 360],
        jaws="fixed",
        grid_mm=4,
        seed=7,
        search_minutes=2,
        device="cpu",
        normalize_gy=51.5,
    )
    run = plan_case(case_folder, tmp_path / "out", chosen, tools=optimiser.tools)
    assert run.task.sheet.normalization.gy == 51.5
    (call,) = calls
    given = call["settings"]
    assert (given.arcs, given.arc_start_deg, given.arc_stop_deg) == (3, 200.0, 20.0)
    assert given.collimator_deg == (15.0, 15.0, 15.0) and given.couch_deg == (10.0, 0.0, -10.0)
    assert given.jaw_tracking is False and not given.partial
    assert (given.grid_mm, given.seed, given.max_minutes) == (4.0, 7, 2.0)


def test_jaws_are_left_to_the_machine_and_arcs_can_be_partial(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    plan_case(
        case_folder,
        tmp_path / "out",
        plan_settings(goals="tg119_cshape_easy", span="partial"),
        tools=optimiser.tools,
    )
    given = calls[0]["settings"]
    assert given.partial and given.jaw_tracking is None and given.couch_deg is None


def test_arcs_that_nobody_asked_for_are_chosen_and_told(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    out = tmp_path / "out"
    run = plan_case(case_folder, out, plan_settings(goals="tg119_cshape_easy"), tools=optimiser.tools)
    given = calls[0]["settings"]
    assert (given.arcs, given.partial, given.avoid_deg) == (2, False, ())
    assert run.arrangement.startswith("2 full arcs: the targets lie 0 mm")
    record = json.loads((out / "run.json").read_text())
    assert record["arrangement"]["text"] == run.arrangement
    assert (record["arrangement"]["arcs"], record["arrangement"]["span"]) == (2, "full")
    assert record["settings"]["arcs"] is None  # as asked, so that a run of the same settings goes on
    assert "2 full arcs" in (out / "report.html").read_text()
    assert plan_settings(goals="tg119_cshape_easy", couch_deg=(0, 10, 20)).arcs == 3


def test_an_undeliverable_plan_gets_a_report_and_its_dose_but_no_plan_file(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    plan = open_arc()
    leaves = plan.arcs[0].leaves_mm.copy()
    leaves[9, 0, 30] = 19.0  # 39 mm in 0.4 s is far above any leaf speed
    optimiser(replace(plan, arcs=(replace(plan.arcs[0], leaves_mm=leaves),)))
    run = plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    assert any("leaf speed" in v for v in run.violations)
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == set(FILES) - {"RP.dcm", "check_dose.npz"} == {f.name for f in run.files}
    assert not run.passed and run.check is None  # what cannot be delivered is not recomputed
    assert [c.name for c in run.verdict.failed] == ["deliverable"]
    assert [c.name for c in run.verdict.undecided] == ["independent dose"]
    assert not read_dose(tmp_path / "out" / "RD.dcm").provenance["plan_uid"]


@pytest.mark.parametrize("failing", [PlanError("no"), RuntimeError("defect"), KeyboardInterrupt()])
def test_a_failed_run_leaves_nothing_behind(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, failing: BaseException
) -> None:
    optimiser(failing=failing)
    with pytest.raises(type(failing)):
        plan_case(case_folder, tmp_path / "new" / "out", SETTINGS, tools=optimiser.tools)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_earlier_run(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    before = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    optimiser(failing=RuntimeError("defect"))
    with pytest.raises(RuntimeError):
        plan_case(case_folder, tmp_path / "out", SETTINGS, overwrite=True, tools=optimiser.tools)
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()} == before


def test_a_folder_in_use_is_refused_without_overwrite(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PlanError, match="not empty"):
        plan_case(case_folder, tmp_path, SETTINGS, tools=optimiser.tools)
    assert not calls
    plan_case(case_folder, tmp_path, SETTINGS, overwrite=True, tools=optimiser.tools)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {f.name for f in tmp_path.iterdir()} == {*FILES, "notes.txt"}


def test_an_undeliverable_rerun_does_not_keep_the_old_plan(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    arc = open_arc().arcs[0]
    optimiser(replace(open_arc(), arcs=(replace(arc, mu=np.full(18, 1e-4)),)))
    assert plan_case(
        case_folder, tmp_path / "out", SETTINGS, overwrite=True, tools=optimiser.tools
    ).violations
    assert not (tmp_path / "out" / "RP.dcm").exists()


def test_expected_positions_are_written_if_asked_and_go_with_the_next_run(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    run = plan_case(case_folder, tmp_path / "out", replace(SETTINGS, trajectory="csv"), tools=optimiser.tools)
    assert [f.name for f in run.files] == [*FILES, "trajectory_1.csv"]
    with (tmp_path / "out" / "trajectory_1.csv").open(newline="") as stream:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]
    (arc,) = run.plan.arcs
    whole = [row for row in rows if row["control_point"].is_integer()]
    assert len(whole) == len(arc.gantry_deg) < len(rows)
    for k, row in enumerate(whole):
        assert row["gantry_deg"] == round(arc.gantry_deg[k] % 360, 4)
        assert [row[f"jaw_{j}_mm"] for j in ("x1", "x2", "y1", "y2")] == arc.jaws_mm[k].tolist()
        assert [row[f"x2_leaf_{p + 1}_mm"] for p in range(60)] == arc.leaves_mm[k, 1].tolist()
    ticks = [row["time_s"] for row in rows if not row["control_point"].is_integer()]
    assert all(abs(t / 0.02 - round(t / 0.02)) < 1e-6 for t in ticks)
    assert rows[-1]["time_s"] == pytest.approx(run.delivery_s, abs=1e-4)
    assert rows[-1]["mu"] == pytest.approx(arc.total_mu, abs=1e-4)
    plan_case(case_folder, tmp_path / "out", SETTINGS, overwrite=True, tools=optimiser.tools)
    assert {f.name for f in (tmp_path / "out").iterdir()} == set(FILES)
    with pytest.raises(InputError, match="trajectory"):
        plan_settings(goals="tg119_cshape_easy", trajectory="xml")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(PlanError, match="is a file"), appearing_whole(tmp_path / "out", overwrite=True):
        pass
    assert (tmp_path / "out").read_text() == "x"


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"goals": "no_such_sheet"}, GoalError),
        ({"machine": "no_such_machine"}, MachineError),
        ({"goals": "prostate_78"}, GoalError),  # its target PTV_78 is not in the case
        ({"mapping": "no_such_file.json"}, InputError),
    ],
)
def test_unfit_inputs_stop_before_the_optimiser(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, changed: dict, error: type
) -> None:
    calls = optimiser()
    settings = plan_settings(**{"goals": "tg119_cshape_easy", **changed})
    with pytest.raises(error):
        plan_case(case_folder, tmp_path / "out", settings, tools=optimiser.tools)
    assert not calls
    assert not list(tmp_path.iterdir())


def test_an_absent_case_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="does not exist"):
        plan_case(tmp_path / "nowhere", tmp_path / "out", SETTINGS)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"arcs": 0}, "arcs"),
        ({"grid_mm": 0.2}, "grid-mm"),
        ({"grid_mm": float("nan")}, "grid-mm"),
        ({"seed": -1}, "seed"),
        ({"device": "toaster"}, "device"),
        ({"search_minutes": 0}, "search-minutes"),
        ({"arc_start_deg": 10}, "both"),
        ({"couch_deg": (0, 10, 20), "arcs": 2}, "3 couch angles for 2 arcs"),
        ({"couch_deg": (0, 10, 20), "collimator_deg": (5, 95)}, "2 collimator angles for 3 arcs"),
        ({"couch_deg": (120,)}, "couch-deg"),
        ({"jaws": "loose"}, "jaws"),
        ({"span": "partial", "arc_start_deg": 10, "arc_stop_deg": 90}, "leave them out or --span partial"),
        ({"span": "partial", "improve": "RP.dcm"}, "arcs of RP.dcm are kept"),
        ({"arcs": 3, "collimator_deg": (10, 20)}, "2 collimator angles for 3 arcs"),
        ({"patient_position": "SITTING"}, "patient-position"),
        ({"normalize_gy": 0}, "normalize-gy"),
        ({"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_a_wrong_setting_is_named(values: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        plan_settings(**{"goals": "x", **values})


def test_settings_cannot_be_made_wrong_or_changed() -> None:
    with pytest.raises(ValueError, match="arcs"):
        PlanSettings(goals="x", arcs=99)
    with pytest.raises(AttributeError):
        SETTINGS.arcs = 3  # type: ignore[misc]


def test_control_point_table_restates_the_plan(tmp_path: Path) -> None:
    plan, machine = open_arc(), load_machine("generic_6mv")
    path = write_control_points(tmp_path / "cp.csv", plan, machine)
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    arc, pace = plan.arcs[0], timing(plan.arcs[0], machine.limits)
    assert len(rows) == len(arc.gantry_deg)
    np.testing.assert_allclose([float(r["gantry_deg"]) for r in rows], arc.gantry_deg % 360)
    np.testing.assert_allclose([float(r["mu"]) for r in rows[:-1]], arc.mu)
    np.testing.assert_allclose(
        [float(r["dose_rate_mu_min"]) for r in rows[:-1]], pace.dose_rate_mu_min, atol=1e-3
    )
    assert rows[-1]["mu"] == ""
    assert float(rows[-1]["cumulative_mu"]) == pytest.approx(arc.total_mu)
    banks = [[float(rows[5][f"{b}_leaf_{k}_mm"]) for k in range(1, 61)] for b in ("x1", "x2")]
    np.testing.assert_allclose(banks, arc.leaves_mm[5])
    assert [float(rows[5][f"jaw_{j}_mm"]) for j in ("x1", "x2", "y1", "y2")] == list(arc.jaws_mm[5])


def test_fluence_file_holds_the_maps_and_the_delivery(tmp_path: Path) -> None:
    plan, machine = open_arc(), load_machine("generic_6mv")
    maps = np.arange(24.0).reshape(2, 3, 4)
    with np.load(write_fluence(tmp_path / "f.npz", plan, machine, {"ideal_mu": maps})) as stored:
        np.testing.assert_array_equal(stored["ideal_mu"], maps)
        np.testing.assert_array_equal(stored["arc1_leaves_mm"], plan.arcs[0].leaves_mm)
        np.testing.assert_allclose(
            stored["arc1_mu"] / stored["arc1_time_s"] * 60, stored["arc1_dose_rate_mu_min"]
        )


def test_content_hash_knows_contents_not_names(tmp_path: Path) -> None:
    for folder, names in (("a", "xy"), ("b", "qp")):
        (tmp_path / folder).mkdir()
        for name, text in zip(names, ("one", "two"), strict=True):
            (tmp_path / folder / name).write_text(text)
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    (tmp_path / "b" / "q").write_text("other")
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")


def test_overwriting_takes_away_what_an_earlier_run_left_by_a_pattern(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("trajectory_1.csv", "trajectory_9.csv", "mine.csv"):
        (out / name).write_text("old")
    record = json.dumps({"files": ["run.json", "trajectory_1.csv", "trajectory_9.csv"]})
    (out / "run.json").write_text(record)
    with appearing_whole(out, overwrite=True, names=(TRAJECTORIES,)) as part:
        (part / "trajectory_1.csv").write_text("new")
    left = {p.name: p.read_text() for p in out.iterdir()}
    assert left == {"trajectory_1.csv": "new", "mine.csv": "old", "run.json": record}
