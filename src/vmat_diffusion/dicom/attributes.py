"""The border to pydicom: files and attributes come in here, as plain values or as a CaseError.

pydicom converts values when they are first touched and may then raise almost anything (ValueError,
TypeError, struct.error, OverflowError, KeyError, NotImplementedError ...). Everything else in this
package asks these functions and sees numbers, texts and tuples only.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from vmat_diffusion.dicom.sealed import unsealed
from vmat_diffusion.errors import CaseError, InputError, LimitError, UnreadableError, limit_of

_FILE_BYTES_MAX = 2**31
_BLOCK_BYTES = 2**20
_VOXELS_MAX = 2**29
# Lossless and lossy. GDCM, the plugin that pydicom tries first, ends the whole process on damaged
# JPEG 2000 data (an uncaught C++ exception); Pillow raises.
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_CODE = re.compile(r"[A-Z0-9_ .\-]{0,32}")
_FORMS = {"CS": _CODE, "UI": re.compile(r"[A-Za-z0-9_.\-]{0,64}")}


def silence() -> None:
    """Keep pydicom's remarks, and all warnings, away from the terminal for the rest of the process.

    For servers and workers: `quiet` changes the whole process and puts it back, too early for other threads.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's remarks away from the terminal: they quote values, among them names."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def about(what: str, error: type[InputError] = CaseError) -> Iterator[None]:
    """Put the name of the thing at hand in front of the sentence of an InputError raised within.

    An UnreadableError stays one: the fault is not in the file.
    """
    try:
        yield
    except UnreadableError as fault:
        raise UnreadableError(_labelled(what, fault)) from None
    except InputError as fault:
        raise error(_labelled(what, fault)) from None


def _labelled(what: str, fault: InputError) -> str:
    """The sentence behind the name of the thing, which it may bear already."""
    said = str(fault)
    return said if said.startswith((f"{what}: ", f"{what} ")) else f"{what}: {said}"


def open_dataset(path: Path, *, pixels: bool = False, is_sealed: bool = False) -> Dataset | None:
    """The data set of one file; None where the file is not DICOM at all.

    A sealed file is opened only where the caller knows of it (`is_sealed`): no search of a folder does.

    Raises CaseError for a file that says it is DICOM and cannot be parsed, or is above 2 GiB, inflated too,
    and UnreadableError for one that the disk does not give.
    """
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise CaseError(f"the file holds {path.stat().st_size} bytes, the limit is {_FILE_BYTES_MAX}")
        with BytesIO(unsealed(path.read_bytes())) if is_sealed else path.open("rb") as file:
            head = file.read(132)
            if not looks_like_dicom(head):
                return None
            # Read through memory: a corrupt length then ends at the end of the file, whereas a
            # read of that length from disk would first reserve the memory for it.
            stream = BytesIO(head + file.read())
    except OSError as fault:
        if limit := limit_of(fault):
            raise LimitError(limit) from None
        raise UnreadableError(
            f"the file cannot be opened ({fault.strerror}); check its permissions"
        ) from None
    try:
        _require_inflated_fits(stream, has_preamble=head[128:] == b"DICM")
        dataset = dcmread(stream, stop_before_pixels=not pixels, force=head[128:] != b"DICM")
        if "TransferSyntaxUID" not in dataset.file_meta:
            # Files without preamble do not state it; the parser has found out while reading.
            implicit, little = dataset.original_encoding
            native = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = native if little else ExplicitVRBigEndian
        # Touching elements finds broken ones while the file is named.
        list(dataset.file_meta)
        for keyword in ("SOPClassUID", "Modality"):
            dataset.get(keyword)
    except (MemoryError, CaseError):
        raise
    except Exception as fault:  # pydicom's parsers raise every kind of exception
        raise CaseError(
            f"the file is not valid DICOM ({type(fault).__name__} while "
            "parsing); export it again or remove it"
        ) from None
    dataset.buffer = None  # else each data set of a folder would keep its whole file in memory
    return dataset if head[128:] == b"DICM" or "SOPClassUID" in dataset else None


def _require_inflated_fits(stream: BytesIO, *, has_preamble: bool) -> None:
    """Raise CaseError for a deflated file that would be above the limit; leaves the stream at its begin."""
    read_preamble(stream, force=not has_preamble)
    if _read_file_meta_info(stream).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while rest := stream.read(_BLOCK_BYTES >> 4):
            while block := inflater.decompress(rest, _BLOCK_BYTES):
                size, rest = size + len(block), inflater.unconsumed_tail
                if size > _FILE_BYTES_MAX:
                    raise CaseError(
                        f"the file holds more than {_FILE_BYTES_MAX} bytes, the limit, when it is inflated; "
                        "export it without compression"
                    )
    stream.seek(0)


