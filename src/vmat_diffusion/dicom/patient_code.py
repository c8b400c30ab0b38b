"""A code for a patient's record number: the same in all files of a patient, and telling nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import text
from vmat_diffusion.errors import CaseError
from vmat_diffusion.origin import Origin, compare


def patient_code(dataset: Dataset) -> str:
    """16 hexadecimal digits of PatientID; "" where the file has none.

    A slow hash (scrypt, RFC 7914; 50 ms, once for each patient), so that trying out record numbers takes
    long.
    """
    record = text(dataset, "PatientID")
    return _code(record) if record else ""


@lru_cache(maxsize=1024)
def _code(record: str) -> str:
    return hashlib.scrypt(record.encode(), salt=b"vmat-diffusion record", n=2**14, r=8, p=1, dklen=8).hex()


def unsaid(things: Iterable[tuple[str, Dataset]]) -> tuple[str, ...]:
    """A step for each thing of a case that states no record number in a file while another file does."""
    records = [(what, text(dataset, "PatientID")) for what, dataset in things]
    silent = dict.fromkeys(what for what, record in records if not record)
    if not any(record for _, record in records):
        return ()
    return tuple(f"unsaid-patient: the {what} does not say its patient ID" for what in silent)


def one_patient(things: Iterable[tuple[str, Dataset]]) -> str:
    """The code of the patient of several files, each with the words for it in a sentence.

    Raises CaseError where two of them bear different record numbers; "" where none bears one.
    """
    codes = dict.fromkeys((what, code) for what, dataset in things if (code := patient_code(dataset)))
    names = [what for what, _ in codes]
    for what in names:
        if names.count(what) > 1:
            raise CaseError(f"the {what} bears the IDs of two patients; export it again for one patient")
    contradictions = compare(*(Origin(what, patient=code) for what, code in codes)).contradictions
    if contradictions:
        raise CaseError(f"{contradictions[0]}; export both again for one patient")
    return next((code for _, code in codes), "")
