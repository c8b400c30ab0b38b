"""Who gets what: every route without a session, with every role, without the token, by another host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Mount
from web_room import PASSWORD, SmallRoom, small_room

from vmat_diffusion.web import accounts
from vmat_diffusion.web.app import BODY_MOST, HEADERS, create_app

# What answers without a session: shells without data, logging in, the first admin.
PUBLIC = {
    ("GET", "/"),
    ("GET", "/login"),
    ("GET", "/worklist"),
    ("GET", "/review/{run_id}"),
    ("GET", "/admin"),
    ("GET", "/api/session"),
    ("POST", "/api/session"),
    ("POST", "/api/setup"),
}
ANYONE = {("DELETE", "/api/session"), ("POST", "/api/session/password")}
PLANNER = {
    ("POST", "/api/uploads"),
    ("PUT", "/api/uploads/{upload_id}/files"),
    ("POST", "/api/uploads/{upload_id}/case"),
    ("DELETE", "/api/uploads/{upload_id}"),
    ("POST", "/api/jobs"),
    ("POST", "/api/checks"),
    ("POST", "/api/jobs/{job_id}/cancel"),
}
REVIEWER = {
    ("GET", "/api/reviews/{run_id}/lines"),
    ("POST", "/api/reviews/{run_id}/answers"),
    ("POST", "/api/reviews/{run_id}/decision"),
    ("POST", "/api/exercises/{run_id}/answer"),
}
ADMIN = {
    ("GET", "/api/users"),
    ("POST", "/api/users"),
    ("PATCH", "/api/users/{user_id}"),
    ("GET", "/api/audit"),
    ("GET", "/api/audit/check"),
    ("GET", "/api/exercises"),
    ("POST", "/api/exercises"),
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> SmallRoom:
    return small_room(tmp_path_factory.mktemp("access") / "room")


def _routes(room: SmallRoom) -> Iterator[tuple[str, str]]:
    waiting = list(create_app(room.room, work=False).routes)
    while waiting:
        route = waiting.pop()
        if isinstance(route, APIRoute):
            yield from ((method, route.path) for method in route.methods)
        elif isinstance(route, Mount):
            assert route.path == "/static"
        else:
            waiting += route.original_router.routes  # type: ignore[attr-defined]


def _filled(path: str) -> str:
    """A path with something for each of its parameters that is nowhere in the room."""
    words = {"plane": "axial", "volume": "planned", "name": "RP.dcm"}
    ids = ("run_id", "upload_id", "job_id", "user_id", "other")
    return re.sub(r"\{(\w+)\}", lambda m: words.get(m[1], "0" * 32 if m[1] in ids else "0"), path)


def _allowed(route: tuple[str, str]) -> set[str]:
    """The users of the room whom a route may answer."""
    if route in ANYONE:
        return {"planner", "reviewer", "admin", "both"}
    if route in PLANNER:
        return {"planner", "both"}
    if route in REVIEWER:
        return {"reviewer", "both"}
    return {"admin"} if route in ADMIN else {"planner", "reviewer", "both"}


def test_no_route_answers_without_a_session(room: SmallRoom) -> None:
    client = room.anonymous()
    found = set(_routes(room))
    assert found >= PUBLIC | ANYONE | PLANNER | REVIEWER | ADMIN
    for method, path in found - PUBLIC:
        answer = client.ask(method, _filled(path))
        assert answer.status_code == 401, (method, path, answer.status_code)
        assert answer.json() == {"error": "there is no session; log in"}


def test_pages_send_those_without_a_session_to_the_login(room: SmallRoom) -> None:
    client = room.anonymous()
    for path in ("/", "/worklist", "/review/x", "/admin"):
        answer = client.ask("GET", path)
        assert (answer.status_code, answer.headers["location"], answer.text) == (303, "/login", "")


@pytest.mark.parametrize("name", ["planner", "reviewer", "admin"])
def test_no_route_answers_another_role(room: SmallRoom, name: str) -> None:
    client = room.client(name)
    refused = 0
    for route in sorted(set(_routes(room)) - PUBLIC - ANYONE):
        answer = client.ask(route[0], _filled(route[1]))
        if name not in _allowed(route):
            assert answer.status_code == 403, (route, answer.status_code)
            assert list(answer.json()) == ["error"]
            refused += 1
        else:
            assert answer.status_code not in (401, 403), (route, answer.text)
    assert refused > 5


def test_nothing_changes_without_the_token_or_from_another_site(room: SmallRoom) -> None:
    client = room.client("both")
    changing = [route for route in _routes(room) if route[0] != "GET" and route not in PUBLIC]
    assert len(changing) > 8
    for method, path in changing:
        for headers in ({"X-CSRF-Token": ""}, {"X-CSRF-Token": "x"}, {"Sec-Fetch-Site": "cross-site"}):
            assert client.ask(method, _filled(path), headers=headers).status_code == 403, (method, path)
    assert client.ask("GET", "/api/session").json()["id"] == client.user_id


def test_logging_in_from_another_site_is_refused(room: SmallRoom) -> None:
    client = room.anonymous()
    body = {"name": "planner", "password": PASSWORD}
    assert (
        client.ask("POST", "/api/session", body, headers={"Sec-Fetch-Site": "same-site"}).status_code == 403
    )


def test_every_answer_has_the_headers(room: SmallRoom) -> None:
    client = room.client("both")
    for path in ("/login", "/worklist", "/api/worklist", "/api/none", "/static/room.js", "/static/../app.py"):
        answer = client.ask("GET", path)
        for name, value in HEADERS.items():
            if name != "Cache-Control":
                assert answer.headers[name] == value, (path, name)
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert "server" not in answer.headers
    assert client.ask("GET", "/api/worklist").headers["Cache-Control"] == "no-store"


def test_other_names_of_the_server_are_refused(room: SmallRoom) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1:80:80", ""):
        assert room.anonymous().ask("GET", "/login", headers={"Host": host}).status_code == 421, host


def test_long_requests_are_refused(room: SmallRoom) -> None:
    client = room.client("planner")
    assert client.ask("POST", "/api/uploads", {"label": "x" * BODY_MOST}).status_code == 413
    parts = (b" " * 4096 for _ in range(BODY_MOST // 4096 + 2))
    answer = client.ask("POST", "/api/uploads", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_wrong_requests_are_answered_without_what_they_held(room: SmallRoom) -> None:
    client = room.anonymous()
    secret = "hunter2hunter2"
    for body in (
        {"name": "x"},
        {"name": 3, "password": secret},
        [secret],
        {"name": "x", "password": secret * 20},
    ):
        answer = client.ask("POST", "/api/session", body)
        assert answer.status_code == 422
        assert secret not in answer.text


def test_there_is_no_description_of_the_interface(room: SmallRoom) -> None:
    client = room.client("both")
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.ask("GET", path).status_code == 404


def test_a_session_ends(room: SmallRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    client = room.client("planner")
    assert client.ask("GET", "/api/worklist").status_code == 200
    later = accounts.time.time() + accounts.IDLE_S + 1
    monkeypatch.setattr(accounts.time, "time", lambda: later)
    assert client.ask("GET", "/api/worklist").status_code == 401


def test_a_page_that_looks_by_itself_keeps_no_session(
    room: SmallRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, begun = room.client("planner"), accounts.time.time()
    moment = begun
    monkeypatch.setattr(accounts.time, "time", lambda: moment)
    for minute in range(1, 30):
        moment = begun + 60 * minute
        assert client.ask("GET", "/api/worklist").status_code == 200
    moment = begun + accounts.IDLE_S + 1
    assert client.ask("GET", "/api/worklist").status_code == 401
    moment = begun + 20 * 60
    assert client.ask("GET", "/api/choices").status_code == 200, "somebody does something"
    moment = begun + accounts.IDLE_S + 1
    assert client.ask("GET", "/api/worklist").status_code == 200


def test_logging_out_ends_the_session_at_the_server(room: SmallRoom) -> None:
    client = room.client("planner")
    secret = client.http.cookies["session"]
    assert client.ask("DELETE", "/api/session").status_code == 200
    client.http.cookies.set("session", secret)
    assert client.ask("GET", "/api/worklist").status_code == 401


def test_changed_users_lose_their_sessions(room: SmallRoom) -> None:
    admin, other = room.client("admin"), room.client("both")
    made = admin.ask(
        "POST", "/api/users", {"name": "temp", "roles": ["planner"], "password": PASSWORD}
    ).json()
    room.ids["temp"] = made["id"]
    temp = room.client("temp")
    assert temp.ask("GET", "/api/worklist").status_code == 200
    assert admin.ask("PATCH", f"/api/users/{made['id']}", {"disabled": True}).status_code == 200
    assert temp.ask("GET", "/api/worklist").status_code == 401
    assert other.ask("GET", "/api/worklist").status_code == 200


def test_the_last_admin_stays(room: SmallRoom) -> None:
    admin = room.client("admin")
    for change in ({"disabled": True}, {"roles": ["planner"]}):
        answer = admin.ask("PATCH", f"/api/users/{admin.user_id}", change)
        assert answer.status_code == 400 and "only admin" in answer.json()["error"]


def test_cookies_are_out_of_reach(tmp_path: Path) -> None:
    for secure in (False, True):
        made = small_room(tmp_path / str(secure), secure=secure)
        scheme = "https" if secure else "http"
        answer = made.anonymous(f"{scheme}://localhost").ask(
            "POST", "/api/session", {"name": "planner", "password": PASSWORD}
        )
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
        assert ("Secure" in cookie) is secure
        assert cookie.startswith("__Host-session=") is secure
        assert ("Strict-Transport-Security" in answer.headers) is secure
        with made.room.store.read() as db:
            kept = [tuple(row) for row in db.execute("SELECT token_sha256 FROM sessions")]
        secret = cookie.split("=")[1].split(";")[0]
        assert len(secret) == 43 and secret not in str(kept)
