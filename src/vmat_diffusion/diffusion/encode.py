"""Cases as a network sees them, and its output as dose again: the one place that normalises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.distance import signed_distance_mm
from vmat_diffusion.dose.pencil_beam.target_projection import target_projection
from vmat_diffusion.dose.tissue import density_of
from vmat_diffusion.errors import CaseError
from vmat_diffusion.evaluate.openkbp import hot_voxels
from vmat_diffusion.geometry import Grid, Mask, bounding_box
from vmat_diffusion.machine import load_machine

HEAD_NECK_ORGANS = (
    "Brainstem",
    "SpinalCord",
    "Parotid_R",
    "Parotid_L",
    "Esophagus",
    "Larynx",
    "Bone_Mandible",
)
_HU_RANGE, _HU_UNIT = (-1000.0, 1500.0), 1000.0
_SPACING_UNIT_MM = 4.0
BEAMS: Mapping[str, tuple[float, ...]] = {
    "nine fields": tuple(range(0, 360, 40)),
    "full arc": tuple(range(0, 360, 10)),
}


@dataclass(frozen=True)
class Encoding:
    """What the network is told, kept with its weights.

    `levels` are the slots of targets by prescription relative to the highest; a target takes the nearest.
    `organs` are the names whose distance maps and goals it knows. Distances count up to `reach_mm`.
    `beams` is a key of BEAMS: from where the dose comes. `voxel_mm` (x, y, z) is the usual size of voxels.
    """

    organs: tuple[str, ...] = HEAD_NECK_ORGANS
    levels: tuple[float, ...] = (1.0, 0.9, 0.8)
    reach_mm: float = 40.0
    beams: Literal["nine fields", "full arc"] = "nine fields"
    machine: str = "generic_6mv"
    voxel_mm: tuple[float, float, float] = (3.9, 3.9, 2.5)

    @property
    def channels(self) -> tuple[str, ...]:
        """What each channel of the volume holds."""
        return (
            "ct",
            "mask",
            "skin_distance",
            "prescription",
            *(f"target_distance_{level:g}" for level in self.levels),
            *(f"distance_{organ}" for organ in self.organs),
            "shadow",
            "shadow_top",
            "beams_share",
        )

    @property
    def numbers(self) -> int:
        """Length of the vector: levels, presence, CT, spacing, and value and flag of each goal."""
        return len(self.levels) + len(self.organs) + 4 + 4 * len(self.organs)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A case as a network sees it, cut to the box of `mask`.

    `volume[channels, z, y, x]` and `vector[numbers]` without unit; `mask[z, y, x]` is where there may be
    dose. `box` is where the volume lies in the case's `grid`, `top_gy` the highest prescription.
    """

    volume: NDArray[np.float32]
    vector: NDArray[np.float32]
    mask: Mask
    box: tuple[slice, slice, slice]
    grid: Grid
    top_gy: float


@dataclass(frozen=True)
class DoseGoals:
    """What organs are asked for: mean dose, and dose to the hottest 0.1 cm3, in Gy, by organ."""

    mean_gy: Mapping[str, float] = field(default_factory=dict)
    hot_gy: Mapping[str, float] = field(default_factory=dict)


def encode(
    case: Case,
    possible_dose: Mask,
    encoding: Encoding,
    *,
    has_ct: bool = True,
    goals: DoseGoals | None = None,
) -> Encoded:
    """The case as volume and vector. Cost: 2 s for a head and neck of 4 mm voxels.

    An absent organ is far everywhere and its presence flag is 0. Raises CaseError for a case without
    prescription or prescribed target, and for an empty mask.
    """
    box = bounding_box(possible_dose)
    if box is None:
        raise CaseError("there is no voxel that may have dose; contour the body")
    prescription = prescription_map_gy(case)
    top = float(prescription.max())
    spacing = case.grid.spacing_mm

    def distance(mask: Mask) -> NDArray[np.float32]:
        return signed_distance_mm(mask[box], spacing, encoding.reach_mm) / encoding.reach_mm

    slots = [np.zeros(case.grid.shape, bool) for _ in encoding.levels]
    present = np.zeros(len(encoding.levels), np.float32)
    for target in case.targets:
        gy = _level_gy(case, target.name)
        if gy > 0 and target.voxels:
            slot = int(np.abs(np.array(encoding.levels) - gy / top).argmin())
            # Where targets are drawn one inside the other, each voxel belongs to the highest.
            slots[slot] |= target.mask & (prescription <= np.float32(gy))
            present[slot] = max(present[slot], gy / top)
    far = np.zeros(case.grid.shape, bool)
    organs = [case.structures[o].mask if o in case.structures else far for o in encoding.organs]
    projected = target_projection(
        density_of(case, case.grid),
        prescription,
        load_machine(encoding.machine).require_beam(),
        BEAMS[encoding.beams],
        _middle_mm(prescription >= 0.999 * top, case.grid),
        patient_position=case.patient_position,
    )
    mask = possible_dose[box]
    hu = np.clip(case.hu[box], *_HU_RANGE) / _HU_UNIT if has_ct else np.zeros(mask.shape)
    volume = np.stack(
        [
            np.where(mask, hu, 0.0),
            mask.astype(np.float32),
            distance(possible_dose),
            prescription[box] / top,
            *(distance(slot) for slot in slots),
            *(distance(organ) for organ in organs),
            *(channel[box] for channel in projected),
        ]
    ).astype(np.float32)
    flags = np.array([bool(mask.any()) for mask in organs], np.float32)
    vector = np.concatenate(
        [
            present,
            flags,
            [1.0 if has_ct else 0.0],
            np.array(spacing) / _SPACING_UNIT_MM,
            goal_numbers(goals or DoseGoals(), encoding, top),
        ]
    ).astype(np.float32)
    return Encoded(volume, vector, mask, box, case.grid, top)


