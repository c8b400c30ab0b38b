"""The files of a folder that are to be de-identified, and whose they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from vmat_diffusion.dicom.attributes import open_dataset, quiet, text
from vmat_diffusion.dicom.confidential.deidentify import deidentify
from vmat_diffusion.dicom.confidential.identity import Identity, Key, Patient, identity_of
from vmat_diffusion.dicom.folder import require_folder
from vmat_diffusion.dicom.names import NameTable
from vmat_diffusion.errors import CaseError

# Objects whose content is known well enough to say what may stay. Documents, screen captures,
# presentation states and private classes are not among them.
SUPPORTED = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.66.1": "REG",
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
    "1.2.840.10008.5.1.4.1.1.481.5": "RTPLAN",
}
_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Original:
    """One file: its place in the order of the folder (the first is 1), what it is and whose."""

    number: int
    path: Path = field(repr=False)
    kind: str
    patient: str = field(repr=False)


@dataclass(frozen=True)
class Survey:
    """What lies in a folder: `left_out` says why a DICOM file cannot be taken, `others` are not DICOM.

    `torn` are, for each study or frame of reference whose files bear several patients' IDs, the numbers of
    the first file of each patient.
    """

    originals: tuple[Original, ...]
    identities: Mapping[str, Identity]
    left_out: Mapping[int, str]
    others: tuple[int, ...]
    torn: tuple[tuple[int, ...], ...] = ()


@quiet()
def survey(root: Path, progress: Callable[[float], None] | None = None) -> Survey:
    """Look at every file below a folder, in the order of their relative paths' characters.

    Whose a file is: the patient ID says it, else the name, else the other files of its study. Names and
    numbers in files that are left out are the patient's too, where they can be read.
    Raises CaseError where there is no such folder.
    """
    require_folder(root, "the input folder")  # a clinic's folders are often called after their patients
    paths = [Path(base) / name for base, _, names in os.walk(root) for name in names]
    paths.sort(key=lambda p: p.relative_to(root).as_posix())
    seen: list[tuple[Original, str, Identity]] = []
    together: dict[str, dict[str, int]] = {}
    left_out: dict[int, str] = {}
    others: list[int] = []
    for number, path in enumerate(paths, start=1):
        try:
            dataset = open_dataset(path) if path.is_file() else None
            if dataset is None or _is_directory(dataset):
                others.append(number)
            else:
                patient = text(dataset, "PatientID") or text(dataset, "PatientName")
                original = Original(number, path, SUPPORTED.get(text(dataset, "SOPClassUID"), ""), patient)
                study = text(dataset, "StudyInstanceUID")
                seen.append((original, study, _identity(dataset)))
                for uid in {study, text(dataset, "FrameOfReferenceUID")} - {""} if patient else ():
                    together.setdefault(uid, {}).setdefault(patient, number)
                _refuse_unsupported(dataset)
        except CaseError as fault:
            left_out[number] = str(fault)
        if progress is not None:
            progress(number / len(paths))
    torn = {tuple(first.values()) for first in together.values() if len(first) > 1}
    return replace(_sorted_by_patient(seen, left_out, others), torn=tuple(sorted(torn)))


def _sorted_by_patient(
    seen: Sequence[tuple[Original, str, Identity]], left_out: Mapping[int, str], others: Sequence[int]
) -> Survey:
    of_study: dict[str, set[str]] = {}
    for original, study, _ in seen:
        of_study.setdefault(study, set()).update({original.patient} - {""})
    originals: list[Original] = []
    identities: dict[str, Identity] = {}
    for original, study, identity in seen:
        named = of_study[study]
        patient = original.patient or (next(iter(named)) if len(named) == 1 else f"study {study}")
        if original.number not in left_out:
            originals.append(replace(original, patient=patient))
        identities[patient] = identities.get(patient, Identity()) | identity
    return Survey(tuple(originals), identities, left_out, tuple(others))


@quiet()
def write_deidentified(
    original: Original, folder: Path, patient: Patient, key: Key, table: NameTable
) -> tuple[Path, Counter[tuple[str, str]]]:
    """Write a file without the person as `<kind>.<new UID>.dcm`; returns it and what was done.

    The result is (keyword, action) with how often. Raises CaseError, with nothing written, for a
    file that cannot be de-identified.
    """
    dataset = open_dataset(original.path, pixels=True)
    if dataset is None:
        raise CaseError("the file has changed while it was read; run again")
    done = deidentify(dataset, patient, key, table)
    file = folder / f"{original.kind}.{text(dataset, 'SOPInstanceUID')}.dcm"
    stream = BytesIO()
    try:
        dataset.save_as(stream, enforce_file_format=True)
    except Exception as fault:  # pydicom raises every kind of exception for a value it cannot encode
        raise CaseError(
            f"the file holds values that cannot be written again ({type(fault).__name__}); export it again"
        ) from None
    if file.exists() and file.read_bytes() != stream.getvalue():
        raise CaseError("another file with other content has the same SOP instance UID; remove one of them")
    folder.mkdir(exist_ok=True)
    file.write_bytes(stream.getvalue())
    return file, done


def _refuse_unsupported(dataset: Dataset) -> None:
    if text(dataset, "SOPClassUID") not in SUPPORTED:
        raise CaseError(
            "the object is none of CT, MR, PET, registration, RTSTRUCT, RTDOSE and RTPLAN, so what it shows "
            "is not known; leave it out"
        )
    if not text(dataset, "SOPInstanceUID"):
        raise CaseError("the object has no SOPInstanceUID (0008,0018); export it again")
    if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        raise CaseError("the file is big-endian, which the standard has retired; convert it to little endian")


def _is_directory(dataset: Dataset) -> bool:
    """A DICOMDIR, which lists names and files and would be wrong for the new ones."""
    meta_class = str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    return _DIRECTORY in (meta_class, text(dataset, "SOPClassUID"))


def _identity(dataset: Dataset) -> Identity:
    try:
        return identity_of(dataset)
    except Exception as fault:  # pydicom raises every kind of exception for a broken value
        raise CaseError(
            f"an attribute cannot be read ({type(fault).__name__}); export the file again"
        ) from None
