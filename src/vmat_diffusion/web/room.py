"""What the parts of the review room share: its store and how it was asked to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmat_diffusion.errors import InputError
from vmat_diffusion.web.store import Store


class AbsentError(InputError):
    """A case, run, job or user that is not there: status 404."""


class RefusedError(InputError):
    """What is asked for does not fit the state that something is in: status 409."""


@dataclass(frozen=True)
class Rules:
    """How a room runs. `hosts` are the names by which it may be called, `secure` says it is reached by TLS.

    `upload_gb` bounds one upload, unpacked; `workers` are plans made at a time.
    """

    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    secure: bool = False
    allow_own_approval: bool = False
    upload_gb: float = 4.0
    upload_files: int = 20_000
    workers: int = 1


@dataclass(frozen=True)
class Room:
    """One review room."""

    store: Store
    rules: Rules = Rules()

    def case_folder(self, folder: str) -> Path:
        """Where a case's DICOM files lie; `folder` is what the database holds."""
        return self.store.folder / "cases" / folder

    def run_folder(self, run_id: str) -> Path:
        """Where the files of a planning run lie."""
        return self.store.folder / "runs" / run_id
