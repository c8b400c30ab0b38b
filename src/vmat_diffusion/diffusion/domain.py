"""What a dose model knows: figures of its training cases, and in what a case differs from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.model import DoseModel
from vmat_diffusion.evaluate.dvh import bounding_box, subgrid
from vmat_diffusion.geometry import Mask, Point

# Share of the diagonal in the covariance: few cases tell little of how features go together.
_SHRINKAGE = 0.2
# A case is far if it is farther from the others than this share of the training cases are.
_QUANTILE = 0.99
# A single figure is unusual if it lies beyond the range of the training cases by more than this share of it
# and twice the least spread that counts.
_BEYOND = 0.25
# A target takes the slot of the nearest level; farther off, what it is to get is not known.
_LEVEL_AWAY = 0.06
_NAMED = 3
# Ranges are kept with six digits.
_ROUNDED_MM = 1e-3
# What weights were trained on that do not say how their patients lie.
_POSITIONS = ("HFS",)


@dataclass(frozen=True)
class Feature:
    """A figure of a case: what it is, its unit, the least spread that counts, whether its logarithm does."""

    title: str
    unit: str
    least: float
    log: bool = False


_FEATURES: Mapping[str, Feature] = {
    "targets_cc": Feature("the volume of all targets", "cc", 0.1, log=True),
    "top_cc": Feature("the volume of the targets with the highest prescription", "cc", 0.1, log=True),
    "targets_x_mm": Feature("the width of the targets", "mm", 5.0),
    "targets_y_mm": Feature("the depth of the targets", "mm", 5.0),
    "targets_z_mm": Feature("the length of the targets", "mm", 5.0),
    "top_gy": Feature("the highest prescription", "Gy", 1.0),
    "fraction_gy": Feature("the dose of a fraction", "Gy", 0.05),
    "levels": Feature("the number of prescription levels", "", 0.25),
    "organs": Feature("the number of contoured organs that the model knows", "", 0.5),
    "body_x_mm": Feature("the width of the body", "mm", 10.0),
    "body_y_mm": Feature("the depth of the body", "mm", 10.0),
    "field_z_mm": Feature("the length of the region with dose", "mm", 10.0),
    "room_mm": Feature("the body beyond the targets along z", "mm", 5.0),
    "off_x_mm": Feature("the targets' distance from the middle of the body, to the left", "mm", 5.0),
    "off_y_mm": Feature("the targets' distance from the middle of the body, to the back", "mm", 5.0),
    "spacing_x_mm": Feature("the spacing in the slice", "mm", 0.3),
    "spacing_z_mm": Feature("the spacing of the slices", "mm", 0.3),
    "hu": Feature("the mean of the CT", "HU", 30.0),
}
_AXES = ("to the left", "to the back", "to the head")


class Seen(Protocol):
    """What is needed of a training case; `training.cases.TrainingCase` has it."""

    @property
    def case(self) -> Case:
        """The case on the grid that is encoded."""
        ...

    @property
    def possible_dose(self) -> Mask:
        """Where there may be dose."""
        ...

    @property
    def has_ct(self) -> bool:
        """Whether the CT is one."""
        ...


def feature(name: str) -> Feature:
    """What a figure is; that of an organ's place is made from its name, `Larynx_x_mm`."""
    if name in _FEATURES:
        return _FEATURES[name]
    organ, axis = name.removesuffix("_mm").rsplit("_", 1)
    return Feature(f"{organ} as seen from the targets, {_AXES['xyz'.index(axis)]}", "mm", 10.0)


