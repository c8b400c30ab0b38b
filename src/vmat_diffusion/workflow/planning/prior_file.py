"""Any dose as an aim of `plan`: an RTDOSE or npz of any predictor, compared with the case before it is used.

The plan that comes of it goes through the same gate as any other. A dose whose place, level or patient is
wrong would pull organs to nonsense, so it is refused; what cannot be told is a warning of the gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.errors import CaseError
from vmat_diffusion.evaluate.goals import GoalSheet
from vmat_diffusion.files import content_hash, why_no_file
from vmat_diffusion.geometry import Grid, Mask, sample
from vmat_diffusion.workflow.planning.prior import Prior

AIM = "dose to aim at"
# The shares by which a target's level may be off its prescription. Nearer than the first is a dose for this
# prescription (clinical plans have their median within 3 %, and so have predictors); beyond the second it is
# one for another: prescriptions of one site differ by 10 % or more. In between it is used and named. Ours.
_LEVEL_NAMED, _LEVEL_REFUSED = 0.03, 0.10
# Of the volume above half the prescription so much may lie outside the body: voxels at the skin. Ours.
_OUTSIDE_BODY = 0.10
# Mean difference of two CTs in the body, HU, up to which they may be of one patient: two OpenKBP patients
# differ from eleven others by 188 and more, from themselves by next to nothing. Ours.
_HU_APART = 100.0
# As in the reader of RTDOSE: no course of radiotherapy reaches it.
_GY_MAX = 1000.0
# A finer dose is thinned before the search samples it, so that it takes no gigabytes; mm and voxels.
_THINNED_MM, _MOST_VOXELS = 2.0, 6_000_000
_MOST_POINTS = 20_000
_PLACE = ("spacing_mm", "origin_mm")
_NEEDED = "an npz needs dose in Gy as [z, y, x] with spacing_mm and origin_mm as x, y, z"
_AXES = {0: "from head to feet", 1: "from front to back", 2: "from left to right"}


@dataclass(frozen=True, eq=False)
class _Found:
    """A dose as its file has it, what it is, and what the file leaves unsaid."""

    dose: Dose
    kind: str
    silences: tuple[str, ...] = ()


def require_prior_file(path: Path) -> None:
    """Raise CaseError for a prior that is no file, before anything is read."""
    if not path.is_file():
        raise CaseError(
            f"prior {path} {why_no_file(path)}; give goals, diffusion, or an RTDOSE or npz file with a dose"
        )


def prior_from_file(path: Path, case: Case, sheet: GoalSheet, *, force: bool = False) -> Prior:
    """The dose in an RTDOSE or npz file as what the plan of a case is to aim at.

    `sheet` must be fitted to the case. An npz is one of `predict`, a training case, an OpenKBP patient, or
    any with `dose`, `spacing_mm` and `origin_mm`. The dose may lie on any grid that holds the targets; organs
    that it does not hold are not aimed at. Raises CaseError for a dose of another patient, place or
    prescription, and for what is no dose of a course in Gy; `force` lets contradictions of patient, frame of
    reference and structure set be.
    """
    require_prior_file(path)
    found = _read_npz(path, case) if path.suffix.lower() == ".npz" else _read_rtdose(path)
    from vmat_diffusion.qa import warning
    from vmat_diffusion.qa.files import belonging, dose_remarks

    dose, said = found.dose, [*found.silences, *dose_remarks(found.dose)]
    together = belonging(case, None, dose)
    if together is not None:
        said += together.require(force=force)
    levels = _levels(dose, case, sheet, path.name)
    said += _level_remarks(levels, sheet)
    _require_in_body(dose, case, sheet, path.name)
    said += _organs_outside(dose.grid, case, sheet)
    origin = {
        "file": content_hash(path),
        "kind": found.kind,
        "used": True,
        "shape": list(dose.grid.shape),
        "spacing_mm": list(dose.grid.spacing_mm),
        "levels_gy": {name: round(gy, 2) for name, gy in levels.items()},
    }
    check = warning(AIM, said, f"the {found.kind} belongs to the case and to its prescription")
    return Prior((_thinned(replace(dose, std_gy=None)),), (check,), origin)


def _read_rtdose(path: Path) -> _Found:
    from vmat_diffusion.dicom import read_dose

    return _Found(read_dose(path), "RTDOSE")


def _read_npz(path: Path, case: Case) -> _Found:
    """The dose of an npz; CaseError for one that is damaged, holds no dose, or is of another patient."""
    from vmat_diffusion.dataset.cases import UNREADABLE
    from vmat_diffusion.dataset.schema import check_sizes

    try:
        check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except CaseError:
        raise
    except UNREADABLE as fault:
        raise CaseError(f"prior {path.name} is no readable npz file ({fault}); make it again") from None
    if "dose_cGy" in arrays and "voxel_mm" in arrays:
        from vmat_diffusion.dataset.openkbp import read_openkbp

        return _of_training(read_openkbp(path).case, case, path.name, "OpenKBP patient")
    if "schema" in arrays and "meta" in arrays:
        from vmat_diffusion.dataset.cases import load_case

        training = load_case(path)
        return _of_training(training.case, case, path.name, "training case", has_ct=training.has_ct)
    kind, gy = _predicted(arrays) if "mean" in arrays else ("npz dose", arrays.get("dose"))
    if gy is None:
        listed = ", ".join(sorted(arrays)) or "nothing"
        raise CaseError(f"prior {path.name} holds {listed} and no dose; {_NEEDED}")
    grid = _grid(arrays, gy, path.name)
    gy = _in_gy(gy, arrays, path.name)
    return _Found(Dose(grid, gy), kind, ("the npz does not say whose dose it is",))


def _predicted(arrays: Mapping[str, NDArray]) -> tuple[str, NDArray]:
    """The dose of a file of `predict` that it found best: the chosen sample, else the regression."""
    samples, chosen = arrays.get("samples"), arrays.get("chosen")
    if samples is not None and chosen is not None and samples.ndim == 4 and _is_number(chosen):
        k = int(chosen.item())
        if 0 <= k < len(samples):
            return f"prediction, sample {k}", samples[k]
    if "regression" in arrays:
        return "prediction, regression", arrays["regression"]
    return "prediction, mean", arrays["mean"]


def _grid(arrays: Mapping[str, NDArray], gy: NDArray, name: str) -> Grid:
    missing = [key for key in _PLACE if key not in arrays]
    if missing:
        raise CaseError(
            f"prior {name} holds no {' and no '.join(missing)}, so where its dose lies is unknown; {_NEEDED}"
        )
    if gy.ndim != 3 or min(gy.shape) < 2:
        raise CaseError(f"prior {name}: the dose has the shape {gy.shape}; {_NEEDED}")
    triples = []
    for key in _PLACE:
        values = arrays[key]
        if values.dtype.kind not in "fiu" or values.shape != (3,) or not np.isfinite(values).all():
            raise CaseError(f"prior {name}: {key} is not three numbers; {_NEEDED}")
        triples.append(tuple(float(v) for v in values))
    spacing, origin = triples
    if not all(0.05 <= s <= 50 for s in spacing):
        raise CaseError(f"prior {name}: spacing_mm is {spacing}; 0.05 to 50 mm are possible")
    return Grid(gy.shape, spacing, origin)  # type: ignore[arg-type]


def _is_number(array: NDArray) -> bool:
    """Whether an array holds one finite number."""
    return array.size == 1 and array.dtype.kind in "fiu" and bool(np.isfinite(array).all())


def _in_gy(values: NDArray, arrays: Mapping[str, NDArray], name: str) -> NDArray[np.float32]:
    """The values in Gy, with the file's step where it has one."""
    if values.dtype.kind not in "fiu":
        raise CaseError(f"prior {name}: the dose is of type {values.dtype}, numbers are needed")
    step = 1.0
    if "dose_step_gy" in arrays:
        given = arrays["dose_step_gy"]
        step = float(given.item()) if _is_number(given) else 0.0
        if not 1e-5 <= step <= 0.1:
            raise CaseError(f"prior {name}: dose_step_gy must lie in 0.00001 to 0.1; make the file again")
    gy = np.asarray(values, np.float32) * np.float32(step)
    if not np.isfinite(gy).all():
        count = int(np.count_nonzero(~np.isfinite(gy)))
        raise CaseError(
            f"prior {name}: {count} voxels of the dose are not finite; predict or export it again"
        )
    if float(gy.min()) < 0:
        raise CaseError(
            f"prior {name}: the dose falls to {gy.min():.4g} Gy, at least 0 is needed; correct what made it"
        )
    if float(gy.max()) > _GY_MAX:
        raise CaseError(
            f"prior {name}: the dose reaches {gy.max():.4g} Gy, more than {_GY_MAX:g} Gy; give it in Gy"
        )
    return gy


