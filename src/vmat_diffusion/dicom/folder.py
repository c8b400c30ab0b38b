"""What lies in a folder: DICOM files sorted by what they are, never by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import about, open_dataset, text
from vmat_diffusion.dicom.sealed import SEALED
from vmat_diffusion.errors import CaseError, UnreadableError
from vmat_diffusion.files import why_no_file, why_no_folder

KINDS = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
    "1.2.840.10008.5.1.4.1.1.481.5": "RTPLAN",
}
# Enhanced CT and legacy converted enhanced CT: all slices in one object.
_MULTI_FRAME = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
MULTI_FRAME_CT = "enhanced multi-frame CT"
_GROUPED_BY = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True, eq=False)
class Found:
    """One DICOM file: path, what sentences call it, kind, and its data set without pixels."""

    path: Path = field(repr=False)
    label: str
    kind: str
    dataset: Dataset = field(repr=False)

    @property
    def uid(self) -> str:
        """SOP instance UID."""
        return text(self.dataset, "SOPInstanceUID")


@dataclass(frozen=True, eq=False)
class Folder:
    """All DICOM files below a folder. `refused` holds a sentence for each that cannot be parsed.

    `unreadable` are those of them that the disk does not give at the moment.
    """

    root: Path
    files: tuple[Found, ...]
    refused: tuple[str, ...]
    others: int
    unreadable: tuple[str, ...] = ()

    def of(self, kind: str) -> tuple[Found, ...]:
        """The files of one kind: CT, RTSTRUCT, RTDOSE, RTPLAN or another modality's name."""
        return tuple(f for f in self.files if f.kind == kind)


def require_folder(root: Path, name: str = "") -> None:
    """Raise CaseError where there is no such folder; the sentence calls it `name`, else as it is called."""
    if not root.is_dir():
        raise CaseError(
            f"{name or root.name or root} {why_no_folder(root)}; give the folder that holds the DICOM files"
        )


def open_folder(root: str | Path) -> Folder:
    """Look at every file below `root`. Raises CaseError only where there is no such folder."""
    root = Path(root)
    require_folder(root)
    files: list[Found] = []
    refused: list[str] = []
    unreadable: list[str] = []
    others = 0
    for found in each_file(root):
        if isinstance(found, CaseError):
            refused.append(str(found))
            if isinstance(found, UnreadableError):
                unreadable.append(str(found))
        elif found is None:
            others += 1
        else:
            files.append(found)
    return Folder(root, tuple(files), tuple(refused), others, tuple(unreadable))


def each_file(root: Path, *, numbered: bool = False) -> Iterator[Found | CaseError | None]:
    """Every file below a folder in the order of paths: None for no DICOM, the fault of a damaged one.

    Labels are the relative paths, or `file 1`, `file 2`, ... in the order of their characters where
    paths may hold patients' names.
    """
    paths = sorted(
        (Path(base) / name for base, _, names in os.walk(root) for name in names),
        key=lambda p: p.relative_to(root).as_posix(),
    )
    for number, path in enumerate(paths, start=1):
        label = f"file {number}" if numbered else path.relative_to(root).as_posix()
        try:
            with about(label):
                yield open_file(path, label) if path.is_file() else None
        except CaseError as fault:
            yield fault


def open_file(path: Path, label: str, *, is_sealed: bool = False) -> Found | None:
    """One DICOM file and its kind; None for a file that is not DICOM or is a DICOMDIR."""
    dataset = open_dataset(path, is_sealed=is_sealed)
    if dataset is None:
        return None
    sop_class = text(dataset, "SOPClassUID")
    modality = text(dataset, "Modality")
    if not sop_class and not modality:
        return None
    # What files are grouped by is looked at here, so that a damaged one is refused by its name.
    for keyword in _GROUPED_BY:
        text(dataset, keyword)
    # Some systems export plans under a private class; the modality still says what they are.
    kind = KINDS.get(sop_class) or (modality if modality in ("RTPLAN", "RTSTRUCT", "RTDOSE") else "")
    if sop_class in _MULTI_FRAME:
        kind = MULTI_FRAME_CT
    return Found(path, label, kind or f"{modality or 'unknown'} image or object", dataset)


def open_one(path: Path, kind: str) -> Found:
    """The file at `path`, of a kind such as RTPLAN. Raises CaseError where it is absent or another."""
    if not path.is_file():
        raise CaseError(f"the file {why_no_file(path)}; give an {kind} file")
    found = open_file(path, path.name, is_sealed=path.suffix == SEALED)
    if found is None or found.kind != kind:
        raise CaseError(f"the file is {'not DICOM' if found is None else found.kind}, an {kind} is needed")
    return found
