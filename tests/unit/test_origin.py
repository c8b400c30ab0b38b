"""Whether files belong together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmat_diffusion.case import Prescription
from vmat_diffusion.errors import CaseError
from vmat_diffusion.origin import Origin, compare, prescription_against

CT = Origin("CT", patient="p", study="s", frame="f", position="HFS", structure_set="set")
PLAN = Origin("plan", patient="p", study="s", frame="f", position="HFS", uid="plan", structure_set="set")
DOSE = Origin("dose", patient="p", study="s", frame="f", plan="plan")


def test_files_of_one_patient_and_plan_belong_together() -> None:
    found = compare(CT, PLAN, DOSE)
    assert not found.contradictions and not found.silences and found.require() == ()


FIELDS = [
    *(("CT", name) for name in ("patient", "frame", "position", "structure_set")),
    *(("plan", name) for name in ("patient", "frame", "position", "uid", "structure_set")),
    *(("dose", name) for name in ("patient", "frame", "plan")),
]


@given(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4, unique=True), st.permutations([0, 1, 2]))
def test_any_contradiction_is_found_in_any_order(changes: list[tuple[str, str]], order: list[int]) -> None:
    files = {origin.what: origin for origin in (CT, PLAN, DOSE)}
    for number, (what, name) in enumerate(changes):
        files[what] = replace(files[what], **{name: f"other {number}"})
    found = compare(*(list(files.values())[k] for k in order))
    assert found.contradictions
    with pytest.raises(CaseError, match="do not belong together"):
        found.require()
    with pytest.raises(CaseError, match="--force"):
        found.require(force=False)
    assert found.require(force=True)[0].startswith("forced in spite of: ")


@given(
    st.sampled_from([f for f in FIELDS if f[1] not in ("position", "uid") and f != ("CT", "structure_set")])
)
def test_silence_warns_and_does_not_refuse(change: tuple[str, str]) -> None:
    what, name = change
    files = {origin.what: origin for origin in (CT, PLAN, DOSE)}
    files[what] = replace(files[what], **{name: ""})
    found = compare(*files.values())
    assert found.silences and not found.contradictions


def test_another_study_is_said_only() -> None:
    found = compare(CT, replace(PLAN, study="t"))
    assert found.silences == ("the plan is of another study than the CT",) and not found.contradictions


def test_what_comes_from_no_file_is_not_asked() -> None:
    assert compare(CT, None).require() == ()


@pytest.mark.parametrize(
    ("stated", "contradicts"),
    [
        ({7: 50.0}, False),
        ({7: 50.2}, False),
        ({7: 60.0}, True),
        ({7: 2.0}, True),
        ({8: 60.0, 7: 50.0}, False),
        ({-1: 50.0}, False),
        ({-1: 50.0, -2: 20.0}, False),
        ({-1: 60.0}, True),
    ],
)
def test_prescription_against_the_sheet(stated: dict[int, float], contradicts: bool) -> None:
    plan = replace(PLAN, prescribed_gy=stated)
    found = prescription_against(plan, Prescription(25, {"PTV": 50.0}), {"PTV": 7, "Core": 8})
    assert bool(found.contradictions) == contradicts


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({7: 50.0}, ()),
        ({-1: 50.0}, ()),
        ({8: 50.0}, ("50 Gy to Core, the goal sheet nothing", "nothing to PTV, the goal sheet 50 Gy")),
        ({7: 50.0, 9: 60.0}, ("60 Gy to ROI 9, which the structure set does not hold",)),
    ],
)
def test_a_prescription_to_another_region_is_said(stated: dict[int, float], words: tuple[str, ...]) -> None:
    plan = replace(PLAN, prescribed_gy=stated)
    found = prescription_against(plan, Prescription(25, {"PTV": 50.0}), {"PTV": 7, "Core": 8})
    assert len(found.silences) == len(words) and not found.contradictions
    assert all(any(w in silence for silence in found.silences) for w in words)


def test_a_plan_that_refers_to_another_dose_is_said() -> None:
    dose = replace(DOSE, doses=("d1", "d2"))
    assert not compare(CT, replace(PLAN, doses=("d2", "d3")), dose).silences
    found = compare(CT, replace(PLAN, doses=("d3",)), dose)
    assert found.silences == ("the plan refers to other doses than this dose",) and not found.contradictions


def test_a_plan_without_prescription_is_said() -> None:
    assert prescription_against(PLAN, Prescription(25, {"PTV": 50.0}), {"PTV": 7}).silences
