"""Peers on this computer that take objects, and a planning run to send to them."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from small_case import open_arc, small_case

from vmat_diffusion.case import Dose
from vmat_diffusion.dicom import read_case, write_case, write_dose, write_unjudged_plan
from vmat_diffusion.machine import load_machine


def planning_run(folder: Path, outcome: str = "PASSED") -> Path:
    """A folder as `plan` writes it, of the small case; its case lies beside it."""
    write_case(folder.parent / "case", small_case())
    case = read_case(folder.parent / "case")
    folder.mkdir(parents=True)
    plan_file = folder / "RP.dcm" if outcome == "PASSED" else None
    if plan_file is not None:
        machine = load_machine("generic_6mv")
        write_unjudged_plan(plan_file, open_arc(), case, machine, prescription=small_case().prescription)
    dose = Dose(case.grid, np.full(case.grid.shape, 2.0), None, "water", {})
    write_dose(folder / "RD.dcm", dose, case, plan_file=plan_file)
    check = {"name": "gamma", "result": "pass", "why": "99.0 % of the voxels agree"}
    goal = {"goal": "D95% >= 47.5 Gy", "structure": "PTV", "value": 50.0, "unit": "Gy", "status": "pass"}
    record = {"verdict": {"outcome": outcome, "checks": [check]}, "goals": [goal], "files": []}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@dataclass
class Peer:
    """What a DICOM peer got. `statuses` are given to the next objects, then success."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    got: list[Dataset] = field(default_factory=list)
    commits: bool = True
    lost: tuple[str, ...] = ()

    def kinds(self) -> list[str]:
        return sorted(dataset.Modality for dataset in self.got)


@contextmanager
def dicom_peer(
    peer: Peer, *, contexts: Any = None, commitment: bool = True, ssl_context: Any = None, allow: Any = ()
) -> Iterator[Peer]:
    entity = AE("PEER")
    entity.supported_contexts = StoragePresentationContexts if contexts is None else contexts
    entity.add_supported_context(Verification)
    entity.maximum_associations = 5
    entity.require_calling_aet = list(allow)
    if commitment:
        entity.add_supported_context(StorageCommitmentPushModel)

    def stored(event: Any) -> int:
        status = peer.statuses.pop(0) if peer.statuses else 0
        if status == 0:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            peer.got.append(dataset)
        return status

    def asked(event: Any) -> tuple[int, None]:
        request = event.action_information
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        have = {str(dataset.SOPInstanceUID) for dataset in peer.got} - set(peer.lost)
        items = request.ReferencedSOPSequence
        report.ReferencedSOPSequence = [i for i in items if i.ReferencedSOPInstanceUID in have]
        failed = [i for i in items if i.ReferencedSOPInstanceUID not in have]
        if failed:
            report.FailedSOPSequence = failed
        if peer.commits:
            model, instance = StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"
            send = event.assoc.send_n_event_report
            threading.Timer(0.2, send, (report, 2 if failed else 1, model, instance)).start()
        return 0x0000, None

    handlers = [(evt.EVT_C_STORE, stored), (evt.EVT_N_ACTION, asked)]
    server = entity.start_server(
        ("127.0.0.1", peer.port), block=False, evt_handlers=handlers, ssl_context=ssl_context
    )
    peer.port = server.socket.getsockname()[1]
    try:
        yield peer
    finally:
        server.shutdown()


@dataclass
class WebServer:
    """What a DICOMweb server got; `answers` are the statuses and texts of the next requests."""

    url: str = ""
    answers: list[tuple[int, str]] = field(default_factory=list)
    got: list[Dataset] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def web_peer(server: WebServer, folder: Path) -> Iterator[WebServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, text = server.answers.pop(0) if server.answers else (200, "{}")
            server.headers.append(dict(self.headers))
            server.paths.append(self.path)
            if status == 200:
                boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
                (part,) = body.split(b"--" + boundary)[1:-1]
                file = folder / f"{len(server.got)}.dcm"
                file.write_bytes(part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"))
                server.got.append(dcmread(file))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/dicom-web"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    pem, key = folder / "own.pem", folder / "own.key"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    words = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext {names}".split()
    subprocess.run(
        ["openssl", *words, "-out", str(pem), "-keyout", str(key)], check=True, capture_output=True
    )
    return pem, key
