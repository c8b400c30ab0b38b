"""Settings of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import mean_stage, residual_stage, tiny_settings

from vmat_diffusion.errors import InputError
from vmat_diffusion.training.settings import (
    TrainingStage,
    Weight,
    load_settings,
    recipe_names,
    settings_record,
    training_settings,
)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_are_settings_and_survive_as_plain_data(name: str) -> None:
    settings = load_settings(name)
    assert training_settings(settings_record(settings)) == settings


def test_a_recipe_is_found_by_name_or_by_path(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("seed = 3\n")
    assert {"quick", "shipped"} <= set(recipe_names())
    assert load_settings(Path("quick")) == load_settings("quick") != load_settings("shipped")
    assert load_settings(file) == load_settings(str(file)) == training_settings({"seed": 3})
    with pytest.raises(InputError, match=r"quik cannot be read .* shipped recipe \(cluster, .*quick"):
        load_settings("quik")


def test_a_size_of_its_own_survives_as_plain_data() -> None:
    settings = tiny_settings(mean_stage(), residual_stage())
    assert training_settings(settings_record(settings)) == settings


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lr": 1}, "training setting lr is unknown"),
        ({"stages": [{"rate": 1}]}, r"stages\.0\.rate is unknown"),
        ({"encoding": {"organ": []}}, r"encoding\.organ is unknown"),
        ({"network": {"width": [8]}}, r"network\.Size\.width is unknown"),
        ({"network": "tiny"}, "'small' or 'base'"),
        ({"network": {"widths": [8, 12]}}, "multiples of 8 up to"),
        ({"network": {"widths": [8, 16], "heads": 3}}, "with 3 heads cannot be built"),
        ({"stages": []}, "at least 1 item"),
        ({"stages": [{"learning_rate": 0}]}, r"learning_rate: .* \(given: 0\)"),
        ({"stages": [{"losses": {"l2": 1}}]}, "loss l2 is unknown for the role mean; known are l1"),
        ({"stages": [{"losses": {"residual": 1}}]}, "loss residual is unknown for the role mean"),
        ({"stages": [{"samples": 7, "accumulate": 2}]}, "7 samples are no multiple of accumulate = 2"),
        ({"stages": [{"role": "residual"}, {"role": "mean"}]}, "put the means first"),
    ],
)
def test_what_is_wrong_is_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        training_settings(values)


def test_a_file_that_is_absent_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_settings(tmp_path / "absent.toml")
    (tmp_path / "wrong.toml").write_text("seed = = 1")
    with pytest.raises(InputError, match="no TOML"):
        load_settings(tmp_path / "wrong.toml")


def test_trapezoid_rises_stays_and_falls_to_its_floor() -> None:
    stage = TrainingStage(samples=1000, learning_rate=0.1, warm_up=100, decay_from=0.7, floor=0.02)
    assert [stage.rate(n) for n in (0, 50, 100, 699)] == pytest.approx([0, 0.05, 0.1, 0.1])
    assert stage.rate(850) == pytest.approx(0.1 * 0.51)
    assert stage.rate(1000) == pytest.approx(0.002)


def test_cosine_is_half_way_in_the_middle() -> None:
    stage = TrainingStage(samples=1000, learning_rate=0.1, warm_up=0, schedule="cosine", floor=0.0)
    assert [stage.rate(n) for n in (0, 500, 1000)] == pytest.approx([0.1, 0.05, 0])


def test_a_loss_may_begin_late() -> None:
    stage = TrainingStage(samples=1000, losses={"l1": 1.0, "dvh": Weight(0.25, before=0.05, from_share=0.1)})
    assert [stage.weights(n)["dvh"] for n in (0, 100, 101)] == [0.05, 0.05, 0.25]
    assert stage.weights(0)["l1"] == 1.0


@pytest.mark.parametrize(
    ("table", "values", "named"),
    [
        ("changes", {"flip": 1.5}, "changes.flip"),
        ("changes", {"turn_deg": 0}, "changes.turn_deg"),
        ("changes", {"turn_deg": 360}, "changes.turn_deg"),
        ("process", {"scale": 0}, "process.scale"),
        ("encoding", {"organs": []}, "encoding.organs"),
        ("network", {"heads": 0}, "heads"),
    ],
)
def test_a_number_that_a_loader_would_fail_at_is_refused_by_name(table, values, named):
    with pytest.raises(InputError, match=named):
        training_settings({table: values})
