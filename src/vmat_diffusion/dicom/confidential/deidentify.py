"""One DICOM object without the person: the basic confidentiality profile of PS3.15 annex E.

The rules are table E.1-1 as the library dicom-anonymizer carries it. Added to it, since the table
lists attributes and exporters write what they like: the rules hold at every depth; any other text
is replaced unless its attribute is technical and its words are harmless; private attributes,
overlays, curves and unknown bytes go. Options of the profile: dates are moved (113107), sex, age,
size and weight stay (113108), structure names are cleaned (113105).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, UID_dictionary

from vmat_diffusion.dicom.attributes import compressed, integer, items, text
from vmat_diffusion.dicom.confidential.identity import (
    Identity,
    Key,
    Patient,
    are_numbers,
    digits_joined,
    is_date,
    is_time,
    stored_bytes,
    vr_of,
)
from vmat_diffusion.dicom.confidential.profile import (
    CHARACTERISTICS,
    METHOD,
    OPTIONS,
    PLACEHOLDER,
    STANDARD_CODES,
    TECHNICAL,
    Rule,
    rule_for,
    word_set,
)
from vmat_diffusion.dicom.names import NameTable
from vmat_diffusion.dicom.structure_set.structures import Roi, name_rois
from vmat_diffusion.errors import CaseError

# What an object must say and nobody needs: the same words for everyone.
_LABELS = {"StructureSetLabel": "Structures", "RTPlanLabel": "Plan"}
_DECLARED_ANEW = word_set(
    """PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    LongitudinalTemporalInformationModified"""
)
_AGE_YEARS_MAX = 90
# What pixels mean, and what contours, beams and doses consist of.
_NEEDED_NUMBERS = word_set(
    """RescaleIntercept RescaleSlope PixelSpacing ImagePositionPatient ImageOrientationPatient SliceThickness
    NumberOfFrames DoseGridScaling GridFrameOffsetVector SpacingBetweenSlices Rows Columns BitsAllocated
    BitsStored HighBit PixelRepresentation SamplesPerPixel PixelPaddingValue PixelPaddingRangeLimit
    FrameIncrementPointer ContourData NumberOfContourPoints ROINumber ReferencedROINumber ObservationNumber
    ROIPhysicalPropertyValue BeamNumber ReferencedBeamNumber ControlPointIndex NumberOfControlPoints
    ReferencedControlPointIndex NumberOfLeafJawPairs LeafPositionBoundaries LeafJawPositions GantryAngle
    GantryPitchAngle BeamLimitingDeviceAngle PatientSupportAngle TableTopEccentricAngle TableTopPitchAngle
    TableTopRollAngle TableTopVerticalPosition TableTopLongitudinalPosition TableTopLateralPosition
    IsocenterPosition CumulativeMetersetWeight FinalCumulativeMetersetWeight BeamMeterset BeamDose
    NominalBeamEnergy DoseRateSet SourceAxisDistance NumberOfFractionsPlanned NumberOfBeams
    TargetPrescriptionDose DoseReferenceNumber ReferencedDoseReferenceNumber PatientSetupNumber
    ReferencedPatientSetupNumber FractionGroupNumber ReferencedFractionGroupNumber NumberOfWedges
    NumberOfCompensators NumberOfBoli NumberOfBlocks"""
)
_BINARY_NUMBERS = ("AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV")
_UNDEFINED_LENGTH = 0xFFFFFFFF
_BYTES = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
_BYTES_KEPT = frozenset({"PixelData", "LUTData"})
_CODE = re.compile(r"[A-Za-z0-9_ .\-]{0,32}")
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)([0-9.+\-]*)")
_AGE = re.compile(r"(\d{3})([DWMY])")
_LONG_NUMBER = re.compile(r"\d{6}")


def deidentify(dataset: Dataset, patient: Patient, key: Key, table: NameTable) -> Counter[tuple[str, str]]:
    """Take the person out of a data set, in place; returns how often what was done to which attribute.

    Keys of the result are (keyword, action). The header of the file is made anew. Raises CaseError
    for an object that may show its patient in the image and for an attribute that cannot be read.
    """
    _refuse_drawn_text(dataset)
    job = _Job(patient, key, _roi_names(dataset, table, patient.identity))
    job.clean(dataset)
    job.cut_pixels(dataset)
    _declare(dataset, patient)
    meta = FileMetaDataset()
    syntax = dataset.file_meta.TransferSyntaxUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        dataset.SOPClassUID,
        dataset.SOPInstanceUID,
    )
    dataset.file_meta, dataset.preamble = meta, None
    return job.done


@dataclass
class _Job:
    """The cleaning of one object: for whom, and what has been done so far."""

    patient: Patient
    key: Key
    roi_names: Mapping[int, str]
    done: Counter[tuple[str, str]] = field(default_factory=Counter)

    def clean(self, dataset: Dataset, depth: int = 0) -> None:
        """Apply the rules to every element of a data set and of the items in it."""
        for tag in list(dataset.keys()):
            keyword = keyword_for_tag(tag)
            try:
                _refuse_cut_off(dataset, tag)
                self._element(dataset, tag, keyword, depth)
            except CaseError:
                raise
            except Exception as fault:  # pydicom raises every kind of exception for a broken value
                raise CaseError(
                    f"{keyword or 'an attribute'} ({tag.group:04X},{tag.element:04X}) cannot be read "
                    f"({type(fault).__name__}); export the file again"
                ) from None
        # All texts have been read by now. UTF-8 takes whatever the old character sets held.
        if depth and "SpecificCharacterSet" in dataset:
            del dataset.SpecificCharacterSet
        elif not depth:
            dataset.SpecificCharacterSet = "ISO_IR 192"

    def _element(self, dataset: Dataset, tag: BaseTag, keyword: str, depth: int) -> None:
        drawn = {0x5000: "Curve", 0x6000: "Overlay"}.get(tag.group & 0xFF00)
        if tag.is_private or not keyword or drawn:
            self._remove(dataset, tag, drawn or ("Private" if tag.is_private else "Unknown") + "Attribute")
        elif tag.element == 0 or keyword in _DECLARED_ANEW:
            del dataset[tag]
        elif keyword == "SpecificCharacterSet" or _is_empty(dataset, tag):
            pass
        elif not self._by_name(dataset, tag, keyword):
            self._by_kind(dataset, tag, keyword, depth)

    def _by_name(self, dataset: Dataset, tag: BaseTag, keyword: str) -> bool:
        """Attributes with a rule of their own; False for all others."""
        if keyword in ("PatientName", "PatientID"):
            self._replace(dataset, tag, self.patient.pseudonym)
        elif keyword in _LABELS:
            self._replace(dataset, tag, _LABELS[keyword])
        elif keyword == "BeamName":
            self._replace(dataset, tag, f"Beam {integer(dataset, 'BeamNumber', 0)}")
        elif keyword == "ROIName":
            number = integer(dataset, "ROINumber", 0)
            name = self.roi_names.get(number, f"ROI_{number}")
            if str(dataset[tag].value) != name:
                self._replace(dataset, tag, name)
        elif keyword == "PatientAge":
            self._age(dataset, tag)
        elif keyword in ("PatientBirthDate", "PatientBirthTime") or (
            keyword == "PatientSex" and dataset[tag].value not in ("M", "F", "O")
        ):
            self._replace(dataset, tag, "", "emptied")
        else:
            return False
        return True

    def _by_kind(self, dataset: Dataset, tag: BaseTag, keyword: str, depth: int) -> None:
        """Attributes by value representation, and by the table where it is not about UIDs and dates."""
        vr = vr_of(dataset, tag)
        rule = None if keyword in CHARACTERISTICS else rule_for(tag)
        if vr == "UI":
            self._uids(dataset, tag)
        elif vr in ("DA", "DT", "TM"):
            self._date(dataset, tag, vr)
        elif rule is not None and rule[1] != "references":
            self._by_table(dataset, tag, vr, *rule)
        elif vr == "SQ":
            for item in dataset[tag].value:
                self.clean(item, depth + 1)
        elif vr in ("DS", "IS") or (vr[:2] in _BINARY_NUMBERS and keyword not in _BYTES_KEPT):
            self._number(dataset, tag, keyword, depth)
        elif vr[:2] in _BYTES or vr.endswith("OW"):
            if keyword not in _BYTES_KEPT or (depth and keyword == "PixelData"):
                self._remove(dataset, tag, keyword)
        elif isinstance(_first(dataset, tag), str) and not self._is_harmless(dataset, tag, keyword, vr):
            if vr == "AS":  # for which the placeholder would be no age
                self._replace(dataset, tag, "", "emptied")
            else:
                self._replace(dataset, tag, PLACEHOLDER)

    def _by_table(self, dataset: Dataset, tag: BaseTag, vr: str, rule: Rule, action: str) -> None:
        # No sequence of the table is required in the objects taken here, so none is left empty.
        if vr == "SQ" or action == "removed":
            self._remove(dataset, tag, keyword_for_tag(tag))
        else:
            dataset[tag]  # converts the stored bytes, in which the library would find no text
            try:
                rule(dataset, (tag.group, tag.element))
            except NotImplementedError:  # the library has no placeholder for this kind of value
                del dataset[tag]
            self._count(tag, action if tag in dataset else "removed")

    def _is_harmless(self, dataset: Dataset, tag: BaseTag, keyword: str, vr: str) -> bool:
        values, identity = _texts(dataset, tag), self.patient.identity
        if vr == "CS":
            return all(
                v in STANDARD_CODES or (_CODE.fullmatch(v) and not identity.is_in_code(v)) for v in values
            )
        if vr == "AS":
            return all(_AGE.fullmatch(v) for v in values)
        return keyword in TECHNICAL and all(v in STANDARD_CODES or not identity.is_in(v) for v in values)

    def _uids(self, dataset: Dataset, tag: BaseTag) -> None:
        """New UIDs for all but those that the standard itself defines: classes, syntaxes, code systems."""
        old = _texts(dataset, tag)
        new = [v if not v or v in UID_dictionary else self.key.uid(v) for v in old]
        if new != old:
            self._replace(dataset, tag, new if len(new) > 1 else new[0], "new UID")

    def _number(self, dataset: Dataset, tag: BaseTag, keyword: str, depth: int) -> None:
        stored, vr, identity = stored_bytes(dataset, tag), vr_of(dataset, tag), self.patient.identity
        if vr in ("DS", "IS"):
            valid, telling = are_numbers(stored), identity.is_number_among(stored)
        else:
            valid, telling = True, identity.is_binary_among(stored, vr)
        if valid and not telling:
            return
        if keyword in _NEEDED_NUMBERS or (telling and depth):
            raise CaseError(
                f"{keyword} ({tag.group:04X},{tag.element:04X}) holds a number of the patient's or no number "
                "and the object means nothing without it; correct it or leave the file out"
            )
        self._remove(dataset, tag, keyword)

    def cut_pixels(self, dataset: Dataset) -> None:
        """Cut off what follows the last pixel of an uncompressed image."""
        rows, columns, bits = (integer(dataset, k, 0) for k in ("Rows", "Columns", "BitsAllocated"))
        samples, frames = integer(dataset, "SamplesPerPixel", 1), integer(dataset, "NumberOfFrames", 1)
        size = rows * columns * samples * frames * bits // 8
        if "PixelData" not in dataset or compressed(dataset) or bits % 8 or size <= 0:
            return
        pixels = dataset.PixelData
        if not isinstance(pixels, bytes):
            raise CaseError("PixelData (7FE0,0010) holds no bytes; export the file again or leave it out")
        if len(pixels) > size + size % 2:
            self._replace(dataset, BaseTag(0x7FE00010), pixels[:size] + bytes(size % 2), "cut to its size")

    def _date(self, dataset: Dataset, tag: BaseTag, vr: str) -> None:
        if vr == "TM":
            times = _texts(dataset, tag)
            if not all(not v or is_time(v) for v in times) or self._is_among(times):
                self._replace(dataset, tag, "", "emptied")
            return
        moved = [moved_date(v, self.patient.days) for v in _texts(dataset, tag)]
        if "" in moved or self._is_among(moved):
            self._replace(dataset, tag, "", "emptied")
        else:
            self._replace(dataset, tag, moved if len(moved) > 1 else moved[0], "moved")

    def _is_among(self, values: list[str]) -> bool:
        return self.patient.identity.is_among("\\".join(values))

    def _age(self, dataset: Dataset, tag: BaseTag) -> None:
        age = _AGE.fullmatch(str(dataset[tag].value))
        if age is None:
            self._replace(dataset, tag, "", "emptied")
        elif age[2] == "Y" and int(age[1]) >= _AGE_YEARS_MAX:
            self._replace(dataset, tag, f"{_AGE_YEARS_MAX:03d}Y")

    def _remove(self, dataset: Dataset, tag: BaseTag, keyword: str) -> None:
        del dataset[tag]
        self.done[keyword, "removed"] += 1

    def _replace(self, dataset: Dataset, tag: BaseTag, value: object, action: str = "replaced") -> None:
        dataset[tag].value = value
        self._count(tag, action)

    def _count(self, tag: BaseTag, action: str) -> None:
        self.done[keyword_for_tag(tag), action] += 1


def moved_date(value: str, days: int) -> str:
    """A DA or DT value so many days earlier, its time as it was; "" for what is no full date."""
    found = _DATE.fullmatch(value.strip()) if is_date(value) else None
    try:
        moved = date(*map(int, found.groups()[:3])) - timedelta(days) if found else None
    except (ValueError, OverflowError):
        return ""
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}{found[4]}" if found and moved else ""


def _refuse_cut_off(dataset: Dataset, tag: BaseTag) -> None:
    """pydicom takes what is there of a value that the end of the file cuts off; a copy would hide it."""
    stored = dataset.get_item(tag)
    if isinstance(stored, RawDataElement) and len(stored.value or b"") < stored.length != _UNDEFINED_LENGTH:
        raise CaseError("the file is cut off; export it again")


def _is_empty(dataset: Dataset, tag: BaseTag) -> bool:
    stored = dataset.get_item(tag)
    if isinstance(stored, RawDataElement):
        return not stored.value
    return stored is None or bool(stored.is_empty)


def _first(dataset: Dataset, tag: BaseTag) -> object:
    """The value, of several the first; a person's name as text."""
    value = dataset[tag].value
    value = value[0] if isinstance(value, MultiValue) else value
    return str(value) if dataset[tag].VR == "PN" else value


