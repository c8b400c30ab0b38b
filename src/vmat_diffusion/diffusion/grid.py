"""A case resampled to the voxels of a dose model, and the predicted dose back on the case's voxels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.dataset.prepare import mask_onto, on_spacing, targets_mask
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, Mask, Point, average_onto, bounding_box, resample_dose, subgrid

# The region of possible dose reaches so far above and below the targets. In OpenKBP the masks reach 24 mm
# below and 18 mm above them (medians of 27 patients; 95 % of them 66 and 63 mm), the isodose of 5 % of the
# maximum 15 mm.
REACH_MM = 30.0
# A case keeps its grid if its voxels are up to this factor larger or smaller than the model's.
_LIKE = 1.4


def on_model_grid(
    case: Case,
    voxel_mm: Point,
    names: Collection[str],
    *,
    possible: Mask | None = None,
    keep_grid: bool = False,
) -> TrainingCase:
    """The case on voxels like `voxel_mm`, with its body, its prescribed targets and the named structures.

    A case with such voxels keeps its grid; `keep_grid` keeps any. `possible` is the mask of possible dose on
    the grid of the case; None takes the body from `REACH_MM` below the targets to `REACH_MM` above them.
    """
    kept = {*names, *_prescribed(case)}
    wanted = {n: s for n, s in case.structures.items() if s.role == "body" or n in kept}
    bare = replace(case, structures=wanted, reference_dose=None)
    ratios = np.array(case.grid.spacing_mm) / voxel_mm
    if keep_grid or np.all((ratios <= _LIKE) & (ratios >= 1 / _LIKE)):
        return TrainingCase(bare, near_targets(bare) if possible is None else possible)
    made = on_spacing(bare, voxel_mm)
    if possible is None:
        return replace(made, possible_dose=near_targets(made.case))
    moved = mask_onto(possible, case.grid, made.case.grid) & made.case.body.mask
    return replace(made, possible_dose=moved)


def near_targets(case: Case) -> Mask:
    """The body within `REACH_MM` of the prescribed targets along z.

    Raises CaseError where no contoured target has a prescription, or the body is not there.
    """
    prescribed = _prescribed(case)
    known = {n: s for n, s in case.structures.items() if n in prescribed or s.role == "body"}
    slices = np.flatnonzero(targets_mask(replace(case, structures=known)).any(axis=(1, 2)))
    reach = round(REACH_MM / case.grid.spacing_mm[2])
    out = np.zeros(case.grid.shape, bool)
    inside = slice(max(int(slices[0]) - reach, 0), int(slices[-1]) + reach + 1)
    out[inside] = case.body.mask[inside]
    if not out.any():
        raise CaseError("the body has no voxel around the targets; contour it there")
    return out


def _prescribed(case: Case) -> frozenset[str]:
    return frozenset(case.prescription.target_gy if case.prescription else ())


def dose_voxels(case: Case, grid: Grid, possible: Mask) -> Grid:
    """The grid for a prediction on `grid` that returns to the case: groups of the case's voxels.

    A group has as many voxels as fit into one of `grid`; finer voxels would hold no more information. The
    grid covers the mask of `possible` dose.
    """
    box = bounding_box(possible)
    assert box is not None  # as `near_targets` makes sure
    if grid.matches(case.grid):
        return subgrid(grid, box)
    joined = [
        max(int(m / s + 1e-6), 1) * s for m, s in zip(grid.spacing_mm, case.grid.spacing_mm, strict=True)
    ]
    low, high = subgrid(grid, box).bounds_mm
    return case.grid.around(low, high, tuple(joined))  # type: ignore[arg-type]


def onto_case(dose: Dose, case: Case, grid: Grid) -> Dose:
    """A predicted dose on a grid of `dose_voxels`; 0 in voxels of which most lies outside the body.

    Between its points the dose is that of `resample_dose`, as in a DVH; so is its standard deviation.
    """
    inside = average_onto(case.body.mask, case.grid, grid) >= 0.5

    def moved(gy: np.ndarray) -> np.ndarray:
        return np.where(inside, resample_dose(gy, dose.grid, grid), np.float32(0))

    std = None if dose.std_gy is None else moved(dose.std_gy)
    return Dose(grid, moved(dose.gy), std, dose.medium, dose.provenance)