def features(seen: Seen, encoding: Encoding) -> dict[str, float]:
    """The figures of a case; NaN where it has none, as of an organ that is not contoured.

    Raises ValueError for a case without prescribed targets or dose.
    """
    case, grid = seen.case, seen.case.grid
    levels = case.prescription.target_gy if case.prescription else {}
    named = {n: gy for n, gy in levels.items() if n in case.structures and case.structures[n].voxels}
    box = bounding_box(seen.possible_dose)
    if not named or box is None:
        raise ValueError(f"{case.id}: without a prescribed target and dose there is nothing to compare")
    assert case.prescription is not None
    top = max(named.values())
    masks = {n: case.structures[n].mask for n in named}
    targets = np.logical_or.reduce(list(masks.values()))
    highest = np.logical_or.reduce([masks[n] for n, gy in named.items() if gy == top])
    low, high = _bounds_mm(targets, case)
    slices = np.flatnonzero(targets.any(axis=(1, 2)))
    beside = np.zeros_like(targets)
    beside[slices] = case.body.mask[slices]
    body_low, body_high = _bounds_mm(beside if beside.any() else case.body.mask, case)
    ends_low, ends_high = _bounds_mm(case.body.mask, case)
    middle = (low + high) / 2
    own = seen.possible_dose & case.body.mask
    out = {
        "targets_cc": math.log10(np.count_nonzero(targets) * grid.voxel_cc),
        "top_cc": math.log10(np.count_nonzero(highest) * grid.voxel_cc),
        **{f"targets_{a}_mm": float(s) for a, s in zip("xyz", high - low, strict=True)},
        "top_gy": top,
        "fraction_gy": top / case.prescription.fractions,
        "levels": float(len(set(named.values()))),
        "organs": float(sum(_there(case, o) for o in encoding.organs)),
        "body_x_mm": float(body_high[0] - body_low[0]),
        "body_y_mm": float(body_high[1] - body_low[1]),
        "field_z_mm": (box[0].stop - box[0].start) * grid.spacing_mm[2],
        "room_mm": float(min(low[2] - ends_low[2], ends_high[2] - high[2])),
        "off_x_mm": float(middle[0] - (body_low[0] + body_high[0]) / 2),
        "off_y_mm": float(middle[1] - (body_low[1] + body_high[1]) / 2),
        "spacing_x_mm": grid.spacing_mm[0],
        "spacing_z_mm": grid.spacing_mm[2],
        "hu": float(case.hu[own].mean()) if seen.has_ct and own.any() else math.nan,
    }
    for organ in encoding.organs:
        away = np.full(3, math.nan)
        if _there(case, organ):
            away = np.mean(_bounds_mm(case.structures[organ].mask, case), axis=0) - middle
        out |= {f"{organ}_{a}_mm": float(d) for a, d in zip("xyz", away, strict=True)}
    return out


def _there(case: Case, organ: str) -> bool:
    return organ in case.structures and bool(case.structures[organ].mask.any())


def _bounds_mm(mask: Mask, case: Case) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    box = bounding_box(mask)
    assert box is not None
    low, high = subgrid(case.grid, box).bounds_mm
    return np.array(low), np.array(high)


def known_of(cases: Iterable[Seen], encoding: Encoding) -> dict[str, Any]:
    """The figures of training cases, for `ModelDescription.known`: plain data.

    Mean and inverse covariance of the features, shrunk towards its diagonal, their ranges, and the
    distance that 99 % of the cases keep from all the others. Of fewer than two cases nothing is known.
    """
    rows, sites, positions = [], set(), set()
    for seen in cases:
        rows.append(features(seen, encoding))
        sites.add(seen.case.site)
        positions.add(seen.case.patient_position)
    if len(rows) < 2:
        return {}
    names = [n for n in rows[0] if any(math.isfinite(r[n]) for r in rows)]
    table = np.array([[r[n] for n in names] for r in rows])
    least = np.array([feature(n).least for n in names])
    distances = []
    for k in range(len(table)):
        mean, precision = _statistics(np.delete(table, k, axis=0), least)
        distances.append(_distance(table[k], mean, precision))
    mean, precision = _statistics(table, least)
    return {
        "cases": len(rows),
        "sites": sorted(sites),
        "positions": sorted(positions),
        "features": names,
        "mean": _plain(mean),
        "precision": [_plain(row) for row in precision],
        "low": _plain(np.nanmin(table, axis=0)),
        "high": _plain(np.nanmax(table, axis=0)),
        "limit": float(f"{np.quantile(distances, _QUANTILE):.6g}"),
    }


