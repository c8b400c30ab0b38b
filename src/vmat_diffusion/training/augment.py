"""Changed copies of a training case that a network may meet: draw them, then make them.

Every change keeps the case one that could have been planned: see `docs/loading.md` for what is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.geometry import Mask
from vmat_diffusion.training.cache import DecodedCase
from vmat_diffusion.training.cases import Constraint, TrainingCase
from vmat_diffusion.training.motion import Index, Turn, Window, moved, targets_box, window_grid
from vmat_diffusion.training.prepare import AIR_HU, target_middle_mm

WATER_HU = 0
_NINEFOLD_DEG = 40.0
# Angles of a range that are tried before a case is left as it lies.
_ROTATION_DRAWS = 8
# Far below any difference of shares that counts, and a step that spreads evenly.
_TIE, _GOLDEN = 1e-6, 0.6180339887498949


@dataclass(frozen=True)
class AugmentSettings:
    """How often and how far training cases are changed; shares are between 0 and 1.

    `rotation_deg` is the largest angle about the patient's long axis, for plans of full arcs, or
    "ninefold" for nine fields 40 degrees apart, which only multiples of 40 degrees keep.
    `reach_voxels` (z, y, x) is how far a crop may reach beyond the volume, where there is air.
    `hu_scale` is the largest relative change of HU + 1000, `hu_offset` and `hu_noise` are in HU.
    `drop_organ` is the share of organs that are taken away as if nobody had contoured them, `drop_ct` that
    of cases without CT.
    """

    flip_left_right: float = 0.5
    flip_head_feet: float = 0.0
    rotate: float = 0.5
    rotation_deg: float | Literal["ninefold"] = 0.0
    reach_voxels: Index = (0, 0, 0)
    hu_scale: float = 0.02
    hu_offset: float = 20.0
    hu_noise: float = 10.0
    drop_organ: float = 0.1
    drop_ct: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip_left_right", "flip_head_feet", "rotate", "drop_organ", "drop_ct"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation: {name} = {getattr(self, name)} is no share of 0 to 1")
        if self.rotation_deg != "ninefold" and not (
            isinstance(self.rotation_deg, (int, float)) and 0 <= self.rotation_deg <= 180
        ):
            raise InputError(
                f"augmentation: rotation_deg = {self.rotation_deg!r} must be 0 to 180 degrees or 'ninefold'"
            )
        if not 0 <= self.hu_scale < 1 or min(self.hu_offset, self.hu_noise) < 0:
            raise InputError("augmentation: hu_scale must be 0 to 1, hu_offset and hu_noise not negative")
        if len(self.reach_voxels) != 3 or min(self.reach_voxels) < 0:
            raise InputError(
                f"augmentation: reach_voxels = {self.reach_voxels} must be three numbers of at least 0"
            )


@dataclass(frozen=True)
class Augmentation:
    """One change of a case, in the order in which it is made.

    The flips mirror the volume in its middle plane. `rotation_deg` then turns the patient about the
    long axis through the middle of the targets, towards larger gantry angles (IEC 61217, head first
    supine): what was anterior lies to the patient's left after 90, and a beam at gantry g belongs to
    the turned patient at g + `rotation_deg`. `start` and `shape` (z, y, x) cut out the window, with
    air beyond the volume; without a shape it is the whole volume. HU within the body become
    `(hu + 1000) * hu_scale - 1000 + hu_offset` plus noise of `hu_noise` HU, by `seed`. `dropped` are
    organs, by their names after the flip.
    """

    flip_left_right: bool = False
    flip_head_feet: bool = False
    rotation_deg: float = 0.0
    start: Index = (0, 0, 0)
    shape: Index | None = None
    hu_scale: float = 1.0
    hu_offset: float = 0.0
    hu_noise: float = 0.0
    seed: int = 0
    dropped: tuple[str, ...] = ()
    drop_ct: bool = False

    @property
    def turns(self) -> bool:
        """Whether voxels must be interpolated."""
        return self.rotation_deg % 360 != 0

    @property
    def moves_anatomy(self) -> bool:
        """Whether the plan of the case no longer fits it."""
        return self.flip_left_right or self.flip_head_feet or self.turns


def draw_augmentation(
    rng: np.random.Generator,
    settings: AugmentSettings,
    training: TrainingCase,
    shape: Index | None = None,
) -> Augmentation:
    """An augmentation for a case whose window of `shape` voxels holds all targets.

    An angle that would turn a target out of the window is drawn again. Raises CaseError if the
    targets do not fit the window even as they lie.
    """
    flips = (bool(rng.random() < settings.flip_head_feet), bool(rng.random() < settings.flip_left_right))
    size = shape or training.case.grid.shape
    angle = _draw_angle(rng, settings, training.case, flips, size)
    low, high = _starts(training, Turn.of(training.case, *flips, angle), size, settings.reach_voxels)
    organs = sorted(n for n, s in training.case.structures.items() if s.role == "organ")
    organs = [mirrored_name(n) if flips[1] else n for n in organs]
    kept = rng.random(len(organs)) >= settings.drop_organ
    return Augmentation(
        flip_head_feet=flips[0],
        flip_left_right=flips[1],
        rotation_deg=angle,
        start=_index(rng.integers(low, np.array(high) + 1)),
        shape=shape,
        hu_scale=1 + settings.hu_scale * rng.uniform(-1, 1),
        hu_offset=settings.hu_offset * rng.uniform(-1, 1),
        hu_noise=settings.hu_noise * rng.uniform(0, 1),
        seed=int(rng.integers(2**32)),
        dropped=tuple(name for name, keep in zip(organs, kept, strict=True) if not keep),
        drop_ct=bool(rng.random() < settings.drop_ct),
    )


def centred(training: TrainingCase, shape: Index | None = None) -> Augmentation:
    """No change but the window: the middle of the targets in its middle, within the volume where it can be.

    Raises CaseError if the targets do not fit.
    """
    if shape is None:
        return Augmentation()
    low, high = _starts(training, Turn.of(training.case, False, False, 0.0), shape, (0, 0, 0))
    middle = training.case.grid.index(np.array(target_middle_mm(training.case)))
    wanted = np.rint(middle + 0.5 - np.array(shape) / 2).astype(int)
    return Augmentation(start=_index(np.clip(wanted, low, high)), shape=shape)


def augment(decoded: DecodedCase, augmentation: Augmentation) -> DecodedCase:
    """The changed case; the deterministic twin of `draw_augmentation`.

    Without a rotation every voxel keeps its value. With one, HU and distances are interpolated linearly,
    the dose by cubics within its old range, and masks keep their volume. A plan is kept only where the
    anatomy stays.
    """
    training, case = decoded.training, decoded.training.case
    turn = Turn.of(case, augmentation.flip_head_feet, augmentation.flip_left_right, augmentation.rotation_deg)
    window = Window(augmentation.start, augmentation.shape or case.grid.shape)
    side = mirrored_name if augmentation.flip_left_right else str
    renamed = {name: side(name) for name in case.structures}
    masks = _masks(case, training.possible_dose, turn, window)
    structures = {
        new: Structure(new, case.structures[old].role, masks[i])
        for i, (old, new) in enumerate(renamed.items())
        if new not in augmentation.dropped
    }
    possible, body = masks[-1], next(s for s in structures.values() if s.role == "body").mask
    has_ct = training.has_ct and not augmentation.drop_ct
    hu = moved(case.hu[None], turn, window, AIR_HU)[0] if has_ct else water_hu(body)
    changed = replace(
        case,
        grid=window_grid(case.grid, window),
        hu=_jittered(hu, body, augmentation) if has_ct else hu,
        structures=structures,
        prescription=_renamed_levels(case.prescription, side),
        reference_dose=None,
    )
    if (dose := case.reference_dose) is not None:
        gy = moved(dose.gy[None], turn, window, 0, cubic=True)[0]
        gy = np.where(possible, np.clip(gy, 0, dose.gy.max()), np.float32(0))
        changed = replace(changed, reference_dose=Dose(changed.grid, gy, medium=dose.medium))
    return DecodedCase(
        replace(
            training,
            case=changed,
            possible_dose=possible,
            plan=None if augmentation.moves_anatomy else training.plan,
            has_ct=has_ct,
            constraints=_renamed_constraints(training.constraints, augmentation),
            names=tuple(side(name) for name in training.names),
            padding=_padding(training, augmentation, window),
        ),
        _moved_distances(
            decoded.sdf_tenth_mm, {o: n for o, n in renamed.items() if n in structures}, turn, window
        ),
        decoded.far_mm,
    )


def mirrored_name(name: str) -> str:
    """The name of the same structure on the other side: the part L or R of a name changes.

    `Parotid_L` becomes `Parotid_R` and `OpticNrv_R_PRV` `OpticNrv_L_PRV`; others keep their names.
    """
    return "_".join({"L": "R", "R": "L"}.get(part, part) for part in name.split("_"))


def water_hu(body: Mask) -> NDArray[np.int16]:
    """What stands for a CT that is absent: water within the body, air around it."""
    return np.where(body, np.int16(WATER_HU), np.int16(AIR_HU))


def _draw_angle(
    rng: np.random.Generator,
    settings: AugmentSettings,
    case: Case,
    flips: tuple[bool, bool],
    shape: Index,
) -> float:
    """An angle in degrees by which the targets can be turned within the window; else 0."""
    if settings.rotation_deg == 0 or rng.random() >= settings.rotate:
        return 0.0
    if settings.rotation_deg == "ninefold":
        angles = rng.permutation(np.arange(1, 9)) * _NINEFOLD_DEG
    else:
        angles = rng.uniform(-1, 1, _ROTATION_DRAWS) * float(settings.rotation_deg)
    for angle in angles:
        box = targets_box(case, Turn.of(case, *flips, float(angle)))
        if all(b.stop - b.start <= n for b, n in zip(box, shape, strict=True)):
            return float(angle)
    return 0.0


def _starts(training: TrainingCase, turn: Turn, shape: Index, reach: Index) -> tuple[list[int], list[int]]:
    """First and last start of a window along z, y, x that holds the targets and reaches so far out."""
    low, high = [], []
    for axis, (box, n, size, beyond) in enumerate(
        zip(targets_box(training.case, turn), shape, training.case.grid.shape, reach, strict=True)
    ):
        first, last = box.stop - n, box.start
        if first > last:
            raise CaseError(
                f"{training.case.id}: the targets take {box.stop - box.start} voxels along {'zyx'[axis]}, "
                f"the crop has {n}; give a larger crop"
            )
        within = min(0, size - n) - beyond, max(0, size - n) + beyond
        low.append(min(max(first, within[0]), last))
        high.append(max(min(last, within[1]), low[-1]))
    return low, high


def _masks(case: Case, possible: Mask, turn: Turn, window: Window) -> NDArray[np.bool_]:
    """The moved masks `[n + 1, z, y, x]` of all structures and, last, of the possible dose."""
    masks = [s.mask for s in case.structures.values()] + [possible]
    return np.stack([_as_large(moved(mask[None], turn, window, 0)[0]) for mask in masks])


def _as_large(filled: NDArray) -> Mask:
    """As many voxels as the interpolated mask makes together, those that it fills most.

    Those filled by half or more would be too few: corners and what is a voxel thin would go.
    """
    if filled.dtype == np.bool_:
        return filled
    at = np.flatnonzero(filled)
    values = filled.ravel()[at]
    count = min(round(float(values.sum(dtype=np.float64))), values.size)
    # A turn in the plane fills all slices of a column alike: ties are settled evenly over the slices.
    rank = values + _TIE * ((at * _GOLDEN) % 1.0)
    out = np.zeros(filled.size, bool)
    if count:
        out[at[np.argpartition(rank, values.size - count)[values.size - count :]]] = True
    return out.reshape(filled.shape)


def _moved_distances(
    maps: Mapping[str, NDArray[np.int16]], renamed: Mapping[str, str], turn: Turn, window: Window
) -> dict[str, NDArray[np.int16]]:
    """Distance maps by their new names. Beyond the volume they go on with the values at its border."""
    out = {renamed[n]: moved(m[None], turn, window, None)[0] for n, m in maps.items() if n in renamed}
    return {n: m if m.dtype == np.int16 else np.rint(m).astype(np.int16) for n, m in out.items()}


def _jittered(hu: NDArray, body: Mask, augmentation: Augmentation) -> NDArray:
    """HU with another calibration and noise within the body; the air around it stays."""
    if (augmentation.hu_scale, augmentation.hu_offset, augmentation.hu_noise) == (1.0, 0.0, 0.0):
        return hu
    out = hu.astype(np.float32)
    inside = (out[body] + 1000) * augmentation.hu_scale - 1000 + augmentation.hu_offset
    noise = np.random.default_rng(augmentation.seed).standard_normal(inside.size, np.float32)
    out[body] = inside + augmentation.hu_noise * noise
    return out


def _padding(training: TrainingCase, augmentation: Augmentation, window: Window) -> tuple:
    """Voxels of the window before and after along z, y, x that no scan has filled."""
    counts = []
    flips = (augmentation.flip_head_feet, False, augmentation.flip_left_right)
    for (before, after), flip, start, n, size in zip(
        training.padding, flips, window.start, window.shape, training.case.grid.shape, strict=True
    ):
        if flip:
            before, after = after, before
        counts.append((min(max(before - start, 0), n), min(max(start + n - (size - after), 0), n)))
    return tuple(counts)


def _renamed_levels(prescription: Prescription | None, side: Callable[[str], str]) -> Prescription | None:
    if prescription is None:
        return None
    levels = {side(name): gy for name, gy in prescription.target_gy.items()}
    return replace(prescription, target_gy=levels)


def _renamed_constraints(
    constraints: Sequence[Constraint], augmentation: Augmentation
) -> tuple[Constraint, ...]:
    """The goals with the sides of their structures, without those of organs that are dropped."""
    if augmentation.flip_left_right:
        constraints = [
            replace(c, structure=new, goal=c.goal.replace(c.structure, new))
            for c in constraints
            for new in (mirrored_name(c.structure),)
        ]
    return tuple(c for c in constraints if c.structure not in augmentation.dropped)


def _index(values: NDArray) -> Index:
    z, y, x = (int(v) for v in values)
    return z, y, x
