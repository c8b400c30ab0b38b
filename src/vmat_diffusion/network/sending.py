"""Objects to a peer of either kind, with tries, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vmat_diffusion.network.address import DicomPeer, WebPeer
from vmat_diffusion.network.retries import tried
from vmat_diffusion.network.settings import SendSettings
from vmat_diffusion.network.storing import Commitment, Parcel, commitment, store
from vmat_diffusion.network.stow import stow


@dataclass(frozen=True)
class Receipt:
    """What a peer took: the objects' names, and whether it promised to keep them."""

    peer: str
    objects: tuple[str, ...]
    commitment: Commitment

    def summary(self) -> dict[str, Any]:
        """The object that `send --json` prints."""
        return {"peer": self.peer, "objects": list(self.objects), "commitment": self.commitment}


def send_parcels(
    peer: DicomPeer | WebPeer,
    parcels: Sequence[Parcel],
    settings: SendSettings,
    *,
    sleep: Callable[[float], None] = time.sleep,
    note: Callable[[str], None] = lambda _: None,
) -> Receipt:
    """Send objects; those that were taken are not sent again at another try.

    Raises TransientError after the last try, InputError where no try can help.
    """
    done: set[str] = set()
    names = tuple(parcel.label for parcel in parcels)
    if isinstance(peer, WebPeer):
        tried(lambda: stow(peer, parcels, settings, done), settings.tries, sleep=sleep, note=note)
        return Receipt(str(peer), names, "not asked for")
    tried(lambda: store(peer, parcels, settings, done), settings.tries, sleep=sleep, note=note)
    return Receipt(str(peer), names, commitment(peer, parcels, settings))
