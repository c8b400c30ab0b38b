"""Objects to a DICOMweb server by STOW-RS, one request for each.

Source: DICOM PS3.18 10.5. No redirection is followed: what is sent names patients.
"""

from __future__ import annotations

import http.client
import json
import ssl
import uuid
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from vmat_diffusion.errors import InputError
from vmat_diffusion.network.address import WebPeer, client_tls
from vmat_diffusion.network.retries import TransientError
from vmat_diffusion.network.settings import SendSettings
from vmat_diffusion.network.storing import Parcel

_ANSWER_BYTES_MOST = 1 << 20
# FailedSOPSequence, which an answer of success may hold all the same.
_FAILED = "00081198"


def stow(peer: WebPeer, parcels: Sequence[Parcel], settings: SendSettings, done: set[str]) -> None:
    """Post each object whose UID is not in `done`, to which those stored are added.

    Raises TransientError where another try may help, InputError where it does not.
    """
    headers = {"Accept": "application/dicom+json"}
    if settings.authorization is not None:
        headers["Authorization"] = _authorization(settings.authorization)
    for parcel in parcels:
        if parcel.uid not in done:
            _post(peer, parcel, settings, headers)
            done.add(parcel.uid)


def _authorization(file: Path) -> str:
    try:
        value = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        raise InputError("the file of --authorization cannot be read; give a text file of one line") from None
    if not value or not value.isprintable():
        raise InputError(
            "the file of --authorization is no single line; write `Bearer TOKEN` or `Basic CODE`"
        )
    return value


def _post(peer: WebPeer, parcel: Parcel, settings: SendSettings, headers: dict[str, str]) -> None:
    boundary = uuid.uuid4().hex
    body = b"".join(
        (
            f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode("ascii"),
            parcel.path.read_bytes(),
            f"\r\n--{boundary}--\r\n".encode("ascii"),
        )
    )
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    parts = urlsplit(peer.url)
    link = _connection(peer, settings)
    try:
        link.request("POST", parts.path, body=body, headers={**headers, "Content-Type": kind})
        answer = link.getresponse()
        text = answer.read(_ANSWER_BYTES_MOST)
    except ssl.SSLCertVerificationError:
        raise InputError(
            f"{peer} has a certificate that is not trusted; give the one it comes from with --tls-ca"
        ) from None
    except (OSError, http.client.HTTPException):
        raise TransientError(f"{peer} cannot be reached; see whether it runs, and its address") from None
    finally:
        link.close()
    _require_stored(peer, parcel, answer.status, text)


def _connection(peer: WebPeer, settings: SendSettings) -> http.client.HTTPConnection:
    parts = urlsplit(peer.url)
    assert parts.hostname is not None
    if parts.scheme == "https":
        return http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=settings.timeout_s, context=client_tls(settings)
        )
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=settings.timeout_s)


def _require_stored(peer: WebPeer, parcel: Parcel, status: int, text: bytes) -> None:
    if status in (401, 403):
        raise InputError(f"{peer} refuses us (HTTP {status}); give what it asks for with --authorization")
    if status in (408, 425, 429) or status >= 500:
        raise TransientError(f"{peer} cannot take a {parcel.label} now (HTTP {status})")
    if status not in (200, 202) or _names_failures(text):
        raise InputError(
            f"{peer} refuses a {parcel.label} (HTTP {status}); see what its log says of the object"
        )


def _names_failures(text: bytes) -> bool:
    """Whether the answer, a data set as JSON, lists objects that were not stored."""
    try:
        answer = json.loads(text)
    except ValueError:  # servers that answer in XML or not at all say it by the status
        return False
    answer = answer[0] if isinstance(answer, list) and answer else answer
    failed = answer.get(_FAILED) if isinstance(answer, dict) else None
    return bool(isinstance(failed, dict) and failed.get("Value"))
