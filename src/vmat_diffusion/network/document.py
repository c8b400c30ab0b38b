"""A PDF as a DICOM object of a patient's study: Encapsulated PDF.

Source: DICOM PS3.3 A.45.1 and C.24.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID, EncapsulatedPDFStorage

from vmat_diffusion.dicom.attributes import open_dataset, text
from vmat_diffusion.dicom.dataset import new_dataset, patient_and_study, save_whole
from vmat_diffusion.errors import CaseError


def write_document(path: Path, pdf: bytes, title: str, *, beside: Path) -> Path:
    """Write a PDF as an object of the study of the DICOM file `beside`.

    Its UIDs follow from that object and the PDF: a document that is made again is the same object, which a
    system that has it does not take for a second one. Raises CaseError where `beside` cannot be read.
    """
    source = open_dataset(beside)
    if source is None or not text(source, "StudyInstanceUID"):
        raise CaseError("the object that the document belongs to is no DICOM file of a study; send it again")
    header, _ = patient_and_study(source, "the object that the document belongs to")
    out = new_dataset(EncapsulatedPDFStorage, "DOC", header, now=datetime.now())
    digest = hashlib.sha256(text(source, "SOPInstanceUID").encode() + pdf).digest()
    out.SOPInstanceUID = out.file_meta.MediaStorageSOPInstanceUID = _uid(b"document", digest)
    out.SeriesInstanceUID = _uid(b"series", digest)
    del out.PositionReferenceIndicator  # of images and plans
    out.SeriesDescription = out.DocumentTitle = title
    out.InstanceNumber = 1
    out.ConversionType = "WSD"
    out.BurnedInAnnotation = "YES"  # a report may show what identifies the patient
    out.ContentDate, out.ContentTime = out.InstanceCreationDate, out.InstanceCreationTime
    out.AcquisitionDateTime = None
    out.ConceptNameCodeSequence = []
    out.SourceInstanceSequence = [_source(source)]
    out.MIMETypeOfEncapsulatedDocument = "application/pdf"
    out.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    out.EncapsulatedDocumentLength = len(pdf)
    return save_whole(path, out)


def _source(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = text(source, "SOPClassUID")
    item.ReferencedSOPInstanceUID = text(source, "SOPInstanceUID")
    return item


def _uid(of: bytes, digest: bytes) -> UID:
    """A UID below 2.25 that follows from a digest (PS3.5 B.2, with a UUID by name)."""
    return UID(f"2.25.{uuid.UUID(bytes=hashlib.sha256(of + digest).digest()[:16], version=5).int}")
