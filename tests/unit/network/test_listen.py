"""The listener on the wire: who and what it takes, and that killing it loses and doubles nothing."""

from __future__ import annotations

import logging
import random
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from network_peers import Peer, dicom_peer, planning_run
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE

from vmat_diffusion.errors import InputError
from vmat_diffusion.network.inbox import Inbox, open_inbox
from vmat_diffusion.network.listener import listen_for_studies
from vmat_diffusion.network.receiver import Receiver
from vmat_diffusion.network.settings import ListenSettings

CT, STRUCTURES = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.481.3"
STAND_IN = Path(__file__).parents[2] / "stand_in_listener.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planning_run(tmp_path_factory.mktemp("made") / "run")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    asked = ListenSettings(
        rules=tmp_path / "r",
        allow=("SENDER",),
        port=free_port(),
        associations=2,
        object_mb=0.1,
        spare_gb=0.01,
    )
    made = Receiver(open_inbox(tmp_path / "network"), asked)
    thread = threading.Thread(target=made.serve, daemon=True)
    thread.start()
    yield made
    made.stop()
    thread.join(5)


def sender(title: str = "SENDER") -> AE:
    entity = AE(title)
    for sop_class in (CT, STRUCTURES):
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    return entity


def offered(port: int, datasets: list[Dataset], title: str = "SENDER", called: str = "VMATDIFFUSION") -> list:
    """The statuses of objects; None for one without an answer, [] where there is no association."""
    link = sender(title).associate("127.0.0.1", port, ae_title=called)
    if not link.is_established:
        return []
    statuses = []
    for dataset in datasets:
        if not link.is_established:
            break
        statuses.append(link.send_c_store(dataset).get("Status"))
    if link.is_established:
        link.release()
    return statuses


def images(run: Path) -> list[Dataset]:
    return [dcmread(file) for file in sorted((run.parent / "case").rglob("*.dcm"))]


def kept(inbox: Inbox) -> list[Path]:
    return list((inbox.folder / "studies").rglob("*.dcm"))


def test_objects_are_kept_as_they_were_sent(receiver: Receiver, run: Path) -> None:
    sent = images(run)
    assert offered(receiver.asked.port, sent) == [0] * len(sent)
    assert sorted((dcmread(f) for f in kept(receiver.inbox)), key=lambda d: d.SOPInstanceUID) == sorted(
        sent, key=lambda d: d.SOPInstanceUID
    )


@pytest.mark.parametrize(("title", "called"), [("STRANGER", "VMATDIFFUSION"), ("SENDER", "ANOTHER")])
def test_only_allowed_titles_get_an_association(
    receiver: Receiver, run: Path, title: str, called: str
) -> None:
    assert offered(receiver.asked.port, images(run)[:1], title, called) == []
    assert kept(receiver.inbox) == []


def test_deflated_objects_are_not_taken(receiver: Receiver) -> None:
    entity = AE("SENDER")
    entity.add_requested_context(CT, DeflatedExplicitVRLittleEndian)
    link = entity.associate("127.0.0.1", receiver.asked.port, ae_title="VMATDIFFUSION")
    assert not link.accepted_contexts


def test_an_object_that_is_too_large_ends_the_connection_and_not_the_listener(
    receiver: Receiver, run: Path
) -> None:
    small, large, huge = images(run)[0], images(run)[0], images(run)[0]
    large.PixelData = b"\0" * 200_000
    huge.PixelData = b"\0" * 20_000_000
    assert offered(receiver.asked.port, [large, small]) == [0xA700, 0]
    assert offered(receiver.asked.port, [huge]) == [None]
    assert offered(receiver.asked.port, [small]) == [0]


def test_an_object_without_a_study_is_refused(receiver: Receiver, run: Path) -> None:
    without, whole = images(run)[:2]
    del without.StudyInstanceUID
    assert offered(receiver.asked.port, [without, whole]) == [0xC000, 0]
    assert len(kept(receiver.inbox)) == 1


def test_a_full_disk_refuses_objects(receiver: Receiver, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "_has_room", lambda size: False)
    assert offered(receiver.asked.port, images(run)[:1]) == [0xA700]
    assert kept(receiver.inbox) == []


def test_more_associations_than_allowed_are_rejected(receiver: Receiver, run: Path) -> None:
    links = [sender().associate("127.0.0.1", receiver.asked.port, ae_title="VMATDIFFUSION") for _ in range(3)]
    assert [link.is_established for link in links] == [True, True, False]
    for link in links[:2]:
        link.release()
    time.sleep(0.5)
    assert offered(receiver.asked.port, images(run)[:1]) == [0]


