from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from dicom_files import ct_series, square, structure_set, write_patient

from vmat_diffusion.dicom import unknown_names
from vmat_diffusion.dicom.names import cleaned, load_table
from vmat_diffusion.errors import CaseError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("written", "canonical", "role"),
    [
        ("BODY", "BODY", "body"),
        ("External ROI_1", "BODY", "body"),
        ("SpinalCord", "SpinalCord", "organ"),
        ("SPINAL_CORD", "SpinalCord", "organ"),
        ("cord", "SpinalCord", "organ"),
        ("cord_prv", "SpinalCord_PRV", "organ"),
        ("Brain Stem", "Brainstem", "organ"),
        ("RightParotid", "Parotid_R", "organ"),
        ("PAROTID RT", "Parotid_R", "organ"),
        ("l parotid", "Parotid_L", "organ"),
        ("Parotid (L)", "Parotid_L", "organ"),
        ("Left_Cochlear", "Cochlea_L", "organ"),
        ("Lt Lung", "Lung_L", "organ"),
        ("Lung-GTV", "Lungs-GTV", "organ"),
        ("Fem Head R", "Femur_Head_R", "organ"),
        ("Oesophagus", "Esophagus", "organ"),
        ("Mandible", "Bone_Mandible", "organ"),
        ("PTV", "PTV", "target"),
        ("PTV70", "PTV_70", "target"),
        ("PTV_70cf", "PTV_70", "target"),
        ("ptv 70 Gy", "PTV_70", "target"),
        ("PTV_7000", "PTV_70", "target"),
        ("PTVp_7000", "PTV_70", "target"),
        ("PTVp7000", "PTV_70", "target"),
        ("PTVn2_5600", "PTV_56", "target"),
        ("PTV_5600cGy", "PTV_56", "target"),
        ("PTV 63_eval", "PTV_63", "target"),
        ("PTV_41.4", "PTV_41.4", "target"),
        ("PTV4140", "PTV_41.4", "target"),
        ("CTV_60", "CTV_60", "target"),
        ("GTV_n_CF", "GTVn", "target"),
        ("Core", "Core", "organ"),
        ("Larynx_SG", "Larynx_Supraglottic", "organ"),
        ("TMJ Lt", "Joint_TM_L", "organ"),
        ("Temporal Lobe Right", "Lobe_Temporal_R", "organ"),
        ("lt lacrimal gland", "Glnd_Lacrimal_L", "organ"),
        ("OpticNrv_PRV03_L", "OpticNrv_PRV_L", "organ"),
        ("Chiasm PRV", "OpticChiasm_PRV", "organ"),
        ("Hippocampus_R", "Hippocampus_R", "organ"),
        ("Upper Esophagus", "Esophagus_S", "organ"),
        ("IMN_L", "LN_IMN_L", "target"),
        ("Cauda Equina", "CaudaEquina", "organ"),
        ("Sacral Plexus", "SacralPlex", "organ"),
        ("Bowel loops", "Bowel", "organ"),
        ("Jejunum", "Jejunum_Ileum", "organ"),
        ("DUODENUM", "Duodenum", "organ"),
        ("Iliac Crest Lt", "Bone_Ilium_L", "organ"),
        ("Genitalia", "Genitals", "organ"),
        ("Bone Marrow", "BoneMarrow", "organ"),
        ("Pubic Symphysis", "PubicSymphys", "organ"),
        ("Prostatic urethra", "Urethra", "organ"),
        ("SpinalCord_PRV05", "SpinalCord_PRV", "organ"),
        ("Ribs", "Rib", "organ"),
    ],
)
def test_names_as_clinics_write_them(written: str, canonical: str, role: str) -> None:
    match = load_table().match(written)
    assert match is not None and (match.name, match.role) == (canonical, role)