def _of_training(other: Case, case: Case, name: str, kind: str, *, has_ct: bool = True) -> _Found:
    """The dose of a patient's file, whose CT must be that of the case."""
    if other.reference_dose is None:
        raise CaseError(f"prior {name}: the {kind} holds no dose; give one with a dose")
    silences: tuple[str, ...] = ()
    if not has_ct:
        silences = (f"the {kind} holds no CT, so that nothing tells whose dose it is",)
    elif (apart := _hu_apart(other, case)) is None or apart > _HU_APART:
        seen = (
            "lies elsewhere"
            if apart is None
            else f"differs by {apart:.0f} HU in the mean over the body (at most {_HU_APART:g} HU)"
        )
        raise CaseError(
            f"prior {name}: the CT of the {kind} is not that of the case, it {seen}; give the dose of this "
            "patient"
        )
    return _Found(other.reference_dose, kind, silences)


def _hu_apart(other: Case, case: Case) -> float | None:
    """Mean difference of two CTs at voxels of the body; None where less than half of it is in the other."""
    points = _points(case.body.mask, case.grid)
    held = other.grid.holds(points)
    if held.mean() < 0.5:
        return None
    hu = [sample(np.asarray(c.hu, np.float32), c.grid, points[held]) for c in (case, other)]
    return float(np.abs(hu[0] - hu[1]).mean())


