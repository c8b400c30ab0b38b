"""The directory of a zip, looked at before anything believes it.

`zipfile` reads the whole directory into memory and makes an object of each entry, so that a small file can
take gigabytes. Here the record at the end is read first, then the entries are counted one after the other.
The format is that of PKWARE's APPNOTE 6.3.10, sections 4.3.12 to 4.3.16.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

from vmat_diffusion.web.room import RefusedError

_END, _END64, _LOCATOR, _ENTRY = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_END_BYTES, _END64_BYTES, _LOCATOR_BYTES, _ENTRY_BYTES = 22, 56, 20, 46
_COMMENT_MOST = 65_535
# Names, times and rights of an entry; those of real archives take 100 to 200 bytes.
_ENTRY_MOST = 512


def require_short_directory(file: Path, most: int) -> None:
    """Raise RefusedError for a zip with more than `most` entries, or with a directory too long for so many.

    Raises BadZipFile where the file has no directory that can be read.
    """
    with file.open("rb") as stream:
        count, start, size = _end_record(stream)
        if count > most:
            raise RefusedError(f"the zip holds {count} files, at most {most} can be; send less")
        if size > most * _ENTRY_MOST:
            raise RefusedError(
                f"the zip's directory takes {size} bytes, at most {most * _ENTRY_MOST} can be; send less"
            )
        stream.seek(start)
        if _entries(stream.read(size), most) > most:
            raise RefusedError(f"the zip holds more than {most} files; send less")


def _end_record(stream: BinaryIO) -> tuple[int, int, int]:
    """Number of entries, and where the directory begins and how long it is, by the record at the end.

    The record is the one that `zipfile` takes: the last 22 bytes, or else the last one with a comment.
    """
    length = stream.seek(0, io.SEEK_END)
    first = max(0, length - _END_BYTES - _COMMENT_MOST)
    stream.seek(first)
    tail = stream.read()
    if tail[-_END_BYTES:].startswith(_END) and tail.endswith(b"\0\0"):
        at = len(tail) - _END_BYTES
    else:
        at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_BYTES:
        raise BadZipFile("no record at the end")
    disk, disk_of_directory, _, count, size, _, _ = struct.unpack_from("<4H2LH", tail, at + 4)
    if disk or disk_of_directory:
        raise BadZipFile("a part of an archive of several files")
    end = first + at
    stream.seek(max(0, end - _LOCATOR_BYTES))
    locator = stream.read(_LOCATOR_BYTES)
    if locator.startswith(_LOCATOR):
        end -= _LOCATOR_BYTES + _END64_BYTES
        count, size = _end64_record(stream, locator, end)
    if size > end:
        raise BadZipFile("a directory longer than the file")
    return count, end - size, size


def _end64_record(stream: BinaryIO, locator: bytes, place: int) -> tuple[int, int]:
    """Number of entries and length of the directory by the record of zip64, which its locator follows."""
    if place < 0 or struct.unpack_from("<Q", locator, 8)[0] != place:
        raise BadZipFile("a record of zip64 that is not where it should be")
    stream.seek(place)
    record = stream.read(_END64_BYTES)
    if not record.startswith(_END64):
        raise BadZipFile("no record of zip64")
    count, size = struct.unpack_from("<2Q", record, 32)
    return int(count), int(size)


def _entries(directory: bytes, most: int) -> int:
    """How many entries a directory holds, counted to one more than `most`."""
    at = count = 0
    while at < len(directory) and count <= most:
        if directory[at : at + 4] != _ENTRY or at + _ENTRY_BYTES > len(directory):
            raise BadZipFile("a damaged directory")
        at += _ENTRY_BYTES + sum(struct.unpack_from("<3H", directory, at + 28))
        count += 1
    return count
