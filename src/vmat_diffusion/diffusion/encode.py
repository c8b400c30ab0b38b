"""A case as the network's input, and the network's output as a dose. Only this module normalises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
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
    """The network's input, described; kept with its weights.

    `levels` are prescriptions relative to the highest: a target belongs to the nearest level. `organs` are
    the structures that have a distance map and goals. Distances are cut at `reach_mm`. `beams` is a key of
    BEAMS, the gantry angles of the projection channels. `voxel_mm` (x, y, z) is the usual size of voxels.
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
            "projection",
            "projection_top",
            "beams_share",
        )

    @property
    def layout(self) -> VectorLayout:
        """Where each number of the conditioning vector lies."""
        levels, organs = len(self.levels), len(self.organs)
        ends = [0, *accumulate((levels, organs, 1, 3, organs, organs, organs, organs))]
        return VectorLayout(*(slice(a, b) for a, b in pairwise(ends)))

    @property
    def vector_names(self) -> tuple[str, ...]:
        """What each number of the conditioning vector is."""
        at, names = self.layout, [""] * self.layout.size
        names[at.levels] = [f"level {level:g}" for level in self.levels]
        names[at.presence] = [f"has {organ}" for organ in self.organs]
        names[at.has_ct] = ["has ct"]
        names[at.spacing] = [f"spacing {axis}" for axis in "xyz"]
        for kind, part in (
            ("mean", at.mean),
            ("hot", at.hot),
            ("mean asked", at.mean_asked),
            ("hot asked", at.hot_asked),
        ):
            names[part] = [f"{kind} {organ}" for organ in self.organs]
        return tuple(names)


@dataclass(frozen=True)
class VectorLayout:
    """The parts of the conditioning vector, in their order; made by `Encoding.layout`.

    | part | numbers |
    |---|---|
    | `levels` | prescription of each level relative to the highest, 0 where no target has it |
    | `presence` | 1 for each organ that is contoured, else 0 |
    | `has_ct` | 1 where there is a CT, else 0 |
    | `spacing` | voxel size (x, y, z) over 4 mm |
    | `mean`, `hot` | goal on the mean dose and on D0.1cc of each organ, relative to the prescription |
    | `mean_asked`, `hot_asked` | 1 where there is such a goal; its value is 0 where there is none |
    """

    levels: slice
    presence: slice
    has_ct: slice
    spacing: slice
    mean: slice
    hot: slice
    mean_asked: slice
    hot_asked: slice

    @property
    def goals(self) -> slice:
        """All numbers that depend on the goals."""
        return slice(self.mean.start, self.hot_asked.stop)

    @property
    def by_organ(self) -> tuple[slice, ...]:
        """The parts with one number for each organ."""
        return self.presence, self.mean, self.hot, self.mean_asked, self.hot_asked

    @property
    def size(self) -> int:
        """Length of the vector."""
        return int(self.hot_asked.stop)


@dataclass(frozen=True, eq=False)
class Encoded:
    """The network's input for one case, cut to the box of `mask`.

    `volume[channels, z, y, x]` and the conditioning `vector[n]` have no unit; `mask[z, y, x]` is where there
    may be dose. `box` is the place of the volume in the case's `grid`, `top_gy` the highest prescription.
    """

    volume: NDArray[np.float32]
    vector: NDArray[np.float32]
    mask: Mask
    box: tuple[slice, slice, slice]
    grid: Grid
    top_gy: float


@dataclass(frozen=True)
class DoseGoals:
    """Goals that condition the network, in Gy by organ: mean dose, and dose to the hottest 0.1 cm3."""

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
    """The network's input for a case. Cost: 2 s for a head and neck of 4 mm voxels.

    The distance map of an absent organ is 1 everywhere and its presence flag is 0. Raises CaseError for a
    case without prescription or prescribed target, and for an empty mask.
    """
    box = bounding_box(possible_dose)
    if box is None:
        raise CaseError("there is no voxel that may have dose; contour the body")
    prescription = prescription_map_gy(case)
    top = float(prescription.max())
    spacing = case.grid.spacing_mm

    def distance(mask: Mask) -> NDArray[np.float32]:
        return signed_distance_mm(mask[box], spacing, encoding.reach_mm) / encoding.reach_mm

    slots, present = _target_slots(case, encoding, prescription)
    far = np.zeros(case.grid.shape, bool)
    organs = [case.structures[o].mask if o in case.structures else far for o in encoding.organs]
    projection = target_projection(
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
            *(channel[box] for channel in projection),
        ]
    ).astype(np.float32)
    layout = encoding.layout
    vector = np.zeros(layout.size, np.float32)
    vector[layout.levels] = present
    vector[layout.presence] = [bool(mask.any()) for mask in organs]
    vector[layout.has_ct] = has_ct
    vector[layout.spacing] = np.array(spacing) / _SPACING_UNIT_MM
    vector[layout.goals] = goal_numbers(goals or DoseGoals(), encoding, top)
    return Encoded(volume, vector, mask, box, case.grid, top)


