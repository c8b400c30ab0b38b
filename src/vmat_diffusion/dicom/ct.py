"""A CT series in Hounsfield units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import (
    about,
    has,
    integer,
    number,
    numbers,
    open_dataset,
    stored_values,
    text,
    without_spare_bits,
)
from vmat_diffusion.dicom.folder import Folder, Found
from vmat_diffusion.dicom.lattice import Lattice, lattice_of
from vmat_diffusion.errors import CaseError

AIR_HU = -1000.0
# Where two images of a series lie closer than this they are the same slice.
_SAME_SLICE_MM = 0.01


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one CT series in ascending order, and where they lie."""

    uid: str
    study_uid: str
    frame_uid: str
    patient_position: str
    slices: tuple[Found, ...]
    lattice: Lattice
    steps: tuple[str, ...]


def series_files(folder: Folder) -> dict[str, tuple[Found, ...]]:
    """CT files by series instance UID."""
    groups: dict[str, list[Found]] = {}
    for found in folder.of("CT"):
        groups.setdefault(text(found.dataset, "SeriesInstanceUID"), []).append(found)
    return {uid: tuple(files) for uid, files in groups.items()}


def open_series(files: Sequence[Found]) -> Series:
    """Order the files of one series along the patient and check that they make a volume.

    Raises CaseError for mixed sizes, spacings or orientations, for two different images of one
    slice, and for a gantry tilt.
    """
    files, steps = _without_scouts(files)
    first = files[0].dataset
    size = integer(first, "Rows"), integer(first, "Columns")
    positions, heights = [], []
    orientation = numbers(first, "ImageOrientationPatient", 6)
    normal = np.cross(orientation[:3], orientation[3:])
    for found in files:
        with about(found.label):
            _must_agree(found.dataset, first, size, orientation)
            positions.append(numbers(found.dataset, "ImagePositionPatient", 3))
            heights.append(float(np.dot(positions[-1], normal)))
    order = [int(k) for k in np.argsort(heights, kind="stable")]
    kept, copies = _without_copies(files, heights, order)
    if copies:
        steps = (*steps, f"drop-copies: {copies} files that repeat an image of the series left out")
    rows_mm, columns_mm = numbers(first, "PixelSpacing", 2)
    lattice = lattice_of(np.array([positions[k] for k in kept]), orientation, (columns_mm, rows_mm), size)
    return Series(
        uid=text(first, "SeriesInstanceUID"),
        study_uid=text(first, "StudyInstanceUID"),
        frame_uid=text(first, "FrameOfReferenceUID"),
        patient_position=text(first, "PatientPosition"),
        slices=tuple(files[k] for k in kept),
        lattice=lattice,
        steps=steps,
    )


def _without_scouts(files: Sequence[Found]) -> tuple[tuple[Found, ...], tuple[str, ...]]:
    kept = tuple(f for f in files if "LOCALIZER" not in text(f.dataset, "ImageType").split("\\"))
    if not kept:
        raise CaseError("the CT series holds localizers only; add the axial images")
    dropped = len(files) - len(kept)
    return kept, (f"drop-localizers: {dropped} localizer images left out",) if dropped else ()


def _must_agree(
    dataset: Dataset, first: Dataset, size: tuple[int, int], orientation: tuple[float, ...]
) -> None:
    if (integer(dataset, "Rows"), integer(dataset, "Columns")) != size:
        raise CaseError(
            f"the image is not {size[0]} x {size[1]} pixels as the others of its series; remove it"
        )
    if not np.allclose(numbers(dataset, "ImageOrientationPatient", 6), orientation, atol=1e-4):
        raise CaseError("the image lies in another orientation than the others of its series; remove it")
    spacing = numbers(dataset, "PixelSpacing", 2)
    if not np.allclose(spacing, numbers(first, "PixelSpacing", 2), rtol=1e-3):
        raise CaseError(f"the pixel spacing {spacing} mm differs from the others of its series; remove it")
    for keyword in ("FrameOfReferenceUID", "PatientPosition", "StudyInstanceUID"):
        if text(dataset, keyword) != text(first, keyword):
            raise CaseError(f"{keyword} differs from the other images of the series; remove the image")


