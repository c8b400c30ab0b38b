"""Users and the audit, for admins."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from vmat_diffusion.web import audit
from vmat_diffusion.web.access import Admin, TheRoom
from vmat_diffusion.web.accounts import Role, User, add_user, change_user, users
from vmat_diffusion.web.routes.sessions import Password

_PAGE = 200


class _NewUser(BaseModel, extra="forbid"):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    roles: Annotated[list[Role], Field(min_length=1, max_length=3)]
    password: Password


class _Change(BaseModel, extra="forbid"):
    roles: Annotated[list[Role], Field(min_length=1, max_length=3)] | None = None
    disabled: bool | None = None
    password: Password | None = None


def _facts(user: User) -> dict[str, Any]:
    return {"id": user.id, "name": user.name, "roles": sorted(user.roles), "disabled": user.disabled}


def all_users(session: Admin, room: TheRoom) -> list[dict[str, Any]]:
    """All users."""
    return [_facts(user) for user in users(room.store)]


def new_user(asked: _NewUser, session: Admin, room: TheRoom) -> dict[str, Any]:
    """Make a user with a first password, which the user changes."""
    return _facts(add_user(room.store, asked.name, asked.roles, asked.password, actor=session.user.id))


def changed_user(user_id: str, asked: _Change, session: Admin, room: TheRoom) -> dict[str, Any]:
    """Change roles or password, shut a user out or let one in again; their sessions end."""
    return _facts(
        change_user(
            room.store,
            user_id,
            actor=session.user.id,
            roles=asked.roles,
            disabled=asked.disabled,
            password=asked.password,
        )
    )


def audit_page(
    session: Admin, room: TheRoom, before: Annotated[int, Query(le=2**62)] = 2**62
) -> dict[str, Any]:
    """Entries of the audit before a number, the newest first."""
    with room.store.read() as db:
        rows = db.execute("SELECT * FROM audit WHERE seq < ? ORDER BY seq DESC LIMIT ?", (before, _PAGE))
        entries = [dict(row) for row in rows]
    return {"entries": entries, "names": {user.id: user.name for user in users(room.store)}}


def audit_check(session: Admin, room: TheRoom, holds: str = "") -> dict[str, Any]:
    """Whether the chain of the audit is whole."""
    found = audit.verify(room.store, holds=holds)
    return {"entries": found.entries, "head": found.head, "faults": list(found.faults)}


router = APIRouter(prefix="/api")
router.add_api_route("/users", all_users, methods=["GET"])
router.add_api_route("/users", new_user, methods=["POST"])
router.add_api_route("/users/{user_id}", changed_user, methods=["PATCH"])
router.add_api_route("/audit", audit_page, methods=["GET"])
router.add_api_route("/audit/check", audit_check, methods=["GET"])
