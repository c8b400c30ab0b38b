"""The pages: shells without data; those of work need a session and send everybody else to the login."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, RedirectResponse, Response

from vmat_diffusion.web.access import session_or_none
from vmat_diffusion.web.accounts import Session

_STATIC = Path(str(resources.files("vmat_diffusion.web"))) / "static"
_Maybe = Annotated[Session | None, Depends(session_or_none)]


def _page(name: str) -> Response:
    return FileResponse(_STATIC / f"{name}.html")


def login() -> Response:
    """The page to log in, and to set up the first admin."""
    return _page("login")


def home(session: _Maybe) -> Response:
    """The first page after the login, by role."""
    if session is None:
        return RedirectResponse("/login", 303)
    return RedirectResponse("/worklist" if session.user.roles & {"planner", "reviewer"} else "/admin", 303)


def worklist(session: _Maybe) -> Response:
    """Cases, jobs and plans."""
    return _page("worklist") if session else RedirectResponse("/login", 303)


def review(run_id: str, session: _Maybe) -> Response:
    """One plan beside its checklist."""
    return _page("review") if session else RedirectResponse("/login", 303)


def admin(session: _Maybe) -> Response:
    """Users and audit."""
    return _page("admin") if session else RedirectResponse("/login", 303)


router = APIRouter()
for _path, _answer in (
    ("/", home),
    ("/login", login),
    ("/worklist", worklist),
    ("/review/{run_id}", review),
    ("/admin", admin),
):
    router.add_api_route(_path, _answer, methods=["GET"])
