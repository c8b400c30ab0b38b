"""Who a file is about: the words and numbers that point to a person, and what replaces them."""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from vmat_diffusion.dicom.confidential.profile import word_set

_WORD_LETTERS_MIN = 3
_NUMBER_DIGITS_MIN = 4
_VALUE_DIGITS_MIN = 6  # shorter numbers stand among measurements and times by chance
_FIRST_IDEOGRAPH = "\u2e80"  # one sign of these scripts is a word
_DAYS_MAX = 365
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae"})
_TIME = r"([01]\d|2[0-3])(:?[0-5]\d(:?([0-5]\d|60)(\.\d{1,6})?)?)?"
# Besides all person names (VR PN): what identifies a patient, a visit or an institution.
_IDENTIFYING = word_set(
    """PatientID OtherPatientIDs AccessionNumber StudyID AdmissionID ServiceEpisodeID MedicalRecordLocator
    RequestedProcedureID FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest
    SpecimenAccessionNumber IssuerOfPatientID InstitutionName InstitutionAddress PatientAddress
    PatientTelephoneNumbers PatientBirthDate ResponsibleOrganization
    ClinicalTrialSubjectID ClinicalTrialSiteName StationName StationAETitle PerformedStationName
    PerformedStationAETitle ScheduledStationName ScheduledStationAETitle DeviceSerialNumber
    InstitutionalDepartmentName PatientMotherBirthName"""
)


@dataclass(frozen=True)
class Identity:
    """What must not be met again: folded words and numbers, and the longer ones as they were written."""

    folded: frozenset[str] = frozenset()
    written: frozenset[str] = field(default=frozenset(), repr=False)

    def __or__(self, other: Identity) -> Identity:
        return Identity(self.folded | other.folded, self.written | other.written)

    def is_in(self, text: str, letters_min: int = 1) -> bool:
        """Whether a free text holds a word or number of the identity, also as part of a longer one.

        Numbers are found with separators between their digits too. Words of fewer than `letters_min`
        characters are not looked for.
        """
        there, joined = folded(text), digits_joined(text)
        return any(w in there or w in joined for w in self.folded if len(w) >= letters_min)

    def is_among(self, values: str) -> bool:
        r"""Whether one of the number strings, dates or times that "\\" separates is the identity's number.

        As written, as the whole number that it means, and as its digits; from six digits on. Measurements
        with decimals are compared as written alone: a coordinate has the digits of many a number.
        """
        return any(
            spelling in self.folded
            for value in values.split("\\")
            if len(value) >= _VALUE_DIGITS_MIN
            for spelling in _value_spellings(value.strip("\0 "))
        )

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
    """The names, numbers, institutions and the birth date that a data set holds, at any depth."""
    found = Identity()
    for item, tag, vr in elements(dataset):
        if vr == "PN" or keyword_for_tag(tag) in _IDENTIFYING:
            values = _values(item[tag].value)
            found |= _from_texts(values, vr)
            if vr == "DA":
                found |= Identity(frozenset(spelling for v in values for spelling in _date_spellings(v)))
    return found


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
    for text in texts:
        words = {w for w in re.findall(r"[^\W\d_]+", text) if _is_word(w)}
        numbers = {n for n in re.findall(r"\d+", text) if len(n) >= _NUMBER_DIGITS_MIN}
        numbers |= {n.lstrip("0") for n in numbers if len(n.lstrip("0")) >= _NUMBER_DIGITS_MIN}
        joined = re.sub(r"[\W_]+", "", text)
        if vr != "PN" and len(joined) >= _NUMBER_DIGITS_MIN and any(c.isdigit() for c in joined):
            numbers |= {joined, text.strip()}
        written |= words | {n for n in numbers if not n.isdigit()}
        out |= {folded(w) for w in words | numbers}
        out |= {folded(w.casefold().translate(_UMLAUTS)) for w in words}
    return Identity(frozenset(out), frozenset(written))


def _date_spellings(value: str) -> tuple[str, ...]:
    """A date as digits in the orders in which people write it; none for what is no full date."""
    found = re.fullmatch(r"(\d{4})(\d\d)(\d\d)", re.sub(r"\D", "", value))
    if found is None:
        return ()
    year, month, day = found.groups()
    return (f"{year}{month}{day}", f"{day}{month}{year}", f"{month}{day}{year}")


def _value_spellings(value: str) -> set[str]:
    """A number string, date or time as an identity may hold it; none of fewer than six digits."""
    whole = None
    if "." in value or "e" in value or "E" in value:
        try:
            number = float(value)
        except ValueError:  # no number, such as 1950.01.02
            pass
        else:
            if not number.is_integer():
                return {value}
            whole = f"{abs(number):.0f}"
    whole = re.sub(r"\D", "", value) if whole is None else whole
    found = {value, whole, whole.lstrip("0")} if len(whole) >= _VALUE_DIGITS_MIN else set()
    return {spelling for spelling in found if len(spelling) >= _VALUE_DIGITS_MIN}


def is_time(value: str) -> bool:
    """Whether a TM value is a time of a day and no other digits."""
    return re.fullmatch(_TIME, value.strip("\0 ")) is not None


def is_date(value: str) -> bool:
    """Whether a DA or DT value is a day, alone or with a time of that day and a time zone."""
    pattern = rf"\d{{4}}\.?(0\d|1[0-2])\.?[0-3]\d({_TIME})?([+\-]\d{{4}})?"
    return re.fullmatch(pattern, value.strip("\0 ")) is not None


def _is_word(letters: str) -> bool:
    return len(letters) >= _WORD_LETTERS_MIN or letters[0] >= _FIRST_IDEOGRAPH
