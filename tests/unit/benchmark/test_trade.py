"""The benchmark of quality against MU on made-up patients: what is searched, kept, compared and written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openkbp_files import arrays, write_npz
from small_case import UNIFORM_GY, StandIn, open_arc

from vmat_diffusion.benchmark import trade as module
from vmat_diffusion.benchmark.plan_comparison import Criterion, JudgedDose, PlanComparison
from vmat_diffusion.benchmark.settings import TradeSettings
from vmat_diffusion.benchmark.trade import benchmark_trade
from vmat_diffusion.benchmark.trade_plan import PlanAtLimit, openkbp_subject, row_id
from vmat_diffusion.benchmark.trade_tables import curves, limit_rows, points, tg119_goal_rows
from vmat_diffusion.errors import InputError, PlanError
from vmat_diffusion.optimize import Outcome

LIMITS = (250.0, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients 201 to 203 of the split, 202 without CT."""
    root = tmp_path_factory.mktemp("openkbp")
    parts = arrays(1)
    for number in (201, 202, 203):
        own = {name: values for name, values in parts.items() if number != 202 or name != "ct"}
        write_npz(root / "validation" / f"pt_{number}.npz", own)
    return root


def made_up(name: str, limit: float | None, *, clinical: bool = True) -> PlanAtLimit:
    """A plan whose organ gets more, the more strictly MU are limited."""
    mu_per_gy = 420.0 if limit is None else 0.98 * limit

    def judged(mean: float, d99: float) -> JudgedDose:
        targets = {"PTV_70": {"D99": d99, "D95": 70.0, "D1": 72.0}}
        organs = {"Parotid_L": {"D0.1cc": 50.0, "mean": mean}}
        return JudgedDose({**targets, **organs}, {"Parotid_L mean <= 26 Gy": Criterion(mean, mean <= 26)})

    own = judged(30.0 - mu_per_gy / 50, 69.0)
    found = PlanComparison("PTV_70", 1.0, 0.0, own, own, judged(30.0, 69.25))
    delivery = {
        "mu_per_gy": mu_per_gy,
        "mcs": 0.25,
        "leaf_motion_mm_deg": 3.7,
        "smallest_gap_mm": 4.0,
        "edge_per_mm": 0.11,
        "beam_on_s": 125.0,
    }
    return PlanAtLimit(
        id=row_id(name, limit),
        case=name,
        limit_mu_per_gy=limit,
        levels_gy={"PTV_70": 70.0},
        planned=own,
        comparison=found if clinical else None,
        conformity=0.8,
        clinical_conformity=0.7 if clinical else None,
        mu=2 * mu_per_gy,
        delivery=delivery,
        delivery_goals={},
        violations=0,
        outcome="CONVERGED",
        search_s=60.0,
        reached=None if clinical else "every goal",
    )


