"""A real Orthanc on this computer, in a configuration of its own: it sends a study and gets results back."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from network_peers import planning_run
from pydicom import dcmread
from pydicom.dataset import Dataset

from vmat_diffusion.network.address import peer_of
from vmat_diffusion.network.results import parcels_of_run
from vmat_diffusion.network.sending import send_parcels
from vmat_diffusion.network.settings import SendSettings

PROGRAM = shutil.which("Orthanc")
WEB = next(iter(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so")), None)
STAND_IN = Path(__file__).parents[2] / "stand_in_listener.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="Orthanc is not installed (apt-get install orthanc)"),
]


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


@dataclass(frozen=True)
class Orthanc:
    http: int
    dicom: int
    listener: int
    report: int

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        link = HTTPConnection("127.0.0.1", self.http, timeout=60)
        link.request(method, path, body)
        answer = link.getresponse()
        content = answer.read()
        assert answer.status == 200, (answer.status, content[:300])
        is_json = "json" in (answer.getheader("Content-Type") or "")
        return json.loads(content) if is_json else content

    def objects(self) -> dict[str, Dataset]:
        """What Orthanc holds, by SOP instance UID."""
        files = (self.ask("GET", f"/instances/{key}/file") for key in self.ask("GET", "/instances"))
        found = [dcmread(BytesIO(file)) for file in files]
        return {str(dataset.SOPInstanceUID): dataset for dataset in found}


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    made = Orthanc(*free_ports(4))
    configuration = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(WEB)] if WEB else [],
        "HttpPort": made.http,
        "DicomPort": made.dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomModalities": {
            "listener": ["VMATDIFFUSION", "127.0.0.1", made.listener],
            "reports": {"AET": "REPORTS", "Host": "127.0.0.1", "Port": made.report},
        },
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    assert PROGRAM is not None
    with (folder / "log").open("w") as log:
        program = subprocess.Popen([PROGRAM, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                made.ask("GET", "/system")
                break
            except OSError:
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.2)
        yield made
    finally:
        program.terminate()
        program.wait(30)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planning_run(tmp_path_factory.mktemp("made") / "run")


@pytest.mark.parametrize("way", ["dicom", "web"])
def test_a_study_goes_out_and_its_results_come_back(tmp_path: Path, run: Path, way: str) -> None:
    if way == "web" and WEB is None:
        pytest.skip("Orthanc's DICOMweb is not installed (apt-get install orthanc-dicomweb)")
    with orthanc(tmp_path) as server:
        back = (
            f"ORTHANC@127.0.0.1:{server.dicom}"
            if way == "dicom"
            else f"http://127.0.0.1:{server.http}/dicom-web"
        )
        (tmp_path / "rules.yaml").write_text(
            f"rules: [{{name: all, structures: ['PTV*'], plan: {{goals: bone_8_1}}, send: ['{back}']}}]"
        )
        words = [
            "listen",
            str(tmp_path / "room"),
            str(tmp_path / "rules.yaml"),
            str(server.listener),
            str(run),
        ]
        listener = subprocess.Popen([sys.executable, str(STAND_IN), *words])
        try:
            sent = {}
            for file in sorted((run.parent / "case").iterdir()):
                server.ask("POST", "/instances", file.read_bytes())
                sent[str(dcmread(file).SOPInstanceUID)] = dcmread(file)
            (study,) = server.ask("GET", "/studies")
            end = time.monotonic() + 120
            while True:
                try:
                    server.ask("POST", "/modalities/listener/store", study.encode())
                    break
                except AssertionError:
                    assert time.monotonic() < end
                    time.sleep(1)
            while len(server.objects()) < len(sent) + 3 and time.monotonic() < end:
                time.sleep(0.5)
            found = server.objects()
        finally:
            listener.kill()
            listener.wait()
    came = {uid: dataset for uid, dataset in found.items() if uid not in sent}
    assert sorted(dataset.Modality for dataset in came.values()) == ["DOC", "RTDOSE", "RTPLAN"]
    for name in ("RP.dcm", "RD.dcm"):
        whole = dcmread(run / name)
        assert came[str(whole.SOPInstanceUID)] == whole
    (document,) = [dataset for dataset in came.values() if dataset.Modality == "DOC"]
    assert document.EncapsulatedDocument.startswith(b"%PDF-")
    assert len({dataset.StudyInstanceUID for dataset in found.values()}) == 1


def test_orthanc_promises_to_keep_what_it_got(tmp_path: Path, run: Path) -> None:
    with orthanc(tmp_path) as server:
        asked = SendSettings(aet="REPORTS", commitment_port=server.report, commitment_s=60.0)
        parcels = parcels_of_run(run, tmp_path)
        receipt = send_parcels(peer_of(f"ORTHANC@127.0.0.1:{server.dicom}"), parcels, asked)
    assert receipt.commitment == "committed"
