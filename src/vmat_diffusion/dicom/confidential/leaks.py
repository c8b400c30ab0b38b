"""A second look at a written file, byte by byte: does anything in it still point to the person?

Written apart from the rules and from pydicom: a small reader goes through the file's bytes, so that
what one of them overlooks the other does not.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.datadict import dictionary_VR
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID_dictionary

from vmat_diffusion.dicom.confidential.identity import (
    Identity,
    Patient,
    are_numbers,
    folded,
    is_date,
    is_time,
)
from vmat_diffusion.dicom.confidential.profile import METHOD, OPTIONS, PLACEHOLDER, STANDARD_CODES
from vmat_diffusion.dicom.names import NameTable
from vmat_diffusion.errors import CaseError

_IMPLICIT = "1.2.840.10008.1.2"
_LONG_FORM = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
_BINARY = ("AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV")
_UNDEFINED = 0xFFFFFFFF
_IMAGE_BYTES = ((0x7FE0, 0x0010), (0x0028, 0x3006))  # PixelData, LUTData
_ROI_NAME = (0x3006, 0x0026)
# Words and numbers this long do not turn up in pixels by chance, so they are looked for in every byte.
_LONG_LETTERS_MIN = 6


@dataclass(frozen=True)
class _Element:
    tag: tuple[int, int]
    vr: str
    start: int
    stop: int


def leak(file: Path, patient: Patient, table: NameTable) -> str | None:
    """Where a de-identified file still holds something of the patient: "(gggg,eeee)" or "its bytes".

    None where nothing was found. The table's canonical structure names do not count, nor do the
    words that the profile itself writes and the standard's own codes. Raises CaseError for a file that is not
    built as DICOM files are.
    """
    raw = file.read_bytes()
    if raw[:132] != bytes(128) + b"DICM":
        return "its preamble"
    rest = bytearray(raw)
    own = _own_words(patient)
    try:
        for element in _elements(raw):
            value = raw[element.start : element.stop]
            if _tells(element, value, patient.identity, own, table):
                return f"({element.tag[0]:04X},{element.tag[1]:04X})"
            if not _is_binary(element):
                rest[element.start : element.stop] = bytes(len(value))
    except (struct.error, IndexError):
        raise CaseError(
            "the file cannot be read back element by element after writing; export it again"
        ) from None
    return "its bytes" if _in_bytes(bytes(rest), patient.identity) else None


def _is_binary(element: _Element) -> bool:
    """Whether any short word may turn up in a value by chance."""
    return element.tag in _IMAGE_BYTES or element.vr in _BINARY


def _own_words(patient: Patient) -> frozenset[str]:
    meanings = (meaning for _, meaning in OPTIONS)
    return frozenset({patient.pseudonym, METHOD, PLACEHOLDER, "Structures", "Plan", "DCM", *meanings})


def _tells(
    element: _Element, value: bytes, identity: Identity, own: frozenset[str], table: NameTable
) -> bool:
    """Whether a value holds a word of the patient's or is not what its representation promises."""
    vr = element.vr
    if _is_binary(element):
        return element.tag not in _IMAGE_BYTES and identity.is_binary_among(value, vr)
    if vr in ("DS", "IS"):
        return not are_numbers(value) or identity.is_number_among(value)
    if vr in ("DA", "DT", "TM"):
        times = value.decode("latin-1").strip("\0 ")
        valid = is_time if vr == "TM" else is_date
        return not all(not t.strip() or valid(t) for t in times.split("\\")) or identity.is_among(times)
    if vr == "UI":
        return not all(_is_known_or_new(uid) for uid in value.rstrip(b"\0 ").split(b"\\"))
    text = value.decode("utf-8", "replace").rstrip("\0 ")
    if vr == "CS":
        return any(c not in STANDARD_CODES and identity.is_in_code(c) for c in text.split("\\"))
    if text in own or text in STANDARD_CODES or re.fullmatch(r"Beam -?\d+|ROI_-?\d+", text):
        return False
    if element.tag == _ROI_NAME and (known := table.match(text)) and known.name == text:
        return False
    if any(identity.is_in(value.decode(encoding, "replace")) for encoding in ("utf-8", "latin-1")):
        return True
    # Two Latin letters read as UTF-16 are one ideograph, and so a surname, by chance.
    letters_min = 1 if _is_no_utf8(value.rstrip(b"\0 ")) else 2
    return any(identity.is_in(value.decode(e, "replace"), letters_min) for e in ("utf-16-le", "utf-16-be"))


def _is_no_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return b"\0" in value


def _is_known_or_new(uid: bytes) -> bool:
    text = uid.decode("latin-1").strip("\0 ")
    own = text == PYDICOM_IMPLEMENTATION_UID or re.fullmatch(r"2\.25\.\d{1,39}", text) is not None
    return not text or own or text in UID_dictionary


def _in_bytes(rest: bytes, identity: Identity) -> bool:
    """Whether a long word or number stands anywhere else in the file: pixels, binary numbers, in between."""
    lower = rest.lower()
    numbers = [
        n for n in (*identity.folded, *identity.dates) if n.isdecimal() and len(n) >= _LONG_LETTERS_MIN
    ]
    if any(n.encode(encoding) in rest for n in numbers for encoding in ("utf-8", "utf-16-le", "utf-16-be")):
        return True
    for word in identity.written:
        if len(word) >= _LONG_LETTERS_MIN and any(c.isalpha() for c in word):
            for spelling in {word, word.lower(), word.upper(), folded(word)}:
                for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
                    wanted = spelling.encode(encoding, "ignore").lower()
                    if len(wanted) >= _LONG_LETTERS_MIN and wanted in lower:
                        return True
    return False


def _elements(raw: bytes) -> Iterator[_Element]:
    """All elements with a value of their own, whatever their depth, as they follow in the file."""
    at, syntax = 132, ""
    while at < len(raw):
        group, number = struct.unpack_from("<HH", raw, at)
        if group == 0xFFFE:  # an item or the end of one: its content follows
            at += 8
            continue
        vr, length, start = _header(raw, at, (group, number), group != 0x0002 and syntax == _IMPLICIT)
        if vr == "SQ":
            at = start
            continue
        stop = _after_fragments(raw, start) if length == _UNDEFINED else start + length
        if stop > len(raw):
            raise IndexError
        if (group, number) == (0x0002, 0x0010):
            syntax = raw[start:stop].decode("latin-1").strip("\0 ")
        yield _Element((group, number), vr, start, stop)
        at = stop


def _header(raw: bytes, at: int, tag: tuple[int, int], implicit: bool) -> tuple[str, int, int]:
    """Value representation, length and start of the value of the element at a position."""
    if implicit:
        return _known_vr(tag), struct.unpack_from("<I", raw, at + 4)[0], at + 8
    vr = raw[at + 4 : at + 6].decode("latin-1")
    if vr not in _LONG_FORM:
        return vr, struct.unpack_from("<H", raw, at + 6)[0], at + 8
    # A value too long for its own representation is written as UN.
    return _known_vr(tag) if vr == "UN" else vr, struct.unpack_from("<I", raw, at + 8)[0], at + 12


def _known_vr(tag: tuple[int, int]) -> str:
    try:
        return dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return "UN"


def _after_fragments(raw: bytes, at: int) -> int:
    """The end of compressed pixel data: fragments with a header each, then a delimiter."""
    while True:
        group, number, length = struct.unpack_from("<HHI", raw, at)
        at += 8
        if (group, number) == (0xFFFE, 0xE0DD):
            return at
        if (group, number) != (0xFFFE, 0xE000):
            raise IndexError
        at += length
