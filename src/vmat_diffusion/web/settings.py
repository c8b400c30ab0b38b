"""What `serve` can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vmat_diffusion.options import Option, settings

DataFolder = Annotated[
    Path,
    Field(description="Folder of the cases: those of the review room, with plans and database."),
    Option(metavar="DIR"),
]
_Pem = Option(metavar="FILE")
TlsCertificate = Annotated[Path | None, Field(description="Certificate chain for TLS, a PEM file."), _Pem]
TlsKey = Annotated[Path | None, Field(description="Key of the certificate, a PEM file."), _Pem]
PlansAtATime = Annotated[
    int, Field(ge=1, le=16, description="Plans made at the same time, a process for each.")
]


@settings
class ServeSettings:
    """How the review room is served."""

    data: DataFolder = Path("review_room")
    port: Annotated[int, Field(ge=1, le=65535, description="Port to listen on.")] = 8765
    host: Annotated[
        str,
        Field(description="Address to listen on: others than this computer's own need --tls-certificate."),
        Option(metavar="ADDRESS"),
    ] = "127.0.0.1"
    name: Annotated[
        tuple[str, ...],
        Field(description="Name by which browsers call the server, beside localhost."),
        Option(metavar="HOST"),
    ] = ()
    tls_certificate: TlsCertificate = None
    tls_key: TlsKey = None
    behind_proxy: Annotated[
        bool, Field(description="A proxy on this computer takes TLS off and sends X-Forwarded-For.")
    ] = False
    allow_own_approval: Annotated[
        bool, Field(description="Let a reviewer approve plans that the same person had made.")
    ] = False
    upload_gb: Annotated[
        float, Field(gt=0, le=100, description="Most that one upload may hold, unpacked, GB.")
    ] = 4.0
    plans_at_a_time: PlansAtATime = 1
