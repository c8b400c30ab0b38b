"""Logging in and out, the first admin, and one's own password."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, Field

from vmat_diffusion.web.access import Anyone, TheRoom, cookie_name, require_own_page, session_or_none
from vmat_diffusion.web.accounts import (
    LONGEST_S,
    PASSWORD_MOST,
    Session,
    User,
    change_user,
    end_session,
    is_password,
    new_session,
    set_up,
    setup_token_waits,
)
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.room import Room
from vmat_diffusion.web.throttle import forget_failures, note_failure, wait_s

Password = Annotated[str, Field(min_length=1, max_length=PASSWORD_MOST)]
_Name = Annotated[str, Field(min_length=1, max_length=64)]


class _Login(BaseModel, extra="forbid"):
    name: _Name
    password: Password


class _SetUp(_Login):
    token: Annotated[str, Field(min_length=1, max_length=100)]


class _NewPassword(BaseModel, extra="forbid"):
    password: Password
    new_password: Password


def _facts(session: Session) -> dict[str, Any]:
    user = session.user
    return {"id": user.id, "name": user.name, "roles": sorted(user.roles), "csrf": session.csrf}


def confirmed(room: Room, request: Request, name: str, password: str) -> User | None:
    """The user whose password this is; counts failures. Status 429 where too many came before."""
    address = request.client.host if request.client else ""
    keys = (("account", name.casefold()), ("address", address))
    wait = max(wait_s(room.store, *key) for key in keys)
    if wait > 0:
        raise HTTPException(
            429,
            f"too many wrong passwords; try again in {wait:.0f} s",
            headers={"Retry-After": f"{wait:.0f}"},
        )
    user = is_password(room.store, name, password)
    if user is None:
        for key in keys:
            note_failure(room.store, *key)
        with room.store.write() as db:  # without the name: it may be a password in the wrong field
            record(db, "server", "wrong password")
        return None
    forget_failures(room.store, *keys[0])
    return user


def _begin(room: Room, user: User, response: Response) -> dict[str, Any]:
    secret, session = new_session(room.store, user)
    response.set_cookie(
        cookie_name(room),
        secret,
        max_age=int(LONGEST_S),
        path="/",
        secure=room.rules.secure,
        httponly=True,
        samesite="strict",
    )
    return _facts(session)


def log_in(asked: _Login, request: Request, response: Response, room: TheRoom) -> dict[str, Any]:
    """Begin a session."""
    require_own_page(request)
    user = confirmed(room, request, asked.name, asked.password)
    if user is None:
        raise HTTPException(401, "name or password is wrong; try again")
    return _begin(room, user, response)


def current(session: Annotated[Session | None, Depends(session_or_none)], room: TheRoom) -> dict[str, Any]:
    """Who is logged in, with the token for requests; else whether the first admin is still to be made."""
    if session is None:
        return {"id": None, "set_up": setup_token_waits(room.store)}
    return _facts(session)


def log_out(session: Anyone, response: Response, room: TheRoom) -> dict[str, Any]:
    """End the session."""
    end_session(room.store, session)
    response.delete_cookie(cookie_name(room), path="/", secure=room.rules.secure, httponly=True)
    return {}


def make_first_admin(asked: _SetUp, request: Request, response: Response, room: TheRoom) -> dict[str, Any]:
    """Make the first admin with the token that the terminal shows."""
    require_own_page(request)
    address = request.client.host if request.client else ""
    if (wait := wait_s(room.store, "address", address)) > 0:
        raise HTTPException(429, f"too many wrong tokens; try again in {wait:.0f} s")
    user = set_up(room.store, asked.token.strip(), asked.name, asked.password)
    if user is None:
        note_failure(room.store, "address", address)
        raise HTTPException(403, "the token is not the one that the terminal shows; copy it again")
    return _begin(room, user, response)


def change_password(
    asked: _NewPassword, session: Anyone, request: Request, response: Response, room: TheRoom
) -> dict[str, Any]:
    """Change one's own password; all other sessions end."""
    if confirmed(room, request, session.user.name, asked.password) is None:
        raise HTTPException(403, "the password is wrong; try again")
    user = change_user(room.store, session.user.id, actor=session.user.id, password=asked.new_password)
    return _begin(room, user, response)


router = APIRouter(prefix="/api")
router.add_api_route("/session", log_in, methods=["POST"])
router.add_api_route("/session", current, methods=["GET"])
router.add_api_route("/session", log_out, methods=["DELETE"])
router.add_api_route("/session/password", change_password, methods=["POST"])
router.add_api_route("/setup", make_first_admin, methods=["POST"])
