"""The file of rules: what fits, and one sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from vmat_diffusion.errors import InputError
from vmat_diffusion.network.rules import Rule, read_rules, rule_for

FULL = """
rules:
  - name: prostate
    tags: {StudyDescription: "*prostate*"}
    structures: ["PTV*", Rectum]
    exclude:
      tags: {PatientID: "TEST*"}
      structures: ["*implant*"]
    plan: {goals: prostate_60_20, search_minutes: 10}
    send: ["TPS@10.0.0.5:104", "https://pacs.example.org/dicom-web"]
  - name: all others
    plan: {goals: bone_8_1}
"""


def study(description: str = "CT Prostate", patient: str = "4711", *names: str) -> tuple[Dataset, Dataset]:
    image, structures = Dataset(), Dataset()
    image.StudyDescription, image.PatientID = description, patient
    structures.StructureSetROISequence = []
    for number, name in enumerate(names or ("PTV_60", "rectum_wall", "Rektum"), start=1):
        region = Dataset()
        region.ROINumber, region.ROIName = number, name
        structures.StructureSetROISequence.append(region)
    return structures, image


def written(folder: Path, text: str) -> Path:
    (folder / "rules.yaml").write_text(text)
    return folder / "rules.yaml"


@pytest.mark.parametrize(
    ("objects", "name"),
    [
        (study(), "prostate"),
        (study("Abdomen"), "all others"),
        (study("prostate", "test 3"), "all others"),
        (study("prostate", "1", "PTV_60"), "all others"),
        (study("prostate", "1", "PTV_60", "Rectum", "Hip Implant L"), "all others"),
        (study("prostate", "1", "ptv1", "RECTUM"), "prostate"),
    ],
)
def test_the_first_rule_that_fits_decides(
    tmp_path: Path, objects: tuple[Dataset, Dataset], name: str
) -> None:
    rules = read_rules(written(tmp_path, FULL))
    found = rule_for(rules, *objects)
    assert found is not None
    assert found.name == name
    assert rule_for(rules[:1], *objects) is (found if name == "prostate" else None)


@pytest.mark.parametrize("where", [0, 1])
def test_a_tag_that_cannot_be_read_excludes_a_study_and_lets_none_in(where: int) -> None:
    unread = study("prostate")
    code = RawDataElement(Tag("Modality"), "CS", 12, b"CT\\Doe^John!", 0, False, True)
    unread[where][Tag("Modality")] = code
    for rule, fits in (
        (Rule("all", {}), True),
        (Rule("without", {}, without_tags={"Modality": "MR"}), False),
        (Rule("with", {}, tags={"Modality": "CT*"}), False),
    ):
        assert (rule_for([rule], *unread) is rule) is fits, rule.name


def test_what_a_rule_asks_for(tmp_path: Path) -> None:
    first, second = read_rules(written(tmp_path, FULL))
    assert first.plan == {"goals": "prostate_60_20", "search_minutes": 10}
    assert first.send == ("TPS@10.0.0.5:104", "https://pacs.example.org/dicom-web")
    assert second.send == ()


def test_a_goal_sheet_beside_the_rules_is_found_from_anywhere(tmp_path: Path) -> None:
    from vmat_diffusion.cli.catalogue import SHELVES

    (tmp_path / "own.toml").write_text(SHELVES["goals"].text("bone_8_1"))
    (rule,) = read_rules(written(tmp_path, "rules: [{name: a, plan: {goals: own.toml}}]"))
    assert rule.plan["goals"] == str(tmp_path / "own.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "rules rules.yaml must be keys with values"),
        ("rules: [a: [", "rules rules.yaml are no YAML, line 1; correct the file"),
        ("rules: []", "must be a list of at least one"),
        ("rulez: []", "rulez is not known; write rules"),
        ("rules: [{plan: {goals: bone_8_1}}]", "rule 1: name must be a text"),
        ("rules: [{name: a, structure: [x], plan: {}}]", "rule 1: structure is not known; write structures"),
        ("rules: [{name: a}]", "rule a: plan: --goals is missing; give it"),
        ("rules: [{name: a, plan: {goals: nothing}}]", "rule a: plan: .*nothing"),
        ("rules: [{name: a, plan: {goals: bone_8_1, arcs: 99}}]", "rule a: plan: --arcs 99 is outside 1 to"),
        ("rules: [{name: a, plan: {goals: bone_8_1, arks: 2}}]", "setting arks is not known"),
        ("rules: [{name: a, plan: {goals: bone_8_1, improve: x}}]", "improve is of one case alone"),
        ("rules: [{name: a, tags: {StudyDescr: x}, plan: {}}]", "StudyDescr is no DICOM keyword"),
        ("rules: [{name: a, tags: {PatientID: 7}, plan: {}}]", "PatientID needs a pattern in quotes"),
        (
            "rules: [{name: a, structures: PTV, plan: {goals: bone_8_1}}]",
            "structures must be a list of texts",
        ),
        ("rules: [{name: a, plan: {goals: bone_8_1}, send: [X]}]", "rule a: send: 'X' is no address"),
        (
            "rules: [{name: a, plan: {goals: bone_8_1}}, {name: a, plan: {goals: bone_8_1}}]",
            "two rules are called a",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as raised:
        read_rules(written(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rules none.yaml does not exist; give a YAML file"):
        read_rules(tmp_path / "none.yaml")
