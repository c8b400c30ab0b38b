"""Where the server listens, what it tells, and what it does with requests that make no sense."""

from __future__ import annotations

import json
import logging
import random
import re
import resource
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from web_room import PASSWORD, SmallRoom, small_room

from vmat_diffusion.dicom.attributes import quiet
from vmat_diffusion.errors import InputError
from vmat_diffusion.web import serving
from vmat_diffusion.web import store as stores
from vmat_diffusion.web.audit import verify
from vmat_diffusion.web.queue import worker
from vmat_diffusion.web.routes import worklist
from vmat_diffusion.web.serving import require_free, rules_of
from vmat_diffusion.web.settings import ServeSettings
from vmat_diffusion.web.store import open_store

PROGRAM = (sys.executable, "-m", "vmat_diffusion")


@pytest.fixture
def room(tmp_path: Path) -> SmallRoom:
    return small_room(tmp_path / "room")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.5"])
def test_this_computer_alone_needs_nothing(host: str) -> None:
    rules = rules_of(ServeSettings(host=host))
    assert not rules.secure and not rules.allow_own_approval


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "plans.example.org"])
def test_other_addresses_need_tls(host: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--tls-certificate"):
        rules_of(ServeSettings(host=host, name=("plans.example.org",)))
    with pytest.raises(InputError, match="--tls-certificate"):
        rules_of(ServeSettings(host=host, name=("plans.example.org",), behind_proxy=True))
    assert rules_of(ServeSettings(name=("Plans.example.org",), behind_proxy=True)).secure
    pem = tmp_path / "x.pem"
    pem.write_text("")
    with pytest.raises(InputError, match="needs --name"):
        rules_of(ServeSettings(host=host, tls_certificate=pem, tls_key=pem))
    with pytest.raises(InputError, match="belong together"):
        rules_of(ServeSettings(host=host, tls_certificate=pem))
    rules = rules_of(ServeSettings(host=host, name=("plans",), tls_certificate=pem, tls_key=pem))
    assert rules.secure and "plans" in rules.hosts
    with pytest.raises(InputError, match="does not exist"):
        rules_of(ServeSettings(tls_certificate=tmp_path / "none.pem", tls_key=pem))


def test_the_server_holds_neither_dose_engine_nor_network() -> None:
    """They take a quarter of a gigabyte, and only workers compute."""
    code = "import vmat_diffusion.web.app, sys; print({'torch', 'numba', 'matplotlib'} & sys.modules.keys())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_a_database_of_a_newer_program_is_refused(room: SmallRoom) -> None:
    with closing(sqlite3.connect(room.room.store.database)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="version 99"):
        open_store(room.room.store.folder)


def test_an_older_database_is_brought_up_to_date_or_left_as_it_was(
    room: SmallRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = room.room.store.folder
    step = "CREATE TABLE later (a TEXT) STRICT; INSERT INTO later VALUES ('a;b');"
    with monkeypatch.context() as patch:
        patch.setattr(stores, "_STEPS", (*stores._STEPS, step + "INSERT INTO nowhere VALUES (1);"))
        with pytest.raises(sqlite3.OperationalError):
            open_store(folder)
    assert open_store(folder).database.is_file()
    monkeypatch.setattr(stores, "_STEPS", (*stores._STEPS, step))
    with open_store(folder).read() as db:
        assert db.execute("SELECT a FROM later").fetchone()[0] == "a;b"
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(stores._STEPS)
        assert db.execute("SELECT count(*) FROM users").fetchone()[0] == 4


def _begun_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.uvicorn, "run", lambda *_, **__: None)
    serving.serve_room(ServeSettings(data=folder, port=_free_port()))


def _begun_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.os, "nice", lambda _: 0)
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    worker.main(str(open_store(folder).folder), "no job", "no token")


@pytest.mark.parametrize("begun", [_begun_server, _begun_worker])
def test_no_thread_prints_what_pydicom_says_of_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], begun: Any
) -> None:
    logger = logging.getLogger("pydicom")
    level = logger.level

    def read() -> None:
        logger.warning("Doe^John")
        warnings.warn("Doe^John", stacklevel=1)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            begun(tmp_path / "room", monkeypatch)
            with quiet():  # of a file that another thread reads
                pass
            thread = threading.Thread(target=read)
            thread.start()
            thread.join()
            assert not logger.isEnabledFor(logging.CRITICAL)
    finally:
        logger.setLevel(level)
    assert "Doe" not in capfd.readouterr().err


def test_the_folder_is_its_owners_alone(room: SmallRoom) -> None:
    folder = room.room.store.folder
    for path in (folder, folder / "cases", folder / "runs", folder / "incoming"):
        assert path.stat().st_mode & 0o077 == 0
    assert room.room.store.database.stat().st_mode & 0o077 == 0


