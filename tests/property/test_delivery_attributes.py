"""Every attribute of a plan is read, refused by name or listed as harmless, whatever it holds."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom
import pytest
from dicom_files import beam, rt_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import quiet
from vmat_diffusion.dicom.delivery_attributes import (
    BEAM,
    CONTROL_POINT,
    FRACTION_GROUP,
    PATIENT_SETUP,
    TABLES,
)
from vmat_diffusion.dicom.rtplan_read import plan_from
from vmat_diffusion.errors import PlanError

MODULES = ("rt-beams", "rt-fraction-scheme", "rt-patient-setup")
WORDS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=12)


def standard_attributes() -> list[tuple[tuple[str, ...], str]]:
    """Path and keyword of every attribute that the standard has in these modules."""
    file = Path(highdicom.__file__).parent / "_standard" / "module_attribute_map.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    return [(tuple(a["path"]), a["keyword"]) for module in MODULES for a in found[module]]


def test_every_attribute_of_the_standard_is_listed() -> None:
    """What lies below a sequence that is refused or harmless as a whole is decided with it."""
    unlisted = []
    for path, keyword in standard_attributes():
        if (table := TABLES.get(path)) is not None:
            if keyword not in table:
                unlisted.append((path, keyword))
            continue
        if not path:
            assert keyword in {p[0] for p in TABLES}
            continue
        owner = next(TABLES[path[:n]] for n in range(len(path), 0, -1) if path[:n] in TABLES)
        below = next(path[n] for n in range(len(path) - 1, 0, -1) if path[:n] in TABLES)
        assert owner[below].effect in ("refused", "harmless"), (path, keyword)
    assert not unlisted


def test_each_reason_is_given_and_words_that_are_allowed_are_no_sequences() -> None:
    for table in TABLES.values():
        for keyword, attribute in table.items():
            assert attribute.why, keyword
            if attribute.effect == "refused":
                assert bool(attribute.allowed) != keyword.endswith("Sequence"), keyword


def _value(keyword: str, allowed: tuple[str, ...], draw: st.DrawFn) -> object:
    if keyword.endswith("Sequence"):
        return [Dataset() for _ in range(draw(st.integers(1, 3)))]
    if not allowed[0].isdigit():
        return draw(WORDS.filter(lambda word: word not in allowed))
    whole = dictionary_VR(keyword) == "IS"
    numbers = st.integers(1, 9) if whole else st.floats(0.02, 179).map(lambda x: round(x, 4))
    return draw(numbers.filter(lambda x: abs(x - float(allowed[0])) > 0.015))


REFUSED = [
    (place, keyword, attribute.allowed)
    for place, table in (
        ("beam", BEAM),
        ("control point", {**BEAM, **CONTROL_POINT}),
        ("fraction group", FRACTION_GROUP),
        ("setup", PATIENT_SETUP),
    )
    for keyword, attribute in table.items()
    if attribute.effect == "refused"
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_changes_the_delivery_is_refused_by_name_wherever_it_stands(data: st.DataObject) -> None:
    place, keyword, allowed = data.draw(st.sampled_from(REFUSED))
    value = data.draw(st.composite(lambda draw: _value(keyword, allowed, draw))())
    plan = rt_plan([beam(), beam(2)])
    item = data.draw(st.sampled_from(list(plan.BeamSequence)))
    where = {
        "beam": item,
        "control point": data.draw(st.sampled_from(list(item.ControlPointSequence))),
        "fraction group": plan.FractionGroupSequence[0],
        "setup": plan.PatientSetupSequence[0],
    }[place]
    setattr(where, keyword, value)
    with quiet(), pytest.raises(PlanError, match=keyword):
        plan_from(plan)


HARMLESS = [
    (path, keyword)
    for path, table in TABLES.items()
    for keyword, attribute in table.items()
    if attribute.effect == "harmless" and dictionary_VR(keyword) in ("LO", "SH", "DS", "ST", "SQ")
]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(HARMLESS), st.integers(0, 6), st.floats(-500, 500))
def test_what_is_harmless_changes_nothing(where: tuple[tuple[str, ...], str], k: int, x: float) -> None:
    path, keyword = where
    plan = rt_plan()
    things = [plan]
    for step in path:
        things = [item for thing in things for item in thing.get(step, [])]
    for thing in things[k : k + 1] or things[:1]:
        kind = dictionary_VR(keyword)
        setattr(thing, keyword, [Dataset()] if kind == "SQ" else round(x, 3) if kind == "DS" else "words")
    with quiet():
        changed, same = plan_from(plan), plan_from(rt_plan())
    assert (changed.arcs[0].leaves_mm == same.arcs[0].leaves_mm).all()
    assert (changed.arcs[0].mu == same.arcs[0].mu).all() and changed.isocenter_mm == same.isocenter_mm


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("TableTopVerticalPosition", "TableTopLongitudinalPosition", "TableTopLateralPosition")),
    st.lists(st.one_of(st.none(), st.integers(-300, 300)), min_size=14, max_size=14),
)
def test_a_table_that_moves_is_refused_and_one_that_rests_is_not(
    keyword: str, positions: list[int | None]
) -> None:
    plan = rt_plan([beam(), beam(2)])
    points = [point for item in plan.BeamSequence for point in item.ControlPointSequence]
    for point, position in zip(points, positions, strict=True):
        setattr(point, keyword, position)
    stated = {p for p in positions if p is not None}
    late = [beam[0] is None and any(p is not None for p in beam) for beam in (positions[:7], positions[7:])]
    if len(stated) > 1 or any(late):
        with quiet(), pytest.raises(PlanError, match=keyword):
            plan_from(plan)
    else:
        with quiet():
            assert len(plan_from(plan).arcs) == 2
