"""What the language of goal sheets promises for any text: it is read one way, or refused in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.dvh import Dvh
from vmat_diffusion.evaluate.fractionation import eqd2_gy, physical_gy
from vmat_diffusion.evaluate.metrics import Metric, histogram_value
from vmat_diffusion.evaluate.structure_expressions import mask_of, names_in, parse_expression

NAMES = ("Lungs", "GTV", "PTV", "A-B", "Left lung")
_words = st.sampled_from([*NAMES, "Unknown", "X-Y", "+", "-", "&", "(", ")", "5 mm", "3mm", "7", " ", "  "])


def _known(text: str) -> str | None:
    return text if text in NAMES else None


@given(st.lists(_words, min_size=1, max_size=9).map("".join))
def test_an_expression_means_what_it_says_when_it_is_written_again(text: str) -> None:
    try:
        expression = parse_expression(text, _known)
    except GoalError as refused:
        assert "\n" not in str(refused) and repr(text) in str(refused)
        return
    assert parse_expression(str(expression), _known) == expression


@given(st.text(alphabet="ab+-&() 5m.", max_size=12))
def test_no_text_is_more_than_refused(text: str) -> None:
    try:
        names = names_in(parse_expression(text))
    except GoalError:
        return
    assert names and all(name.strip() for name in names)


_trees = st.recursive(
    st.sampled_from(["A", "B", "C"]),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-&"), inner),
    max_leaves=6,
)


@given(_trees, st.integers(0, 2**32 - 1))
def test_any_combination_is_that_of_sets(text: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = {name: rng.random((3, 4, 5)) > 0.5 for name in "ABC"}
    made = mask_of(parse_expression(text), masks, (1.0, 1.0, 1.0))
    voxels = {name: set(np.flatnonzero(mask)) for name, mask in masks.items()}
    assert set(np.flatnonzero(made)) == eval(text.replace("+", "|"), {}, voxels)


_numbers = st.floats(0.01, 100).map(lambda v: float(f"{v:.4g}"))
_metrics = st.one_of(
    *(st.builds(form.format, _numbers) for form in ("D{:g}%", "D{:g}cc", "D{:g}cm", "V{:g}Gy", "CV{:g}Gy")),
    *(st.builds(form.format, _numbers) for form in ("V{:g}%", "CV{:g}%", "meanhot{:g}%", "meancold{:g}cc")),
    *(st.builds(form.format, _numbers) for form in ("R{:g}%", "conformity{:g}%", "gEUD{:g}")),
    st.sampled_from(["mean", "max", "min", "homogeneity"]),
)


@given(_metrics, st.data())
def test_a_metric_in_any_unit_is_read_as_it_is_written(text: str, data: st.DataObject) -> None:
    metric = Metric.parse(text)
    other = metric.in_unit(data.draw(st.sampled_from(metric.units)))
    assert other is not None and Metric.parse(str(other)) == other
    assert metric.plain_text == other.plain_text


_doses = st.lists(st.floats(0, 80, width=32), min_size=1, max_size=40)


@given(_doses, st.floats(0.1, 99.9))
def test_hot_and_cold_parts_make_the_whole(doses: list[float], percent: float) -> None:
    """The volumes of the hottest p % and the coldest 100 - p % add up to the dose of all."""
    dvh = Dvh.of(doses, 0.1)
    n = len(doses)
    if not 1 <= n * percent / 100 <= n - 1:  # a part is at least a voxel
        return
    hot = histogram_value(Metric("meanhot", percent, "%"), dvh)
    cold = histogram_value(Metric("meancold", 100 - percent, "%"), dvh)
    assert hot is not None and cold is not None and hot >= cold - 1e-4
    assert (hot * percent + cold * (100 - percent)) / 100 == pytest.approx(dvh.mean_gy, abs=1e-3)


@given(_doses, st.floats(0, 80))
def test_what_is_spared_and_what_is_not_make_the_whole(doses: list[float], level_gy: float) -> None:
    dvh = Dvh.of(doses, 0.1)
    for unit, whole in (("%", 100.0), ("cc", dvh.volume_cc)):
        parts = [
            histogram_value(Metric(kind, level_gy, "Gy", unit), dvh, level_gy)  # type: ignore[arg-type]
            for kind in ("V", "CV")
        ]
        assert sum(part for part in parts if part is not None) == pytest.approx(whole)


@given(st.floats(0, 150), st.floats(0.5, 20), st.integers(1, 50))
def test_eqd2_is_undone_and_2_gy_fractions_stay(gy: float, alpha_beta_gy: float, fractions: int) -> None:
    eqd2 = float(eqd2_gy(gy, alpha_beta_gy, fractions))
    assert physical_gy(eqd2, alpha_beta_gy, fractions) == pytest.approx(gy, abs=1e-6)
    assert float(eqd2_gy(2.0 * fractions, alpha_beta_gy, fractions)) == pytest.approx(2.0 * fractions)
    hotter = float(eqd2_gy(gy + 1, alpha_beta_gy, fractions))
    assert hotter > eqd2