@pytest.mark.parametrize(
    "written",
    [
        "Cord +0.3cm",
        "Brainstem +0.3cm",
        "L PAROTID PRV",
        "External -0.5cm",
        "Ring 70",
        "SPTV 70",
        "PTV70 opt",
        "PTV_70-PTV_63",
        "PTV70-5mm",
        "Parotid_L-PTV",
        "zPTV_70",
        "_SpinalCord",
        "PTV_660",
        "PTV1_opt",
        "PTV1 ring",
        "PTV1-5mm",
        "PTV1-PTV2",
        "PTV-Rectum",
        "PTV_Rectum",
        "PTV_Ring_2000",
        "PTV70_in",
        "zPTV1",
        "Lung",
        "Hotspot",
        "",
        "\u8133",
    ],
)
def test_helper_structures_and_unclear_names_are_not_guessed(written: str) -> None:
    assert load_table().match(written) is None


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("GTV-1", "GTV1"),
        ("gtv_2", "GTV2"),
        ("PTV1", "PTV1"),
        ("PTV 1", "PTV1"),
        ("PTV_1", "PTV1"),
        ("CTV-1", "CTV1"),
        ("GTVp1", "GTVp1"),
        ("GTVn1", "GTVn1"),
        ("PTVn", "PTVn"),
        ("CTVp", "CTVp"),
        ("PTV_High", "PTV_High"),
        ("PTVp_Low", "PTVp_Low"),
        ("ITV1", "ITV1"),
        ("ITV_50", "ITV_50"),
        ("IGTV", "IGTV"),
        ("HR-CTV", "CTV_HR"),
        ("CTV_IR", "CTV_IR"),
        ("PTV1_50.4", "PTV1_50.4"),
        ("PTV1_5040", "PTV1_50.4"),
        ("PTV_High_70", "PTV_High_70"),
        ("PTV_60_2Gy", "PTV_60_2Gy"),
        ("PTV_Eval", "PTV_Eval"),
        ("PTVHigh", "PTV_High"),
        ("CTV High Risk", "CTV_High"),
        ("PTV intermediate", "PTV_Mid"),
        ("GTV - 1", "GTV1"),
        ("GTV12", "GTV12"),
        ("GTV70", "GTV_70"),
        ("ITV60", "ITV_60"),
        ("PTV!", "PTV!"),
        ("PTVp1_CT1PT1", "PTVp1_CT1PT1"),
        ("CTV_Preop", "CTV_Preop"),
        ("PTV_LN", "PTV_LN"),
        ("PTV_Prostate", "PTV_Prostate"),
        ("PTV_Liver_2000x3", "PTV_Liver_20_x3"),
        ("PTV_Eval_7000-08", "PTV_Eval_70-08"),
        ("PTV (70)", "PTV_70"),
    ],
)
def test_numbered_targets_of_tg263_keep_a_name_of_their_own(written: str, canonical: str) -> None:
    """A name ends in `_` and a number only where that number is a dose in Gy."""
    match = load_table().match(written)
    assert match is not None and (match.name, match.role) == (canonical, "target")
    # The canonical name means itself, as do its spellings in capitals or with blanks.
    for form in (canonical, canonical.upper(), canonical.replace("_", " ")):
        again = load_table().match(form)
        assert again is not None and (again.name, again.role) == (canonical, "target")


@pytest.mark.parametrize("seed", range(300))
def test_targets_by_the_grammar_are_targets_and_their_helpers_are_not(seed: int) -> None:
    """Type, class, number, level and dose in any spelling; a helper's word anywhere undoes it."""
    rng = np.random.default_rng(seed)

    def one(*parts: str) -> str:
        return str(rng.choice(parts))

    kind = one("GTV", "CTV", "PTV", "ITV", "IGTV", "ICTV")
    tail = one("", "p", "n", "sb") + one("", "", "1", "2", "9")
    level = one("", "", "High", "Low", "Mid")
    dose = one("", "", "70", "5040", "50.4", "66Gy", "5600cGy", "60 Gy")
    gap = one("_", "-", " ")
    name = gap.join(part for part in (kind + one("", gap) + tail if tail else kind, level, dose) if part)
    spelled = one(name, name.lower(), name.upper(), f" {name} ")
    match = load_table().match(spelled)
    assert match is not None and match.role == "target" and match.name.startswith(kind), spelled
    stated = re.fullmatch(r".*_(\d+(?:\.\d+)?)", match.name)
    assert bool(stated) == bool(dose), (spelled, match)
    if stated:
        value = float(re.sub(r"[^\d.]", "", dose))
        assert float(stated[1]) == (value / 100 if value >= 1000 else value)
    word = one("ring", "opt", "shell", "dummy", "helper")
    helper = one(
        f"z{name}", f"_{name}", f"{name}{gap}{word}", f"{word}{gap}{name}", f"Lung-{name}", f"{name}-5mm"
    )
    assert (found := load_table().match(helper)) is None or found.role == "organ", helper


def test_own_table_adds_to_the_shipped_one_and_wins() -> None:
    own = {
        "Tumour": {"role": "target", "aliases": ["lesion {side}", "cord"]},
        "PTV1": {"role": "other"},
        "Heart": {"role": "other", "aliases": []},
        "Ear_{side}": {"role": "organ", "aliases": ["{side} ear"]},
    }
    table = load_table({"structures": own})
    found = {n: table.match(n) for n in ("cord", "PTV-1", "herz", "links ear", "Rectum", "PTV2", "myelon")}
    told = {n: (m.name, m.role) if m else None for n, m in found.items()}
    assert told == {
        "cord": ("Tumour", "target"),
        "PTV-1": ("PTV1", "other"),
        "herz": ("Heart", "other"),
        "links ear": ("Ear_L", "organ"),
        "Rectum": ("Rectum", "organ"),
        "PTV2": ("PTV2", "target"),
        "myelon": ("SpinalCord", "organ"),
    }


