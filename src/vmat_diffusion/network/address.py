"""Who is spoken to: `AET@host:port` or the URL of a DICOMweb server, and TLS with it."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vmat_diffusion.errors import InputError
from vmat_diffusion.network.settings import Secured

_TITLE_MOST = 16
_DICOM = re.compile(r"(?P<aet>[^@]+)@(?P<host>\[[0-9A-Fa-f:.]+\]|[^@:\s/]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class DicomPeer:
    """An application entity that takes C-STORE."""

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"


@dataclass(frozen=True)
class WebPeer:
    """A DICOMweb server; `url` is where its studies are posted to."""

    url: str

    def __str__(self) -> str:
        return self.url


def require_title(title: str) -> str:
    """An AE title without blanks around it; InputError for one that DICOM does not allow (PS3.5 6.2)."""
    plain = title.strip()
    if not 0 < len(plain) <= _TITLE_MOST or "\\" in plain or not (plain.isascii() and plain.isprintable()):
        raise InputError(
            f"AE title {title!r} has {len(plain)} characters; DICOM allows 1 to {_TITLE_MOST} ASCII ones "
            "without a backslash"
        )
    return plain


def peer_of(text: str) -> DicomPeer | WebPeer:
    """The peer that a text names. Raises InputError for one that names none.

    `http` is for this computer alone: what is sent names patients.
    """
    if "://" in text:
        return _web_peer(text)
    found = _DICOM.fullmatch(text.strip())
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        raise InputError(
            f"{text!r} is no address; write AET@host:port for DICOM or https://host/dicom-web for DICOMweb"
        )
    return DicomPeer(require_title(found["aet"]), found["host"].strip("[]"), int(found["port"]))


def _web_peer(text: str) -> WebPeer:
    try:
        parts = urlsplit(text.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise InputError("the URL is no address of a DICOMweb server; write https://host:port/dicom-web")
    if parts.username is not None or parts.password is not None:
        raise InputError("the URL holds a name or password, which logs would show; use --authorization FILE")
    if parts.scheme == "http" and not is_this_computer(host):
        raise InputError(f"http to {host} would send a patient's data in the open; use https")
    path = parts.path.rstrip("/")
    return WebPeer(
        f"{parts.scheme}://{parts.netloc}{path if path.endswith('/studies') else path + '/studies'}"
    )


def is_this_computer(host: str) -> bool:
    """Whether an address is of this computer's own network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def client_tls(secured: Secured) -> ssl.SSLContext:
    """TLS for connections that we open: the other side's name and certificate are checked."""
    with _named(secured.tls_ca):
        context = ssl.create_default_context(cafile=secured.tls_ca)
    _load_own(context, secured)
    return context


def server_tls(secured: Secured) -> ssl.SSLContext:
    """TLS for connections that we take; with `tls_ca` the other side must show a certificate from there."""
    if secured.tls_certificate is None:
        raise InputError("--tls needs our certificate; give --tls-certificate and --tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if secured.tls_ca is not None:
        with _named(secured.tls_ca):
            context.load_verify_locations(secured.tls_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    _load_own(context, secured)
    return context


def _load_own(context: ssl.SSLContext, secured: Secured) -> None:
    if secured.tls_certificate is None:
        if secured.tls_key is not None:
            raise InputError("--tls-key is without --tls-certificate; give both")
        return
    with _named(secured.tls_certificate):
        context.load_cert_chain(secured.tls_certificate, secured.tls_key)


@contextmanager
def _named(file: Path | None) -> Iterator[None]:
    """Say which PEM file it is that cannot be used."""
    try:
        yield
    except OSError as fault:  # ssl.SSLError is one
        why = fault.strerror or type(fault).__name__
        name = file.name if file else "of the system"
        raise InputError(f"TLS file {name} cannot be used ({why}); give a PEM file that holds it") from None
