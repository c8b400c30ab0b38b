"""Users, their passwords and roles, and the sessions in which they work."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from vmat_diffusion.errors import InputError
from vmat_diffusion.lettering import one_line
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.store import Store, new_id, now

Role = Literal["planner", "reviewer", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
# OWASP ASVS 4.0.3, 2.1.1 and 2.1.2: at least 12 characters, 128 allowed, longer ones refused.
PASSWORD_LEAST, PASSWORD_MOST = 12, 128
_NAME_MOST = 64
# A session ends after this time without a request that a person made, and after a working day. ASVS 3.3.2
# asks for 30 days at level 1 and 12 hours with 30 minutes of rest at level 2; a room with patients' data
# takes the latter.
IDLE_S, LONGEST_S = 30 * 60.0, 12 * 3600.0
_SETUP = "setup_token_sha256"
# RFC 9106, second recommended option: 64 MiB, 3 passes, 4 lanes. Two at a time, so that a flood of logins
# takes 128 MiB at most.
_hasher = PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=4)
_hashing = threading.BoundedSemaphore(2)
# Found in every list of leaked passwords with 12 and more characters; the name itself is refused too.
_COMMON = frozenset(
    {
        *("123456789012", "1234567890123", "passwordpassword", "password1234", "qwertyuiop12"),
        *("qwertyuiopas", "abcdefghijkl", "administrator", "iloveyouiloveyou", "adminadminadmin"),
        *("letmeinletmein", "radiotherapy", "radiotherapy1", "medicalphysics", "vmatdiffusion"),
    }
)


@dataclass(frozen=True)
class User:
    """A person who may log in; `id` is what records name."""

    id: str
    name: str
    roles: frozenset[str]
    disabled: bool = False


@dataclass(frozen=True)
class Session:
    """A user's stay: `csrf` must come with every request that changes something."""

    user: User
    csrf: str
    key: str


def _user(row: sqlite3.Row) -> User:
    return User(row["id"], row["name"], frozenset(row["roles"].split()), bool(row["disabled"]))


