"""How often a password may be wrong: for an account, and from an address that tries many accounts."""

from __future__ import annotations

import sqlite3
import time

from vmat_diffusion.web.store import Store

# So many failures are free; each further one doubles the wait, to at most a quarter of an hour. A person who
# mistypes waits seconds; a machine gets about 100 tries a day for an account and 300 from an address.
# OWASP ASVS 4.0.3, 2.2.1: at most 100 an hour.
_FREE = {"account": 5, "address": 20}
_LONGEST_S = 900.0
# After so long without a failure one is forgotten: those of a clinic behind one address do not add up.
_FORGIVEN_S = {"account": 900.0, "address": 300.0}
_FORGOTTEN_S = 24 * 3600.0
# Names come from outside: beyond this number the oldest are forgotten.
_MOST_KEYS = 10_000


def wait_s(store: Store, kind: str, key: str) -> float:
    """How long the next try must wait, s; 0 where it may come now. `kind` is `account` or `address`."""
    with store.read() as db:
        row = db.execute("SELECT count, latest FROM failures WHERE key = ?", (f"{kind} {key}",)).fetchone()
    now = time.time()
    over = _left(row, kind, now) - _FREE[kind]
    if row is None or over < 0:
        return 0.0
    return max(0.0, row["latest"] + min(2.0 ** min(over, 20), _LONGEST_S) - now)


def _left(row: sqlite3.Row | None, kind: str, now: float) -> int:
    """How many failures still count."""
    if row is None:
        return 0
    return max(0, int(row["count"]) - int((now - row["latest"]) / _FORGIVEN_S[kind]))


def note_failure(store: Store, kind: str, key: str) -> None:
    """Count a wrong password."""
    now, name = time.time(), f"{kind} {key}"
    with store.write() as db:
        db.execute("DELETE FROM failures WHERE latest < ?", (now - _FORGOTTEN_S,))
        db.execute(
            "DELETE FROM failures WHERE key IN "
            "(SELECT key FROM failures ORDER BY latest DESC LIMIT -1 OFFSET ?)",
            (_MOST_KEYS,),
        )
        row = db.execute("SELECT count, latest FROM failures WHERE key = ?", (name,)).fetchone()
        db.execute(
            "INSERT INTO failures VALUES (?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET count = excluded.count, latest = excluded.latest",
            (name, _left(row, kind, now) + 1, now),
        )


def forget_failures(store: Store, kind: str, key: str) -> None:
    """After the right password."""
    with store.write() as db:
        db.execute("DELETE FROM failures WHERE key = ?", (f"{kind} {key}",))