def test_unknown_names_come_with_the_nearest_known_ones() -> None:
    assert load_table().nearest("Brainstm")[0] == "Brainstem"
    assert load_table().nearest("Cord +0.3cm")[0] == "SpinalCord"
    assert load_table().nearest("qqqqqq") == ()
    assert len(load_table().nearest("Parotid")) <= 3


def test_cleaned_names_are_safe_to_show_and_to_store() -> None:
    assert cleaned("Brain <b>/..\\ stem +0.3cm ") == "Brain_b_.._stem_+0.3cm"
    assert len(cleaned("x" * 200)) == 64


def test_file_at_the_root_is_the_one_in_the_package() -> None:
    shipped = (resources.files("vmat_diffusion.dicom") / "oar_mapping.json").read_text(encoding="utf-8")
    assert (ROOT / "oar_mapping.json").read_text(encoding="utf-8") == shipped


def test_a_table_that_replaces_stands_alone() -> None:
    """Targets by the grammar of TG-263 need no table; everything else the shipped one knew is unknown."""
    own = {"Heart": {"role": "organ", "aliases": ["herz"]}}
    table = load_table({"structures": own, "replace": True})
    found = {n: m.name if (m := table.match(n)) else None for n in ("herz", "Rectum", "PTV1")}
    assert found == {"herz": "Heart", "Rectum": None, "PTV1": "PTV1"}
    added = load_table({"structures": own, "replace": False}).match("Rectum")
    assert added is not None and added.name == "Rectum"


def test_shipped_table_gives_every_canonical_name_back() -> None:
    table = load_table()
    for match in table.exact.values():
        found = table.match(match.name)
        assert found is not None and found.name == match.name and found.how == "name"


def test_own_table_from_file(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(
        json.dumps({"structures": {"Tumour_{dose}": {"role": "target", "regexes": [r"t(?P<dose>\d+)"]}}})
    )
    match = load_table(file).match("T5400")
    assert match is not None and match.name == "Tumour_54"
    body = load_table(file).match("BODY")
    assert body is not None and body.role == "body"


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({}, "structures"),
        ({"structures": {}, "extra": 1}, "unknown key 'extra'"),
        ({"structures": {"A": {"role": "tumour"}}}, "role 'tumour'"),
        ({"structures": {"A": {"role": "organ", "alias": []}}}, "role, aliases and regexes only"),
        ({"structures": {"A": {"role": "organ", "aliases": "b"}}}, "list of texts"),
        ({"structures": {"A": {"role": "organ", "regexes": ["("]}}}, "not a regular expression"),
        ({"structures": {}, "replace": "yes"}, "replace must be true or false, not 'yes'"),
        ({"structures": {"A_{dose}": {"role": "target", "regexes": ["a"]}}}, "need each other"),
        (
            {
                "structures": {
                    "A": {"role": "organ", "aliases": ["x"]},
                    "B": {"role": "organ", "aliases": ["X "]},
                }
            },
            "already stands for A",
        ),
    ],
)
def test_wrong_tables_are_refused_by_name(tree: dict, says: str) -> None:
    with pytest.raises(CaseError, match=says.replace("(", r"\(")):
        load_table(tree)


def test_missing_or_broken_table_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="does not exist"):
        load_table(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CaseError, match="not valid JSON"):
        load_table(tmp_path / "broken.json")


def test_unknown_names_of_a_data_set_are_counted_and_ready_to_be_edited(tmp_path: Path) -> None:
    for k, name in enumerate(["Ring 1", "ring_1", "Lesion"]):
        images = ct_series()
        rois = {name: [("CLOSED_PLANAR", square(0, 0, 5, 2.5))], "Rectum": [], "PTV1": []}
        write_patient(tmp_path / str(k), images, structure_set(images, rois))
    tree = json.loads(json.dumps(unknown_names(tmp_path)))
    assert {name: entry["seen"] for name, entry in tree["structures"].items()} == {"Ring_1": 2, "Lesion": 1}
    assert load_table(tree).match("Ring 1") is None
    tree["structures"]["GTV"] = {**tree["structures"].pop("Lesion"), "role": "target"}
    match = load_table(tree).match("lesion")
    assert match is not None and (match.name, match.role) == ("GTV", "target")
    assert unknown_names(tmp_path / "2", mapping=_saved(tmp_path / "own.json", tree))["structures"] == {}


def _saved(file: Path, tree: object) -> Path:
    file.write_text(json.dumps(tree), encoding="utf-8")
    return file
