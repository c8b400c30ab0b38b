"""The viewer's routes and page on a port of this computer, without users: for tests and measurements."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.web.app import HEADERS
from vmat_diffusion.web.view.cases import CaseStore
from vmat_diffusion.web.viewing import router

CHROMIUM = "/usr/bin/chromium"


def application(folders: dict[str, tuple[Path, Path]], store: Path) -> FastAPI:
    """The routes, with what the room adds: names of runs, sentences of refusals, headers, what was seen.

    `folders` holds for each run its folder and that of its case. `app.state.seen` lists what the page told.
    """
    app = FastAPI()
    app.state.seen = []

    def of(run_id: str, k: int) -> Path:
        if run_id not in folders:
            raise CaseError("there is no such plan; choose one of the list")
        return folders[run_id][k]

    async def refused(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    async def seen(run_id: str, request: Request) -> dict[str, str]:
        app.state.seen.append({"run": run_id, **(await request.json())})
        return {}

    async def headed(request: Request, following: Any) -> Response:
        answer: Response = await following(request)
        answer.headers.update(HEADERS)
        return answer

    app.add_exception_handler(InputError, refused)
    app.add_api_route("/api/session", lambda: {"id": "u", "csrf": "token"}, methods=["GET"])
    app.add_api_route("/api/runs/{run_id}/seen", seen, methods=["POST"])
    app.include_router(router(lambda r: of(r, 0), lambda r: of(r, 1), store=CaseStore(store)))
    app.mount("/static", StaticFiles(directory=Path(str(resources.files("vmat_diffusion.web"))) / "static"))
    app.middleware("http")(headed)
    return app


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of the application while it runs in a thread."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
