"""Plans driven by a predicted dose: what the optimiser is told, the choice, and what the gate says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_case import StandIn, small_case
from tiny_model import described, tiny_model

from vmat_diffusion.case import Dose
from vmat_diffusion.cli.display import run_text
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.diffusion.domain import domain_figures
from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.grid import near_targets
from vmat_diffusion.diffusion.model import save_model
from vmat_diffusion.errors import InputError
from vmat_diffusion.jobs import together as candidates
from vmat_diffusion.jobs.together import turns_of
from vmat_diffusion.workflow import plan_case, plan_settings
from vmat_diffusion.workflow.planning.prior import DOMAIN


def weights_for(path: Path, sites: Sequence[str], residual: float = 0.0) -> Path:
    """Weights that know the small case and its likes, for the given sites.

    Their regression has half the prescription, and `residual` units of 5 % more have the samples.
    """
    encoding = Encoding(organs=("Core", "Larynx"), voxel_mm=(5.0, 5.0, 6.0))
    model = tiny_model(encoding=encoding)
    torch.nn.init.constant_(model.residual.head[-1].bias, residual)
    cases = []
    for k in range(8):
        spacing = tuple(
            s * (1 + 0.02 * ((k * m) % 5 - 2)) for s, m in zip((5.0, 5.0, 6.0), (1, 2, 3), strict=True)
        )
        case = small_case()
        case = replace(case, grid=replace(case.grid, spacing_mm=spacing))
        cases.append(TrainingCase(case, near_targets(case)))
    known = {**domain_figures(cases, encoding), "sites": list(sites)}
    return save_model(path, described(model, known=known))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_for(tmp_path_factory.mktemp("weights") / "tiny.safetensors", ["phantom"])


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose samples meet the goals better than their regression: the core gets less."""
    return weights_for(tmp_path_factory.mktemp("better") / "tiny.safetensors", ["phantom"], residual=-4.0)


def asked(weights: Path, **changes: object):
    first = {"goals": "tg119_cshape_easy", "prior": "diffusion", "weights": str(weights)}
    return plan_settings(**{**first, **changes})


def test_the_predicted_dose_reaches_the_optimiser(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, weights: Path
) -> None:
    calls = optimiser()
    run = plan_case(case_folder, tmp_path / "out", asked(weights), tools=optimiser.tools)
    (call,) = calls
    target = call["target"]
    assert isinstance(target, Dose) and 10 < target.gy.max() < 60
    assert not target.on(run.task.case.grid)[~run.task.case.body.mask].any()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["prior"]["used"] and record["prior"]["model"] == "tiny"
    assert record["candidates"] == [] and "predict" in record["seconds"]


