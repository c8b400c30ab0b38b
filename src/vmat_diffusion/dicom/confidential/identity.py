"""Who a file is about: the words and numbers that point to a person, and what replaces them."""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property

import numpy as np
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from vmat_diffusion.dicom.confidential.profile import word_set

_WORD_LETTERS_MIN = 3
_NUMBER_DIGITS_MIN = 4
_TIME_DIGITS_MIN = 6  # shorter numbers stand in dates and times by chance
_WHOLE_DIGITS_MIN, _DECIMAL_DIGITS_MIN = 5, 6  # and among measurements
_LETTERS = re.compile(r"[^\W\d_]+")
_FIRST_IDEOGRAPH = "\u2e80"  # one sign of these scripts is a word
_DAYS_MAX = 365
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae"})
# A number as VR DS and IS have it: no hexadecimal digits, no words, no second sign.
_NUMBER = re.compile(rb"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
# How binary numbers lie in a little-endian file; AT is a group and an element.
_BINARY = {
    "US": "<u2",
    "SS": "<i2",
    "UL": "<u4",
    "SL": "<i4",
    "UV": "<u8",
    "SV": "<i8",
    "FL": "<f4",
    "FD": "<f8",
    "AT": "<u2",
}
_DAY = re.compile(r"\s*([1-9]\d{3})\.?(\d\d)\.?(\d\d)")
_TIME = r"([01]\d|2[0-3])(:?[0-5]\d(:?([0-5]\d|60)(\.\d{1,6})?)?)?"
# Besides all person names (VR PN): what identifies a patient, a visit or an institution.
_IDENTIFYING = word_set(
    """PatientID OtherPatientIDs TreatmentMachineName DeviceID DetectorID GantryID PlateID CassetteID
    CurrentPatientLocation PatientInstitutionResidence PerformedLocation ScheduledProcedureStepLocation
    IssuerOfAdmissionID MilitaryRank Occupation CountryOfResidence RegionOfResidence
    AccessionNumber StudyID AdmissionID ServiceEpisodeID MedicalRecordLocator
    RequestedProcedureID FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest
    SpecimenAccessionNumber IssuerOfPatientID InstitutionName InstitutionAddress PatientAddress
    PatientTelephoneNumbers PatientBirthDate ResponsibleOrganization
    ClinicalTrialSubjectID ClinicalTrialSiteName StationName StationAETitle PerformedStationName
    PerformedStationAETitle ScheduledStationName ScheduledStationAETitle DeviceSerialNumber
    InstitutionalDepartmentName PatientMotherBirthName"""
)


@dataclass(frozen=True)
class Identity:
    """What must not be met again: folded words and numbers, and the longer ones as they were written.

    `short` are names of two letters, which count as whole words alone. `dates` are those of studies, series
    and the like in the spellings of people; in attributes for dates they are moved instead.
    """

    folded: frozenset[str] = frozenset()
    written: frozenset[str] = field(default=frozenset(), repr=False)
    short: frozenset[str] = field(default=frozenset(), repr=False)
    dates: frozenset[str] = field(default=frozenset(), repr=False)

    def __or__(self, other: Identity) -> Identity:
        return Identity(
            self.folded | other.folded,
            self.written | other.written,
            self.short | other.short,
            self.dates | other.dates,
        )

    def is_in(self, text: str, letters_min: int = 1) -> bool:
        """Whether a free text holds a word or number of the identity, also as part of a longer one.

        Numbers are found with separators between their digits too. Words of fewer than `letters_min`
        characters are not looked for.
        """
        there, joined = folded(text), digits_joined(text)
        if letters_min <= 1 and self.short and self.short & set(_LETTERS.findall(there)):
            return True
        return any(w in there or w in joined for w in (*self.folded, *self.dates) if len(w) >= letters_min)

    def is_among(self, values: str) -> bool:
        r"""Whether one of the dates or times that "\\" separates is the identity's number.

        As written and as its digits; from six digits on.
        """
        return any(
            spelling in self.folded
            for value in values.split("\\")
            if len(value) >= _TIME_DIGITS_MIN
            for spelling in _time_spellings(value.strip("\0 "))
        )

    def is_number_among(self, stored: bytes) -> bool:
        """Whether one of the number strings of a value (VR DS, IS) is a number of the identity.

        Numbers are compared, not their spellings: 0471100, 4711e2 and 471100.0 are one. Whole numbers count
        from five digits on, others from six.
        """
        if not self.numbers:
            return False
        return any(
            Decimal(value.decode("ascii")).copy_abs() in self.numbers
            for value in values_of(stored)
            if len(value) >= 3 and _NUMBER.fullmatch(value)
        )

    def is_binary_among(self, stored: bytes, vr: str) -> bool:
        """Whether one of the binary numbers of a value is a number of the identity.

        `vr` may be a choice, such as "US or SS". Floats are compared at their own precision.
        """
        return any(self._is_among(stored, kind) for kind in vr.split(" or ") if kind in _BINARY)

    def _is_among(self, stored: bytes, vr: str) -> bool:
        kind = np.dtype(_BINARY[vr])
        values = np.frombuffer(stored[: len(stored) // kind.itemsize * kind.itemsize], kind)
        if vr == "AT":
            pairs = values[: len(values) // 2 * 2].reshape(-1, 2).astype(np.int64)
            values = pairs[:, 0] << 16 | pairs[:, 1]
        if kind.kind == "f":
            wanted = np.array([float(n) for n in self.numbers]).astype(kind)
            return bool(np.isin(np.abs(values), wanted).any())
        whole = {int(n) for n in self.numbers if n == n.to_integral_value()}
        return any(abs(int(v)) in whole for v in np.unique(values)) if whole else False

    @cached_property
    def numbers(self) -> frozenset[Decimal]:
        """The words that are numbers, as numbers; leading zeros and the short ones left out."""
        out = set()
        for word in (*self.folded, *self.dates):
            if re.fullmatch(r"[0-9]+(\.[0-9]+)?", word):
                digits = len(word.replace(".", "").lstrip("0"))
                if digits >= (_DECIMAL_DIGITS_MIN if "." in word else _WHOLE_DIGITS_MIN):
                    out.add(Decimal(word))
        return frozenset(out)

    def is_in_code(self, code: str) -> bool:
        """The same for a code string, of which three letters may be a part by chance but not a word."""
        there, joined = folded(code), digits_joined(code)
        words = re.split(r"[\W_]+", there)
        return any(
            w in words if len(w) <= _WORD_LETTERS_MIN else w in there or w in joined for w in self.folded
        )


@dataclass(frozen=True)
class Key:
    """The secret that new UIDs, pseudonyms and date shifts come from: the same key, the same values.

    HMAC-SHA-256, so that without the key nothing leads back, and with it a second export of a
    patient joins the first.
    """

    secret: bytes = field(repr=False)

    def uid(self, original: str) -> str:
        """The UID below 2.25 that stands for a UID."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', original)[:16], version=5).int}"

    def pseudonym(self, patient: str) -> str:
        """`case-` and eight hexadecimal digits."""
        return f"case-{self._digest('patient', patient)[:4].hex()}"

    def days(self, patient: str) -> int:
        """By how many days the dates of a patient move into the past: 1 to 365."""
        return 1 + int.from_bytes(self._digest("days", patient)[:8], "big") % _DAYS_MAX

    def _digest(self, purpose: str, text: str) -> bytes:
        return hmac.new(self.secret, f"{purpose}\0{text}".encode(), hashlib.sha256).digest()


@dataclass(frozen=True)
class Patient:
    """What the files of one patient become."""

    pseudonym: str
    days: int
    identity: Identity = field(repr=False)


def folded(text: str) -> str:
    """Text without case and accents, as words are compared."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c)).casefold()


def digits_joined(text: str) -> str:
    """Folded text without what separates digits: "rec 8477-3321" as "rec 84773321"."""
    return re.sub(r"(?<=\d)[\W_]+(?=\d)", "", folded(text))


def identity_of(dataset: Dataset) -> Identity:
    """The names, numbers, stations, institutions and dates that a data set holds, at any depth."""
    found = Identity()
    dates: set[str] = set()
    for item, tag, vr in elements(dataset):
        if vr == "PN" or keyword_for_tag(tag) in _IDENTIFYING:
            values = _values(item[tag].value)
            found |= _from_texts(values, vr)
            if vr == "DA":
                found |= Identity(frozenset(spelling for v in values for spelling in _date_spellings(v)))
        elif vr in ("DA", "DT") and not tag.is_private:
            for value in values_of(stored_bytes(item, tag)):
                day = _DAY.match(value.decode("latin-1"))
                dates.update(_date_spellings("".join(day.groups())) if day else ())
    return found | Identity(dates=frozenset(dates))


def values_of(stored: bytes) -> list[bytes]:
    """The values of an attribute that backslashes separate, without padding."""
    return [value.strip(b" ") for value in stored.rstrip(b"\0 ").split(b"\\")]


def are_numbers(stored: bytes) -> bool:
    """Whether each value is a number as VR DS and IS have it, or empty."""
    return all(not value or _NUMBER.fullmatch(value) for value in values_of(stored))


def stored_bytes(dataset: Dataset, tag: BaseTag) -> bytes:
    """A text, number string or binary number as it lies in the file, without making values of it."""
    stored = dataset.get_item(tag)
    if isinstance(stored, RawDataElement):
        return stored.value if isinstance(stored.value, bytes) else b""
    value = dataset[tag].value
    values = list(value) if isinstance(value, MultiValue) else [value]
    kind = next((_BINARY[k] for k in str(dataset[tag].VR).split(" or ") if k in _BINARY), None)
    if kind is None:
        return "\\".join(map(str, values)).encode("utf-8", "replace")
    if dataset[tag].VR == "AT":
        values = [half for v in values for half in (int(v) >> 16, int(v) & 0xFFFF)]
    return np.array(values).astype(kind).tobytes()


def elements(dataset: Dataset) -> Iterator[tuple[Dataset, BaseTag, str]]:
    """Every element at any depth with the data set that holds it, private ones and numbers untouched."""
    for tag in list(dataset.keys()):
        vr = vr_of(dataset, tag)
        yield dataset, tag, vr
        if vr == "SQ" and tag in dataset and not tag.is_private:
            for item in dataset[tag].value:
                yield from elements(item)


def vr_of(dataset: Dataset, tag: BaseTag) -> str:
    """The value representation of an element, without converting its value; UN where none is known."""
    stated = dataset.get_item(tag)
    if stated is not None and stated.VR not in (None, "UN"):
        return str(stated.VR)
    if isinstance(stated, RawDataElement) and not tag.is_private:
        try:
            return dictionary_VR(tag)
        except KeyError:
            return "UN"
    return "UN"


def _values(value: object) -> tuple[str, ...]:
    return tuple(str(v) for v in (value if isinstance(value, MultiValue) else (value or "",)))


def _from_texts(texts: Iterable[str], vr: str) -> Identity:
    out: set[str] = set()
    written: set[str] = set()
    short: set[str] = set()
    for text in texts:
        letters = _LETTERS.findall(text)
        words = {w for w in letters if _is_word(w)}
        short |= {folded(w) for w in letters if vr == "PN" and len(w) == 2}
        numbers = {n for n in re.findall(r"\d+", text) if len(n) >= _NUMBER_DIGITS_MIN}
        numbers |= {n.lstrip("0") for n in numbers if len(n.lstrip("0")) >= _NUMBER_DIGITS_MIN}
        joined = re.sub(r"[\W_]+", "", text)
        if vr != "PN" and len(joined) >= _NUMBER_DIGITS_MIN and any(c.isdigit() for c in joined):
            numbers |= {joined, text.strip()}
        written |= words | {n for n in numbers if not n.isdigit()}
        out |= {folded(w) for w in words | numbers}
        out |= {folded(w.casefold().translate(_UMLAUTS)) for w in words}
    return Identity(frozenset(out), frozenset(written), frozenset(short - out))


def _date_spellings(value: str) -> tuple[str, ...]:
    """A date as digits in the orders in which people write it; none for what is no full date."""
    found = re.fullmatch(r"(\d{4})(\d\d)(\d\d)", re.sub(r"\D", "", value))
    if found is None:
        return ()
    year, month, day = found.groups()
    return (f"{year}{month}{day}", f"{day}{month}{year}", f"{month}{day}{year}")


def _time_spellings(value: str) -> set[str]:
    """A date or time as an identity may hold it; none of fewer than six digits."""
    if "." in value:
        try:
            if not float(value).is_integer():  # the fraction of a second has the digits of many a number
                return {value}
        except ValueError:  # no number, such as 1950.01.02
            pass
        else:
            value = value.partition(".")[0]
    digits = re.sub(r"\D", "", value)
    found = {value, digits, digits.lstrip("0")} if len(digits) >= _TIME_DIGITS_MIN else set()
    return {spelling for spelling in found if len(spelling) >= _TIME_DIGITS_MIN}


def is_time(value: str) -> bool:
    """Whether a TM value is a time of a day and no other digits."""
    return re.fullmatch(_TIME, value.strip("\0 ")) is not None


def is_date(value: str) -> bool:
    """Whether a DA or DT value is a day, alone or with a time of that day and a time zone."""
    pattern = rf"\d{{4}}\.?(0\d|1[0-2])\.?[0-3]\d({_TIME})?([+\-]\d{{4}})?"
    return re.fullmatch(pattern, value.strip("\0 ")) is not None


def _is_word(letters: str) -> bool:
    return len(letters) >= _WORD_LETTERS_MIN or letters[0] >= _FIRST_IDEOGRAPH