def _texts(dataset: Dataset, tag: BaseTag) -> list[str]:
    value = dataset[tag].value
    return [str(v) for v in (value if isinstance(value, MultiValue) else [value])]


def _roi_names(dataset: Dataset, table: NameTable, identity: Identity) -> Mapping[int, str]:
    """What the regions of a structure set are to be called.

    The canonical name where the table knows one; else the name as written if it holds no word of
    the patient's and no long number; else `ROI_` and its number.
    """
    declared = {
        integer(item, "ReferencedROINumber", 0): text(item, "RTROIInterpretedType")
        for item in items(dataset, "RTROIObservationsSequence")
    }
    rois = []
    for item in items(dataset, "StructureSetROISequence"):
        number = integer(item, "ROINumber", 0)
        rois.append(Roi(number, text(item, "ROIName"), declared.get(number, ""), "", (), ()))
    try:
        known = {n.roi.number: n.name for n in name_rois(rois, table)[0] if n.known}
    except CaseError:  # two regions claim one name: reading the result shall say so too
        known = {}
    return {
        roi.number: known.get(roi.number)
        or (f"ROI_{roi.number}" if _is_telling(roi.alias, identity) else roi.alias)
        for roi in rois
    }


def _is_telling(name: str, identity: Identity) -> bool:
    return identity.is_in(name) or _LONG_NUMBER.search(digits_joined(name)) is not None


def _refuse_drawn_text(dataset: Dataset) -> None:
    """Raise CaseError where the image itself may show a name, which no attribute tells."""
    if text(dataset, "BurnedInAnnotation") == "YES":
        raise CaseError("the image has text burned in (BurnedInAnnotation is YES); leave it out or blank it")
    if "SCREEN SAVE" in text(dataset, "ImageType").split("\\"):
        raise CaseError("the image is a screen shot, which may show names; leave it out")
    for group in range(0x6000, 0x6100, 2):
        position = dataset.get((group, 0x0102))
        if position is not None and position.value:
            raise CaseError("an overlay lies in spare bits of the pixels; export the image without overlays")


_DECLARED = (
    "PatientName",
    "PatientID",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
)


def _declare(dataset: Dataset, patient: Patient) -> None:
    """What the profile asks to be said of the result, and a patient where the original had none."""
    for keyword in _DECLARED:  # an element that is there would keep the type that its file gave it
        if keyword in dataset:
            del dataset[keyword]
    dataset.PatientName, dataset.PatientID = patient.pseudonym, patient.pseudonym
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    dataset.DeidentificationMethodCodeSequence = []
    for value, meaning in OPTIONS:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        dataset.DeidentificationMethodCodeSequence.append(code)
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
