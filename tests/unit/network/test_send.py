"""Results to DICOM and DICOMweb peers on this computer."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import sys
from pathlib import Path

import pytest
from network_peers import Peer, WebServer, certificate, dicom_peer, planning_run, web_peer
from pydicom import dcmread
from pynetdicom import build_context

from vmat_diffusion.cli.program import main
from vmat_diffusion.errors import InputError, PlanError
from vmat_diffusion.network.address import DicomPeer, WebPeer, peer_of
from vmat_diffusion.network.results import parcels_of_run, refusal
from vmat_diffusion.network.retries import TransientError, tried, wait_s
from vmat_diffusion.network.sending import Receipt, send_parcels
from vmat_diffusion.network.settings import SendSettings
from vmat_diffusion.network.storing import Parcel

RTDOSE = "1.2.840.10008.5.1.4.1.1.481.2"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planning_run(tmp_path_factory.mktemp("passed") / "run")


@pytest.fixture(scope="module")
def parcels(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Parcel]:
    return parcels_of_run(run, tmp_path_factory.mktemp("scratch"))


def sent(peer: Peer, parcels: list[Parcel], **settings: object) -> tuple[Receipt, list[float]]:
    waits: list[float] = []
    asked = SendSettings(**{"timeout_s": 5.0, "commitment_s": 3.0, **settings})
    receipt = send_parcels(DicomPeer("PEER", "127.0.0.1", peer.port), parcels, asked, sleep=waits.append)
    return receipt, waits


def test_a_peer_gets_plan_dose_and_report_and_promises_to_keep_them(run: Path, parcels: list[Parcel]) -> None:
    with dicom_peer(Peer()) as peer:
        receipt, waits = sent(peer, parcels)
    assert receipt.objects == ("RTPLAN", "RTDOSE", "PDF")
    assert receipt.commitment == "committed"
    assert peer.kinds() == ["DOC", "RTDOSE", "RTPLAN"]
    assert waits == []
    for name, dataset in zip(("RP.dcm", "RD.dcm"), peer.got, strict=False):
        assert dataset == dcmread(run / name)


def test_the_report_is_a_pdf_of_the_same_study(run: Path, parcels: list[Parcel]) -> None:
    document, dose = dcmread(parcels[-1].path), dcmread(run / "RD.dcm")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate"):
        assert document[keyword] == dose[keyword]
    pdf = document.EncapsulatedDocument[: document.EncapsulatedDocumentLength]
    assert pdf.startswith(b"%PDF-1.4")
    assert pdf.endswith(b"%%EOF\n")
    assert b"Verdict of the gate: PASSED" in pdf
    assert b"PTV D95% >= 47.5 Gy: 50.00 Gy, pass" in pdf


def test_a_report_that_is_made_again_is_the_same_object(
    run: Path, parcels: list[Parcel], tmp_path: Path
) -> None:
    assert parcels_of_run(run, tmp_path)[-1].uid == parcels[-1].uid


def test_a_pdf_in_the_run_is_sent_as_it_is(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(run, own)
    (own / "report.pdf").write_bytes(b"%PDF-1.7 the report!")
    document = dcmread(parcels_of_run(own, tmp_path)[-1].path)
    assert document.EncapsulatedDocument == b"%PDF-1.7 the report!"


@pytest.mark.parametrize("outcome", ["FAILED", "INCONCLUSIVE"])
def test_a_plan_that_did_not_pass_is_never_sent(tmp_path: Path, outcome: str) -> None:
    run = planning_run(tmp_path / "run", outcome)
    shutil.copy(run / "RD.dcm", run / "RP.dcm")  # whatever lies there
    found = parcels_of_run(run, tmp_path)
    assert [parcel.label for parcel in found] == ["RTDOSE", "PDF"]
    assert outcome.encode() in dcmread(found[-1].path).EncapsulatedDocument


def test_an_approved_plan_is_refused(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(run, own)
    plan = dcmread(own / "RP.dcm")
    plan.ApprovalStatus = "APPROVED"
    plan.save_as(own / "RP.dcm")
    with pytest.raises(PlanError, match=r"RP.dcm is APPROVED; only plans that are UNAPPROVED are sent"):
        parcels_of_run(own, tmp_path)


def test_a_refusal_is_a_pdf_with_its_sentence(run: Path, tmp_path: Path) -> None:
    parcel = refusal("PTV reaches 4 mm outside BODY (z = 3); fix it", beside=run / "RD.dcm", scratch=tmp_path)
    document = dcmread(parcel.path)
    assert rb"PTV reaches 4 mm outside BODY \(z = 3\); fix it" in document.EncapsulatedDocument
    assert document.StudyInstanceUID == dcmread(run / "RD.dcm").StudyInstanceUID


def test_what_was_taken_is_not_sent_again_after_a_peer_without_room(parcels: list[Parcel]) -> None:
    with dicom_peer(Peer(statuses=[0, 0xA700, 0xA700])) as peer:
        receipt, waits = sent(peer, parcels)
    assert waits == [1.0, 2.0]
    assert peer.kinds() == ["DOC", "RTDOSE", "RTPLAN"]
    assert receipt.objects == ("RTPLAN", "RTDOSE", "PDF")


def test_a_refused_object_ends_the_sending_with_its_status(parcels: list[Parcel]) -> None:
    with (
        dicom_peer(Peer(statuses=[0xC123])) as peer,
        pytest.raises(InputError, match="status C123") as raised,
    ):
        sent(peer, parcels)
    assert not isinstance(raised.value, TransientError)
    assert peer.got == []


def test_a_peer_that_does_not_answer_is_tried_so_often(parcels: list[Parcel]) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        peer = Peer(port=unheard.getsockname()[1])
        waits: list[float] = []
        with pytest.raises(TransientError, match="cannot be reached"):
            send_parcels(
                DicomPeer("PEER", "127.0.0.1", peer.port),
                parcels,
                SendSettings(tries=4, timeout_s=1.0),
                sleep=waits.append,
            )
    assert waits == [1.0, 2.0, 4.0]
    assert [wait_s(n) for n in (1, 7, 2000)] == [1.0, 60.0, 60.0]


def test_a_peer_that_does_not_know_us_is_not_tried_again(parcels: list[Parcel]) -> None:
    with (
        dicom_peer(Peer(), allow=["OTHER"]) as peer,
        pytest.raises(InputError, match="must allow VMATDIFFUSION") as raised,
    ):
        sent(peer, parcels)
    assert not isinstance(raised.value, TransientError)


def test_a_peer_that_takes_doses_alone_is_named(parcels: list[Parcel]) -> None:
    with (
        dicom_peer(Peer(), contexts=[build_context(RTDOSE)]) as peer,
        pytest.raises(InputError, match="does not take a RTPLAN"),
    ):
        sent(peer, parcels)


def test_a_peer_that_knows_implicit_alone_gets_the_same_numbers(run: Path, parcels: list[Parcel]) -> None:
    contexts = [build_context(parcel.sop_class, "1.2.840.10008.1.2") for parcel in parcels]
    with dicom_peer(Peer(), contexts=contexts) as peer:
        sent(peer, parcels)
    assert peer.got[0].BeamSequence == dcmread(run / "RP.dcm").BeamSequence
    assert peer.got[1].PixelData == dcmread(run / "RD.dcm").PixelData


@pytest.mark.parametrize(
    ("peer", "offered", "asked", "answer"),
    [
        (Peer(), False, 3.0, "not offered"),
        (Peer(commits=False), True, 0.5, "no answer yet"),
        (Peer(), True, 0.0, "not asked for"),
    ],
)
def test_what_a_peer_says_of_the_commitment(
    parcels: list[Parcel], peer: Peer, offered: bool, asked: float, answer: str
) -> None:
    with dicom_peer(peer, commitment=offered):
        assert sent(peer, parcels, commitment_s=asked)[0].commitment == answer


def test_an_object_that_the_peer_lost_is_named(parcels: list[Parcel]) -> None:
    with (
        dicom_peer(Peer(lost=(parcels[1].uid,))) as peer,
        pytest.raises(InputError, match=r"has not stored 1 of 3 objects \(RTDOSE\); send them again"),
    ):
        sent(peer, parcels)


@needs_openssl
def test_tls_with_a_certificate_that_is_trusted_and_not_without(
    parcels: list[Parcel], tmp_path: Path
) -> None:
    pem, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    with dicom_peer(Peer(), ssl_context=context) as peer:
        assert sent(peer, parcels, tls=True, tls_ca=pem)[0].commitment == "committed"
        with pytest.raises(InputError, match="cannot be reached"):
            sent(peer, parcels, tls=True, tries=1)
    assert peer.kinds() == ["DOC", "RTDOSE", "RTPLAN"]


def test_a_web_server_gets_each_object_whole(run: Path, parcels: list[Parcel], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("Bearer abc\n")
    server = WebServer(answers=[(503, ""), (200, "{}"), (503, "")])
    with web_peer(server, tmp_path):
        waits: list[float] = []
        receipt = send_parcels(
            peer_of(server.url), parcels, SendSettings(authorization=token), sleep=waits.append
        )
    assert receipt.objects == ("RTPLAN", "RTDOSE", "PDF")
    assert waits == [1.0, 2.0]
    assert server.got[0] == dcmread(run / "RP.dcm")
    assert server.got[1] == dcmread(run / "RD.dcm")
    assert [dataset.Modality for dataset in server.got] == ["RTPLAN", "RTDOSE", "DOC"]
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer abc"}
    assert set(server.paths) == {"/dicom-web/studies"}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((409, "{}"), "refuses a RTPLAN .HTTP 409."),
        ((302, "{}"), "refuses a RTPLAN .HTTP 302."),
        ((401, ""), "with --authorization"),
        ((200, '{"00081198": {"vr": "SQ", "Value": [{}]}}'), "refuses a RTPLAN"),
    ],
)
def test_a_web_server_that_refuses_is_not_asked_again(
    parcels: list[Parcel], tmp_path: Path, answer: tuple[int, str], sentence: str
) -> None:
    server = WebServer(answers=[answer])
    with web_peer(server, tmp_path), pytest.raises(InputError, match=sentence) as raised:
        send_parcels(peer_of(server.url), parcels, SendSettings())
    assert not isinstance(raised.value, TransientError)
    assert len(server.paths) == 1


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("TPS@10.0.0.5:104", DicomPeer("TPS", "10.0.0.5", 104)),
        ("A B@[::1]:11112", DicomPeer("A B", "::1", 11112)),
        ("https://pacs.org/dicom-web/", WebPeer("https://pacs.org/dicom-web/studies")),
        ("http://localhost:8042/x/studies", WebPeer("http://localhost:8042/x/studies")),
    ],
)
def test_addresses(text: str, peer: object) -> None:
    assert peer_of(text) == peer


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("TPS", "write AET@host:port"),
        ("TPS@host:0", "is no address"),
        ("TPS@host:70000", "is no address"),
        ("ATITLETHATISTOOLONG@host:104", "has 19 characters; DICOM allows 1 to 16"),
        ("http://pacs.org/dicom-web", "use https"),
        ("https://me:secret@pacs.org/x", "use --authorization FILE"),
        ("ftp://pacs.org", "no address of a DICOMweb server"),
        ("https://[bad/x", "no address of a DICOMweb server"),
    ],
)
def test_addresses_that_are_none(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as raised:
        peer_of(text)
    assert "secret" not in str(raised.value)


def test_an_error_of_another_kind_is_not_tried_again() -> None:
    calls: list[int] = []

    def failing() -> None:
        calls.append(1)
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        tried(failing, 5, sleep=lambda _: None)
    assert len(calls) == 1


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with dicom_peer(Peer(), commitment=False) as peer:
        monkeypatch.setattr(
            sys, "argv", ["vmat", "send", str(run), f"PEER@127.0.0.1:{peer.port}", "--json", "-q"]
        )
        with pytest.raises(SystemExit, match="0"):
            main()
    assert json.loads(capsys.readouterr().out) == {
        "peer": f"PEER@127.0.0.1:{peer.port}",
        "objects": ["RTPLAN", "RTDOSE", "PDF"],
        "commitment": "not offered",
    }
    assert peer.kinds() == ["DOC", "RTDOSE", "RTPLAN"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run.json of the run does not exist; name a folder"):
        parcels_of_run(tmp_path, tmp_path)