def _statistics(table: NDArray, least: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and inverse covariance of `table[cases, features]`; what is missing counts as the mean."""
    there = np.isfinite(table)
    mean = np.where(there, table, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    away = np.where(there, table - mean, 0)
    covariance = away.T @ away / max(len(table) - 1, 1)
    variance = np.diag(covariance)
    shrunk = (1 - _SHRINKAGE) * covariance + np.diag(_SHRINKAGE * variance + least**2)
    return mean, np.linalg.inv(shrunk)


def _distance(values: NDArray, mean: NDArray, precision: NDArray) -> float:
    """Mahalanobis distance, Mahalanobis, Proc Natl Inst Sci India 2:49 (1936)."""
    away = np.where(np.isfinite(values), values - mean, 0)
    return float(np.sqrt(max(away @ precision @ away, 0.0)))


def _plain(values: NDArray) -> list[float]:
    return [float(f"{v:.6g}") for v in values]


def is_foreign(case: Case, model: DoseModel) -> bool:
    """Whether the model was made for other sites than that of the case, so that its answer means nothing."""
    sites = model.description.known.get("sites", [])
    return bool(sites) and case.site not in sites


def knows_spacing(spacing_mm: Point, model: DoseModel) -> bool:
    """Whether the model was trained on voxels of this size (x, y, z), each axis by itself."""
    known = model.description.known
    if not known:
        return False
    rows = zip(known["features"], known["low"], known["high"], strict=True)
    ranges = {name: (low - _ROUNDED_MM, high + _ROUNDED_MM) for name, low, high in rows}
    names = ("spacing_x_mm", "spacing_x_mm", "spacing_z_mm")
    return all(
        ranges[name][0] <= size <= ranges[name][1] for name, size in zip(names, spacing_mm, strict=True)
    )


def unusual(seen: Seen, model: DoseModel) -> tuple[str, ...]:
    """In what a case on the model's grid differs from all that the model was trained on, in sentences.

    Raises ValueError as `features`.
    """
    known, case = model.description.known, seen.case
    if not known:
        return (
            "the weights do not say from which cases they were made, so nothing is known of their domain",
        )
    out = []
    if is_foreign(case, model):
        site = case.site or "not stated"
        out.append(f"the site is {site}; the model was made for {', '.join(known['sites'])}")
    positions = known.get("positions", _POSITIONS)
    if case.patient_position not in positions:
        out.append(
            f"the patient lies {case.patient_position}; all training cases lie {' or '.join(positions)}"
        )
    out += _targets(case, model.encoding)
    if not any(_there(case, organ) for organ in model.encoding.organs):
        out.append("none of the organs that the model knows is contoured")
    found = features(seen, model.encoding)
    names: Sequence[str] = known["features"]
    values = np.array([found.get(n, math.nan) for n in names])
    low, high, mean, precision = (np.array(known[key]) for key in ("low", "high", "mean", "precision"))
    least = np.array([feature(n).least for n in names])
    room = _BEYOND * (high - low) + 2 * least
    with np.errstate(invalid="ignore"):
        beyond = np.maximum(low - values, values - high) / room
    worst = np.argsort(-np.nan_to_num(beyond, nan=-np.inf))[:_NAMED]
    out += [_sentence(names[k], values[k], low[k], high[k]) for k in worst if beyond[k] > 1]
    distance = _distance(values, mean, precision)
    if distance > known["limit"]:
        out.append(
            f"as a whole the case is {distance:.1f} away from the {known['cases']} training cases, of which "
            f"99 % are at most {known['limit']:.1f} from the others"
        )
    return tuple(out)


def _targets(case: Case, encoding: Encoding) -> list[str]:
    """Targets whose prescription the encoding has no slot for."""
    levels = case.prescription.target_gy if case.prescription else {}
    present = {n: gy for n, gy in levels.items() if n in case.structures}
    top = max(present.values(), default=0.0)
    known = ", ".join(f"{100 * level:g}" for level in encoding.levels)
    return [
        f"{name} is prescribed {100 * gy / top:.0f} % of the highest dose; the model knows {known} %"
        for name, gy in present.items()
        if min(abs(gy / top - level) for level in encoding.levels) > _LEVEL_AWAY
    ]


def _sentence(name: str, value: float, low: float, high: float) -> str:
    what = feature(name)
    numbers = [10**v if what.log else v for v in (value, low, high)]
    shown, first, last = (f"{v:.0f}" if abs(v) >= 10 else f"{v:.2g}" for v in numbers)
    unit = f" {what.unit}" if what.unit else ""
    among = f"in all training cases {first}" if first == last else f"in the training cases {first} to {last}"
    return f"{what.title} is {shown}{unit}; {among}{unit}"
