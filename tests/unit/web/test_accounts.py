"""Passwords, the wait after wrong ones, and the first admin."""

from __future__ import annotations

from pathlib import Path

import pytest
from argon2 import PasswordHasher, Type
from web_room import PASSWORD, SmallRoom, small_room

from vmat_diffusion.errors import InputError
from vmat_diffusion.web import accounts, throttle
from vmat_diffusion.web.app import create_app
from vmat_diffusion.web.room import Room, Rules
from vmat_diffusion.web.store import open_store


@pytest.fixture
def room(tmp_path: Path) -> SmallRoom:
    return small_room(tmp_path / "room")


def test_a_password_costs_what_rfc_9106_asks_for(real_hasher: PasswordHasher) -> None:
    assert (real_hasher.time_cost, real_hasher.memory_cost, real_hasher.parallelism) == (3, 65_536, 4)
    assert real_hasher.type is Type.ID


def test_a_password_is_kept_as_a_salted_hash(room: SmallRoom) -> None:
    with room.room.store.read() as db:
        kept = [row["password"] for row in db.execute("SELECT password FROM users")]
    assert len(set(kept)) == 4 and all(text.startswith("$argon2id$v=19$") for text in kept)
    assert PASSWORD.encode() not in room.room.store.database.read_bytes()


@pytest.mark.parametrize(
    "password", ["short", "x" * 129, "aaaaaaaaaaaaaaaa", "iloveyouiloveyou", "newcomer-2026", "Radiotherapy1"]
)
def test_weak_passwords_are_refused(room: SmallRoom, password: str) -> None:
    with pytest.raises(InputError, match="password"):
        accounts.add_user(room.room.store, "newcomer-2026", ["planner"], password, actor="terminal")


@pytest.mark.parametrize("name", ["", "  ", "planner", "PLANNER", "x" * 65, "a\u202eb", "a\nb"])
def test_names_are_visible_and_unique(room: SmallRoom, name: str) -> None:
    with pytest.raises(InputError, match=r"name|exists"):
        accounts.add_user(room.room.store, name, ["planner"], PASSWORD, actor="terminal")


def test_wrong_passwords_are_slowed_down(room: SmallRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    client = room.anonymous()
    tries: list[str] = []
    monkeypatch.setattr(accounts._hasher.__class__, "verify", lambda *_: tries.append("") or _wrong())

    def wrong() -> int:
        return client.ask("POST", "/api/session", {"name": "planner", "password": "wrong"}).status_code

    found = [wrong() for _ in range(8)]
    assert found == [401] * 5 + [429] * 3
    assert len(tries) == 5, "a try that must wait computes nothing"
    answer = client.ask("POST", "/api/session", {"name": "PLANNER", "password": PASSWORD})
    assert answer.status_code == 429 and int(answer.headers["Retry-After"]) <= 1
    later = throttle.time.time() + 2.0
    monkeypatch.setattr(throttle.time, "time", lambda: later)
    assert [wrong(), wrong()] == [401, 429]


def _wrong() -> None:
    raise accounts.Argon2Error


def test_an_address_that_tries_many_names_is_slowed_down(
    room: SmallRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts._hasher.__class__, "verify", lambda *_: _wrong())
    client = room.anonymous()
    found = [
        client.ask("POST", "/api/session", {"name": f"n{k}", "password": "wrong"}).status_code
        for k in range(23)
    ]
    assert found == [401] * 20 + [429] * 3


def test_the_wait_grows_and_ends(room: SmallRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    store = room.room.store
    for _ in range(40):
        throttle.note_failure(store, "account", "x")
    assert 899 < throttle.wait_s(store, "account", "x") <= 900
    throttle.forget_failures(store, "account", "x")
    assert throttle.wait_s(store, "account", "x") == 0


@pytest.mark.parametrize(("kind", "free", "minutes"), [("account", 5, 15), ("address", 20, 5)])
def test_failures_are_forgiven_one_by_one(
    room: SmallRoom, monkeypatch: pytest.MonkeyPatch, kind: str, free: int, minutes: int
) -> None:
    store, begun = room.room.store, throttle.time.time()
    moment = begun
    monkeypatch.setattr(throttle.time, "time", lambda: moment)
    for _ in range(free + 6):
        throttle.note_failure(store, kind, "x")
    assert throttle.wait_s(store, kind, "x") == 64
    moment = begun + 60 * minutes * 2 + 1
    throttle.note_failure(store, kind, "x")
    assert throttle.wait_s(store, kind, "x") == 32, "two were forgiven, one came"
    moment += 60 * minutes * 6
    throttle.note_failure(store, kind, "x")
    assert throttle.wait_s(store, kind, "x") == 1
    moment += 60 * minutes
    assert throttle.wait_s(store, kind, "x") == 0
    throttle.note_failure(store, kind, "x")
    assert throttle.wait_s(store, kind, "x") == 1, "what is left still counts"


def test_names_from_outside_do_not_fill_the_disk(room: SmallRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "_MOST_KEYS", 10)
    for k in range(50):
        throttle.note_failure(room.room.store, "account", str(k))
    with room.room.store.read() as db:
        assert db.execute("SELECT count(*) FROM failures").fetchone()[0] <= 11


def test_an_unknown_name_is_not_told_from_a_wrong_password(room: SmallRoom) -> None:
    client = room.anonymous()
    answers = [
        client.ask("POST", "/api/session", {"name": name, "password": "wrong password"})
        for name in ("planner", "nobody")
    ]
    assert answers[0].json() == answers[1].json() and answers[0].status_code == answers[1].status_code


def test_the_first_admin_is_made_once_with_the_token_of_the_terminal(tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    store = open_store(tmp_path / "room")
    old, token = accounts.setup_token(store), accounts.setup_token(store)
    assert token is not None
    http = TestClient(create_app(Room(store, Rules()), work=False), base_url="http://localhost")
    body = {"name": "ada", "password": PASSWORD}
    assert http.get("/api/session").json() == {"id": None, "set_up": True}
    for wrong in ("x", str(old)):
        assert http.post("/api/setup", json={**body, "token": wrong}).status_code == 403
    made = http.post("/api/setup", json={**body, "token": token})
    assert made.json()["roles"] == ["admin"]
    assert http.post("/api/setup", json={**body, "name": "eve", "token": token}).status_code == 403
    assert accounts.setup_token(store) is None
    assert token not in store.database.read_bytes().decode("latin-1")


def test_a_changed_password_ends_the_other_sessions(room: SmallRoom) -> None:
    one, two = room.client("planner"), room.client("planner")
    body = {"password": PASSWORD, "new_password": "another long secret"}
    assert one.ask("POST", "/api/session/password", {**body, "password": "wrong"}).status_code == 403
    assert one.ask("POST", "/api/session/password", body).status_code == 200
    assert two.ask("GET", "/api/worklist").status_code == 401
    assert accounts.is_password(room.room.store, "planner", PASSWORD) is None
    assert accounts.is_password(room.room.store, "planner", "another long secret") is not None
