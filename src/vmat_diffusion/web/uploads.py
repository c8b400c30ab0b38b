"""Cases that come through the browser: files one by one or as zips, into a folder that appears whole.

No name that comes from outside becomes a name on the disk: files are numbered, so that a path in a zip leads
nowhere. A zip is unpacked block by block, and what it says of its sizes is not believed.
"""

from __future__ import annotations

import os
import shutil
import time
import zipfile
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from vmat_diffusion.dicom.attributes import looks_like_dicom
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import flush_to_disk
from vmat_diffusion.lettering import one_line
from vmat_diffusion.web.accounts import User
from vmat_diffusion.web.archives import require_short_directory
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.room import AbsentError, RefusedError, Room
from vmat_diffusion.web.store import new_id, now

LABEL_MOST = 80
OPEN_MOST = 3  # uploads of one user at a time
_ABANDONED_S = 24 * 3600.0
_BLOCK = 1 << 20
# What stays free on the disk for plans and the database.
_SPARE_BYTES = 1 << 30
_HEAD = 132  # bytes that tell a DICOM file
_ZIP_MARKS = (b"PK\x03\x04", b"PK\x05\x06")
# Others may ask for gigabytes of memory to be unpacked.
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNPACK_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,  # an encrypted member
    ValueError,
    OverflowError,
    OSError,
    UnicodeError,
    MemoryError,
)


def begin(room: Room, label: str, user: User) -> str:
    """Begin an upload; returns its id. Raises InputError for a wrong label, RefusedError for a full disk."""
    label = one_line(label.strip())
    if not 0 < len(label) <= LABEL_MOST:
        raise InputError(f"the case's label has {len(label)} characters; write 1 to {LABEL_MOST}")
    upload = new_id()
    _require_space(room, 0)
    with room.store.write() as db:
        (count,) = db.execute("SELECT count(*) FROM uploads WHERE user_id = ?", (user.id,)).fetchone()
        if count >= OPEN_MOST:
            raise RefusedError(f"{count} uploads of yours are open, at most {OPEN_MOST} can; end one first")
        db.execute(
            "INSERT INTO uploads (id, user_id, label, begun) VALUES (?, ?, ?, ?)",
            (upload, user.id, label, time.time()),
        )
        record(db, user.id, "upload begun", upload)
    _folder(room, upload).mkdir(mode=0o700)
    return upload


def _folder(room: Room, upload: str) -> Path:
    return room.store.folder / "incoming" / upload


def _row(room: Room, upload: str, user: User) -> tuple[str, int, int]:
    """Label, files and bytes so far."""
    with room.store.read() as db:
        row = db.execute("SELECT * FROM uploads WHERE id = ? AND user_id = ?", (upload, user.id)).fetchone()
    if row is None:
        raise AbsentError("there is no such upload; begin it again")
    return row["label"], row["files"], row["bytes"]


def _require_space(room: Room, more: int) -> None:
    if shutil.disk_usage(room.store.folder).free < more + _SPARE_BYTES:
        raise RefusedError("the disk of the data folder is nearly full; free some space")


async def add_file(room: Room, upload: str, user: User, body: AsyncIterator[bytes]) -> dict[str, int]:
    """Write one file of an upload as it comes in; the numbers of files and bytes so far.

    Raises AbsentError, RefusedError for what is too much; nothing of the file is kept then.
    """
    _, files, size = _row(room, upload, user)
    limit = _limit(room)
    if files >= room.rules.upload_files:
        raise RefusedError(f"the upload has {files} files already, at most {files} can be; leave some out")
    part = _folder(room, upload) / f"{new_id()}.part"
    taken = 0
    try:
        with part.open("xb") as stream:
            async for block in body:
                taken += len(block)
                if size + taken > limit:
                    raise RefusedError(f"the upload is larger than {room.rules.upload_gb:g} GB; send less")
                if taken % (64 * _BLOCK) < len(block):
                    _require_space(room, 0)
                stream.write(block)
        with room.store.write() as db:
            db.execute(
                "UPDATE uploads SET files = files + 1, bytes = bytes + ? WHERE id = ?", (taken, upload)
            )
            row = db.execute("SELECT files, bytes FROM uploads WHERE id = ?", (upload,)).fetchone()
            if row is None:
                raise AbsentError("there is no such upload; begin it again")
            if row["bytes"] > limit or row["files"] > room.rules.upload_files:
                raise RefusedError(f"the upload is larger than {room.rules.upload_gb:g} GB; send less")
        part.rename(part.with_suffix(".file"))
    finally:
        part.unlink(missing_ok=True)
    return {"files": row["files"], "bytes": row["bytes"]}


def _limit(room: Room) -> int:
    return int(room.rules.upload_gb * 1e9)


