"""The application: its routes, and what holds for every answer (headers, sizes, errors as one sentence)."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmat_diffusion.errors import InputError, limit_of
from vmat_diffusion.lettering import legible
from vmat_diffusion.web import viewing
from vmat_diffusion.web.access import require
from vmat_diffusion.web.queue.supervisor import Supervisor
from vmat_diffusion.web.room import AbsentError, RefusedError, Room
from vmat_diffusion.web.routes import administration, pages, reviewing, sessions, training, worklist
from vmat_diffusion.web.runs import case_folder_of, run_folder
from vmat_diffusion.web.view.cases import view_store

_LOG = logging.getLogger("vmat_diffusion.web")
# A request but an uploaded file's; the longest is a decision with its reason.
BODY_MOST = 64 * 1024
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self'; "
    "frame-src 'self'; frame-ancestors 'self'; form-action 'self'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}
_HSTS = {"Strict-Transport-Security": "max-age=31536000"}


def create_app(room: Room, *, work: bool = True) -> FastAPI:
    """The application of a room; with `work` it also has plans made."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan(room, work))
    app.state.room = room
    for part in (pages, sessions, worklist, reviewing, administration, training):
        app.include_router(part.router)
    clinical = [Depends(require("planner", "reviewer"))]
    looking = viewing.router(
        lambda run_id: run_folder(room, run_id),
        lambda run_id: case_folder_of(room, run_id),
        store=view_store(room.store.folder),
    )
    app.include_router(looking, dependencies=clinical)
    static = Path(str(resources.files("vmat_diffusion.web"))) / "static"
    app.mount("/static", StaticFiles(directory=static), name="static")
    app.add_exception_handler(AnyHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _wrong_request)
    app.add_exception_handler(InputError, _input_error)
    app.add_middleware(_Guard, room=room)
    return app


def _lifespan(room: Room, work: bool) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        supervisor = Supervisor(room) if work else None
        if supervisor is not None:
            supervisor.start()
        yield
        if supervisor is not None:
            supervisor.stop()

    return lifespan


class _Guard:
    """Before every request: the name of the host and the size of the body; after it the headers."""

    def __init__(self, app: ASGIApp, room: Room) -> None:
        self.app, self.room = app, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        given = Request(scope)
        headers = {**HEADERS, **(_HSTS if self.room.rules.secure else {})}
        if given.url.path.startswith("/static/"):  # no data: kept, and asked for again whether it is the same
            headers["Cache-Control"] = "no-cache"

        begun = False

        async def headed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *((n, v) for n, v in message["headers"] if n.lower() != b"server"),
                    *(
                        (n.lower().encode(), v.encode())
                        for n, v in headers.items()
                        if n.lower().encode() not in there
                    ),
                ]
            await send(message)

        refusal = self._refusal(given)
        if refusal is not None:
            await refusal(scope, receive, headed)
            return
        try:
            await self.app(scope, self._limited(given, receive), headed)
        except Exception as error:
            # Here, and not where the server would log it with its message: that may hold names.
            answer = _defect(error)
            if not begun:
                await answer(scope, receive, headed)

    def _refusal(self, given: Request) -> Response | None:
        host = given.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() not in self.room.rules.hosts:
            return _error(421, "this server is not called by that name; name it with --name")
        length = given.headers.get("content-length", "0")
        if not length.isdigit() or (int(length) > BODY_MOST and not _is_upload(given)):
            return _error(413, f"the request is longer than {BODY_MOST} bytes; send less")
        return None

    def _limited(self, given: Request, receive: Receive) -> Receive:
        """The body without a stated length may not become longer either."""
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_MOST and not _is_upload(given):
                raise HTTPException(413, f"the request is longer than {BODY_MOST} bytes; send less")
            return message

        return counted


def _is_upload(given: Request) -> bool:
    return given.method == "PUT" and given.url.path.startswith("/api/uploads/")


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    return _error(error.status_code, str(error.detail), dict(error.headers or {}))


async def _wrong_request(_: Request, error: Exception) -> Response:
    """Which parts are wrong, without their values: they may be passwords."""
    assert isinstance(error, RequestValidationError)
    parts = sorted({".".join(map(str, one["loc"])) for one in error.errors()})
    return _error(422, f"the request is wrong in {', '.join(parts)[:200]}; load the page again")


async def _input_error(_: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, AbsentError) else 409 if isinstance(error, RefusedError) else 400
    return _error(status, legible(str(error)))


def _defect(error: Exception) -> Response:
    """A sentence without the error's message; the log gets its kind and its place."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    _LOG.error("%s at %s", type(error).__name__, places)
    if limit_of(error):
        return _error(507, "the disk or the memory of the server is used up; ask who looks after it")
    return _error(500, "this is a defect of the program; please report what you did before it")
