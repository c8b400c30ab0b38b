"""The domain of a dose model: figures of its training cases, and warnings where a case differs from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.model import DoseModel
from vmat_diffusion.geometry import Mask, Point, bounding_box, subgrid

# Share of the diagonal in the covariance: a few cases do not determine the correlations.
_SHRINKAGE = 0.2
# A case is far if its distance exceeds that of this share of the training cases from the others.
_QUANTILE = 0.99
# A single figure leaves the range of the training cases if it lies beyond by more than this share of the
# range and twice the least spread.
_BEYOND = 0.25
# A target is encoded at the nearest level; farther off, the model does not know its prescription.
_LEVEL_AWAY = 0.06
_NAMED = 3
# Ranges are kept with six digits.
_ROUNDED_MM = 1e-3
# Patient positions of weights whose file does not state them.
_POSITIONS = ("HFS",)


@dataclass(frozen=True)
class Feature:
    """A figure of a case: its title and unit, the least spread that counts, whether it is a logarithm."""

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


def feature(name: str) -> Feature:
    """The figure of a name; names of organ positions are like `Larynx_x_mm`."""
    if name in _FEATURES:
        return _FEATURES[name]
    organ, axis = name.removesuffix("_mm").rsplit("_", 1)
    return Feature(f"{organ} as seen from the targets, {_AXES['xyz'.index(axis)]}", "mm", 10.0)


def features(training: TrainingCase, encoding: Encoding) -> dict[str, float]:
    """The figures of a case; NaN for a figure it does not have, as of an organ that is not contoured.

    Raises ValueError for a case without prescribed targets or dose.
    """
    case, grid = training.case, training.case.grid
    levels = case.prescription.target_gy if case.prescription else {}
    named = {n: gy for n, gy in levels.items() if n in case.structures and case.structures[n].voxels}
    box = bounding_box(training.possible_dose)
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
    inside = training.possible_dose & case.body.mask
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
        "hu": float(case.hu[inside].mean()) if training.has_ct and inside.any() else math.nan,
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


def domain_figures(cases: Iterable[TrainingCase], encoding: Encoding) -> dict[str, Any]:
    """The figures of training cases, for `ModelDescription.known`: plain data.

    They are the mean, the inverse covariance (shrunk towards its diagonal) and the range of the features,
    and the distance from the other cases that 99 % of the cases keep. Empty for fewer than two cases.
    """
    rows, sites, positions = [], set(), set()
    for training in cases:
        rows.append(features(training, encoding))
        sites.add(training.case.site)
        positions.add(training.case.patient_position)
    if len(rows) < 2:
        return {}
    names = [n for n in rows[0] if any(math.isfinite(r[n]) for r in rows)]
    table = np.array([[r[n] for n in names] for r in rows])
    least = np.array([feature(n).least for n in names])
    return {
        **known_rows(names, table, least),
        "sites": sorted(sites),
        "positions": sorted(positions),
    }


def known_rows(names: Sequence[str], table: NDArray, least: NDArray) -> dict[str, Any]:
    """What is kept of `table[cases, names]`: mean, inverse covariance, range, distance of 99 % of the cases.

    That distance is each case's from the others. `least[names]` are the spreads that count at the least.
    """
    distances = []
    for k in range(len(table)):
        mean, precision = _statistics(np.delete(table, k, axis=0), least)
        distances.append(_distance(table[k], mean, precision))
    mean, precision = _statistics(table, least)
    return {
        "cases": len(table),
        "features": list(names),
        "mean": _plain(mean),
        "precision": [_plain(row) for row in precision],
        "low": _plain(np.nanmin(table, axis=0)),
        "high": _plain(np.nanmax(table, axis=0)),
        "limit": float(f"{np.quantile(distances, _QUANTILE):.6g}"),
    }


def distance_of(values: NDArray, known: Mapping[str, Any]) -> float:
    """The distance of a case with these figures from the cases that `known_rows` was made of."""
    return _distance(values, np.array(known["mean"]), np.array(known["precision"]))


def joined_figures(known: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the cases of a training and of those that its weights have seen before.

    Those of the later cases alone where they have other features, as on another site: there the model has
    learnt anew.
    """
    if not (known and later) or not set(later["features"]) <= set(known["features"]):
        return dict(later or known)
    if all(known[key] == later[key] for key in ("features", "mean", "low", "high")):
        return dict(known)
    at = [known["features"].index(name) for name in later["features"]]
    mean, low, high = (np.array(known[key], np.float64) for key in ("mean", "low", "high"))
    spread = np.linalg.inv(np.array(known["precision"], np.float64))
    other = spread.copy()
    other[np.ix_(at, at)] = np.linalg.inv(np.array(later["precision"], np.float64))
    step = np.zeros_like(mean)
    step[at] = np.array(later["mean"]) - mean[at]
    share = later["cases"] / (known["cases"] + later["cases"])
    low[at], high[at] = np.minimum(low[at], later["low"]), np.maximum(high[at], later["high"])
    both = (1 - share) * spread + share * other + share * (1 - share) * np.outer(step, step)
    return {
        **known,
        "cases": known["cases"] + later["cases"],
        "sites": sorted({*known["sites"], *later["sites"]}),
        "positions": sorted({*known.get("positions", _POSITIONS), *later.get("positions", _POSITIONS)}),
        "mean": _plain(mean + share * step),
        "precision": [_plain(row) for row in np.linalg.inv(both)],
        "low": _plain(low),
        "high": _plain(high),
        "limit": max(known["limit"], later["limit"]),
    }


def are_figures(known: Mapping[str, Any]) -> bool:
    """Whether plain data has the form of `domain_figures`."""
    if not known:
        return True
    try:
        names, count = known["features"], len(known["features"])
        for name in names:
            feature(name)
        rows = [*(known[key] for key in ("mean", "low", "high")), *known["precision"]]
        texts = [*known["sites"], *known.get("positions", _POSITIONS)]
        return (
            len(rows) == count + 3
            and all(len(row) == count and np.isfinite(np.array(row, np.float64)).all() for row in rows)
            and all(isinstance(text, str) for text in texts)
            and math.isfinite(known["limit"])
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _statistics(table: NDArray, least: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and inverse covariance of `table[cases, features]`; missing values count as the mean."""
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


def is_outside_sites(case: Case, model: DoseModel) -> bool:
    """Whether the model was trained on other sites than that of the case: its prediction means nothing."""
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


def domain_warnings(training: TrainingCase, model: DoseModel) -> tuple[str, ...]:
    """Sentences on how a case on the model's grid differs from all training cases of the model.

    Raises ValueError as `features`.
    """
    known, case = model.description.known, training.case
    if not known:
        return (
            "the weights do not say from which cases they were made, so nothing is known of their domain",
        )
    out = []
    if is_outside_sites(case, model):
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
    found = features(training, model.encoding)
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
    """Sentences on targets whose prescription is far from all levels of the encoding."""
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
