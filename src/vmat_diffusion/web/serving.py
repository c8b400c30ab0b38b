"""Starting the server: on which address, by which certificate, with which data folder."""

from __future__ import annotations

import ipaddress
import socket
import sys

import uvicorn

from vmat_diffusion.dicom.attributes import silence
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import why_no_file
from vmat_diffusion.web.accounts import setup_token
from vmat_diffusion.web.app import create_app
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.room import Room, Rules
from vmat_diffusion.web.settings import ServeSettings
from vmat_diffusion.web.store import open_store


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def rules_of(asked: ServeSettings) -> Rules:
    """The rules of a room. Raises InputError for an address that would be reached without TLS."""
    tls = asked.tls_certificate is not None
    if tls != (asked.tls_key is not None):
        raise InputError("--tls-certificate and --tls-key belong together; give both")
    for option, file in (("--tls-certificate", asked.tls_certificate), ("--tls-key", asked.tls_key)):
        if file is not None and not file.is_file():
            raise InputError(f"{option} {file} {why_no_file(file)}; give a PEM file")
    if not is_loopback(asked.host) and not tls:
        raise InputError(
            f"--host {asked.host} is reached by other computers, and passwords would cross the network as "
            "text; give --tls-certificate and --tls-key, or keep --host 127.0.0.1 and --behind-proxy if a "
            "proxy on this computer takes TLS off"
        )
    if not is_loopback(asked.host) and not asked.name:
        raise InputError(f"--host {asked.host} needs --name, the name by which browsers call it; give it")
    hosts = (*Rules.hosts, *(name.lower() for name in asked.name))
    return Rules(
        hosts=hosts,
        secure=tls or asked.behind_proxy,
        allow_own_approval=asked.allow_own_approval,
        upload_gb=asked.upload_gb,
        workers=asked.plans_at_a_time,
    )


def require_free(host: str, port: int) -> None:
    """Raise InputError where the server could not listen."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as fault:
            raise InputError(
                f"--host {host} --port {port} cannot be listened on ({fault.strerror}); choose another "
                "port or address"
            ) from None


def serve_room(asked: ServeSettings) -> None:
    """Serve a review room until the process is ended. Raises InputError where it cannot."""
    silence()
    rules = rules_of(asked)
    require_free(asked.host.strip("[]"), asked.port)
    store = open_store(asked.data)
    token = setup_token(store)
    with store.write() as db:
        record(db, "server", "started", host=asked.host, port=asked.port, tls=rules.secure)
    scheme = "https" if asked.tls_certificate else "http"
    address = f"[{asked.host}]" if ":" in asked.host else asked.host
    print(f"Review room: {scheme}://{address}:{asked.port}/", file=sys.stderr)
    if token:
        print(f"Set-up token for the first admin: {token}", file=sys.stderr)
    uvicorn.run(
        create_app(Room(store, rules)),
        host=asked.host.strip("[]"),
        port=asked.port,
        ssl_certfile=asked.tls_certificate,
        ssl_keyfile=asked.tls_key,
        proxy_headers=asked.behind_proxy,
        forwarded_allow_ips=["127.0.0.1", "::1"],
        server_header=False,
        access_log=False,
        log_level="warning",
        limit_concurrency=200,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
    )
