"""What the arrays and the metadata of a training case may hold; checked before anything is made of them.

Types, shapes and ranges of `docs/preprocess.md`. A file that breaks one of these is refused in a sentence.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmat_diffusion.case import ROLES
from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import parse_json
from vmat_diffusion.geometry import PATIENT_POSITIONS

# The memory of one array; a CT of 512 x 512 x 1000 voxels of int16 takes half of it.
_BYTES_MAX = 2**30
# As in the reader of RTDOSE: no course of radiotherapy reaches it.
_GY_MAX = 1000.0
_META_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class _Rule:
    """Kind of numpy's dtype (`u1`, `i2`, `f`, `U`, `b`, `i`), number of axes, range; `gaps` allows NaN."""

    kind: str
    axes: int
    low: float = -math.inf
    high: float = math.inf
    gaps: bool = False


_ARC_RULES = {
    "gantry_deg": _Rule("f", 1, -1e4, 1e4),
    "leaves_mm": _Rule("f", 3, -1000, 1000),
    "jaws_mm": _Rule("f", 2, -1000, 1000),
    "mu": _Rule("f", 1, 0, 1e5),
}
_RULES: Mapping[str, _Rule] = {
    "schema": _Rule("i", 0),
    "meta": _Rule("U", 0),
    "hu": _Rule("i2", 3),
    "spacing_mm": _Rule("f", 1, 0.05, 50),
    "origin_mm": _Rule("f", 1, -1e5, 1e5),
    "affine": _Rule("f", 2, -1e5, 1e5),
    "masks": _Rule("u1", 2),
    "mask_names": _Rule("U", 1),
    "mask_roles": _Rule("U", 1),
    "vocabulary": _Rule("U", 1),
    "present": _Rule("b", 1),
    "possible_dose": _Rule("u1", 1),
    "padding": _Rule("i", 2, 0, 10_000),
    "constraint_limits": _Rule("f", 1, -1e6, 1e6),
    "constraint_achieved": _Rule("f", 1, -1e9, 1e9, gaps=True),
    "prescription_gy": _Rule("f", 1, 0, 200, gaps=True),
    # A step of 0 or less would turn the dose round; above 0.1 Gy it would say little.
    "dose_step_gy": _Rule("f", 0, 1e-5, 0.1),
    "dose": _Rule("u2", 3),
    "sdf_tenth_mm": _Rule("i2", 4),
}
_REQUIRED = tuple(
    name for name in _RULES if name not in ("prescription_gy", "dose_step_gy", "dose", "sdf_tenth_mm")
)
# Of free fluence: all of them or none.
_FLUENCE_RULES = {
    "fluence_gantry_deg": _Rule("f", 1, -1e4, 1e4),
    "fluence_collimator_deg": _Rule("f", 1, -1e4, 1e4),
    "fluence_mu": _Rule("f", 3, 0, 1e5),
    "fluence_row_edges_mm": _Rule("f", 1, -1000, 1000),
    "fluence_column_edges_mm": _Rule("f", 1, -1000, 1000),
    "fluence_isocenter_mm": _Rule("f", 1, -1e5, 1e5),
    "fluence_fractions": _Rule("i", 0, 1, 200),
}

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_Text = Annotated[str, Field(strict=True, max_length=200)]
_Angle = Annotated[float, Field(ge=-1000, le=1000)]
_Mm = Annotated[float, Field(ge=-1e5, le=1e5)]
_Fractions = Annotated[int, Field(strict=True, ge=1, le=200)]
_Position = Annotated[str, Field(pattern="^(" + "|".join(PATIENT_POSITIONS) + ")$")]


@checked(frozen=True, config=_STRICT)
class _Prescribed:
    fractions: _Fractions
    target_gy: dict[_Text, Annotated[float, Field(gt=0, le=200)]]


@checked(frozen=True, config=_STRICT)
class _Beam:
    collimator_deg: _Angle
    couch_deg: _Angle
    name: _Text
    number: Annotated[int, Field(strict=True, ge=0, le=10_000)]


@checked(frozen=True, config=_STRICT)
class _Planned:
    isocenter_mm: tuple[_Mm, _Mm, _Mm]
    fractions: _Fractions
    machine: _Text
    label: _Text
    patient_position: _Position
    dose_rate_mu_min: Annotated[float, Field(gt=0, le=1e5)] | None
    beams: Annotated[list[_Beam], Field(min_length=1, max_length=100)]


@checked(frozen=True, config=_STRICT)
class _Meta:
    id: _Text
    site: _Text
    patient_position: _Position
    has_ct: Annotated[bool, Field(strict=True)]
    prescription: _Prescribed | None
    dose_medium: Literal["medium", "water"] | None
    constraints: list[tuple[_Text, _Text]]
    plan: _Planned | None
    provenance: dict[str, Any]


_META = TypeAdapter(_Meta)