def looks_like_dicom(head: bytes) -> bool:
    """A preamble with its magic word, or (old files) a first element of group 0002 or 0008."""
    return head[128:] == b"DICM" or (len(head) > 12 and head[:2] in (b"\x02\x00", b"\x08\x00"))


def _value(dataset: Dataset, keyword: str) -> Any:
    try:
        value = dataset.get(keyword)
        # None for absent and for empty: the standard's types 1, 2 and 3 are all met in practice.
        return None if value is None or (not isinstance(value, int | float) and len(value) == 0) else value
    except MemoryError:
        raise
    except Exception:
        raise CaseError(f"{name_of(keyword)} cannot be read; export the file again") from None


def name_of(keyword: str) -> str:
    """Keyword and tag of an attribute, such as `RescaleSlope (0028,1053)`."""
    tag = tag_for_keyword(keyword) or 0
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def has(dataset: Dataset, keyword: str) -> bool:
    """Whether an attribute is present and not empty."""
    return _value(dataset, keyword) is not None


def text(dataset: Dataset, keyword: str, default: str = "") -> str:
    """One text, code or UID; several values are joined by a backslash.

    Codes come in capitals. Texts are cut to the standard's 64 characters and lose control
    characters. A code or UID with other characters than theirs raises CaseError: a damaged length
    makes an element swallow what follows, among it the patient's name, and it may be shown.
    """
    value = _value(dataset, keyword)
    if value is None:
        return default
    if isinstance(value, Sequence | bytes):
        raise CaseError(f"{name_of(keyword)} holds no text; export the file again")
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        value = "\\".join(str(v) for v in value)
    plain = "".join(c if c.isprintable() else " " for c in str(value)).strip()
    if (form := _FORMS.get(dictionary_VR(keyword))) is None:
        return plain[:64].strip()
    plain = plain.upper() if form is _CODE else plain
    if not all(form.fullmatch(part) for part in plain.split("\\")):
        raise CaseError(f"{name_of(keyword)} does not hold what the standard asks for; export the file again")
    return plain


def numbers(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...]:
    """Finite numbers. With `count` exactly so many must be there; else () where the attribute is absent."""
    value = _value(dataset, keyword)
    if value is None:
        if count is not None:
            raise CaseError(f"{name_of(keyword)} is missing; export the file again")
        return ()
    try:
        if isinstance(value, str | bytes | Sequence):
            raise TypeError
        plain = tuple(float(v) for v in value) if hasattr(value, "__iter__") else (float(value),)
    except Exception:
        raise CaseError(f"{name_of(keyword)} does not hold numbers; export the file again") from None
    if not all(math.isfinite(v) for v in plain):
        raise CaseError(f"{name_of(keyword)} holds a value that is not finite; export the file again")
    if count is not None and len(plain) != count:
        raise CaseError(f"{name_of(keyword)} holds {len(plain)} values, {count} are needed")
    return plain


def number(dataset: Dataset, keyword: str, default: float | None = None) -> float:
    """One finite number, or the default; without a default a missing value raises CaseError."""
    found = numbers(dataset, keyword)
    if not found:
        if default is None:
            raise CaseError(f"{name_of(keyword)} is missing; export the file again")
        return default
    if len(found) != 1:
        raise CaseError(f"{name_of(keyword)} holds {len(found)} values, 1 is needed")
    return found[0]


def integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """One whole number, or the default; without a default a missing value raises CaseError."""
    value = number(dataset, keyword, default)
    if value != int(value):
        raise CaseError(f"{name_of(keyword)} is {value:g}, a whole number is needed")
    return int(value)


