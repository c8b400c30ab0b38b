"""Who may ask for what: the dependencies that every route but those of logging in has.

`require("planner", "reviewer")` lets through a session of a user with one of these roles. A request that
changes something must also carry the session's token in the header `X-CSRF-Token` and come from a page of
this server.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated, cast

from fastapi import Depends, HTTPException, Request

from vmat_diffusion.web.accounts import Role, Session, session_of
from vmat_diffusion.web.room import Room

_READING = ("GET", "HEAD")
_OWN_PAGES = ("same-origin", "none", None)  # None: no browser, or an old one; the token decides


def room_of(request: Request) -> Room:
    """The review room of the application."""
    return cast(Room, request.app.state.room)


TheRoom = Annotated[Room, Depends(room_of)]


def cookie_name(room: Room) -> str:
    """The session's cookie; by TLS its prefix keeps other hosts and paths from setting it."""
    return "__Host-session" if room.rules.secure else "session"


def session_or_none(request: Request, room: TheRoom) -> Session | None:
    """The session of a request that a person made."""
    return _session(request, room, active=True)


def _session(request: Request, room: Room, *, active: bool) -> Session | None:
    secret = request.cookies.get(cookie_name(room), "")
    return session_of(room.store, secret, active=active) if secret else None


def require_own_page(request: Request) -> None:
    """Refuse a request that a page of another server makes."""
    if request.headers.get("sec-fetch-site") not in _OWN_PAGES:
        raise HTTPException(403, "the request comes from another site; use the pages of this server")


def require(*roles: Role, active: bool = True) -> Callable[[Request, Room], Session]:
    """A dependency that gives the session of a user with one of `roles`; with any role where none is named.

    Status 401 without a session, 403 without the role or the token. `active` is false for what pages ask for
    again and again by themselves: it keeps no session from ending.
    """

    def checked(request: Request, room: TheRoom) -> Session:
        session = _session(request, room, active=active)
        if session is None:
            raise HTTPException(401, "there is no session; log in")
        if request.method not in _READING:
            require_own_page(request)
            given = request.headers.get("x-csrf-token", "")
            if not secrets.compare_digest(given.encode(), session.csrf.encode()):
                raise HTTPException(403, "the request lacks the session's token; load the page again")
        if roles and not session.user.roles & set(roles):
            raise HTTPException(403, f"this needs the role {' or '.join(roles)}; ask an admin for it")
        return session

    return checked


Anyone = Annotated[Session, Depends(require())]
Planner = Annotated[Session, Depends(require("planner"))]
Reviewer = Annotated[Session, Depends(require("reviewer"))]
Clinical = Annotated[Session, Depends(require("planner", "reviewer"))]
# Of a page that looks by itself what is new.
Watching = Annotated[Session, Depends(require("planner", "reviewer", active=False))]
Admin = Annotated[Session, Depends(require("admin"))]