def nonsense(seed: int) -> bytes:
    """Bytes that begin like a PDU, with lengths that are not meant."""
    draw = random.Random(seed)
    kind = draw.choice([0x01, 0x02, 0x04, 0x05, 0x07, 0x99])
    length = draw.choice([0, 4, 68, 200, 2**16 + 2000, 2**31, 2**32 - 1])
    return struct.pack(">BBL", kind, 0, length) + draw.randbytes(draw.choice([0, 10, 300, 5000]))


@pytest.mark.parametrize(
    "count", [40, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_nonsense_on_the_wire_harms_nothing(receiver: Receiver, run: Path, count: int) -> None:
    for seed in range(count):
        with closing(socket.socket()) as one:
            one.settimeout(5)
            one.connect(("127.0.0.1", receiver.asked.port))
            try:
                one.sendall(nonsense(seed))
                one.shutdown(socket.SHUT_WR)
                while one.recv(4096):
                    pass
            except OSError:
                pass
    end = time.monotonic() + 20
    while not (answer := offered(receiver.asked.port, images(run)[:1])) and time.monotonic() < end:
        time.sleep(0.2)  # the last connections are still being ended
    assert answer == [0]


def test_a_network_address_needs_tls_or_a_closed_network(tmp_path: Path) -> None:
    asked = ListenSettings(rules=tmp_path / "r", allow=("A",), host="0.0.0.0")
    logger = logging.getLogger("pydicom")
    level = logger.level
    try:
        with pytest.raises(InputError, match="or --without-tls where the network is closed"):
            listen_for_studies(asked)
        assert not logger.isEnabledFor(logging.CRITICAL), "what it says quotes values"
    finally:
        logger.setLevel(level)


def begun(folder: Path, port: int, run: Path) -> subprocess.Popen[bytes]:
    words = ["listen", str(folder / "room"), str(folder / "rules.yaml"), str(port), str(run)]
    return subprocess.Popen([sys.executable, str(STAND_IN), *words], stderr=subprocess.DEVNULL)


def answered(folder: Path) -> bool:
    """Whether the answer to the only structure set is sent."""
    with closing(sqlite3.connect(folder / "room" / "network" / "network.sqlite", timeout=20)) as db:
        try:
            return db.execute("SELECT state FROM sets").fetchall() == [("done",)]
        except sqlite3.OperationalError:  # not made yet
            return False


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_kill_9_loses_nothing_and_doubles_nothing(tmp_path: Path, run: Path, kills: int) -> None:
    draw, port, sent = random.Random(7), free_port(), images(run)
    waiting = {dataset.SOPInstanceUID: dataset for dataset in sent}
    (tmp_path / "room" / "network").mkdir(parents=True)
    with dicom_peer(Peer(), commitment=False) as peer:
        (tmp_path / "rules.yaml").write_text(
            f"rules: [{{name: all, plan: {{goals: bone_8_1}}, send: ['PEER@127.0.0.1:{peer.port}']}}]"
        )
        killed, end = 0, time.monotonic() + 60 + 30 * kills
        while not (answered(tmp_path) and killed == kills) and time.monotonic() < end:
            program = begun(tmp_path, port, run)
            until = time.monotonic() + 300
            if killed < kills:
                until = _listening(port) + draw.uniform(0, 4)
            while time.monotonic() < until and not (killed == kills and answered(tmp_path)):
                some = draw.sample(list(waiting.values()), min(5, len(waiting)))
                for dataset, status in zip(some, offered(port, some), strict=False):
                    if status == 0:
                        waiting.pop(dataset.SOPInstanceUID)
                time.sleep(0.1)
            program.send_signal(signal.SIGKILL)
            program.wait()
            killed += killed < kills
    assert waiting == {}
    with closing(sqlite3.connect(tmp_path / "room" / "room.sqlite")) as db:
        ((case, state),) = db.execute("SELECT case_id, state FROM jobs").fetchall()
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert state == "done"
    cases = [dcmread(file) for file in (tmp_path / "room" / "cases" / case).iterdir()]
    assert sorted(cases, key=lambda d: d.SOPInstanceUID) == sorted(sent, key=lambda d: d.SOPInstanceUID)
    assert {d.Modality for d in peer.got} == {"RTPLAN", "RTDOSE", "DOC"}
    assert len({d.SOPInstanceUID for d in peer.got}) == 3


def _listening(port: int) -> float:
    """The moment at which somebody listens on a port."""
    while True:
        with closing(socket.socket()) as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return time.monotonic()
        time.sleep(0.1)