def _without_copies(
    files: Sequence[Found], heights: Sequence[float], order: Sequence[int]
) -> tuple[list[int], int]:
    """Indices in ascending order with one file for each slice, and how many copies were left out."""
    kept: list[int] = []
    for k in order:
        if kept and abs(heights[k] - heights[kept[-1]]) < _SAME_SLICE_MM:
            if files[k].uid != files[kept[-1]].uid:
                raise CaseError(
                    f"{files[kept[-1]].label} and {files[k].label} are different images of the same slice "
                    f"at {heights[k]:.1f} mm; keep the files of one scan only"
                )
            continue
        kept.append(k)
    return kept, len(order) - len(kept)


def read_hu(series: Series, *, whole: bool = False) -> tuple[NDArray, tuple[str, ...]]:
    """Hounsfield units on the lattice of the series, `[k, j, i]`, and the steps taken.

    They are float32, or with `whole` the int16 of `whole_hu`, which takes a third of the memory.
    Padding pixels become air. Raises CaseError for pixels that cannot be decoded and for a missing
    rescale: without it the values are no Hounsfield units.
    """
    hu = np.empty(series.lattice.shape, np.int16 if whole else np.float32)
    scratch = np.empty(hu.shape[1:], np.float32)
    padded = 0
    for k, found in enumerate(series.slices):
        with about(found.label):
            dataset = open_dataset(found.path, pixels=True)
            if dataset is None:
                raise CaseError("the file changed while it was read; start again")
            out = scratch if whole else hu[k]
            padded += _slice_hu(dataset, out)
            if whole:
                hu[k] = whole_hu(out)
    steps = [f"fill-padding: {padded} padding pixels set to {AIR_HU:g} HU"] if padded else []
    for found in series.slices:
        used = integer(found.dataset, "BitsStored", 0)
        if used and (high := integer(found.dataset, "HighBit", used - 1)) != used - 1:
            steps.append(
                f"shift-pixels: the {used} bits of a pixel end at bit {high}, shifted as HighBit says"
            )
            break
    return hu, tuple(steps)


def whole_hu(hu: NDArray) -> NDArray[np.int16]:
    """HU as whole numbers, cut off at the ends of 16 bits."""
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)


def _slice_hu(dataset: Dataset, out: NDArray[np.float32]) -> int:
    """Fill `out` with the HU of one image; returns the number of padding pixels."""
    if (kind := text(dataset, "RescaleType")) not in ("", "HU", "US"):
        raise CaseError(
            f"RescaleType (0028,1054) is {kind!r}, Hounsfield units (HU) are needed; use the CT itself"
        )
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if not slope > 0:
        raise CaseError(f"RescaleSlope (0028,1053) is {slope:g}; a positive factor is needed, export again")
    stored = stored_values(dataset)[0]
    if stored.shape != out.shape:
        raise CaseError(f"the image is not {out.shape[0]} x {out.shape[1]} pixels as its series; remove it")
    padding = _padding(dataset, stored)
    stored = without_spare_bits(dataset, stored)
    np.multiply(stored, np.float32(slope), out=out, casting="unsafe")
    out += np.float32(intercept)
    out[padding] = AIR_HU
    # CT numbers fit into 16 bits; beyond them a rescale value is corrupt and dose would be too.
    if not (out.min() >= -(2.0**16) and out.max() <= 2.0**16):
        raise CaseError(
            "Hounsfield units beyond +-65536; RescaleSlope or RescaleIntercept is wrong, export again"
        )
    return int(np.count_nonzero(padding))


def _padding(dataset: Dataset, stored: NDArray) -> NDArray[np.bool_]:
    if not has(dataset, "PixelPaddingValue"):
        return np.zeros(stored.shape, bool)
    value = integer(dataset, "PixelPaddingValue")
    limit = integer(dataset, "PixelPaddingRangeLimit", value)
    signed = np.issubdtype(stored.dtype, np.signedinteger)

    def as_stored(number: int, bits: int) -> int:
        # The value may be written signed or unsigned whatever the pixels are: compare bit patterns.
        span = 2**bits
        return (number + span // 2) % span - span // 2 if signed else number % span

    def within(values: NDArray, bits: int) -> NDArray[np.bool_]:
        ends = as_stored(value, bits), as_stored(limit, bits)
        return (values >= min(ends)) & (values <= max(ends))

    bits = 8 * stored.dtype.itemsize
    found = within(stored, bits)
    used = integer(dataset, "BitsStored", bits)
    if -(2 ** (used - 1)) <= min(value, limit) and max(value, limit) < 2**used:
        found |= within(without_spare_bits(dataset, stored), used)
    return found