def test_by_the_goals_alone_nothing_is_predicted(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    run = plan_case(
        case_folder, tmp_path / "out", plan_settings(goals="tg119_cshape_easy"), tools=optimiser.tools
    )
    assert calls[0]["target"] is None
    assert DOMAIN not in {c.name for c in run.verdict.checks}
    assert "prior" not in run.provenance


def test_candidates_share_the_time_and_the_best_is_kept(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, better: Path
) -> None:
    factors = (1.05, 1.0, 1.03)  # all goals are met; what is lower is better

    def scale(made: SimpleNamespace, call: int) -> None:
        made.dose = replace(made.dose, gy=made.dose.gy * np.float32(factors[call]))

    calls = optimiser(engine=factors, change=scale)
    run = plan_case(
        case_folder, tmp_path / "out", asked(better, candidates=3, search_minutes=6), tools=optimiser.tools
    )
    assert [c["settings"].max_minutes for c in calls] == [6 / turns_of(3)] * 3
    assert len({c["target"].gy.tobytes() for c in calls}) == 3
    assert [c.chosen for c in run.candidates] == [False, True, False]
    assert run.candidates[1].score < run.candidates[2].score < run.candidates[0].score
    assert run.dose.gy.max() == pytest.approx(52.0)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [c["candidate"] for c in record["candidates"]] == [0, 1, 2]
    assert record["candidates"][1]["chosen"] and all(c["missed_must"] == 0 for c in record["candidates"])
    # Each is judged and written whole, the best where a single plan would be.
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == [
        "candidate_0",
        "candidate_2",
    ]
    for folder in (tmp_path / "out", tmp_path / "out" / "candidate_0", tmp_path / "out" / "candidate_2"):
        own = json.loads((folder / "run.json").read_text())
        assert set(own["files"]) == {p.name for p in folder.iterdir() if p.is_file()}
        assert len(own["candidates"]) == 3 and (folder / "RD.dcm").is_file()
    assert "(chosen)" in (tmp_path / "out" / "report.html").read_text()
    assert "1, chosen" in run_text(run)


def test_samples_that_meet_the_goals_less_well_than_the_regression_are_no_aims(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    worse = weights_for(tmp_path / "worse.safetensors", ["phantom"], residual=4.0)
    plan_case(
        case_folder, tmp_path / "out", asked(worse, candidates=3, search_minutes=6), tools=optimiser.tools
    )
    assert len(calls) == 1 and calls[0]["settings"].max_minutes == 6
    prior = json.loads((tmp_path / "out" / "run.json").read_text())["prior"]
    assert prior["aims"] == 1 and prior["reason"].startswith("The regression is taken, as no sample")


def test_a_candidate_that_an_interrupt_left_without_a_plan_is_left_out(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, better: Path
) -> None:
    def interrupt(made: SimpleNamespace, call: int) -> None:
        if call == 1:
            raise KeyboardInterrupt

    optimiser(change=interrupt)
    run = plan_case(case_folder, tmp_path / "out", asked(better, candidates=3), tools=optimiser.tools)
    assert [c.chosen for c in run.candidates] == [True]
    assert not [p for p in (tmp_path / "out").iterdir() if p.is_dir()]


def test_a_usual_case_passes_the_domain_check_without_a_warning(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, weights: Path
) -> None:
    optimiser()
    run = plan_case(case_folder, tmp_path / "out", asked(weights), tools=optimiser.tools)
    check = next(c for c in run.verdict.checks if c.name == DOMAIN)
    assert not check.warns and check.word == "reported"
    assert check.why == "nothing about the case is unusual for the model"


def test_a_foreign_site_is_planned_by_its_goals_and_the_gate_says_so(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    weights = weights_for(tmp_path / "w.safetensors", ["head_neck"])
    run = plan_case(case_folder, tmp_path / "out", asked(weights, candidates=4), tools=optimiser.tools)
    assert [c["target"] for c in calls] == [None]
    check = next(c for c in run.verdict.checks if c.name == DOMAIN)
    assert check.warns and check.passed and "goals alone" in check.why
    for text in (run_text(run), (tmp_path / "out" / "report.html").read_text()):
        assert "made for head_neck" in text
    assert not json.loads((tmp_path / "out" / "run.json").read_text())["prior"]["used"]


def test_missing_weights_are_refused_and_leave_nothing(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    with pytest.raises(InputError, match=r"weights .* do not exist"):
        plan_case(case_folder, tmp_path / "out", asked(tmp_path / "none.safetensors"), tools=optimiser.tools)
    assert not calls and not list(tmp_path.iterdir())


def test_weights_of_which_nothing_is_known_make_the_gate_warn(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    weights = save_model(tmp_path / "w.safetensors", tiny_model(encoding=Encoding(voxel_mm=(5.0, 5.0, 6.0))))
    run = plan_case(case_folder, tmp_path / "out", asked(weights), tools=optimiser.tools)
    check = next(c for c in run.verdict.checks if c.name == DOMAIN)
    assert check.warns and "nothing is known of their domain" in check.why
    record = json.loads((tmp_path / "out" / "run.json").read_text())["verdict"]["checks"][0]
    assert (record["name"], record["passed"], record["result"]) == (DOMAIN, True, "warning")


def test_candidates_need_weights_with_diffusion(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    weights = save_model(tmp_path / "w.safetensors", tiny_model(residual=False))
    with pytest.raises(InputError, match=r"2 samples .* without diffusion; give --candidates 1 or"):
        plan_case(case_folder, tmp_path / "out", asked(weights, candidates=2), tools=optimiser.tools)
    assert not calls


def test_each_candidate_needs_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "cores", lambda: 2)
    with pytest.raises(
        InputError, match=r"5 minutes .* 16 candidates .* 2 at a time; give --search-minutes 8"
    ):
        plan_settings(goals="x", prior="diffusion", candidates=16, search_minutes=5)
    assert plan_settings(goals="x", prior="diffusion", candidates=10, search_minutes=5).candidates == 10
    assert plan_settings(goals="x", search_minutes=0.5).search_minutes == 0.5


def test_candidates_need_doses_to_aim_at() -> None:
    with pytest.raises(InputError, match="4 candidates need"):
        plan_settings(goals="x", candidates=4)
