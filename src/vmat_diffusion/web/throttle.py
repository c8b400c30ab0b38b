"""How often a password may be wrong: for an account, and from an address that tries many accounts."""

from __future__ import annotations

import time

from vmat_diffusion.web.store import Store

# So many failures are free; each further one doubles the wait, to at most a quarter of an hour. A person who
# mistypes waits seconds; a machine gets about 100 tries a day. OWASP ASVS 4.0.3, 2.2.1: at most 100 an hour.
_FREE = {"account": 5, "address": 20}
_LONGEST_S = 900.0
_FORGOTTEN_S = 24 * 3600.0
# Names come from outside: beyond this number the oldest are forgotten.
_MOST_KEYS = 10_000


def wait_s(store: Store, kind: str, key: str) -> float:
    """How long the next try must wait, s; 0 where it may come now. `kind` is `account` or `address`."""
    with store.read() as db:
        row = db.execute("SELECT count, latest FROM failures WHERE key = ?", (f"{kind} {key}",)).fetchone()
    if row is None or row["count"] < _FREE[kind]:
        return 0.0
    pause = min(2.0 ** min(row["count"] - _FREE[kind], 20), _LONGEST_S)
    return max(0.0, row["latest"] + pause - time.time())


def note_failure(store: Store, kind: str, key: str) -> None:
    """Count a wrong password."""
    now = time.time()
    with store.write() as db:
        db.execute("DELETE FROM failures WHERE latest < ?", (now - _FORGOTTEN_S,))
        db.execute(
            "DELETE FROM failures WHERE key IN "
            "(SELECT key FROM failures ORDER BY latest DESC LIMIT -1 OFFSET ?)",
            (_MOST_KEYS,),
        )
        db.execute(
            "INSERT INTO failures VALUES (?, 1, ?) "
            "ON CONFLICT (key) DO UPDATE SET count = count + 1, latest = excluded.latest",
            (f"{kind} {key}", now),
        )


def forget_failures(store: Store, kind: str, key: str) -> None:
    """After the right password."""
    with store.write() as db:
        db.execute("DELETE FROM failures WHERE key = ?", (f"{kind} {key}",))
