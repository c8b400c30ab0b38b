from __future__ import annotations

import cProfile
import csv
from pathlib import Path

import numpy as np
import pytest

from vmat_diffusion.dataset.index import read_index
from vmat_diffusion.dataset.tables import (
    Rejection,
    fingerprint,
    read_dataset,
    rejection,
    write_dataset,
    write_index,
    write_rejected,
)
from vmat_diffusion.errors import CaseError


def _record(number: int) -> dict:
    return {
        "id": f"case_{number:05d}",
        "file": f"case_{number:05d}.npz",
        "sha256": "0" * 64,
        "shape": [8, 16, 16],
        "targets": ["PTV_60"],
        "organs": ["Heart"],
        "site": ("lung", "prostate")[number % 2],
        "prescription_gy": {"PTV_60": 60.0},
        "fractions": 30,
        "has_ct": True,
        "has_dose": number % 3 > 0,
        "technique": "VMAT",
        "patient": f"p{number // 2}",
    }


def _statistics(number: int) -> dict:
    hu = np.random.default_rng(number).normal(0, 100, 50)
    return {
        "volumes_cc": {"PTV_60": 100.0 + number, **({"Heart": 5.0} if number % 2 else {})},
        "hu": {"voxels": 50, "mean": hu.mean(), "std": hu.std(), "min": hu.min(), "max": hu.max()},
        "source_spacing_mm": [1.0, 1.0, 2.0 + number % 2],
    }


def test_the_fingerprint_pools_what_the_cases_say() -> None:
    hu = np.concatenate([np.random.default_rng(k).normal(0, 100, 50) for k in range(10)])
    found = fingerprint([_record(k) for k in range(10)], [_statistics(k) for k in range(10)], rejected=3)
    assert (found["cases"], found["rejected"], found["patients"], found["with_dose"]) == (10, 3, 5, 6)
    assert found["sites"] == {"lung": 5, "prostate": 5}
    assert found["prescriptions"] == {"60 Gy in 30": 10}
    assert found["structures"]["Heart"]["cases"] == 5
    assert found["structures"]["PTV_60"]["volume_cc"] == {"min": 100.0, "median": 104.5, "max": 109.0}
    assert found["hu"]["mean"] == pytest.approx(hu.mean(), abs=1e-3)
    assert found["hu"]["std"] == pytest.approx(hu.std(), abs=1e-3)
    assert found["source_spacing_mm"]["z"] == {"min": 2.0, "median": 2.5, "percentile_95": 3.0, "max": 3.0}


def test_index_and_rejections_are_sorted_and_come_back(tmp_path: Path) -> None:
    write_index(tmp_path, [_record(k) for k in (3, 1, 2)])
    assert [r["id"] for r in read_index(tmp_path)] == ["case_00001", "case_00002", "case_00003"]
    write_rejected(tmp_path, [Rejection("b", 'says "no"', "ask, again"), Rejection("a", "x", "y")])
    with (tmp_path / "rejected.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [["case", "reason", "remedy"], ["a", "x", "y"], ["b", 'says "no"', "ask, again"]]


def test_a_damaged_index_is_refused_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"holds no readable index\.jsonl"):
        read_index(tmp_path)
    write_index(tmp_path, [_record(1)])
    index = tmp_path / "index.jsonl"
    index.write_text(index.read_text() + '{"id": ')
    with pytest.raises(CaseError, match=r"index\.jsonl, line 2"):
        read_index(tmp_path)


def test_dataset_json_comes_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert read_dataset(tmp_path) is None
    write_dataset(tmp_path, settings={"relax": True}, shape=(8, 16, 16), numbers={"cases": 2})
    found = read_dataset(tmp_path)
    assert found is not None and found["settings"] == {"relax": True} and found["shape"] == [8, 16, 16]
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(CaseError, match="is damaged"):
        read_dataset(tmp_path)


def test_a_sentence_becomes_reason_and_remedy() -> None:
    assert rejection("a", "no dose (RD; 3 files); export it") == Rejection(
        "a", "no dose (RD; 3 files)", "export it"
    )
    assert rejection("a", "no remedy").remedy.startswith("look at the folder")


def test_ten_times_the_entries_take_ten_times_the_calls(tmp_path: Path) -> None:
    """Linear: counted in calls, which no busy computer changes."""

    def calls(count: int) -> int:
        records, statistics = [_record(k) for k in range(count)], [_statistics(k) for k in range(count)]
        profile = cProfile.Profile()
        with profile:
            write_index(tmp_path, records)
            fingerprint(read_index(tmp_path), statistics, 0)
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(4000) < 12 * calls(400)