def _points(mask: Mask, grid: Grid) -> NDArray[np.float64]:
    """Centres of a structure's voxels, thinned evenly."""
    flat = np.flatnonzero(mask)
    return grid.points_mm(flat[:: max(len(flat) // _MOST_POINTS, 1)])


def _level_percent(sheet: GoalSheet) -> float:
    """Of what share of a target's volume the dose is its level: half, or where it may be hot within 95 %."""
    return 95.0 if sheet.stereotactic else 50.0


def _levels(dose: Dose, case: Case, sheet: GoalSheet, name: str) -> dict[str, float]:
    """The level of each target in Gy. Raises CaseError for a dose that misses or does not hold a target."""
    out = {}
    percent = _level_percent(sheet)
    prescribed = sheet.prescription.target_gy
    highest = max(prescribed.values())
    for target, gy in prescribed.items():
        structure = case.structures.get(target)
        if structure is None or structure.voxels == 0:
            continue
        points = _points(structure.mask, case.grid)
        held = float(dose.grid.holds(points).mean())
        if held < 1.0:
            raise CaseError(
                f"prior {name}: its grid holds {100 * held:.0f} % of {target}; export the dose on a grid "
                "that holds all targets"
            )
        level = _at(dose, points, percent)
        cold = level < gy * (1 - _LEVEL_REFUSED)
        # What is also in a target of a higher level may be hotter than its own prescription.
        hot = gy == highest and level > gy * (1 + _LEVEL_REFUSED)
        if cold or hot:
            turned = "".join(_turned(dose, points, percent, gy))
            raise CaseError(
                f"prior {name}: D{percent:g}% of {target} is {level:.1f} Gy, and {gy:g} Gy are prescribed: "
                f"more than {100 * _LEVEL_REFUSED:g} % apart it is a dose of another prescription, place or "
                f"unit{turned}; give the dose in Gy of the whole course for this prescription"
            )
        out[target] = level
    return out


def _at(dose: Dose, points: NDArray, percent: float) -> float:
    return float(np.percentile(sample(dose.gy, dose.grid, points), 100 - percent))


def _turned(dose: Dose, points: NDArray, percent: float, gy: float) -> Iterator[str]:
    """Along which axis the dose would fit if it were turned round."""
    for axis, words in _AXES.items():
        turned = replace(dose, gy=np.ascontiguousarray(np.flip(dose.gy, axis)), std_gy=None)
        if abs(_at(turned, points, percent) / gy - 1) <= _LEVEL_NAMED:
            yield f" (mirrored {words} it would fit)"
            return


def _level_remarks(levels: Mapping[str, float], sheet: GoalSheet) -> list[str]:
    percent, prescribed = _level_percent(sheet), sheet.prescription.target_gy
    highest = max(prescribed.values())
    out = []
    for target, level in levels.items():
        off = level / prescribed[target] - 1
        if off < -_LEVEL_NAMED or (prescribed[target] == highest and off > _LEVEL_NAMED):
            out.append(
                f"D{percent:g}% of {target} is {level:.1f} Gy, {100 * off:+.0f} % off the "
                f"{prescribed[target]:g} Gy prescribed: the dose is not scaled"
            )
    return out


def _require_in_body(dose: Dose, case: Case, sheet: GoalSheet, name: str) -> None:
    """Raise CaseError where much of what is above half the prescription lies outside the body."""
    half = max(sheet.prescription.target_gy.values()) / 2
    points = _points(dose.gy >= half, dose.grid)
    if not len(points):
        return
    index = np.rint(case.grid.index(points)).astype(int)
    within = np.all((index >= 0) & (index < np.array(case.grid.shape)), axis=1)
    inside = np.zeros(len(points), bool)
    inside[within] = case.body.mask[tuple(index[within].T)]
    outside = 1 - float(inside.mean())
    if outside > _OUTSIDE_BODY:
        raise CaseError(
            f"prior {name}: {100 * outside:.0f} % of what gets {half:g} Gy and more lies outside "
            f"{case.body.name} (at most {100 * _OUTSIDE_BODY:g} %): the dose lies elsewhere or is turned; "
            "give one on this CT"
        )


def _organs_outside(grid: Grid, case: Case, sheet: GoalSheet) -> list[str]:
    """The organs with goals that the dose's grid does not hold."""
    from vmat_diffusion.optimize.objectives import LEAST_HELD

    out = []
    for name in dict.fromkeys(goal.structure for goal in sheet.goals):
        structure = case.structures.get(name)
        if structure is None or structure.role == "body" or name in sheet.prescription.target_gy:
            continue
        if structure.voxels and (held := float(grid.holds(_points(structure.mask, case.grid)).mean())) < 1:
            end = "; it is not aimed at" if held < LEAST_HELD else ""
            out.append(f"the dose's grid holds {100 * held:.0f} % of {name}{end}")
    return out


def _thinned(dose: Dose) -> Dose:
    """The dose, on 2 mm where it is so fine that sampling it would take gigabytes."""
    grid = dose.grid
    if np.prod(grid.shape) <= _MOST_VOXELS:
        return dose
    x, y, z = (max(s, _THINNED_MM) for s in grid.spacing_mm)
    coarse = grid.around(*grid.bounds_mm, (x, y, z))
    gy: NDArray[Any] = dose.on(coarse)
    return replace(dose, grid=coarse, gy=gy)