def _require_password(password: str, name: str) -> None:
    if not PASSWORD_LEAST <= len(password) <= PASSWORD_MOST:
        raise InputError(
            f"the password has {len(password)} characters; choose {PASSWORD_LEAST} to {PASSWORD_MOST}"
        )
    plain = password.casefold()
    if plain in _COMMON or len(set(plain)) < 4 or name.casefold() in (plain, plain[: len(plain) // 2]):
        raise InputError("the password is one that is guessed first; choose another one")


def _require_name(name: str) -> str:
    name = name.strip()
    if not 0 < len(name) <= _NAME_MOST or one_line(name) != name:
        raise InputError(f"a user's name has 1 to {_NAME_MOST} visible characters; choose another one")
    return name


def _require_roles(roles: Collection[str]) -> str:
    if not roles or not set(roles) <= set(ROLES):
        raise InputError(f"roles {', '.join(roles) or '(none)'}: choose of {', '.join(ROLES)}")
    return " ".join(sorted(set(roles)))


def _hashed(password: str) -> str:
    with _hashing:
        return _hasher.hash(password)


def add_user(store: Store, name: str, roles: Collection[str], password: str, *, actor: str) -> User:
    """Make a user. Raises InputError for a name that exists, a role that does not, a weak password."""
    name, roles_text = _require_name(name), _require_roles(roles)
    _require_password(password, name)
    made = new_id()
    digest = _hashed(password)
    with store.write() as db:
        if db.execute("SELECT 1 FROM users WHERE name = ?", (name,)).fetchone():
            raise InputError(f"user {name} exists; choose another name")
        db.execute(
            "INSERT INTO users (id, name, roles, password, made_at) VALUES (?, ?, ?, ?, ?)",
            (made, name, roles_text, digest, now()),
        )
        record(db, actor, "user added", made, name=name, roles=roles_text)
    return User(made, name, frozenset(roles_text.split()))


def change_user(
    store: Store,
    user_id: str,
    *,
    actor: str,
    roles: Collection[str] | None = None,
    disabled: bool | None = None,
    password: str | None = None,
) -> User:
    """Change what is given; sessions of the user end. Raises InputError where no admin would be left."""
    before = user_of(store, user_id)
    if before is None:
        raise InputError("there is no such user; look at the list of users")
    if password is not None:
        _require_password(password, before.name)
    given = None if roles is None else _require_roles(roles)
    digest = _hashed(password) if password is not None else None
    with store.write() as db:
        # Read within the transaction: what another admin changed meanwhile stays.
        row = db.execute("SELECT * FROM users WHERE id = ?", (user_id,)).fetchone()
        text = row["roles"] if given is None else given
        off = bool(row["disabled"]) if disabled is None else disabled
        if given is not None:
            db.execute("UPDATE users SET roles = ? WHERE id = ?", (text, user_id))
        if disabled is not None:
            db.execute("UPDATE users SET disabled = ? WHERE id = ?", (int(off), user_id))
        if digest is not None:
            db.execute("UPDATE users SET password = ? WHERE id = ?", (digest, user_id))
        if not _admins(db):
            raise InputError(f"{before.name} is the only admin; make another one first")
        db.execute("DELETE FROM sessions WHERE user_id = ?", (user_id,))
        record(
            db, actor, "user changed", user_id, roles=text, disabled=off, new_password=password is not None
        )
    return User(user_id, before.name, frozenset(text.split()), off)


def _admins(db: sqlite3.Connection) -> int:
    rows = db.execute("SELECT roles FROM users WHERE disabled = 0")
    return sum("admin" in row["roles"].split() for row in rows)


def user_of(store: Store, user_id: str) -> User | None:
    """The user with an id."""
    with store.read() as db:
        row = db.execute("SELECT * FROM users WHERE id = ?", (user_id,)).fetchone()
    return _user(row) if row else None


def users(store: Store) -> list[User]:
    """All users by name."""
    with store.read() as db:
        return [_user(row) for row in db.execute("SELECT * FROM users ORDER BY name")]


_NOBODY = ""  # The hash of a password that nobody has, made at the first login with an unknown name.


def is_password(store: Store, name: str, password: str) -> User | None:
    """The user with this name and password, None where there is none.

    A wrong name takes as long as a wrong password, so that names cannot be tried out.
    """
    global _NOBODY
    with store.read() as db:
        row = db.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
    if not _NOBODY:
        _NOBODY = _hashed(secrets.token_hex(16))
    known = row is not None and not row["disabled"]
    try:
        with _hashing:
            _hasher.verify(row["password"] if known else _NOBODY, password)
    except (Argon2Error, InvalidHashError):
        return None
    return _user(row) if known else None


def new_session(store: Store, user: User) -> tuple[str, Session]:
    """Begin a session; returns its secret, which the database holds as a hash alone."""
    secret, csrf, moment = secrets.token_urlsafe(32), secrets.token_urlsafe(32), time.time()
    key = _key(secret)
    with store.write() as db:
        db.execute("DELETE FROM sessions WHERE used < ? OR begun < ?", (moment - IDLE_S, moment - LONGEST_S))
        db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", (key, user.id, csrf, moment, moment))
        record(db, user.id, "login")
    return secret, Session(user, csrf, key)


def session_of(store: Store, secret: str, *, active: bool = True) -> Session | None:
    """The session of a secret, None for one that is over or never was.

    `active` says that a person asks, and not a page by itself: then the time of rest begins anew.
    """
    key, moment = _key(secret), time.time()
    with store.read() as db:
        row = db.execute(
            "SELECT s.csrf, s.begun, s.used, u.* FROM sessions s JOIN users u ON u.id = s.user_id "
            "WHERE s.token_sha256 = ? AND u.disabled = 0",
            (key,),
        ).fetchone()
    if row is None or row["used"] < moment - IDLE_S or row["begun"] < moment - LONGEST_S:
        return None
    if active and row["used"] < moment - 30:  # written now and then only: pages ask often
        with store.write() as db:
            db.execute("UPDATE sessions SET used = ? WHERE token_sha256 = ?", (moment, key))
    return Session(_user(row), row["csrf"], key)


def end_session(store: Store, session: Session) -> None:
    """Log out."""
    with store.write() as db:
        db.execute("DELETE FROM sessions WHERE token_sha256 = ?", (session.key,))
        record(db, session.user.id, "logout")


def _key(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def setup_token(store: Store) -> str | None:
    """A new one-time token with which the first admin is made; None where there is an admin already."""
    token = secrets.token_urlsafe(24)
    with store.write() as db:
        if _admins(db):
            db.execute("DELETE FROM meta WHERE key = ?", (_SETUP,))
            return None
        db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (_SETUP, _key(token)),
        )
    return token


def set_up(store: Store, token: str, name: str, password: str) -> User | None:
    """Make the first admin; None for a wrong or used token."""
    with store.read() as db:
        row = db.execute("SELECT value FROM meta WHERE key = ?", (_SETUP,)).fetchone()
    if row is None or not secrets.compare_digest(row["value"], _key(token)):
        return None
    _require_password(password, _require_name(name))
    with store.write() as db:
        if not db.execute("DELETE FROM meta WHERE key = ?", (_SETUP,)).rowcount:
            return None
    return add_user(store, name, ["admin"], password, actor="terminal")


def setup_token_waits(store: Store) -> bool:
    """Whether the first admin is still to be made."""
    with store.read() as db:
        return db.execute("SELECT 1 FROM meta WHERE key = ?", (_SETUP,)).fetchone() is not None