def test_audit_verify_makes_no_room(tmp_path: Path) -> None:
    words = [*PROGRAM, "audit", "verify", "--data", str(tmp_path / "none")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "holds no room.sqlite" in done.stderr
    assert not (tmp_path / "none").exists()


def test_every_test_of_the_table_of_security_is_there() -> None:
    here = Path(__file__).parent
    page = (here.parents[2] / "docs" / "review_room.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    defined = {
        name for file in here.glob("test_*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text())
    }
    assert len(named) > 25 and sorted(named - defined) == []


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} cannot be listened on"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


def test_the_program_serves_and_tells_the_token_on_the_terminal_alone(tmp_path: Path) -> None:
    port, data = _free_port(), tmp_path / "room"
    words = [*PROGRAM, "serve", "--data", str(data), "--port", str(port)]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        lines = [server.stderr.readline(), server.stderr.readline()]
        assert lines[0].strip() == f"Review room: http://127.0.0.1:{port}/"
        token = lines[1].removeprefix("Set-up token for the first admin: ").strip()
        assert len(token) == 32
        for _ in range(200):
            try:
                state = json.loads(_get(f"http://127.0.0.1:{port}/api/session"))
                break
            except OSError:
                time.sleep(0.1)
        assert state == {"id": None, "set_up": True}
    finally:
        server.send_signal(signal.SIGTERM)
        rest = server.communicate(timeout=30)[1]
    assert "Traceback" not in rest
    added = subprocess.run(
        [*PROGRAM, "users", "add", "ada", "--role", "admin", "--role", "reviewer", "--data", str(data)],
        input=f"{PASSWORD}\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert added.stdout == "ada: admin, reviewer\n"
    assert verify(open_store(data)).faults == ()


@pytest.mark.slow
def test_tls_by_files(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes the certificate of this test")
    key, chain, port = tmp_path / "key.pem", tmp_path / "chain.pem", _free_port()
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*words, *names, "-keyout", key, "-out", chain], check=True, capture_output=True)
    server = subprocess.Popen(
        [
            *(*PROGRAM, "serve", "--data", tmp_path / "room", "--port", str(port)),
            *("--tls-certificate", chain, "--tls-key", key, "--host", "0.0.0.0", "--name", "plans"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    trusting = ssl.create_default_context(cafile=str(chain))
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"https://localhost:{port}/login", context=trusting) as answer:
                    headers = dict(answer.headers)
                break
            except OSError:
                time.sleep(0.1)
        assert headers["strict-transport-security"].startswith("max-age=31536000")
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=30)[1]
    assert f"https://0.0.0.0:{port}/" in said


def test_urls_and_logs_hold_no_names(room: SmallRoom, case_folder: Path, caplog: Any) -> None:
    room.case(case_folder)
    client = room.client("both")
    text = client.ask("GET", "/api/worklist").text
    assert "Doe^John" in text, "a user must know which case it is"
    ids = re.findall(r'"id":"([^"]+)"', text)
    assert ids and all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
    assert "Doe" not in caplog.text


def test_a_defect_is_logged_and_answered_without_its_message(
    room: SmallRoom, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("Doe^John is in the way")

    client = room.client("both")
    monkeypatch.setattr(worklist, "cases", fails)
    answer = client.ask("GET", "/api/worklist")
    assert answer.status_code == 500 and "defect" in answer.json()["error"]
    assert answer.headers["Content-Security-Policy"]
    assert "RuntimeError at test_serving.py" in caplog.text
    assert "Doe" not in caplog.text + answer.text


_ODD: tuple[Any, ...] = (
    *(None, True, -1, 1e308, "", "\0", "../../x", "\ud800", "😀" * 50, "'; DROP TABLE users; --"),
    *([], {}, [[[[]]]], {"a": {"b": []}}, "x" * 3000, 2**70),
)
_PATHS = (
    *("/api/session", "/api/setup", "/api/uploads", "/api/jobs", "/api/users", "/api/audit", "/api/worklist"),
    *("/api/reviews/{}", "/api/reviews/{}/answers", "/api/reviews/{}/decision", "/api/runs/{}/seen"),
    *("/api/uploads/{}/files", "/api/uploads/{}/case", "/api/jobs/{}/cancel", "/api/users/{}", "/review/{}"),
    *("/api/reviews/{}/files/{}", "/static/{}", "/{}", "/api/audit/check"),
)
_FIELDS = (
    "name",
    "password",
    "token",
    "label",
    "case_id",
    "goals",
    "machine",
    "roles",
    "item",
    "answer",
    "kind",
)


def _send_nonsense(room: SmallRoom, count: int) -> None:
    draw = random.Random(count)
    clients = [room.client("both"), room.client("admin"), room.anonymous()]
    for client in clients:
        client.http.headers["Accept"] = "*/*"
    for _ in range(count):
        client, path = draw.choice(clients), draw.choice(_PATHS)
        ids = [
            draw.choice(("0" * 32, "..%2F..%2Fetc", "%00", "x" * 300, "%F0%9F%98%80", "a b")) for _ in "ab"
        ]
        method = draw.choice(("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"))
        body = {name: draw.choice(_ODD) for name in draw.sample(_FIELDS, 3)}
        content: Any = json.dumps(body).encode("utf-8", "surrogatepass")
        if draw.random() < 0.4:
            content = bytes(draw.randrange(256) for _ in range(draw.randrange(200)))
        kind = draw.choice(("application/json", "text/plain", "multipart/form-data; boundary=x", ""))
        answer = client.ask(method, path.format(*ids), content=content, headers={"Content-Type": kind})
        assert answer.status_code < 500, (method, path, content, answer.text)


def _peak_mb() -> float:
    """The most memory that this process has had; Linux gives it in kB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_requests_without_sense_do_no_harm(room: SmallRoom, count: int) -> None:
    before = sorted(room.room.store.folder.rglob("*"))
    memory_mb = _peak_mb()
    _send_nonsense(room, count)
    # The client keeps every answer's connection data too; a leak of 64 KiB a request would be 600 MB.
    assert _peak_mb() - memory_mb < 200
    assert sorted(p for p in room.room.store.folder.rglob("*")) == before
    assert verify(room.room.store).faults == ()
    assert room.client("planner").ask("GET", "/api/worklist").status_code == 200
