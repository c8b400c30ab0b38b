"""The chain of the audit: whatever is changed, removed or put in is found."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from web_room import SmallRoom, small_room

from vmat_diffusion.web.audit import record, verify


@pytest.fixture
def room(tmp_path: Path) -> SmallRoom:
    made = small_room(tmp_path / "room")
    with made.room.store.write() as db:
        for k in range(6):
            record(db, "server", "test", str(k), value=k)
    return made


def _meddle(room: SmallRoom, *statements: str) -> None:
    """Write as somebody with the file and without the program's triggers."""
    with closing(sqlite3.connect(room.room.store.database)) as db, db:
        for verb in ("UPDATE", "DELETE"):
            db.execute(f"DROP TRIGGER audit_{verb}")
        for statement in statements:
            db.execute(statement)


def test_an_untouched_chain_is_whole(room: SmallRoom) -> None:
    found = verify(room.room.store)
    assert (found.entries, found.faults) == (10, ())
    assert verify(room.room.store, holds=found.head).faults == ()


@pytest.mark.parametrize("column", ["at", "actor", "action", "subject", "detail", "previous", "hash"])
def test_a_changed_entry_is_found(room: SmallRoom, column: str) -> None:
    _meddle(room, f"UPDATE audit SET {column} = 'x' WHERE seq = 7")
    faults = verify(room.room.store).faults
    assert faults and any("7" in fault or "8" in fault for fault in faults)


@pytest.mark.parametrize("number", [1, 5, 10])
def test_a_removed_entry_is_found(room: SmallRoom, number: int) -> None:
    _meddle(room, f"DELETE FROM audit WHERE seq = {number}")
    assert verify(room.room.store).faults


def test_renumbered_entries_are_found(room: SmallRoom) -> None:
    _meddle(room, "DELETE FROM audit WHERE seq = 5", "UPDATE audit SET seq = seq - 1 WHERE seq > 5")
    assert verify(room.room.store).faults


def test_a_cut_off_end_is_found_by_a_hash_noted_before(room: SmallRoom) -> None:
    head = verify(room.room.store).head
    with room.room.store.read() as db:
        row = db.execute("SELECT seq, hash FROM audit WHERE seq = 8").fetchone()
    _meddle(
        room,
        "DELETE FROM audit WHERE seq > 8",
        f"UPDATE meta SET value = '{row['seq']} {row['hash']}' WHERE key = 'audit_head'",
    )
    assert verify(room.room.store).faults == ()
    (fault,) = verify(room.room.store, holds=head).faults
    assert head in fault


@pytest.mark.parametrize("statement", ["UPDATE audit SET at = 'x'", "DELETE FROM audit"])
def test_the_program_itself_cannot_change_entries(room: SmallRoom, statement: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="can only be added to"), room.room.store.write() as db:
        db.execute(statement)


def test_an_action_and_its_entry_happen_together(room: SmallRoom) -> None:
    before = verify(room.room.store)
    with pytest.raises(KeyError), room.room.store.write() as db:
        record(db, "server", "half")
        raise KeyError
    assert verify(room.room.store) == before


def test_audit_verify_says_so_by_its_exit_code(room: SmallRoom) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "vmat_diffusion", "audit", "verify"]
        return subprocess.run(
            [*words, "--data", str(room.room.store.folder)], capture_output=True, text=True, check=False
        )

    whole = run()
    assert whole.returncode == 0 and "10 entries, the chain is whole" in whole.stdout
    _meddle(room, "UPDATE audit SET actor = 'x' WHERE seq = 3")
    broken = run()
    assert broken.returncode == 1 and "entry 3 was changed" in broken.stdout


def test_the_page_of_the_audit_goes_back_in_steps_and_has_a_limit(room: SmallRoom) -> None:
    with room.room.store.write() as db:
        for k in range(400):
            record(db, "server", "test", str(k))
    client, seen, before = room.client("admin"), [], ""
    while entries := client.ask("GET", f"/api/audit{before}").json()["entries"]:
        assert len(entries) <= 200
        seen += [entry["seq"] for entry in entries]
        before = f"?before={entries[-1]['seq']}"
    assert seen == list(range(verify(room.room.store).entries, 0, -1)) and len(seen) > 400
    assert client.ask("GET", f"/api/audit?before={2**62}").status_code == 200
    for wrong in (2**62 + 1, 10**30, "x", ""):
        assert client.ask("GET", f"/api/audit?before={wrong}").status_code == 422, wrong
    assert client.ask("GET", "/api/audit?before=-5").json()["entries"] == []