def _target_slots(
    case: Case, encoding: Encoding, prescription: NDArray[np.float32]
) -> tuple[list[Mask], NDArray[np.float32]]:
    """The targets of each level as a mask, and the highest prescription of each relative to the highest."""
    top = float(prescription.max())
    slots = [np.zeros(case.grid.shape, bool) for _ in encoding.levels]
    present = np.zeros(len(encoding.levels), np.float32)
    for target in case.targets:
        gy = _level_gy(case, target.name)
        if gy > 0 and target.voxels:
            slot = int(np.abs(np.array(encoding.levels) - gy / top).argmin())
            # Where one target lies inside another, each voxel belongs to the highest prescription.
            slots[slot] |= target.mask & (prescription <= np.float32(gy))
            present[slot] = max(present[slot], gy / top)
    return slots, present


def goal_numbers(goals: DoseGoals, encoding: Encoding, top_gy: float) -> NDArray[np.float32]:
    """The numbers of the vector's part `goals`."""
    layout = encoding.layout
    vector = np.zeros(layout.size, np.float32)
    for limits, value, asked in (
        (goals.mean_gy, layout.mean, layout.mean_asked),
        (goals.hot_gy, layout.hot, layout.hot_asked),
    ):
        vector[value] = [limits.get(organ, 0.0) / top_gy for organ in encoding.organs]
        vector[asked] = [organ in limits for organ in encoding.organs]
    return vector[layout.goals]


def with_goals(encoded: Encoded, goals: DoseGoals, encoding: Encoding) -> Encoded:
    """The same case conditioned on other goals."""
    vector = encoded.vector.copy()
    vector[encoding.layout.goals] = goal_numbers(goals, encoding, encoded.top_gy)
    return replace(encoded, vector=vector)


def achieved_goals(case: Case, dose: Dose, encoding: Encoding) -> DoseGoals:
    """The goals that a dose on the grid of the case just meets."""
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
    """The dose in Gy on the grid of the case from the network's output in units of the highest prescription.

    It is 0 outside the mask and nowhere negative.
    """
    gy = np.zeros(encoded.grid.shape, np.float32)
    gy[encoded.box] = np.maximum(relative, 0.0) * encoded.mask * encoded.top_gy
    return Dose(encoded.grid, gy, provenance=dict(provenance or {}))


def other_side(name: str, known: Sequence[str]) -> str:
    """The name of the same structure or channel on the other side, if it is among the `known` ones."""
    swapped = {"_L": "_R", "_R": "_L"}.get(name[-2:])
    other = name[:-2] + swapped if swapped else name
    return other if other in known else name


def mirror_case(volume: Tensor, vector: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """The mirror image, left to right, of `volume[..., c, z, y, x]` and `vector[..., n]`.

    Organs of the left side become those of the right side.
    """
    channels, organs = encoding.channels, encoding.organs
    sides = [channels.index(other_side(c, channels)) for c in channels]
    order = torch.tensor([organs.index(other_side(o, organs)) for o in organs])
    places = torch.arange(vector.shape[-1])
    for part in encoding.layout.by_organ:
        places[part] = part.start + order
    return volume[..., sides, :, :, :].flip(-1), vector[..., places]


def background(encoding: Encoding) -> Tensor:
    """The value of each channel outside the volume, `[c]`: 1 (far) for distances, else 0."""
    return torch.tensor([1.0 if "distance" in c else 0.0 for c in encoding.channels])


def turn_slices(values: Tensor, angle_deg: float, fill: Tensor, mode: str = "bilinear") -> Tensor:
    """Each slice of `values[c, z, y, x]` turned about its middle; new corners have the value `fill[c]`."""
    c, nz, ny, nx = values.shape
    level = fill[:, None, None, None]
    a = np.deg2rad(angle_deg)
    turn = torch.tensor(
        [[np.cos(a), -np.sin(a) * ny / nx, 0.0], [np.sin(a) * nx / ny, np.cos(a), 0.0]], dtype=torch.float32
    )
    grid = F.affine_grid(turn[None], [1, 1, ny, nx], align_corners=False)
    flat = (values - level).reshape(1, c * nz, ny, nx)
    return F.grid_sample(flat, grid, mode=mode, align_corners=False).reshape(c, nz, ny, nx) + level


def pad_to_multiple(volume: Tensor, encoding: Encoding, multiple: int) -> Tensor:
    """`volume[c, z, y, x]` with background added at the far ends until its sides are multiples."""
    return padded(volume, encoding, [side for n in volume.shape[:0:-1] for side in (0, -n % multiple)])


def padded(volume: Tensor, encoding: Encoding, sides: list[int]) -> Tensor:
    """`volume[c, z, y, x]` with background added: voxels before and after along x, then y, then z.

    In single precision.
    """
    before, after = sides[-2::-2], sides[::-2]
    shape = [b + n + a for b, n, a in zip(before, volume.shape[1:], after, strict=True)]
    out = background(encoding)[:, None, None, None].expand(-1, *shape).clone()
    box = tuple(slice(b, b + n) for b, n in zip(before, volume.shape[1:], strict=True))
    out[:, box[0], box[1], box[2]] = volume
    return out
