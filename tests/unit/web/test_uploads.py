"""What comes through the browser: nothing leaves its folder, nothing half stays, sizes are not believed."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from web_room import Client, SmallRoom, small_room

from vmat_diffusion.web import uploads
from vmat_diffusion.web.cases import cases

_DICOM = b"\0" * 128 + b"DICM" + b"x" * 500


@pytest.fixture
def room(tmp_path: Path) -> SmallRoom:
    return small_room(tmp_path / "room", upload_gb=0.001, upload_files=20)


def _zip(members: dict[str, bytes], **more: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _sent(client: Client, *files: bytes, label: str = "case") -> Any:
    """The answer to the end of an upload, or to the first file that is refused."""
    upload = client.ask("POST", "/api/uploads", {"label": label}).json()["id"]
    for content in files:
        answer = client.ask("PUT", f"/api/uploads/{upload}/files", content=content)
        if answer.status_code != 200:
            client.ask("DELETE", f"/api/uploads/{upload}")
            return answer
    return client.ask("POST", f"/api/uploads/{upload}/case")


def _all_files(room: SmallRoom) -> list[str]:
    folder = room.room.store.folder
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _nothing_left(room: SmallRoom) -> None:
    names = [name for name in _all_files(room) if not name.startswith("room.sqlite")]
    assert names == [] and list((room.room.store.folder / "incoming").iterdir()) == []


def test_files_become_a_case(room: SmallRoom) -> None:
    answer = _sent(room.client("planner"), _DICOM, b"a note", _DICOM, b"", label="Ward 3")
    assert answer.status_code == 200
    (case,) = cases(room.room)
    assert (case.id, case.label) == (answer.json()["case_id"], "Ward 3")
    found = sorted(room.room.case_folder(case.folder).iterdir())
    assert [path.name for path in found] == ["000001.dcm", "000002.dcm"]
    assert all(path.read_bytes() == _DICOM for path in found)
    assert list((room.room.store.folder / "incoming").iterdir()) == []


def test_a_zip_with_folders_and_a_dicomdir_becomes_a_case(room: SmallRoom) -> None:
    content = _zip({"DICOMDIR": _DICOM, "IMAGES/1": _DICOM, "IMAGES/2.txt": b"text", "IMAGES/": b""})
    assert _sent(room.client("planner"), content).status_code == 200
    (case,) = cases(room.room)
    assert len(list(room.room.case_folder(case.folder).iterdir())) == 2


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.dcm",
        "/etc/evil.dcm",
        "..\\..\\evil.dcm",
        "a/../../../evil",
        "C:\\evil",
        "x\0y",
        "room.sqlite",
    ],
)
def test_paths_in_a_zip_lead_nowhere(room: SmallRoom, tmp_path: Path, name: str) -> None:
    before = set(tmp_path.rglob("*"))
    assert _sent(room.client("planner"), _zip({name: _DICOM})).status_code == 200
    (case,) = cases(room.room)
    new = set(tmp_path.rglob("*")) - before
    folder = room.room.case_folder(case.folder)
    assert new - {p for p in new if p.name.startswith("room.sqlite")} == {folder, folder / "000001.dcm"}


def test_links_in_a_zip_are_left_out(room: SmallRoom) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, _DICOM)
        archive.writestr("slice.dcm", _DICOM)
    assert _sent(room.client("planner"), stream.getvalue()).status_code == 200
    (case,) = cases(room.room)
    assert [p.name for p in room.room.case_folder(case.folder).iterdir()] == ["000001.dcm"]


def _bomb() -> bytes:
    return _zip({"slice.dcm": _DICOM + b"\0" * 20_000_000})


def _lying_bomb() -> bytes:
    """A bomb that states a size of 1000 bytes."""
    content = bytearray(_bomb())
    at = content.rindex(b"PK\x01\x02")
    struct.pack_into("<L", content, at + 24, 1000)
    struct.pack_into("<L", content, 22, 1000)
    return bytes(content)


@pytest.mark.parametrize(
    "make",
    [
        _bomb,
        _lying_bomb,
        lambda: _zip({f"{k}": _DICOM for k in range(21)}),
        lambda: _zip({"inner.zip": _bomb()}),
        lambda: _zip({"x": _DICOM})[:-30],
        lambda: b"PK\x03\x04" + b"x" * 400,
        lambda: b"PK\x05\x06" + b"\xff" * 18,
        lambda: b"",
        lambda: b"no DICOM",
    ],
)
def test_bombs_and_wrecks_leave_nothing(room: SmallRoom, make: Callable[[], bytes]) -> None:
    answer = _sent(room.client("planner"), make())
    assert answer.status_code in (400, 409), answer.text
    assert list(answer.json()) == ["error"]
    _nothing_left(room)
    assert cases(room.room) == []


def _directory(count: int, stated: int, size: int | None = None, *, long: bool = False) -> bytes:
    """A zip of one file whose directory has so many entries, and an end that states what it likes."""
    content = _zip({"x": _DICOM})
    at = content.rindex(b"PK\x01\x02")
    entry = content[at : content.rindex(b"PK\x05\x06")]
    directory = entry * count
    size, place = len(directory) if size is None else size, at + len(directory)
    head = content[:at] + directory
    if not long:
        return head + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, stated, stated, size, at, 0)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, stated, stated, size, at)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    short = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), at, 3) + b"end"
    return head + end64 + locator + short


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (_directory(1, 20_000), "holds 20000 files, at most 20"),
        (_directory(1, 20_000_000, long=True), "holds 20000000 files, at most 20"),
        (_directory(40, 1), "holds more than 20 files"),
        (_directory(40, 1, long=True), "holds more than 20 files"),
        (_directory(400, 1), "directory takes"),
        (_directory(400, 1, long=True), "directory takes"),
        (_directory(1, 1, 10**18, long=True), "damaged"),
        (_directory(1, 1, 100), "damaged"),
        (_directory(2, 1, 10, long=True), "damaged"),
    ],
)
def test_a_directory_of_many_entries_is_refused_before_it_is_believed(
    room: SmallRoom, monkeypatch: pytest.MonkeyPatch, content: bytes, sentence: str
) -> None:
    monkeypatch.setattr(uploads.zipfile, "ZipFile", _believed)
    answer = _sent(room.client("planner"), content)
    assert answer.status_code in (400, 409) and sentence in answer.json()["error"]
    _nothing_left(room)


def _believed(*_: object) -> None:
    raise AssertionError("the directory was read")


@pytest.mark.parametrize("long", [False, True])
def test_a_directory_that_is_as_it_says_is_read(room: SmallRoom, long: bool) -> None:
    assert _sent(room.client("planner"), _directory(1, 1, long=long)).status_code == 200


@pytest.mark.parametrize("packed", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_packed_in_another_way_is_refused(room: SmallRoom, packed: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packed) as archive:
        archive.writestr("x", _DICOM)
    answer = _sent(room.client("planner"), stream.getvalue())
    assert answer.status_code == 400 and "deflate" in answer.json()["error"]
    _nothing_left(room)


def test_an_encrypted_zip_is_refused_with_a_sentence(room: SmallRoom) -> None:
    content = bytearray(_zip({"x": _DICOM}))
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    answer = _sent(room.client("planner"), bytes(content))
    assert answer.status_code == 400 and "password" in answer.json()["error"]
    _nothing_left(room)


def test_too_much_is_refused_while_it_comes(room: SmallRoom) -> None:
    client = room.client("planner")
    taken = 0

    def endless() -> Any:
        nonlocal taken
        for _ in range(100):
            taken += 1 << 18
            yield b"x" * (1 << 18)

    upload = client.ask("POST", "/api/uploads", {"label": "big"}).json()["id"]
    answer = client.ask("PUT", f"/api/uploads/{upload}/files", content=endless())
    assert answer.status_code == 409 and "0.001 GB" in answer.json()["error"]
    assert list((room.room.store.folder / "incoming" / upload).iterdir()) == []


def test_too_many_files_are_refused(room: SmallRoom) -> None:
    answer = _sent(room.client("planner"), *[_DICOM] * 21)
    assert answer.status_code == 409 and "20 files already" in answer.json()["error"]
    _nothing_left(room)


def test_uploads_of_others_are_out_of_reach(room: SmallRoom) -> None:
    upload = room.client("planner").ask("POST", "/api/uploads", {"label": "a"}).json()["id"]
    other = room.client("both")
    assert other.ask("PUT", f"/api/uploads/{upload}/files", content=_DICOM).status_code == 404
    assert other.ask("POST", f"/api/uploads/{upload}/case").status_code == 404
    assert other.ask("DELETE", f"/api/uploads/{upload}").status_code == 404


def test_a_user_has_few_uploads_at_a_time(room: SmallRoom) -> None:
    client = room.client("planner")
    found = [client.ask("POST", "/api/uploads", {"label": "a"}).status_code for _ in range(4)]
    assert found == [200, 200, 200, 409]


def test_a_full_disk_is_said_in_a_sentence(room: SmallRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_SPARE_BYTES", 1 << 60)
    answer = room.client("planner").ask("POST", "/api/uploads", {"label": "a"})
    assert answer.status_code == 409 and "nearly full" in answer.json()["error"]


def test_abandoned_uploads_go(room: SmallRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    client = room.client("planner")
    upload = client.ask("POST", "/api/uploads", {"label": "a"}).json()["id"]
    client.ask("PUT", f"/api/uploads/{upload}/files", content=_DICOM)
    (room.room.store.folder / "incoming" / "of_a_killed_server").mkdir()
    (room.room.store.folder / "incoming" / "of_another_server").mkdir()
    os.utime(room.room.store.folder / "incoming" / "of_a_killed_server", (0, 0))
    uploads.remove_abandoned(room.room)
    left = sorted(p.name for p in (room.room.store.folder / "incoming").iterdir())
    assert left == sorted([upload, "of_another_server"])
    later = uploads.time.time() + 25 * 3600
    monkeypatch.setattr(uploads.time, "time", lambda: later)
    uploads.remove_abandoned(room.room)
    _nothing_left(room)


def test_an_old_upload_that_is_made_a_case_is_not_swept_away(
    room: SmallRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = room.client("planner")
    upload = client.ask("POST", "/api/uploads", {"label": "a"}).json()["id"]
    client.ask("PUT", f"/api/uploads/{upload}/files", content=_DICOM)
    folder = room.room.store.folder / "incoming" / upload
    with room.room.store.write() as db:
        db.execute("UPDATE uploads SET begun = 0")
    uploads.remove_abandoned(room.room)
    assert folder.is_dir(), "something came today"
    os.utime(folder, (0, 0))
    sort = uploads._sorted_out

    def swept_meanwhile(*given: Any) -> int:
        uploads.remove_abandoned(room.room)
        return sort(*given)

    monkeypatch.setattr(uploads, "_sorted_out", swept_meanwhile)
    assert client.ask("POST", f"/api/uploads/{upload}/case").status_code == 200


def test_names_stay_out_of_the_audit(room: SmallRoom, case_folder: Path) -> None:
    room.case(case_folder)
    _sent(room.client("planner"), _DICOM, label="Doe Jane 1970")
    with room.room.store.read() as db:
        text = str([tuple(row) for row in db.execute("SELECT * FROM audit")])
    assert "case uploaded" in text and "case found" in text
    assert "Doe" not in text
