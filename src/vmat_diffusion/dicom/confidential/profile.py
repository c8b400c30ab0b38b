"""What the confidentiality profile says of attributes: table E.1-1, its options, and what texts may stay.

The table is the library dicom-anonymizer's copy of DICOM PS3.15 table E.1-1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag


def word_set(text: str) -> frozenset[str]:
    """The words of a text that stands for a long list."""
    return frozenset(text.split())


# Edition of the standard whose table E.1-1 is in force.
_TABLE = "dicomfields_2026c"
METHOD = "PS3.15 annex E basic profile, texts cleaned, dates moved"  # LO: 64 characters at most
OPTIONS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113105", "Clean Descriptors Option"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
)
PLACEHOLDER = "ANONYMIZED"  # what the library writes where a text must not be empty

# Kept although table E.1-1 empties them: option 113108.
CHARACTERISTICS = frozenset({"PatientSex", "PatientSize", "PatientWeight"})
# Texts about equipment, method and codes; kept if no word in them is one of the patient's.
TECHNICAL = word_set(
    """Manufacturer ManufacturerModelName SoftwareVersions ConvolutionKernel FilterType RescaleType
    FluenceModeID CodeValue LongCodeValue CodeMeaning CodingSchemeDesignator CodingSchemeVersion MaterialID
    PositionReferenceIndicator SequenceName Radiopharmaceutical AttenuationCorrectionMethod
    ScatterCorrectionMethod ReconstructionMethod ModalityLUTType WindowCenterWidthExplanation"""
)

# Code strings that the standard defines for these objects; that a patient has such a name is chance.
STANDARD_CODES = word_set(
    """CT MR PT PET REG RTSTRUCT RTDOSE RTPLAN ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER HELICAL
    HFS HFP FFS FFP HFDL HFDR FFDL FFDR MONOCHROME1 MONOCHROME2 HU US GY RELATIVE PHYSICAL EFFECTIVE ERROR
    PLAN MULTI_PLAN FRACTION BEAM BRACHY FRACTION_SESSION BEAM_SESSION CONTROL_POINT RECORD VOLUMETRIC
    POINT OPEN_PLANAR OPEN_NONPLANAR CLOSED_PLANAR CLOSEDPLANAR_XOR EXTERNAL PTV CTV GTV TREATED_VOLUME
    IRRAD_VOLUME BOLUS AVOIDANCE ORGAN MARKER REGISTRATION ISOCENTER CONTRAST_AGENT CAVITY SUPPORT FIXATION
    DOSE_REGION CONTROL DOSE_MEASUREMENT BRACHY_CHANNEL AUTOMATIC SEMIAUTOMATIC MANUAL APPROVED UNAPPROVED
    REJECTED PATIENT TREATMENT_DEVICE VOLUME COORDINATES SITE TARGET ORGAN_AT_RISK CURATIVE PALLIATIVE
    STATIC DYNAMIC PHOTON ELECTRON NEUTRON PROTON TREATMENT OPEN_PORTFILM TRMT_PORTFILM CONTINUATION SETUP
    MU MINUTE X Y ASYMX ASYMY MLCX MLCY CW CC NONE STANDARD NON_STANDARD FLUENCE SUP INF ANT POST LEFT RIGHT
    ISOCENTRIC FIXED_SSD TBI BREAST_BRIDGE SKIN_APPOSITION DIFFERENTIAL CUMULATIVE NATURAL ABSOLUTE
    IMAGE ROI_OVERRIDE WATER HEAD NECK CHEST ABDOMEN PELVIS BREAST PROSTATE HEADNECK WHOLEBODY LUNG
    LIVER BRAIN SPINE THORAX AUTO YES NO MODIFIED UNMODIFIED M F O L R DCM REL_ELEC_DENSITY REL_MASS_DENSITY
    MEAN_EXCI_ENERGY REL_STOP_RATIO ELEM_FRACTION EFFECTIVE_Z MIN MAX MEAN USER
    PERCENT PERCENTAGE CM3"""
)

Rule = Callable[[Dataset, tuple[int, int]], None]


@cache
def _table() -> dict[tuple[int, ...], Rule]:
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    return dict(initialize_actions(_TABLE))


def rule_for(tag: BaseTag) -> tuple[Rule, str] | None:
    """The library's function for an attribute and what it does; None where the table does not list it.

    What it does is "removed", "emptied" or "replaced"; "references" is said of sequences whose items
    stay for the sake of their UIDs. Where the table leaves a choice (X/Z/D), the library takes the
    one that keeps every object valid.
    """
    rule = _table().get((tag.group, tag.element))
    if rule is None:
        return None
    name = rule.__name__
    if name.endswith("replace_UID") and name != "replace_UID":
        return rule, "references"
    if name == "delete":
        return rule, "removed"
    return rule, "emptied" if name in ("empty", "delete_or_empty") else "replaced"
