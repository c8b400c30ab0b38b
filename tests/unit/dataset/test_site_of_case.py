"""The site and the goals that a case's structures tell, with sheets of many sites that share organs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.dataset.site_of_case import sheet_of, site_of

PELVIS = ("Rectum", "Bladder", "Femur_Head_L", "Femur_Head_R", "Bag_Bowel")


def _case(target: str, organs: tuple[str, ...]) -> Case:
    base = small_case()
    ptv, core = (base.structures[n].mask for n in ("PTV", "Core"))
    structures = {
        "BODY": base.structures["BODY"],
        target: Structure(target, "target", ptv),
        **{name: Structure(name, "organ", np.roll(core, k, axis=0)) for k, name in enumerate(organs)},
    }
    return replace(base, site="unknown", structures=structures, prescription=None, reference_dose=None)


@pytest.mark.parametrize(
    ("target", "organs", "site"),
    [
        ("PTV_78", PELVIS, "prostate"),  # by the level of its target: the organs are those of five sites
        ("PTV", (*PELVIS, "PenileBulb"), "prostate"),
        ("PTV", (*PELVIS, "SeminalVes"), "prostate"),
        ("PTV", PELVIS, "unknown"),
        ("PTV_45", (*PELVIS, "BoneMarrow"), "cervix"),
        ("PTV_54", (*PELVIS, "Genitals"), "anal"),
        ("PTV_60", ("Lung_L", "Lung_R", "Heart", "SpinalCord", "Esophagus"), "lung"),
        ("PTV_41.4", ("Lung_L", "Lung_R", "Heart", "SpinalCord", "Kidney_L", "Kidney_R"), "esophagus"),
        ("PTV_50", ("Lung_L", "Lung_R", "Heart", "Breast_R"), "breast"),
        ("PTV_60", ("Brain", "Brainstem", "OpticChiasm", "Hippocampus_L"), "brain"),
        ("PTV_70", ("SpinalCord", "Brainstem", "Parotid_L", "Larynx"), "head_neck"),
        ("PTV_33", ("Duodenum", "Stomach", "Liver", "Kidney_L"), "pancreas"),
    ],
)
def test_the_site_is_that_of_the_organs_and_levels(target: str, organs: tuple[str, ...], site: str) -> None:
    assert site_of(_case(target, organs), "")[0] == site


def test_goals_of_one_breast_are_taken_where_the_organs_tell_the_side_and_none_else() -> None:
    organs = ("Lung_L", "Lung_R", "Heart")
    told = sheet_of(_case("PTV_50", (*organs, "Breast_R")), "breast", 25)[0]
    assert told is not None and told.name == "breast_left_nodes_50_25"
    assert sheet_of(_case("PTV_50", organs), "breast", 25) == (None, ["goals-unknown"])
