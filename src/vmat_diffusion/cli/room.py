"""The commands of the review room."""

from __future__ import annotations

import getpass
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field

from vmat_diffusion.cli.display import show
from vmat_diffusion.cli.fields import Facts
from vmat_diffusion.errors import InputError
from vmat_diffusion.options import Option, settings
from vmat_diffusion.web.settings import DataFolder, ServeSettings


def _require_libraries() -> None:
    try:
        import argon2  # noqa: F401
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as missing:
        raise InputError(
            f"{missing.name} is not installed, which the review room needs; install vmat-diffusion[web]"
        ) from None


def serve(options: ServeSettings) -> None:
    """Serve the review room: plan, look, compare, decide and sign in a browser."""
    _require_libraries()
    if not hasattr(os, "killpg"):
        raise InputError("serve needs process groups, which Windows does not have; use Linux, macOS or WSL")
    from vmat_diffusion.web.serving import serve_room

    serve_room(options)


@settings
class UsersAddOptions(Facts):
    """What `users add` takes."""

    name: Annotated[
        str, Field(description="Name with which the user logs in."), Option(positional=True, metavar="NAME")
    ]
    role: Annotated[
        tuple[Literal["planner", "reviewer", "admin"], ...],
        Field(description="What the user may do."),
        Option(metavar="planner|reviewer|admin", text="each"),
    ]
    data: DataFolder = Path("review_room")


def users_add(options: UsersAddOptions) -> None:
    """Add a user to a review room; asks for the password, or reads it as a line of a pipe."""
    _require_libraries()
    from vmat_diffusion.web.accounts import add_user
    from vmat_diffusion.web.store import open_store

    store = open_store(options.data)
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise InputError("the two passwords differ; type the same one twice")
    else:
        password = sys.stdin.readline().rstrip("\n")
    user = add_user(store, options.name, options.role, password, actor="terminal")
    roles = sorted(user.roles)
    show(json.dumps({"id": user.id, "roles": roles}) if options.json else f"{user.name}: {', '.join(roles)}")


@settings
class AuditVerifyOptions(Facts):
    """What `audit verify` takes."""

    data: DataFolder = Path("review_room")
    holds: Annotated[
        str,
        Field(description="Hash that was noted down earlier and must be in the chain."),
        Option(metavar="HASH"),
    ] = ""


def audit_verify(options: AuditVerifyOptions) -> None:
    """Check the audit of a review room: no entry changed, removed or put in; exit code 1 if one was."""
    from vmat_diffusion.web.audit import verify
    from vmat_diffusion.web.store import open_store

    found = verify(open_store(options.data, make=False), holds=options.holds)
    if options.json:
        show(json.dumps({"entries": found.entries, "head": found.head, "faults": list(found.faults)}))
    else:
        whole = "the chain is whole" if not found.faults else f"{len(found.faults)} FAULTS"
        show("\n".join([f"{found.entries} entries, {whole}", f"newest hash {found.head}", *found.faults]))
    raise typer.Exit(1 if found.faults else 0)
