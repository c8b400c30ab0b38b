"""Objects to a DICOM peer: C-ECHO, C-STORE, and storage commitment where the peer offers it.

Source: DICOM PS3.4 annex A (verification), B (storage) and J (storage commitment push model).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from vmat_diffusion.dicom.dataset import new_uid
from vmat_diffusion.errors import InputError
from vmat_diffusion.network.address import DicomPeer, client_tls, require_title
from vmat_diffusion.network.retries import TransientError
from vmat_diffusion.network.settings import SendSettings

# pynetdicom writes what it receives into its logs, patients' names among it.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)

Commitment = Literal["committed", "no answer yet", "not offered", "not asked for"]
_SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# PS3.4 table B.2-1: refused because of resources; all others refuse the object itself.
_NO_ROOM = range(0xA700, 0xA800)
_WARNINGS = (0xB000, 0xB006, 0xB007)


@dataclass(frozen=True)
class Parcel:
    """An object to be sent: its file, SOP class and SOP instance, and what sentences call it."""

    path: Path
    sop_class: str
    uid: str
    label: str


@dataclass
class _Answer:
    """The report of a storage commitment, which comes on a thread of the network's."""

    transaction: str
    read: bool = False
    came: threading.Event = field(default_factory=threading.Event)
    failed: list[str] = field(default_factory=list)

    def handle(self, event: Any) -> tuple[int, Dataset | None]:
        """Take an N-EVENT-REPORT: 0x0000 where it is for our request, 0x0110 where it cannot be read."""
        try:
            report = event.event_information
            if str(report.get("TransactionUID")) == self.transaction:
                self.failed = [str(i.ReferencedSOPInstanceUID) for i in report.get("FailedSOPSequence") or ()]
                self.read = True
        except Exception:  # whatever a peer sends, pydicom may raise on it
            return 0x0110, None
        return 0x0000, None

    def answered(self, event: Any) -> None:
        """The connection may be ended only after our answer to the report has gone out."""
        if self.read:
            self.came.set()


def store(peer: DicomPeer, parcels: Sequence[Parcel], settings: SendSettings, done: set[str]) -> None:
    """C-ECHO, then C-STORE of each object whose UID is not in `done`, to which those stored are added.

    Raises TransientError where another try may help, InputError where it does not.
    """
    waiting = [parcel for parcel in parcels if parcel.uid not in done]
    entity = _entity(settings)
    entity.add_requested_context(Verification)
    for sop_class in dict.fromkeys(parcel.sop_class for parcel in waiting):
        entity.add_requested_context(sop_class, _SYNTAXES)
    with _association(entity, peer, settings) as link:
        if _status(link.send_c_echo(), peer) != 0:
            raise InputError(f"{peer} refuses C-ECHO; ask its administrator to allow {settings.aet}")
        accepted = {context.abstract_syntax for context in link.accepted_contexts}
        for parcel in waiting:
            if parcel.sop_class not in accepted:
                raise InputError(f"{peer} does not take a {parcel.label}; send it to another system")
            _require_stored(_status(_stored(link, parcel), peer), parcel, peer)
            done.add(parcel.uid)


def _stored(link: Association, parcel: Parcel) -> Dataset:
    try:
        return link.send_c_store(parcel.path)
    except (RuntimeError, ValueError, OSError):
        raise TransientError(f"the connection broke while a {parcel.label} was sent") from None


def _status(answer: Dataset, peer: DicomPeer) -> int:
    if "Status" not in answer:
        raise TransientError(f"{peer} does not answer in time or broke the connection")
    return int(answer.Status)


def _require_stored(status: int, parcel: Parcel, peer: DicomPeer) -> None:
    if status == 0 or status in _WARNINGS:
        return
    if status in _NO_ROOM:
        raise TransientError(f"{peer} has no room for a {parcel.label} (status {status:04X})")
    raise InputError(
        f"{peer} refuses a {parcel.label} (status {status:04X}); see what its log says of the object"
    )


