"""The storage SCP: takes objects from the AE titles that are allowed, within limits.

pynetdicom believes the lengths that a peer states and waits as long as it likes. The connections here are
read by `_Bounded`, which does neither.
"""

from __future__ import annotations

import logging
import shutil
import socket
import time
from dataclasses import dataclass
from socketserver import TCPServer
from typing import Any

from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RTDoseStorage,
    RTPlanStorage,
    RTStructureSetStorage,
    SpatialRegistrationStorage,
    Verification,
)
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from vmat_diffusion.errors import CaseError, InputError, limit_of
from vmat_diffusion.network.address import require_title, server_tls
from vmat_diffusion.network.inbox import Inbox
from vmat_diffusion.network.settings import ListenSettings

# pynetdicom writes what it receives into its logs, patients' names among it.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)

_LOG = logging.getLogger("vmat_diffusion.network")
_CLASSES = (
    *(CTImageStorage, RTStructureSetStorage, RTPlanStorage, RTDoseStorage, SpatialRegistrationStorage),
    # Sent along with a planning study; kept with it and not looked at.
    *(EnhancedCTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage),
)
# Not the deflated one: a small object of it may fill the memory.
_SYNTAXES = [
    *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian),
    *(JPEGLosslessSV1, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, RLELossless),
]
_SUCCESS, _NO_ROOM, _OTHER_OBJECT, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
# A peer has so long for each PDU, s, and so long between two requests.
_PDU_S, _IDLE_S = 60.0, 120.0
# and so long from the connection to the association.
_BEGIN_S = 5.0
# Of one message beside its object: its command set and the heads of its PDUs.
_HEADS = 1 << 20
_BLOCK = 1 << 16
# Connections that are no association yet, beside those allowed.
_WAITING_MOST = 8


@dataclass
class _Bounded:
    """Reads one connection in place of `AssociationSocket.recv`: `taken` are the bytes of this message."""

    link: AssociationSocket
    pdu_most: int
    message_most: int
    taken: int = 0

    def __call__(self, count: int) -> bytearray:
        """So many bytes, fewer where the connection ends. Raises OSError beyond a limit."""
        self.taken += count
        if count > self.pdu_most or self.taken > self.message_most:
            raise OSError("more than is allowed")
        out, until = bytearray(), time.monotonic() + _PDU_S
        assert self.link.socket is not None
        while len(out) < count:
            if time.monotonic() > until:
                raise TimeoutError("the peer is too slow")
            block = self.link.socket.recv(min(_BLOCK, count - len(out)))
            if not block:
                break
            out += block
        return out


class _Handler(RequestHandler):
    """Makes an association whose connection is bounded."""

    def _create_association(self) -> Association:
        link = super()._create_association()
        connection = link.dul.socket
        assert connection is not None and isinstance(self.server, _Server)
        connection.recv = _Bounded(connection, self.server.pdu_most, self.server.message_most)  # type: ignore[assignment]
        return link


class _Server(ThreadedAssociationServer):
    """Takes connections without waiting for a peer's TLS, and not more than it can serve."""

    pdu_most = message_most = connections_most = 0

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        assert self.socket is not None
        client, address = self.socket.accept()
        client.settimeout(_PDU_S)
        if self.ssl_context:  # the handshake is part of the first reading, on the connection's own thread
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def shutdown(self) -> None:
        TCPServer.shutdown(self)  # pynetdicom's own looks for the server in a list that lacks it
        self.server_close()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self.active_associations) < self.connections_most


class Receiver:
    """A running storage SCP."""

    def __init__(self, inbox: Inbox, asked: ListenSettings) -> None:
        self.inbox, self.asked = inbox, asked
        self._most = int(asked.object_mb * 1e6)
        entity = AE(require_title(asked.aet))
        entity.require_calling_aet = [require_title(title) for title in asked.allow]
        entity.require_called_aet = True
        entity.maximum_associations = asked.associations
        entity.maximum_pdu_size = asked.pdu_kb * 1024
        entity.acse_timeout, entity.dimse_timeout = _BEGIN_S, _PDU_S
        entity.network_timeout = _IDLE_S
        for sop_class in _CLASSES:
            entity.add_supported_context(sop_class, _SYNTAXES)
        entity.add_supported_context(Verification)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._stored), (evt.EVT_DIMSE_RECV, _message_read)]
        tls = server_tls(asked) if asked.tls else None
        try:
            self._server = _Server(
                entity,
                (asked.host.strip("[]"), asked.port),
                entity.ae_title,
                entity.supported_contexts,
                tls,
                handlers,
                _Handler,
            )
        except OSError as fault:
            raise InputError(
                f"{asked.host} port {asked.port} cannot be listened on ({fault.strerror}); choose another"
            ) from None
        # Beside its data a PDU has a head of 6 bytes, and its items have heads; peers count them differently.
        self._server.pdu_most = entity.maximum_pdu_size + 1024
        self._server.message_most = self._most + _HEADS + self._most // 100
        self._server.connections_most = asked.associations + _WAITING_MOST

    def serve(self) -> None:
        """Take connections until `stop` is called."""
        self._server.serve_forever()

    def stop(self) -> None:
        """Take no more connections and end those there are."""
        for link in self._server.active_associations:
            link.abort()
        self._server.shutdown()

    def _stored(self, event: Any) -> int:
        """Keep an object; the status for its sender (PS3.4 table B.2-1)."""
        try:
            content = event.encoded_dataset()
            if len(content) > self._most or not self._has_room(len(content)):
                _LOG.warning(
                    "an object was refused: the disk has no room, or it is larger than %s MB",
                    self.asked.object_mb,
                )
                return _NO_ROOM
            self.inbox.take(content, str(event.request.AffectedSOPInstanceUID))
        except CaseError as fault:
            _LOG.warning("an object was refused: %s", fault)
            return _OTHER_OBJECT if "another SOP instance" in str(fault) else _NOT_UNDERSTOOD
        except Exception as fault:  # whatever a peer sends, the listener goes on
            _LOG.error("an object was refused: %s", limit_of(fault) or type(fault).__name__)
            return _NO_ROOM
        return _SUCCESS

    def _has_room(self, size: int) -> bool:
        return shutil.disk_usage(self.inbox.folder).free - size > self.asked.spare_gb * 1e9


def _message_read(event: Any) -> None:
    """A message is whole: the next one begins to count."""
    bounded = event.assoc.dul.socket.recv
    if isinstance(bounded, _Bounded):
        bounded.taken = 0
