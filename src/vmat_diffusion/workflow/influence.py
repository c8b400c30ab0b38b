"""The influence matrix of a case as a file, for research on optimisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.files import written_whole
from vmat_diffusion.geometry import Grid, average_onto
from vmat_diffusion.machine import load_machine
from vmat_diffusion.progress import Progress, under_name
from vmat_diffusion.workflow.output import require_apart
from vmat_diffusion.workflow.reading import read_for_dose
from vmat_diffusion.workflow.settings import InfluenceSettings

_INSIDE = 0.5  # share of a voxel that a structure must cover


@dataclass(frozen=True)
class InfluenceFile:
    """What was written: voxels, beamlets, entries, and the memory of matrix and transpose."""

    path: Path
    voxels: int
    beamlets: int
    entries: int
    gigabytes: float

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "file": str(self.path),
            "voxels": self.voxels,
            "beamlets": self.beamlets,
            "entries": self.entries,
            "gigabytes": round(self.gigabytes, 3),
        }


def write_influence(
    case_folder: Path,
    out: Path,
    settings: InfluenceSettings,
    *,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> InfluenceFile:
    """Dose per MU of every beamlet of full arcs around the case's targets, at sampled voxels, as npz.

    `announce` gets a sentence on the memory, and one on densities that were ignored. Raises InputError before
    anything is built where the matrix would exceed `settings.max_gb`, CaseError for a case without target.
    """
    linac = load_machine(settings.machine)
    linac.require_beam()
    require_apart(out, case_folder)
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; choose another name or pass --overwrite")
    if out.suffix != ".npz":
        raise InputError(f"{out} does not end in .npz; an influence file does")
    case = read_for_dose(case_folder, settings, allow_outside_body=settings.allow_outside_body)
    from vmat_diffusion.dose.delivery import jaw_box
    from vmat_diffusion.dose.pencil_beam.influence_matrix import influence_matrix
    from vmat_diffusion.dose.tissue import density_of, dose_grid
    from vmat_diffusion.optimize.arcs import arc_frames, isocenter_of
    from vmat_diffusion.optimize.deliverable_set import beam_directions, control_points
    from vmat_diffusion.qa.ct_numbers import ignored_overrides

    if announce:
        for sentence in ignored_overrides(case):
            announce(f"Warning: {sentence}")
    targets = tuple(name for name, s in case.structures.items() if s.role == "target")
    if not targets:
        raise CaseError("the case has no target, so there is nothing to aim at; contour one or map its name")
    isocenter = isocenter_of(case, targets)
    frames = arc_frames(
        case, targets, isocenter, linac, arcs=settings.arcs, start_deg=181.0, stop_deg=179.0,
        spacing_deg=settings.spacing_deg, collimators_deg=None,
    )  # fmt: skip
    exposed = beam_directions(control_points(frames, 1))
    grid = dose_grid(case, settings.grid_mm)
    voxels = sampled_voxels(case, grid, settings.voxels_per_structure, settings.seed)
    built = influence_matrix(
        linac,
        density_of(case, grid),
        grid.points_mm(voxels),
        exposed,
        jaw_box(exposed),
        isocenter_mm=isocenter,
        patient_position=case.patient_position,
        beamlet_mm=settings.beamlet_mm,
        cut=settings.cut,
        max_gb=settings.max_gb,
        announce=announce,
        progress=None if progress is None else under_name(progress, "influence"),
    )
    arrays: dict[str, Any] = dict(
        data=built.matrix.data,
        indices=built.matrix.indices,
        indptr=built.matrix.indptr,
        shape=np.array(built.matrix.shape),
        voxel=voxels,
        grid_shape=np.array(grid.shape),
        grid_spacing_mm=np.array(grid.spacing_mm),
        grid_origin_mm=np.array(grid.origin_mm),
        column_edges_mm=built.column_edges_mm,
        row_edges_mm=built.row_edges_mm,
        gantry_deg=exposed.gantry_deg % 360.0,
        collimator_deg=exposed.collimator_deg,
        isocenter_mm=np.array(isocenter),
    )
    with written_whole(out) as part, part.open("wb") as file:
        np.savez(file, **arrays)
    shape = built.matrix.shape
    return InfluenceFile(out.resolve(), shape[0], shape[1], built.matrix.nnz, built.gigabytes)


def sampled_voxels(case: Case, grid: Grid, per_structure: int, seed: int) -> NDArray[np.intp]:
    """Flat indices of voxels of a grid: at most so many of each structure, drawn evenly, each once."""
    rng = np.random.default_rng(seed)
    chosen = []
    for structure in case.structures.values():
        inside = np.flatnonzero(average_onto(structure.mask, case.grid, grid).ravel() >= _INSIDE)
        chosen.append(rng.choice(inside, min(per_structure, len(inside)), replace=False))
    return np.unique(np.concatenate(chosen))
