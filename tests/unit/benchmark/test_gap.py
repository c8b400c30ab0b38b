"""The gap benchmark: shares of the way from ideal fluence to leaves, what is kept and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from openkbp_files import arrays, write_npz

from vmat_diffusion.benchmark import gap as benchmark
from vmat_diffusion.benchmark.gap import CaseGap, GapResult, benchmark_gap, gap_of, gaps_of
from vmat_diffusion.benchmark.settings import GapSettings
from vmat_diffusion.dataset.openkbp import GOALS
from vmat_diffusion.errors import InputError

STAGES = ("ideal", "sectors", "maps", "delivered")


def stages(*gy: float) -> dict[str, float]:
    return dict(zip(STAGES, gy, strict=True))


def case_of(name: str, goals: str, organs: dict, values: dict | None = None) -> CaseGap:
    return CaseGap(name, goals, organs, values or {}, 600.0, 300.0, "STALLED", 1.5)


def test_shares_add_up_to_the_gap() -> None:
    found = gap_of("Larynx mean", stages(29.0, 31.4, 32.5, 36.6))
    assert found.gap == pytest.approx(7.6)
    assert found.percent == pytest.approx((100 * 2.4 / 7.6, 100 * 1.1 / 7.6, 100 * 4.1 / 7.6))
    assert sum(found.percent) == pytest.approx(100.0)
    assert gap_of("Lens mean", stages(1.0, 1.1, 1.2, 1.3)).percent is None


def test_a_case_shows_organ_means_and_its_other_goals_in_gy() -> None:
    values = {
        "Core D10% <= 10 Gy": stages(11.9, 12.9, 14.6, 16.0),
        "Core mean <= 9 Gy": stages(1, 2, 3, 4),
        "Lungs V20Gy <= 25 %": stages(1, 2, 3, 4),
    }
    found = gaps_of(case_of("cshape_hard", "tg119_cshape_hard", {"Core": stages(5, 6, 7, 8)}, values))
    assert [gap.what for gap in found] == ["Core mean", "Core D10% <= 10 Gy"]


def test_patients_are_pooled_by_organ_and_phantoms_are_not() -> None:
    cases = (
        case_of("pt_201", GOALS, {"Larynx": stages(20, 22, 24, 28), "Cord": stages(10, 10, 12, 12)}),
        case_of("pt_202", GOALS, {"Larynx": stages(30, 32, 34, 38)}),
        case_of("cshape_hard", "tg119_cshape_hard", {"Core": stages(0, 0, 0, 99)}),
    )
    pooled = GapResult(GapSettings(cases=("cshape_hard",)), cases, ()).pooled()
    assert [gap.what for gap in pooled] == [
        "Larynx mean, 2 patients", "Cord mean, 1 patients", "all organ means"
    ]  # fmt: skip
    assert pooled[0].values == (25.0, 27.0, 29.0, 33.0) and pooled[0].percent == pytest.approx((25, 25, 50))
    assert pooled[2].values == pytest.approx((20.0, 64 / 3, 70 / 3, 26.0))


class Measured:
    """Stands in for search and stages."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name, task, asked, progress) -> CaseGap:
        self.names.append(name)
        return case_of(name, task.sheet.name, {"Core": stages(5, 6, 7, 8)})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    made = Measured()
    monkeypatch.setattr(benchmark, "_measured", made)
    return made


BOTH = GapSettings(cases=("cshape_easy", "cshape_hard"))


def test_a_stopped_run_goes_on_and_other_settings_are_refused(tmp_path: Path, measured: Measured) -> None:
    out = tmp_path / "out"
    benchmark_gap(replace(BOTH, cases=("cshape_easy",)), out=out)
    done = benchmark_gap(BOTH, out=out)
    assert measured.names == ["cshape_easy", "cshape_hard"]
    assert [case.id for case in done.cases] == ["cshape_easy", "cshape_hard"]
    kept = json.loads((out / "gap.json").read_text())
    assert [case["gaps"][0]["gap"] for case in kept["cases"]] == [3, 3]
    with pytest.raises(InputError, match="is of another arcs; pass --overwrite"):
        benchmark_gap(replace(BOTH, arcs=3), out=out)
    benchmark_gap(replace(BOTH, arcs=3), out=out, overwrite=True)
    assert len(measured.names) == 4


def test_a_file_that_is_no_result_is_refused(tmp_path: Path, measured: Measured) -> None:
    (tmp_path / "cshape_easy.json").write_text('{"head": 3}')
    with pytest.raises(InputError, match="is no result of this benchmark"):
        benchmark_gap(BOTH, out=tmp_path)


def test_patients_come_by_number_and_those_without_ct_are_named(tmp_path: Path, measured: Measured) -> None:
    parts = arrays(1)
    for number in (201, 203, 204, 205):
        own = {name: values for name, values in parts.items() if number != 203 or name != "ct"}
        write_npz(tmp_path / "data" / "validation" / f"pt_{number}.npz", own)
    asked = GapSettings(data=tmp_path / "data", first=202, count=1)
    done = benchmark_gap(asked)
    assert [case.id for case in done.cases] == ["pt_204"] and done.cases[0].goals == GOALS
    assert [rejected.case for rejected in done.failed] == ["pt_203"]
    with pytest.raises(InputError, match="no patient of split validation has a number from 300 on"):
        benchmark_gap(replace(asked, first=300))
    with pytest.raises(InputError, match="none of 1 cases can be planned; pt_203"):
        (tmp_path / "data" / "validation" / "pt_204.npz").unlink()
        (tmp_path / "data" / "validation" / "pt_205.npz").unlink()
        benchmark_gap(asked)


def test_without_a_name_all_phantoms_are_planned_and_unknown_ones_refused(tmp_path: Path) -> None:
    assert len(GapSettings().phantoms) == 5
    assert GapSettings(data=tmp_path).phantoms == ()
    assert GapSettings(cases=("prostate",), data=tmp_path).phantoms == ("prostate",)
    with pytest.raises(InputError, match="case 'donut' is not known; known are"):
        GapSettings(cases=("donut",))