def goal_numbers(goals: DoseGoals, encoding: Encoding, top_gy: float) -> NDArray[np.float32]:
    """The end of the vector: for mean and hot dose of each organ its value, then whether it is asked for."""
    wanted = [goals.mean_gy.get(o) for o in encoding.organs] + [goals.hot_gy.get(o) for o in encoding.organs]
    values = [0.0 if w is None else w / top_gy for w in wanted]
    return np.array([*values, *(0.0 if w is None else 1.0 for w in wanted)], np.float32)


def told(encoded: Encoded, goals: DoseGoals, encoding: Encoding) -> Encoded:
    """The same case with other goals in its vector."""
    numbers = goal_numbers(goals, encoding, encoded.top_gy)
    vector = np.concatenate([encoded.vector[: -len(numbers)], numbers])
    return replace(encoded, vector=vector)


def achieved(case: Case, dose: Dose, encoding: Encoding) -> DoseGoals:
    """The goals that a dose on the grid of the case would just meet."""
    mean, hot = {}, {}
    for organ in encoding.organs:
        if organ in case.structures and case.structures[organ].voxels:
            gy = dose.gy[case.structures[organ].mask]
            count = hot_voxels(case.grid.voxel_cc)
            mean[organ] = float(gy.mean())
            hot[organ] = float(np.partition(gy, -min(count, len(gy)))[-min(count, len(gy))])
    return DoseGoals(mean, hot)


def prescription_map_gy(case: Case) -> NDArray[np.float32]:
    """The highest prescription of each voxel in Gy, 0 outside targets.

    Raises CaseError where nothing is prescribed to any target that is contoured.
    """
    out = np.zeros(case.grid.shape, np.float32)
    for target in case.targets:
        out[target.mask] = np.maximum(out[target.mask], _level_gy(case, target.name))
    if not out.any():
        raise CaseError("no contoured target has a prescription; prescribe a dose to one")
    return out


def _level_gy(case: Case, target: str) -> float:
    return case.prescription.target_gy.get(target, 0.0) if case.prescription else 0.0


def _middle_mm(mask: Mask, grid: Grid) -> tuple[float, float, float]:
    """Centre of mass of a mask."""
    x, y, z = grid.points_mm(np.flatnonzero(mask.ravel())).mean(axis=0)
    return float(x), float(y), float(z)


def decode(relative: NDArray, encoded: Encoded, provenance: Mapping[str, object] | None = None) -> Dose:
    """Dose in Gy on the grid of the case from the network's output in units of the highest prescription.

    Zero outside the mask, nowhere negative.
    """
    gy = np.zeros(encoded.grid.shape, np.float32)
    gy[encoded.box] = np.maximum(relative, 0.0) * encoded.mask * encoded.top_gy
    return Dose(encoded.grid, gy, provenance=dict(provenance or {}))


def other_side(name: str, known: Sequence[str]) -> str:
    """The name of the same structure or channel on the other side, if it is among the `known` ones."""
    swapped = {"_L": "_R", "_R": "_L"}.get(name[-2:])
    other = name[:-2] + swapped if swapped else name
    return other if other in known else name


def mirrored(volume: Tensor, vector: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """The case left to right: `volume[..., c, z, y, x]` and `vector[..., n]`, organs changing sides."""
    channels, organs = encoding.channels, encoding.organs
    sides = [channels.index(other_side(c, channels)) for c in channels]
    order = [organs.index(other_side(o, organs)) for o in organs]
    k, first = len(organs), len(encoding.levels)
    places = torch.arange(vector.shape[-1])
    for start in (first, *range(encoding.numbers - 4 * k, encoding.numbers, k)):
        places[start : start + k] = start + torch.tensor(order)
    return volume[..., sides, :, :, :].flip(-1), vector[..., places]


def outside(encoding: Encoding) -> Tensor:
    """What each channel holds where there is nothing, `[c]`: distances are far, all else is 0."""
    return torch.tensor([1.0 if "distance" in c else 0.0 for c in encoding.channels])


def turned(values: Tensor, angle_deg: float, fill: Tensor, mode: str = "bilinear") -> Tensor:
    """Each slice of `values[c, z, y, x]` turned about the middle; what comes from outside is `fill[c]`."""
    c, nz, ny, nx = values.shape
    level = fill[:, None, None, None]
    a = np.deg2rad(angle_deg)
    turn = torch.tensor(
        [[np.cos(a), -np.sin(a) * ny / nx, 0.0], [np.sin(a) * nx / ny, np.cos(a), 0.0]], dtype=torch.float32
    )
    grid = F.affine_grid(turn[None], [1, 1, ny, nx], align_corners=False)
    flat = (values - level).reshape(1, c * nz, ny, nx)
    return F.grid_sample(flat, grid, mode=mode, align_corners=False).reshape(c, nz, ny, nx) + level


def padded(volume: Tensor, encoding: Encoding, multiple: int) -> Tensor:
    """`volume[c, z, y, x]` with nothing added at the far ends until its sides are multiples."""
    sides = [side for n in volume.shape[:0:-1] for side in (0, -n % multiple)]
    level = outside(encoding)[:, None, None, None]
    return F.pad(volume - level, sides) + level