def commitment(peer: DicomPeer, parcels: Sequence[Parcel], settings: SendSettings) -> Commitment:
    """Ask the peer to be responsible for objects it has stored, and wait for its answer.

    Raises InputError where it says that it has not all of them.
    """
    if not settings.commitment_s:
        return "not asked for"
    answer = _Answer(str(new_uid()))
    handlers = [(evt.EVT_N_EVENT_REPORT, answer.handle), (evt.EVT_PDU_SENT, answer.answered)]
    entity = _entity(settings)
    entity.add_requested_context(StorageCommitmentPushModel)
    with _reports_taken(settings, handlers):
        try:
            with _association(entity, peer, settings, handlers) as link:
                if not link.accepted_contexts:
                    return "not offered"
                reply, _ = link.send_n_action(
                    _request(answer.transaction, parcels),
                    1,
                    StorageCommitmentPushModel,
                    StorageCommitmentPushModelInstance,
                )
                if "Status" not in reply or int(reply.Status) != 0:
                    return "not offered"
                answer.came.wait(settings.commitment_s)
        except InputError:  # a peer that refuses a connection for this alone does not offer it
            return "not offered"
    if answer.failed:
        names = [parcel.label for parcel in parcels if parcel.uid in answer.failed]
        raise InputError(
            f"{peer} says it has not stored {len(answer.failed)} of {len(parcels)} objects "
            f"({', '.join(names)}); send them again"
        )
    return "committed" if answer.came.is_set() else "no answer yet"


def _request(transaction: str, parcels: Sequence[Parcel]) -> Dataset:
    out = Dataset()
    out.TransactionUID = transaction
    out.ReferencedSOPSequence = []
    for parcel in parcels:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = parcel.sop_class, parcel.uid
        out.ReferencedSOPSequence.append(item)
    return out


def _entity(settings: SendSettings) -> AE:
    entity = AE(require_title(settings.aet))
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = settings.timeout_s
    entity.connection_timeout = settings.timeout_s
    return entity


@contextmanager
def _association(
    entity: AE, peer: DicomPeer, settings: SendSettings, handlers: Sequence[Any] = ()
) -> Iterator[Association]:
    """An association, released at the end. Raises TransientError or InputError where there is none."""
    tls = (client_tls(settings), peer.host) if settings.tls else None
    link = entity.associate(
        peer.host, peer.port, ae_title=peer.aet, tls_args=tls, evt_handlers=list(handlers)
    )
    if not link.is_established:
        raise _no_association(link, peer, settings)
    try:
        yield link
    finally:
        if link.is_established:
            link.release()


def _no_association(link: Association, peer: DicomPeer, settings: SendSettings) -> InputError:
    if link.is_rejected:
        answer = link.acceptor.primitive
        # PS3.8 table 9-21: result 2 is transient; reasons 3 and 7 of source 1 are unknown AE titles.
        reason = getattr(answer, "reason_str", "") or "no reason given"
        sentence = f"{peer} rejects the connection ({reason}); its administrator must allow {settings.aet}"
        return TransientError(sentence) if getattr(answer, "result", 1) == 2 else InputError(sentence)
    if link.is_aborted and link.rejected_contexts:
        return InputError(f"{peer} accepts none of the kinds of objects; send them to another system")
    return TransientError(f"{peer} cannot be reached; see whether it runs, and its address, port and TLS")


@contextmanager
def _reports_taken(settings: SendSettings, handlers: list[Any]) -> Iterator[None]:
    """A port on which a peer that opens a connection for its report finds us, if one was given."""
    if settings.commitment_port is None:
        yield
        return
    entity = _entity(settings)
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    entity.add_supported_context(Verification)
    try:
        server = entity.start_server(("", settings.commitment_port), block=False, evt_handlers=handlers)
    except OSError as fault:
        raise InputError(
            f"port {settings.commitment_port} cannot be listened on ({fault.strerror}); choose another"
        ) from None
    try:
        yield
    finally:
        if server is not None:
            server.shutdown()