def finish(room: Room, upload: str, user: User) -> str:
    """Unpack what came and make it a case; returns the case's id.

    Only DICOM files are kept. Raises InputError where there are none or a zip cannot be unpacked; the upload
    is over then.
    """
    label, _, _ = _row(room, upload, user)
    folder = _folder(room, upload)
    with suppress(OSError):
        os.utime(folder)  # young again: without its row only its age keeps `remove_abandoned` from it
    with room.store.write() as db:  # who comes second finds no upload any more
        if not db.execute("DELETE FROM uploads WHERE id = ?", (upload,)).rowcount:
            raise AbsentError("there is no such upload; begin it again")
    case_id = new_id()
    try:
        kept = _sorted_out(room, folder)
        if not kept:
            raise InputError("the upload holds no DICOM file; choose the CT's slices and the structure set")
        flush_to_disk(folder)
        with room.store.write() as db:  # first: a case is there when its folder is
            db.execute("INSERT INTO cases VALUES (?, ?, ?, ?, ?)", (case_id, case_id, label, user.id, now()))
            record(db, user.id, "case uploaded", case_id, files=kept)
        folder.rename(room.case_folder(case_id))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return case_id


def _sorted_out(room: Room, folder: Path) -> int:
    """Leave numbered DICOM files in the folder and nothing else; how many."""
    kept = size = 0
    for source in sorted(folder.glob("*.file")):
        with source.open("rb") as stream:
            head = stream.read(_HEAD)
        if head.startswith(_ZIP_MARKS):
            kept, size = _unpacked(room, source, folder, kept, size)
        elif looks_like_dicom(head):
            kept, size = kept + 1, size + source.stat().st_size
            source.rename(folder / f"{kept:06d}.dcm")
            continue
        source.unlink()
    return kept


def _unpacked(room: Room, source: Path, folder: Path, kept: int, size: int) -> tuple[int, int]:
    """Write the DICOM files of a zip as numbered files; the numbers of files and bytes with them."""
    limit = _limit(room)
    try:
        require_short_directory(source, room.rules.upload_files - kept)
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            if kept + len(members) > room.rules.upload_files:
                raise RefusedError(
                    f"the zip holds {len(members)} files, at most {room.rules.upload_files} can be; send less"
                )
            for member in members:
                if member.is_dir() or _is_special(member):
                    continue
                if member.compress_type not in _PACKED:
                    raise InputError("a zip is packed in another way than deflate; zip the files again")
                target = folder / f"{kept + 1:06d}.dcm"
                taken = _extract(archive, member, target, limit - size)
                size += taken
                kept += bool(taken)
                _require_space(room, 0)
    except InputError:
        raise
    except _UNPACK_ERRORS as fault:
        raise InputError(
            f"a zip cannot be unpacked ({type(fault).__name__}): it is damaged or has a password; zip the "
            "files again"
        ) from None
    return kept, size


def _is_special(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a link, a device or the like."""
    kind = (member.external_attr >> 16) & 0o170000
    return kind not in (0, 0o100000)


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, room_left: int) -> int:
    """Write one member if it is a DICOM file; the bytes written, 0 for what is none."""
    taken = 0
    with archive.open(member) as stream:
        head = stream.read(_HEAD)
        if not looks_like_dicom(head):
            return 0
        with target.open("xb") as out:
            block = head
            while block:
                taken += len(block)
                if taken > room_left:
                    raise RefusedError("the zip holds more than an upload may, unpacked; send less")
                out.write(block)
                block = stream.read(_BLOCK)
            out.flush()
            os.fsync(out.fileno())
    return taken


def abandon(room: Room, upload: str, user: User) -> None:
    """End an upload and remove what came of it."""
    _row(room, upload, user)
    with room.store.write() as db:
        db.execute("DELETE FROM uploads WHERE id = ?", (upload,))
        record(db, user.id, "upload ended", upload)
    shutil.rmtree(_folder(room, upload), ignore_errors=True)


def remove_abandoned(room: Room) -> None:
    """Remove uploads into which nothing came for a day, and folders as old of which no upload is left."""
    before = time.time() - _ABANDONED_S
    with room.store.write() as db:
        for row in db.execute("SELECT id FROM uploads WHERE begun < ?", (before,)).fetchall():
            if _is_old(_folder(room, row["id"]), before):
                db.execute("DELETE FROM uploads WHERE id = ?", (row["id"],))
        known = {row["id"] for row in db.execute("SELECT id FROM uploads")}
    for folder in (room.store.folder / "incoming").iterdir():
        # A young folder may belong to an upload that began since, or that is being made a case.
        if folder.name not in known and _is_old(folder, before):
            shutil.rmtree(folder, ignore_errors=True)


def _is_old(folder: Path, before: float) -> bool:
    """Whether nothing came into a folder since a time; so is one that is gone."""
    try:
        return folder.stat().st_mtime < before
    except OSError:
        return True
