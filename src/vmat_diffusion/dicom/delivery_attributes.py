"""What a plan file may ask of the machine: read, refused by name, or without effect on the dose.

The one list of the attributes of the RT Beams, RT Fraction Scheme and RT Patient Setup modules (DICOM PS3.3,
C.8.8.14, C.8.8.13 and C.8.8.12). What an attribute holds decides, not the "number of" attribute beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import about, has, items, name_of, number, text
from vmat_diffusion.errors import PlanError

Effect = Literal["read", "refused", "harmless"]


@dataclass(frozen=True)
class Attribute:
    """What reading does with an attribute, and why.

    A refused one may be absent or empty, or hold one of the words or the number in `allowed`.
    """

    effect: Effect
    why: str
    allowed: tuple[str, ...] = ()


def _read(why: str, *keywords: str) -> dict[str, Attribute]:
    return {keyword: Attribute("read", why) for keyword in keywords}


def _refused(why: str, *keywords: str, allowed: tuple[str, ...] = ()) -> dict[str, Attribute]:
    return {keyword: Attribute("refused", why, allowed) for keyword in keywords}


def _harmless(why: str, *keywords: str) -> dict[str, Attribute]:
    return {keyword: Attribute("harmless", why) for keyword in keywords}


_NAMES = "names a device, a place, a person or a document; moves nothing"
_RESULT = "a result of the planning system; this program computes its own"

BEAM: Mapping[str, Attribute] = {
    **_harmless(
        _NAMES,
        "Manufacturer",
        "InstitutionName",
        "InstitutionAddress",
        "InstitutionalDepartmentName",
        "InstitutionalDepartmentTypeCodeSequence",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "DateOfManufacture",
        "DateOfInstallation",
        "DefinitionSourceSequence",
        "BeamDescription",
        "EntityLongLabel",
        "RTTreatmentTechniqueCodeSequence",
        "TableTopPositionAlignmentUID",
    ),
    **_harmless(
        "imaging before or during treatment; its dose is in no plan dose",
        "PlannedVerificationImageSequence",
        "ReferencedReferenceImageSequence",
    ),
    **_harmless(_RESULT, "ReferencedDoseReferenceSequence", "ReferencedDoseSequence"),
    **_harmless(
        "limits at which the machine interrupts; the plan within them is the same",
        "ReferencedToleranceTableNumber",
    ),
    **_read(
        "part of the plan that is computed, checked or compared with the machine",
        "BeamNumber",
        "BeamName",
        "BeamType",
        "BeamLimitingDeviceSequence",
        "ControlPointSequence",
        "FinalCumulativeMetersetWeight",
        "NumberOfControlPoints",
        "PrimaryFluenceModeSequence",
        "ReferencedPatientSetupNumber",
        "SourceAxisDistance",
        "TreatmentMachineName",
    ),
    **_refused("only photon beams are computed", "RadiationType", allowed=("PHOTON",)),
    **_refused("only monitor units are computed", "PrimaryDosimeterUnit", allowed=("MU",)),
    **_refused(
        "only beams that treat count, and a continued one gave part of its MU before",
        "TreatmentDeliveryType",
        allowed=("TREATMENT",),
    ),
    **_refused(
        "total body and skin techniques stand far from the isocentre",
        "HighDoseTechniqueType",
        allowed=("NORMAL", "SRS"),
    ),
    **_refused("wedges cannot be represented", "NumberOfWedges", allowed=("0",)),
    **_refused("wedges cannot be represented", "WedgeSequence", "WedgePositionSequence"),
    **_refused("compensators cannot be represented", "NumberOfCompensators", allowed=("0",)),
    **_refused("compensators cannot be represented", "CompensatorSequence"),
    **_refused(
        "a tray takes dose away", "TotalCompensatorTrayFactor", "TotalBlockTrayFactor", allowed=("1",)
    ),
    **_refused("boli cannot be represented", "NumberOfBoli", allowed=("0",)),
    **_refused("boli cannot be represented", "ReferencedBolusSequence"),
    **_refused("blocks cannot be represented", "NumberOfBlocks", allowed=("0",)),
    **_refused("blocks cannot be represented", "BlockSequence"),
    **_refused("an applicator (cone) cannot be represented", "ApplicatorSequence"),
    **_refused("an accessory in the beam cannot be represented", "GeneralAccessorySequence"),
    **_refused(
        "openings of the second generation of RT objects cannot be represented",
        "EnhancedRTBeamLimitingDeviceSequence",
        "EnhancedRTBeamLimitingOpeningSequence",
    ),
    **_refused(
        "openings of the second generation of RT objects cannot be represented",
        "EnhancedRTBeamLimitingDeviceDefinitionFlag",
        allowed=("NO",),
    ),
    # Of the RT Ion Beams module: no photon beam has them, and each would change the dose.
    **_refused(
        "devices of ion beams cannot be represented",
        "SnoutSequence",
        "RangeShifterSequence",
        "LateralSpreadingDeviceSequence",
        "RangeModulatorSequence",
        "IonBlockSequence",
        "IonWedgeSequence",
        "IonRangeCompensatorSequence",
        "IonControlPointSequence",
    ),
}

DEVICE: Mapping[str, Attribute] = {
    **_read("leaves and jaws", "RTBeamLimitingDeviceType", "NumberOfLeafJawPairs", "LeafPositionBoundaries"),
    **_harmless(
        "positions are given at the isocentre; where the leaves stand is the machine file's",
        "SourceToBeamLimitingDeviceDistance",
    ),
}

FLUENCE: Mapping[str, Attribute] = _read("compared with the machine's beam", "FluenceMode", "FluenceModeID")

_STILL = "nothing but gantry, leaves and jaws may turn"
_TURNS = (
    "BeamLimitingDeviceRotationDirection",
    "PatientSupportRotationDirection",
    "TableTopEccentricRotationDirection",
    "TableTopPitchRotationDirection",
    "TableTopRollRotationDirection",
    "GantryPitchRotationDirection",
)
_ANGLES = (
    "TableTopEccentricAngle",
    "TableTopPitchAngle",
    "TableTopRollAngle",
    "GantryPitchAngle",
)
TABLE_POSITIONS = ("TableTopVerticalPosition", "TableTopLongitudinalPosition", "TableTopLateralPosition")

CONTROL_POINT: Mapping[str, Attribute] = {
    **_read(
        "part of the plan that is computed, checked or compared with the machine",
        "ControlPointIndex",
        "NominalBeamEnergy",
        "DoseRateSet",
        "GantryAngle",
        "GantryRotationDirection",
        "BeamLimitingDeviceAngle",
        "BeamLimitingDevicePositionSequence",
        "PatientSupportAngle",
        "IsocenterPosition",
        "CumulativeMetersetWeight",
    ),
    **_read("must stay within a plan: the isocentre says where the patient lies", *TABLE_POSITIONS),
    **_refused(_STILL, *_TURNS, allowed=("NONE",)),
    **_refused("only a level table and an upright gantry can be represented", *_ANGLES, allowed=("0",)),
    **_refused("wedges cannot be represented", "WedgePositionSequence"),
    **_refused(
        "openings of the second generation of RT objects cannot be represented",
        "EnhancedRTBeamLimitingOpeningSequence",
    ),
    **_harmless("the axis of an eccentric angle, which must be 0", "TableTopEccentricAxisDistance"),
    **_harmless(
        _RESULT,
        "SurfaceEntryPoint",
        "SourceToSurfaceDistance",
        "SourceToExternalContourDistance",
        "ExternalContourEntryPoint",
        "ReferencedDoseReferenceSequence",
        "ReferencedDoseSequence",
    ),
}

OPENING: Mapping[str, Attribute] = _read("leaves and jaws", "RTBeamLimitingDeviceType", "LeafJawPositions")

FRACTION_GROUP: Mapping[str, Attribute] = {
    **_read(
        "fractions and MU of each beam", "NumberOfFractionsPlanned", "NumberOfBeams", "ReferencedBeamSequence"
    ),
    **_refused("sources in the patient cannot be represented", "ReferencedBrachyApplicationSetupSequence"),
    **_refused(
        "sources in the patient cannot be represented", "NumberOfBrachyApplicationSetups", allowed=("0",)
    ),
    **_harmless(_NAMES, "FractionGroupNumber", "FractionGroupDescription", "DefinitionSourceSequence"),
    **_harmless(
        "the days of the fractions; the dose of the course is the same",
        "NumberOfFractionPatternDigitsPerDay",
        "RepeatFractionCycleLength",
        "FractionPattern",
    ),
    **_harmless(_RESULT, "BeamDoseMeaning", "ReferencedDoseReferenceSequence", "ReferencedDoseSequence"),
}

REFERENCED_BEAM: Mapping[str, Attribute] = {
    **_read("MU of the beam", "ReferencedBeamNumber", "BeamMeterset"),
    **_harmless(
        _RESULT,
        "ReferencedDoseReferenceUID",
        "BeamDose",
        "BeamDoseType",
        "AlternateBeamDose",
        "AlternateBeamDoseType",
    ),
    **_harmless("a limit at which the machine interrupts", "BeamDeliveryDurationLimit"),
    **_harmless(
        "how the planning system was calibrated; what a MU is worth here is in the machine file",
        "DoseCalibrationConditionsVerifiedFlag",
        "DoseCalibrationConditionsSequence",
        "RadiationDeviceConfigurationAndCommissioningKeySequence",
    ),
}

PATIENT_SETUP: Mapping[str, Attribute] = {
    **_read("compared with the CT", "PatientPosition", "PatientSetupNumber"),
    **_refused("a shield in the beam cannot be represented", "ShieldingDeviceSequence"),
    **_harmless(
        "how the patient is brought to the isocentre; the CT shows how the patient lies",
        "PatientSetupLabel",
        "PatientAdditionalPosition",
        "SetupTechnique",
        "SetupTechniqueDescription",
        "TableTopVerticalSetupDisplacement",
        "TableTopLongitudinalSetupDisplacement",
        "TableTopLateralSetupDisplacement",
        "FixationDeviceSequence",
        "SetupDeviceSequence",
        "ReferencedSetupImageSequence",
        "PatientTreatmentPreparationSequence",
    ),
    **_harmless(
        "when the beam is on; what it delivers on this CT is the same", "MotionSynchronizationSequence"
    ),
}

# Where each table is met: the attributes of the items of the last sequence.
TABLES: Mapping[tuple[str, ...], Mapping[str, Attribute]] = {
    ("BeamSequence",): BEAM,
    ("BeamSequence", "PrimaryFluenceModeSequence"): FLUENCE,
    ("BeamSequence", "BeamLimitingDeviceSequence"): DEVICE,
    ("BeamSequence", "ControlPointSequence"): CONTROL_POINT,
    ("BeamSequence", "ControlPointSequence", "BeamLimitingDevicePositionSequence"): OPENING,
    ("FractionGroupSequence",): FRACTION_GROUP,
    ("FractionGroupSequence", "ReferencedBeamSequence"): REFERENCED_BEAM,
    ("PatientSetupSequence",): PATIENT_SETUP,
}

_REMEDY = {
    "TreatmentDeliveryType": "remove the beam or its MU",
    "RadiationType": "remove the beam",
    "PrimaryDosimeterUnit": "export the plan in MU",
}
_SAME_ANGLE_DEG = 0.01
_SAME_POSITION_MM = 0.01
_SAME_FACTOR = 1e-6


def refuse_unrepresented(beam: Dataset) -> None:
    """Raise PlanError, with name and value, for whatever changes a beam and cannot be represented.

    A device counts at whatever level of the beam it is written.
    """
    everywhere = {**TABLES[("BeamSequence",)], **TABLES["BeamSequence", "ControlPointSequence"]}
    _refuse(beam, everywhere)
    for k, point in enumerate(items(beam, "ControlPointSequence")):
        with about(f"control point {k}", PlanError):
            _refuse(point, everywhere)


def refuse_unrepresented_around(dataset: Dataset) -> None:
    """The same for fraction groups and patient setups."""
    for keyword in ("FractionGroupSequence", "PatientSetupSequence"):
        for item in items(dataset, keyword):
            _refuse(item, TABLES[(keyword,)])


def _refuse(item: Dataset, table: Mapping[str, Attribute]) -> None:
    for keyword, attribute in table.items():
        if attribute.effect != "refused" or not has(item, keyword):
            continue
        if keyword.endswith("Sequence"):
            if count := len(items(item, keyword)):
                raise PlanError(
                    f"{name_of(keyword)} holds {count} items: {attribute.why}; plan the beam without them"
                )
        elif not _allowed(item, keyword, attribute.allowed):
            needed = " or ".join(attribute.allowed)
            raise PlanError(
                f"{name_of(keyword)} is {_shown(item, keyword, attribute)}, {needed} is needed: "
                f"{attribute.why}; {_REMEDY.get(keyword, 'plan the beam without it')}"
            )


def _shown(item: Dataset, keyword: str, attribute: Attribute) -> str:
    return f"{number(item, keyword):g}" if attribute.allowed[0].isdigit() else text(item, keyword)


def _allowed(item: Dataset, keyword: str, allowed: Sequence[str]) -> bool:
    if not allowed[0].isdigit():
        return text(item, keyword) in allowed
    value, wanted = number(item, keyword), float(allowed[0])
    if keyword in _ANGLES:
        return abs((value - wanted + 180.0) % 360.0 - 180.0) <= _SAME_ANGLE_DEG
    return abs(value - wanted) <= _SAME_FACTOR


def refuse_moving_table(beams: Sequence[Dataset]) -> None:
    """Raise PlanError where the table stands elsewhere at a control point than at the first one stated.

    The isocentre of a plan is one point of the patient, so that the table stands where it stood: within a
    beam to 0.01 mm, from beam to beam likewise.
    """
    stated: dict[str, tuple[str, float]] = {}
    for beam in beams:
        points = items(beam, "ControlPointSequence")
        for place, keyword, value in _table_positions(beam, points):
            first_place, first = stated.setdefault(keyword, (place, value))
            if abs(value - first) > _SAME_POSITION_MM:
                raise PlanError(
                    f"{place}: {name_of(keyword)} is {value:g} mm, at {first_place} {first:g} mm; the table "
                    "moves, which cannot be represented; plan the beam with the table at rest"
                )


def _table_positions(beam: Dataset, points: Sequence[Dataset]) -> Iterator[tuple[str, str, float]]:
    for keyword in TABLE_POSITIONS:
        known = False
        for k, point in enumerate(points):
            if not has(point, keyword):
                continue
            place = f"beam {text(beam, 'BeamNumber')}, control point {k}"
            if k > 0 and not known:
                raise PlanError(
                    f"{place}: {name_of(keyword)} is given here and not at control point 0, so the table may "
                    "move; export the plan again"
                )
            known = True
            with about(place, PlanError):
                yield place, keyword, number(point, keyword)


def refuse_change_of_static_beam(kind: str, moves: Mapping[str, np.ndarray], mu: np.ndarray) -> None:
    """Raise PlanError where a STATIC beam moves while it is on (PS3.3, C.8.8.14.1).

    `moves` holds what changes from control point to control point, in mm or degrees, `[segments]`.
    """
    if kind != "STATIC":
        return
    for what, change in moves.items():
        lit = np.where(mu > 0, np.abs(change), 0.0)
        if lit.size and lit.max() > 2 * _SAME_POSITION_MM:
            k = int(np.argmax(lit))
            raise PlanError(
                f"BeamType (300A,00C4) is STATIC, and {what} by {lit[k]:.2f} from control point {k} to "
                f"{k + 1} while the beam is on; export it as DYNAMIC"
            )
