"""Splits: by patient, in proportion, stable, and no hand can change them unnoticed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmat_diffusion.dataset.splits import (
    SPLIT_FRACTIONS,
    SPLITS,
    Member,
    Splits,
    load_splits,
    place_cases,
    save_splits,
)
from vmat_diffusion.errors import CaseError


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    """Patients of up to three strata with one to three cases each."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=60))
    strata = draw(st.lists(st.sampled_from("abc"), min_size=len(sizes), max_size=len(sizes)))
    return [
        Member(f"case_{n}_{k}", f"patient_{n}", stratum)
        for n, (size, stratum) in enumerate(zip(sizes, strata, strict=True))
        for k in range(size)
    ]


FRACTION_SETS = st.sampled_from([SPLIT_FRACTIONS, (0.7, 0.15, 0.15), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0)])


def _patients(splits: Splits) -> dict[str, str]:
    return {member.patient: split for member, split in splits.placed.values()}


@given(members(), FRACTION_SETS, st.integers(0, 5))
def test_by_patient_in_proportion_and_in_any_order(
    cases: list[Member], fractions: tuple[float, float, float], seed: int
) -> None:
    splits = place_cases(cases, fractions=fractions, seed=seed)
    assert sorted(name for s in SPLITS for name in splits.ids(s)) == sorted(m.id for m in cases)
    for member, split in splits.placed.values():
        assert all(s == split for m, s in splits.placed.values() if m.patient == member.patient)
    stratum = {m.patient: m.stratum for m in cases}
    for name in set(stratum.values()):
        found = Counter(s for p, s in _patients(splits).items() if stratum[p] == name)
        for split, share in zip(SPLITS, fractions, strict=True):
            # One more at most by the rule; then two splits may each take one from the third.
            assert -2 < found[split] - share * found.total() < 1
    assert place_cases(cases[::-1], fractions=fractions, seed=seed).placed == splits.placed


@given(members(), st.data())
def test_one_stratum_is_within_a_patient(cases: list[Member], data: st.DataObject) -> None:
    same = [Member(m.id, m.patient, "all") for m in cases]
    found = Counter(_patients(place_cases(same)).values())
    for split, share in zip(SPLITS, SPLIT_FRACTIONS, strict=True):
        assert abs(found[split] - share * found.total()) < 1


@given(members(), st.lists(st.integers(0, 1000), min_size=1, max_size=4))
def test_what_is_placed_stays_when_cases_come_and_go(cases: list[Member], cuts: list[int]) -> None:
    splits, seen = None, {}
    for cut in [*cuts, len(cases)]:
        splits = place_cases(cases[cut % (len(cases) + 1) // 2 : cut % (len(cases) + 1)], before=splits)
        for patient, split in _patients(splits).items():
            assert seen.setdefault(patient, split) == split
    assert splits is not None


@given(st.integers(1, 80), st.integers(0, 80))
def test_proportions_hold_after_additions(first: int, more: int) -> None:
    cases = [Member(f"c{n}", f"p{n}", "a") for n in range(first + more)]
    found = Counter(_patients(place_cases(cases, before=place_cases(cases[:first]))).values())
    for split, share in zip(SPLITS, SPLIT_FRACTIONS, strict=True):
        assert abs(found[split] - share * found.total()) < 1


def test_small_strata_do_not_all_train() -> None:
    cases = [Member(f"c{n}", f"p{n}", f"stratum {n}") for n in range(100)]
    assert Counter(_patients(place_cases(cases)).values()) == {"train": 80, "validation": 10, "test": 10}


def test_given_splits_hold_and_are_added_to() -> None:
    cases = [Member(f"c{n}", f"p{n}", "a") for n in range(20)]
    given_splits = {f"c{n}": "test" for n in range(5)}
    splits = place_cases(cases, given=given_splits)
    assert {f"c{n}" for n in range(5)} <= set(splits.ids("test"))
    # Test has 3 more than its share, which the others must lack: not all of it one of them.
    assert len(splits.ids("train")) + len(splits.ids("validation")) == 15
    again = place_cases([*cases, Member("new", "p3", "a")], before=splits)
    assert "new" in again.ids("test")


def test_a_patient_cannot_be_in_two_splits() -> None:
    cases = [Member("a", "p", "s"), Member("b", "p", "s")]
    with pytest.raises(CaseError, match="patient p would be in train and in test"):
        place_cases(cases, given={"a": "train", "b": "test"})
    with pytest.raises(CaseError, match="case a belongs to another patient"):
        place_cases([Member("a", "q", "s")], before=place_cases(cases))
    with pytest.raises(CaseError, match="case a is in the data set twice"):
        place_cases([*cases, Member("a", "q", "s")])


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (0.5, 0.5)])
def test_fractions_that_make_no_whole_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(CaseError, match="fractions"):
        place_cases([Member("a", "p", "s")], fractions=fractions)  # type: ignore[arg-type]


def _saved(folder: Path) -> tuple[Path, Splits]:
    cases = [Member(f"c{n}", f"p{n}", "a") for n in range(30)]
    splits = place_cases(cases[1:], before=place_cases(cases))
    return save_splits(folder / "splits.json", splits), splits


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    path, splits = _saved(tmp_path)
    assert load_splits(path, splits.placed) == splits
    assert set(splits.left) == {"c0"}
    before = path.read_bytes()
    assert save_splits(path, load_splits(path)).read_bytes() == before


def _moved(record: dict) -> None:
    record["cases"][3]["split"] = "test" if record["cases"][3]["split"] != "test" else "train"


def _removed(record: dict) -> None:
    del record["cases"][3]


def _reseeded(record: dict) -> None:
    record["seed"] = 1


def _emptied(record: dict) -> None:
    record.clear()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_moved, "the entry of c12 was changed"),
        (_removed, "was changed since it was written"),
        (_reseeded, "was changed since it was written"),
        (_emptied, "cannot be read"),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, change, said: str) -> None:  # type: ignore[no-untyped-def]
    path, _ = _saved(tmp_path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(CaseError, match=said):
        load_splits(path)


def test_missing_and_changed_members_are_said(tmp_path: Path) -> None:
    path, splits = _saved(tmp_path)
    with pytest.raises(CaseError, match="1 cases of the data set have no split, the first is new"):
        load_splits(path, [*splits.placed, "new"])
    with pytest.raises(CaseError, match="29 cases are not in the data set"):
        load_splits(path, [])
    with pytest.raises(CaseError, match="is missing"):
        load_splits(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(CaseError, match="cannot be read"):
        load_splits(path)


def test_one_patient_id_over_many_studies_and_frames_is_said_so() -> None:
    """Anonymised data often have one PatientID for all; a patient scanned anew once has two of each."""
    from vmat_diffusion.dataset.splits import shared_patients

    def lines(patient: str, studies: int, frames: int, cases: int = 6) -> list[dict[str, str]]:
        return [
            {"patient": patient, "study": f"s{k % studies}", "frame_of_reference": f"f{k % frames}"}
            for k in range(cases)
        ]

    (said,) = shared_patients([*lines("one", 1, 1), *lines("again", 2, 2), *lines("anon", 5, 4)])
    assert said.startswith(
        "one PatientID (patient anon) covers 5 studies and 4 frames of reference; if these"
    )
    assert shared_patients([{"patient": "p"} for _ in range(9)]) == ()
