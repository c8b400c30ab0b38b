"""Small training cases with organs on both sides, and data set folders of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from small_case import open_arc

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.dataset.cases import Constraint, TrainingCase, read_arrays, save_case
from vmat_diffusion.dataset.splits import Member, place_cases, save_splits
from vmat_diffusion.geometry import Grid


def small_training(
    name: str = "case_0001",
    *,
    shape: tuple[int, int, int] = (12, 28, 32),
    left: bool = True,
    right: bool = True,
    dose: bool = True,
    target: tuple[int, int, int] = (6, 12, 14),
) -> TrainingCase:
    """A water ellipse with two targets and an organ on each side; HU and dose are unlike in every voxel.

    `target` is the first voxel of PTV_70, which is 2 x 4 x 6 voxels large; the grid is 4 x 4 x 5 mm.
    """
    grid = Grid(shape, (4.0, 4.0, 5.0), (-61.0, 40.0, 7.0))
    z, y, x = np.indices(shape)
    ny, nx = shape[1:]
    body = ((y - ny / 2 + 0.5) / (ny / 2 - 1)) ** 2 + ((x - nx / 2 + 0.5) / (nx / 2 - 1)) ** 2 <= 1
    tz, ty, tx = target
    high = np.zeros(shape, bool)
    high[tz : tz + 2, ty : ty + 4, tx : tx + 6] = True
    low = np.zeros(shape, bool)
    low[tz - 1 : tz + 3, ty - 1 : ty + 5, tx - 1 : tx + 7] = True
    masks = {"BODY": body, "PTV_70": high, "PTV_56": low & ~high}
    # x ascends towards the patient's left. The right organ is the larger one.
    if left:
        masks["Parotid_L"] = body & (x > 24) & (x < 28) & (abs(y - 14) < 3) & (abs(z - 6) < 3)
    if right:
        masks["Parotid_R"] = body & (x > 3) & (x < 8) & (abs(y - 14) < 4) & (abs(z - 6) < 3)
    roles = {"BODY": "body", "PTV_70": "target", "PTV_56": "target"}
    hu = np.where(body, 10 * x - 3 * y + 40 * z, -1000).astype(np.int16)
    gy = np.where(body, 30 + 0.5 * x + 0.25 * y + z, 0).astype(np.float32)
    case = Case(
        id=name,
        site="head_neck",
        grid=grid,
        hu=hu,
        structures={n: Structure(n, roles.get(n, "organ"), m) for n, m in masks.items()},
        prescription=Prescription(35, {"PTV_70": 70.0, "PTV_56": 56.0}),
        reference_dose=Dose(grid, gy) if dose else None,
    )
    constraints = [Constraint("PTV_70", "D95% >= 66.5 Gy", 66.5, 67.25 if dose else None)]
    if left:
        constraints.append(Constraint("Parotid_L", "Dmean <= 26 Gy", 26.0, 31.5 if dose else None))
    return TrainingCase(
        case,
        body,
        open_arc(),
        constraints=tuple(constraints),
        names=("BODY", "PTV_70", "PTV_56", "Parotid_L", "Parotid_R"),
        padding=((1, 2), (0, 0), (3, 0)),
    )


def stored_sdf_mm(path: Path) -> dict[str, np.ndarray] | None:
    """The signed distance maps that are stored with a case, by structure; None if there are none."""
    arrays = read_arrays(path, only=("schema", "meta", "mask_names", "sdf_tenth_mm"))
    if "sdf_tenth_mm" not in arrays:
        return None
    named = zip(arrays["mask_names"], arrays["sdf_tenth_mm"], strict=True)
    return {str(n): m.astype(np.float32) / 10 for n, m in named}


def save_dataset(folder: Path, cases: list[TrainingCase], splits: dict[str, str] | None = None) -> Path:
    """A data set folder as preprocessing leaves it, with `splits` (id to split) if they are given."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for training in cases:
        case = training.case
        file = save_case(folder / f"{case.id}.npz", training)
        rows.append(
            {
                "id": case.id,
                "site": case.site,
                "patient": case.id,
                "file": file.name,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "shape": list(case.grid.shape),
                "targets": [s.name for s in case.targets],
                "organs": [s.name for s in case.structures.values() if s.role == "organ"],
                "has_dose": case.reference_dose is not None,
            }
        )
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if splits is not None:
        members = [Member(name, name, "all") for name in splits]
        save_splits(folder / "splits.json", place_cases(members, given=splits))  # type: ignore[arg-type]
    return folder