@pytest.fixture
def searcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Installs a stand-in for the search; returns the list of the plans that were searched."""

    def install(failing: dict[str, BaseException] | None = None) -> list[str]:
        searched: list[str] = []

        def plan(subject: Any, limit: float | None, settings: Any, **_: Any) -> PlanAtLimit:
            assert settings.mu_per_gy == (limit or "off")
            name = row_id(subject.name, limit)
            searched.append(name)
            if (error := (failing or {}).get(name)) is not None:
                raise error
            return made_up(subject.name, limit, clinical=subject.clinical is not None)

        monkeypatch.setattr(module, "plan_at_limit", plan)
        return searched

    return install


def test_a_patient_is_planned_at_its_limit_and_compared(
    data: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser(replace(open_arc(), fractions=35))
    settings = TradeSettings(mu_per_gy="250,off", data=data, count=1, first=203)
    done = benchmark_trade(settings, out=tmp_path / "out", tools=optimiser.tools)
    # The sheet's other limits stay: in its beam-on time the machine gives some 600 MU/Gy at most.
    assert calls[0]["settings"].mu_per_gy == 250.0
    assert calls[1]["settings"].mu_per_gy == pytest.approx(598.0, abs=1)
    assert [call["settings"].leaf_mm_per_deg for call in calls] == [3.75, 3.75]
    first, second = done.plans
    assert (first.id, second.id) == ("pt_203 at 250", "pt_203 at off")
    clinical = openkbp_subject(data / "validation" / "pt_203.npz").clinical
    assert clinical is not None and first.comparison is not None
    assert first.comparison.planned.points["PTV_70"]["D95"] == pytest.approx(UNIFORM_GY)
    assert first.mu == pytest.approx(open_arc().total_mu, abs=0.1)
    assert first.mu_per_gy == pytest.approx(open_arc().total_mu / 2, rel=1e-3)
    assert "MU <= 250 MU/Gy" in first.delivery_goals
    assert not any(goal.startswith("MU") for goal in second.delivery_goals)
    assert (tmp_path / "out" / "trade.png").read_bytes().startswith(b"\x89PNG")


def test_gamma_is_computed_where_it_is_asked_for(data: Path, tmp_path: Path, optimiser: StandIn) -> None:
    optimiser(replace(open_arc(), fractions=35), engine=(1.0,))
    settings = TradeSettings(mu_per_gy=(300.0,), data=data, count=1, first=203)
    (plan,) = benchmark_trade(settings, out=tmp_path, tools=optimiser.tools).plans
    assert plan.gamma_percent is None
    (plan,) = benchmark_trade(replace(settings, gamma=True), out=tmp_path, tools=optimiser.tools).plans
    assert plan.gamma_percent == pytest.approx(100.0)


def test_tg119_is_judged_by_the_goals_of_the_report(tmp_path: Path, optimiser: StandIn) -> None:
    optimiser(open_arc())
    settings = TradeSettings(mu_per_gy=(300.0,), case=("prostate",))
    (plan,) = benchmark_trade(settings, out=tmp_path, tools=optimiser.tools).plans
    # 52 Gy everywhere: the organs' goals are reached, the target's minimum is not.
    goals = {name: goal.met for name, goal in plan.planned.criteria.items()}
    assert goals["PTV D95% >= 75.6 Gy"] is False and goals["Rectum D30% <= 70 Gy"] is True
    assert plan.reached == "no" and plan.comparison is None
    summary = json.loads((tmp_path / "trade.json").read_text())
    assert summary["limits"] == [] and summary["tg119"][0]["case"] == "prostate"
    assert summary["default_mu_per_gy"]["prostate"] > 0
    assert not list(tmp_path.rglob("*.dcm"))  # no gate has judged the plan


def test_the_table_has_medians_and_the_worst_at_each_limit(
    data: Path, tmp_path: Path, searcher: Callable[..., list[str]]
) -> None:
    searcher()
    settings = TradeSettings(mu_per_gy=LIMITS, data=data, count=2, case=("cshape_hard",))
    done = benchmark_trade(settings, out=tmp_path)
    assert [(r.case, "has no CT" in r.reason) for r in done.left_out] == [("pt_202", True)]
    header, rows = limit_rows(done.summary())
    assert header == ["median (worst)", "250 MU/Gy", "off MU/Gy"]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["plans"] == ["2", "2"]
    assert cells["MU/Gy"] == ["245 (245)", "420 (420)"]
    assert cells["organ means against clinical, %"] == ["-16.3 (-16.3)", "-28.0 (-28.0)"]
    assert cells["PTV_70 D99 against clinical, Gy"] == ["-0.25 (-0.25)"] * 2
    assert tg119_goal_rows(done.summary())[1][0] == ["cshape_hard", "MU for 2 Gy", "490", "840"]
    with (tmp_path / "trade.csv").open(encoding="utf-8") as stream:
        found = {(row["case"], row["limit"]): row for row in csv.DictReader(stream)}
    assert len(found) == 6
    # Without a clinical dose organs are compared with the plan of the loosest limit.
    assert float(found["cshape_hard", "off"]["organ_mean_change_percent"]) == 0.0
    assert float(found["cshape_hard", "250"]["organ_mean_change_percent"]) == pytest.approx(16.2, abs=0.1)
    assert [curve.name for curve in curves(done.plans)] == ["OpenKBP", "cshape_hard"]
    assert "| MU/Gy | 245 (245) | 420 (420) |" in (tmp_path / "trade.md").read_text()


def test_a_run_goes_on_where_it_was_stopped_and_takes_more_limits(
    data: Path, tmp_path: Path, searcher: Callable[..., list[str]]
) -> None:
    settings = TradeSettings(mu_per_gy=LIMITS, data=data, count=2)
    searcher({"pt_203 at 250": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        benchmark_trade(settings, out=tmp_path)
    searched, told = searcher(), []
    done = benchmark_trade(
        settings, out=tmp_path, progress=lambda stage, fraction, note: told.append((fraction, note))
    )
    assert searched == ["pt_203 at 250", "pt_203 at off"]
    assert done.plans == tuple(made_up(name, limit) for name in ("pt_201", "pt_203") for limit in LIMITS)
    # What was kept takes no time, so it does not count.
    assert told[0] == (0.0, "0 of 2 searched, pt_203 at 250")
    assert told[1] == (0.5, "1 of 2 searched, pt_203 at off")
    searched.clear()
    more = replace(settings, mu_per_gy=(250.0, 300.0))
    assert len(benchmark_trade(more, out=tmp_path).plans) == 4
    assert searched == ["pt_201 at 300", "pt_203 at 300"]
    with pytest.raises(InputError, match="holds results of another seed; pass --overwrite"):
        benchmark_trade(replace(settings, seed=1), out=tmp_path)


def test_a_failed_search_is_named_and_tried_again(
    data: Path, tmp_path: Path, searcher: Callable[..., list[str]]
) -> None:
    searcher({"pt_201 at 250": PlanError("the machine cannot deliver it; give it more time")})
    settings = TradeSettings(mu_per_gy=LIMITS, data=data, count=1)
    done = benchmark_trade(settings, out=tmp_path)
    assert [plan.id for plan in done.plans] == ["pt_201 at off"]
    assert [(r.case, r.reason) for r in done.failed] == [("pt_201 at 250", "the machine cannot deliver it")]
    assert "pt_201 at 250" in (tmp_path / "trade.md").read_text()
    searched = searcher()
    assert len(benchmark_trade(settings, out=tmp_path).plans) == 2 and searched == ["pt_201 at 250"]


def test_an_interrupted_search_is_not_kept(data: Path, tmp_path: Path, optimiser: StandIn) -> None:
    def interrupted(made: SimpleNamespace, call: int) -> None:
        made.outcome = Outcome.INTERRUPTED

    optimiser(replace(open_arc(), fractions=35), change=interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark_trade(TradeSettings(data=data, count=1), out=tmp_path, tools=optimiser.tools)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("values", "said"), [
    ({}, "there is nothing to plan; give --data, --tg119 or --case"),
    ({"tg119": True, "mu_per_gy": "250,low"}, "'low' is neither a number above 0 nor off"),
    ({"tg119": True, "mu_per_gy": "250,-3"}, "'-3' is neither a number above 0 nor off"),
    ({"tg119": True, "mu_per_gy": ()}, "names no limit or one twice"),
    ({"tg119": True, "mu_per_gy": "nan"}, "'nan' is neither a number above 0 nor off"),
    ({"case": ("pelvis",)}, "case 'pelvis' is not known; known are multitarget"),
    ({"tg119": True, "count": 0}, "--count 0 is not at least 1"),
])  # fmt: skip
def test_what_cannot_be_asked_is_a_sentence(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TradeSettings(**values)


def test_limits_are_read_once_each_in_ascending_order() -> None:
    asked = TradeSettings(mu_per_gy="500, off,250,250", tg119=True)
    assert asked.mu_per_gy == (250.0, 500.0, None)
    assert [case.name for case in replace(asked, case=("cshape_hard",)).tg119_cases()] == ["cshape_hard"]
    assert len(asked.tg119_cases()) == 5


def test_a_folder_of_other_things_is_left_alone(
    data: Path, tmp_path: Path, searcher: Callable[..., list[str]]
) -> None:
    searcher()
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds letter\.txt but no results of plans"):
        benchmark_trade(TradeSettings(data=data, count=1), out=tmp_path)
    with pytest.raises(InputError, match="no patient of split validation from number 230 on can be planned"):
        benchmark_trade(TradeSettings(data=data, count=1, first=230))


def test_points_of_a_plan_are_its_achieved_figures() -> None:
    (point,) = points([made_up("pt_201", 300.0)])
    assert point["mu_per_gy"] == pytest.approx(294.0)
    assert point["d99_difference_gy"] == pytest.approx(-0.25)
    assert point["d99_percent"] == pytest.approx(100 * 69 / 70, abs=1e-3)