def check_sizes(path: Path, names: Sequence[str] | None = None) -> None:
    """Refuse arrays that would fill the memory or hold objects, from their headers alone.

    `names` None: all arrays in the file. Raises CaseError; errors of zipfile and numpy for what is no npz.
    """
    with zipfile.ZipFile(path) as archive:
        for name in [n.removesuffix(".npy") for n in archive.namelist()] if names is None else names:
            with archive.open(f"{name}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0
                shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(stream)
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                raise CaseError(f"{path.name}: {name} holds objects, which are never loaded; make it again")
            if not 0 <= size <= _BYTES_MAX:
                raise CaseError(
                    f"{path.name}: {name} would take {size / 2**30:.3g} GiB, at most "
                    f"{_BYTES_MAX / 2**30:g} are read; give coarser voxels"
                )


def check_arrays(arrays: Mapping[str, NDArray], label: str) -> None:
    """Refuse an array of a wrong type, number of axes or range. Raises CaseError naming it."""
    for name, values in arrays.items():
        rule = _rule(name)
        if rule is None:
            continue
        if not _is_kind(values, rule.kind) or values.ndim != rule.axes:
            raise CaseError(
                f"{label}: {name} has type {values.dtype} and {values.ndim} axes, {rule.kind} and "
                f"{rule.axes} are needed; make it again"
            )
        if values.dtype.kind in "OV":
            raise CaseError(f"{label}: {name} holds objects; make it again")
        if rule.kind not in ("f", "i") or values.size == 0:
            continue
        numbers = values.astype(np.float64)
        bad = ~((numbers >= rule.low) & (numbers <= rule.high) & np.isfinite(numbers))
        if rule.gaps:
            bad &= ~np.isnan(numbers)
        if bad.any():
            raise CaseError(
                f"{label}: {name} holds {numbers[bad].flat[0]:g}, outside {rule.low:g} to {rule.high:g}; "
                "make it again"
            )


def _rule(name: str) -> _Rule | None:
    if name.startswith("arc"):
        return _ARC_RULES.get(name.partition("_")[2])
    return _RULES.get(name) or _FLUENCE_RULES.get(name)


def _is_kind(values: NDArray, kind: str) -> bool:
    if len(kind) == 2:
        return values.dtype.kind == kind[0] and values.dtype.itemsize == int(kind[1])
    return values.dtype.kind == kind


def check_case(arrays: Mapping[str, NDArray], label: str) -> dict[str, Any]:
    """Refuse arrays that do not fit together; returns the metadata. Raises CaseError naming the array."""
    if missing := [name for name in _REQUIRED if name not in arrays]:
        raise CaseError(f"{label}: the array {missing[0]} is missing; make it again")
    meta = _meta(str(arrays["meta"]), label)
    shape = arrays["hu"].shape
    count, bits = len(arrays["mask_names"]), -(-math.prod(shape) // 8)
    goals = len(meta["constraints"])
    wanted: dict[str, tuple[int, ...]] = {
        "spacing_mm": (3,),
        "origin_mm": (3,),
        "affine": (4, 4),
        "masks": (count, bits),
        "mask_roles": (count,),
        "present": arrays["vocabulary"].shape,
        "possible_dose": (bits,),
        "padding": (3, 2),
        "constraint_limits": (goals,),
        "constraint_achieved": (goals,),
        "prescription_gy": (count,),
        "dose": shape,
        "sdf_tenth_mm": (count, *shape),
        "fluence_isocenter_mm": (3,),
    }
    for name, expected in wanted.items():
        if name in arrays and arrays[name].shape != expected:
            raise CaseError(f"{label}: {name} has shape {arrays[name].shape}, not {expected}; make it again")
    _fits(arrays, meta, label)
    return meta


def _fits(arrays: Mapping[str, NDArray], meta: Mapping[str, Any], label: str) -> None:
    names = [str(n) for n in arrays["mask_names"]]
    if len(set(names)) != len(names) or not all(names):
        raise CaseError(f"{label}: mask_names holds a name twice or an empty one; make it again")
    if wrong := [str(r) for r in arrays["mask_roles"] if str(r) not in ROLES]:
        raise CaseError(
            f"{label}: mask_roles holds {wrong[0][:40]!r}, not one of {', '.join(ROLES)}; make it again"
        )
    affine = np.diag([*arrays["spacing_mm"], 1.0])
    affine[:3, 3] = arrays["origin_mm"]
    if not np.allclose(arrays["affine"], affine, atol=1e-3):
        raise CaseError(f"{label}: affine does not fit spacing_mm and origin_mm; make it again")
    if ("dose" in arrays) != ("dose_step_gy" in arrays) or ("dose" in arrays) != (
        meta["dose_medium"] is not None
    ):
        raise CaseError(f"{label}: dose, dose_step_gy and dose_medium belong together; make it again")
    if "dose" in arrays:
        most = float(arrays["dose"].max(initial=0)) * float(arrays["dose_step_gy"])
        if most > _GY_MAX:
            raise CaseError(f"{label}: the dose reaches {most:.4g} Gy, above {_GY_MAX:g} Gy; make it again")
    absent = [name for name in _FLUENCE_RULES if name not in arrays]
    if 0 < len(absent) < len(_FLUENCE_RULES):
        raise CaseError(f"{label}: the array {absent[0]} of the fluence is missing; make it again")
    beams = meta["plan"]["beams"] if meta["plan"] else ()
    for k in range(1, len(beams) + 1):
        if missing := [f"arc{k}_{name}" for name in _ARC_RULES if f"arc{k}_{name}" not in arrays]:
            raise CaseError(f"{label}: the array {missing[0]} of a beam is missing; make it again")


def _meta(text: str, label: str) -> dict[str, Any]:
    try:
        meta = parse_json(text, characters=_META_CHARACTERS)
        _META.validate_python(meta)
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(p)[:40] for p in first["loc"])
        raise CaseError(f"{label}: meta: {where}: {first['msg']}; make it again") from None
    except ValueError as fault:
        raise CaseError(f"{label}: meta is not readable ({fault}); make it again") from None
    return dict(meta)