def items(dataset: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """The items of a sequence; () where it is absent or empty."""
    value = _value(dataset, keyword)
    if value is None:
        return ()
    if not isinstance(value, Sequence):
        raise CaseError(f"{name_of(keyword)} is not a sequence; export the file again")
    try:
        return tuple(value)
    except Exception:
        raise CaseError(f"{name_of(keyword)} cannot be read; export the file again") from None


def points_mm(dataset: Dataset, keyword: str = "ContourData") -> NDArray[np.float64]:
    """The triples of a contour as `(n, 3)` in patient millimetres.

    Decodes the raw text itself: pydicom makes one decimal object per number, a hundred times slower.
    """
    try:
        raw = dataset.get_item(keyword)
        if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes):
            flat = np.array([float(v) for v in raw.value.rstrip(b"\0 ").split(b"\\")])
        else:
            flat = np.asarray(numbers(dataset, keyword), float)
    except InputError:
        raise
    except Exception:
        raise CaseError(f"{name_of(keyword)} does not hold numbers; export the file again") from None
    if flat.size == 0 or flat.size % 3 or not np.all(np.isfinite(flat)):
        raise CaseError(f"{name_of(keyword)} does not hold finite (x, y, z) triples; export the file again")
    return flat.reshape(-1, 3)


def stored_values(dataset: Dataset, frames: int = 1) -> NDArray:
    """Pixel data as stored, `(frames, rows, columns)`, spare bits included, before any rescaling.

    Raises CaseError where the data are truncated, coloured, above 2^29 values or in a transfer
    syntax that no installed plugin decodes.
    """
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if integer(dataset, "SamplesPerPixel", 1) != 1:
        raise CaseError("the pixel data are coloured; a grey image is needed")
    if not 0 < rows * columns * frames <= _VOXELS_MAX:
        raise CaseError(
            f"{frames} frames of {rows} x {columns} pixels are outside 1 to {_VOXELS_MAX}; crop the image"
        )
    if integer(dataset, "NumberOfFrames", 1) != frames:
        raise CaseError(f"{name_of('NumberOfFrames')} is not {frames} as the rest of the file says")
    try:
        # Bits above BitsStored may hold the padding value; `without_spare_bits` removes them after.
        name = str(dataset.file_meta.TransferSyntaxUID)
        dataset.pixel_array_options(
            correct_unused_bits=False, decoding_plugin="pillow" if name in _JPEG_2000 else ""
        )
        pixels = np.asarray(dataset.pixel_array)
    except Exception as fault:  # every decoder plugin has exceptions of its own
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        remedy = "export the images uncompressed" if compressed(dataset) else "copy or export the file again"
        raise CaseError(
            f"the pixel data cannot be decoded ({type(fault).__name__}, transfer syntax "
            f"{getattr(syntax, 'name', 'unknown')}); {remedy}"
        ) from None
    if pixels.size != frames * rows * columns:
        raise CaseError(f"{pixels.size} pixels are stored, {frames * rows * columns} are needed")
    if not np.issubdtype(pixels.dtype, np.integer):
        raise CaseError(
            f"the pixels are of type {pixels.dtype}, whole numbers are needed; export the file again"
        )
    return pixels.reshape(frames, rows, columns)


def without_spare_bits(dataset: Dataset, stored: NDArray) -> NDArray:
    """Stored values from their BitsStored bits, of which HighBit is the highest (PS3.5 8.1.1).

    Bits above may hold overlays, which old scanners kept there. Older editions of the standard let a file put
    its bits at the upper end; whatever lies below them must then be zero. Raises CaseError where the
    attributes contradict each other or the pixels.
    """
    width = 8 * stored.dtype.itemsize
    used = integer(dataset, "BitsStored", width)
    high = integer(dataset, "HighBit", used - 1)
    if not 0 < used <= width:
        raise CaseError(f"{name_of('BitsStored')} does not fit the pixels; export the file again")
    below = high + 1 - used
    if not 0 <= below <= width - used:
        raise CaseError(
            f"{name_of('HighBit')} is {high}, with {used} bits stored of {width} it must be "
            f"{used - 1}; export the file again"
        )
    if below and (compressed(dataset) or np.any(stored & stored.dtype.type(2**below - 1))):
        raise CaseError(
            f"{name_of('HighBit')} is {high} with {used} bits stored, but the pixels are not aligned so; "
            "export the file again"
        )
    return (stored << (width - 1 - high)) >> (width - used) if used < width else stored


def compressed(dataset: Dataset) -> bool:
    """Whether the pixels are in a compressed transfer syntax, whose decoders align the bits themselves.

    Raises CaseError where the file names something else than a transfer syntax.
    """
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    try:
        return bool(getattr(syntax, "is_compressed", False))
    except ValueError:
        raise CaseError(
            f"{name_of('TransferSyntaxUID')} is {str(syntax)[:64]}, which is no transfer syntax; export the "
            "file again"
        ) from None
