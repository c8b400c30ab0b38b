"""What `send` and `listen` can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vmat_diffusion.options import Option, settings
from vmat_diffusion.web.settings import DataFolder, PlansAtATime, TlsCertificate, TlsKey

_Pem = Option(metavar="FILE")
OwnTitle = Annotated[str, Field(description="Our own AE title."), Option(metavar="AET")]
Authorization = Annotated[
    Path | None,
    Field(description="File with the value of the HTTP header Authorization, for DICOMweb."),
    Option(metavar="FILE"),
]


@settings
class Secured:
    """How connections are secured."""

    tls: Annotated[bool, Field(description="Use TLS for DICOM connections.")] = False
    tls_ca: Annotated[
        Path | None,
        Field(description="Certificates that the other side's must come from, a PEM file."),
        _Pem,
    ] = None
    tls_certificate: TlsCertificate = None
    tls_key: TlsKey = None


@settings
class SendSettings(Secured):
    """How objects are sent."""

    aet: OwnTitle = "VMATDIFFUSION"
    tries: Annotated[
        int, Field(ge=1, le=100, description="Tries where the other side does not answer or has no room.")
    ] = 5
    timeout_s: Annotated[float, Field(gt=0, le=3600, description="Longest wait for an answer, s.")] = 30.0
    commitment_s: Annotated[
        float,
        Field(
            ge=0, le=3600, description="Longest wait for the storage commitment, s; 0 does not ask for it."
        ),
    ] = 10.0
    commitment_port: Annotated[
        int | None,
        Field(
            ge=1,
            le=65535,
            description="Port where the commitment may arrive; by default it uses the same connection.",
        ),
    ] = None
    authorization: Authorization = None


@settings
class ListenSettings(Secured):
    """How studies are taken and planned."""

    rules: Annotated[
        Path, Field(description="Which studies are planned and how: a YAML file."), Option(metavar="FILE")
    ]
    allow: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="AE title that may send to us."),
        Option(metavar="AET"),
    ]
    data: DataFolder = Path("review_room")
    aet: OwnTitle = "VMATDIFFUSION"
    port: Annotated[int, Field(ge=1, le=65535, description="Port to listen on.")] = 11112
    host: Annotated[
        str,
        Field(
            description="Address to listen on: others than this computer's own need --tls or --without-tls."
        ),
        Option(metavar="ADDRESS"),
    ] = "127.0.0.1"
    without_tls: Annotated[
        bool, Field(description="Listen on a network address without TLS: the network itself is closed.")
    ] = False
    quiet_s: Annotated[
        float,
        Field(gt=0, le=86400, description="A study is complete after so long without a new object, s."),
    ] = 60.0
    patience_minutes: Annotated[
        float,
        Field(
            gt=0, le=10080, description="So long images that a structure set names are waited for, minutes."
        ),
    ] = 30.0
    associations: Annotated[int, Field(ge=1, le=100, description="Connections at a time.")] = 4
    pdu_kb: Annotated[int, Field(ge=16, le=4096, description="Longest PDU, KB.")] = 64
    object_mb: Annotated[
        float, Field(gt=0, le=2000, description="Largest object, MB; a connection that sends more is ended.")
    ] = 256.0
    spare_gb: Annotated[
        float, Field(gt=0, le=1e5, description="Disk that stays free, GB; objects beyond it are refused.")
    ] = 5.0
    keep_days: Annotated[
        float, Field(gt=0, le=3650, description="Received objects are removed after so many days.")
    ] = 7.0
    delivery_hours: Annotated[
        float,
        Field(gt=0, le=720, description="So long results are sent again to a peer without answer, hours."),
    ] = 24.0
    plans_at_a_time: PlansAtATime = 1
    authorization: Authorization = None
