"""Who is planned: training cases of a data set, or synthetic patients by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmat_diffusion import __version__
from vmat_diffusion.anatomy import SITES, synthetic_case
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Point
from vmat_diffusion.training.cases import TrainingCase, load_case
from vmat_diffusion.training.index import read_index
from vmat_diffusion.training.prepare import on_spacing
from vmat_diffusion.workflow.clinical_case import vocabulary


@dataclass(frozen=True)
class Patient:
    """A patient who can be planned any number of times.

    `file` is a training case, None for a synthetic patient of `site` and `seed`. `patient` is the
    pseudonym by which data sets are split; `key` changes with what the patient is made of.
    """

    id: str
    site: str
    patient: str
    key: str
    file: Path | None = None
    seed: int = 0

    def read(self, spacing_mm: Point) -> TrainingCase:
        """The patient on the grid of the file, or a synthetic one on `spacing_mm` (x, y, z)."""
        if self.file is not None:
            return load_case(self.file)
        made = on_spacing(synthetic_case(self.site, self.seed), spacing_mm)
        origin = {"source": "synthetic", "site": self.site, "seed": self.seed}
        return replace(made, names=vocabulary(load_table(None)), provenance=origin)


def patients_of(folder: Path, sites: Sequence[str] = ()) -> tuple[Patient, ...]:
    """The cases of a data set, of some sites or all.

    Raises InputError where the folder is no data set or holds no case of the sites.
    """
    records = [r for r in read_index(folder) if not sites or r["site"] in sites]
    if not records:
        of = f" of the sites {', '.join(sites)}" if sites else ""
        raise InputError(f"{folder} holds no case{of}; name a data set made by preprocess or import")
    return tuple(
        Patient(r["id"], r["site"], r["patient"], r["sha256"], folder.absolute() / r["file"]) for r in records
    )


def synthetic_patients(count: int, *, seed: int, sites: Sequence[str] = ()) -> tuple[Patient, ...]:
    """Synthetic patients with consecutive seeds, the sites in turn.

    Raises InputError for a count below 1 or a site without synthetic patients.
    """
    if not 1 <= count <= 1_000_000:
        raise InputError(f"--synthetic {count} is outside 1 to 1000000; choose one within")
    sites = tuple(sites) or SITES
    if unknown := [s for s in sites if s not in SITES]:
        raise InputError(
            f"there are no synthetic patients for --sites {unknown[0]}; choose among {', '.join(SITES)}"
        )
    out = []
    for k in range(count):
        site, own = sites[k % len(sites)], seed + k
        name = f"{site}_{own}"
        out.append(Patient(name, site, f"synthetic_{name}", f"{__version__} {name}", seed=own))
    return tuple(out)
