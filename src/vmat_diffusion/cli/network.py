"""The commands that send results and take studies over the network."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vmat_diffusion.cli.display import show, work_shown
from vmat_diffusion.cli.fields import Working
from vmat_diffusion.cli.options import part
from vmat_diffusion.errors import InputError
from vmat_diffusion.network.settings import ListenSettings, SendSettings
from vmat_diffusion.options import Option, settings


def _require_libraries() -> None:
    try:
        import pynetdicom  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as missing:
        raise InputError(
            f"{missing.name} is not installed, which the network needs; install vmat-diffusion[network]"
        ) from None


@settings
class SendOptions(SendSettings, Working):
    """What `send` takes."""

    run: Annotated[
        Path,
        Field(description="Folder that `plan` has written."),
        Option(positional=True, metavar="RUN"),
    ]
    peer: Annotated[
        str,
        Field(description="Where to: AET@host:port, or https://host/dicom-web for DICOMweb."),
        Option(positional=True, metavar="PEER"),
    ]


def send(options: SendOptions) -> None:
    """Send a run to a DICOM or DICOMweb peer: the plan only if it passed, the dose, the report as a PDF.

    C-ECHO comes first. Where the peer does not answer or has no room it is tried again after 1, 2, 4 ... s.
    """
    _require_libraries()
    from vmat_diffusion.network.address import peer_of
    from vmat_diffusion.network.results import parcels_of_run
    from vmat_diffusion.network.sending import send_parcels

    peer, asked = peer_of(options.peer), SendSettings(**part(SendSettings, options))
    with work_shown(options) as progress, tempfile.TemporaryDirectory(prefix="vmat_") as scratch:
        parcels = parcels_of_run(options.run, Path(scratch))
        receipt = send_parcels(peer, parcels, asked, note=lambda text: progress("send", 0.0, text))
    if options.json:
        show(json.dumps(receipt.summary()))
    else:
        show(f"{', '.join(receipt.objects)} sent to {receipt.peer}; storage commitment: {receipt.commitment}")


def listen(options: ListenSettings) -> None:
    """Take studies by DICOM, plan them by rules, and send the results back, until the process is ended.

    A study is complete when its structure set and all images that it refers to are there and nothing more
    came for a while. Plans are made in the queue of the review room in --data.
    """
    _require_libraries()
    from vmat_diffusion.network.listener import listen_for_studies

    listen_for_studies(options)
