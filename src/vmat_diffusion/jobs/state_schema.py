"""What the state of a case and the record of a begun data set may hold, checked before they are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked

from vmat_diffusion.dataset.index import CaseLine

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_Text = Annotated[str, Field(strict=True, max_length=100_000)]
_Name = Annotated[str, Field(strict=True, min_length=1, max_length=200)]
_Count = Annotated[int, Field(strict=True, ge=0)]
_Number = Annotated[float, Field(ge=-1e9, le=1e9)]
_Positive = Annotated[float, Field(ge=0, le=1e9)]
_Voxels = Annotated[int, Field(strict=True, ge=1, le=10_000)]
_Shape = tuple[_Voxels, _Voxels, _Voxels]
# x, y, z in mm
_Triple = tuple[_Number, _Number, _Number]
_Files = Annotated[dict[_Name, _Count], Field(max_length=100)]
# The figures of a case's voxels, as `dataset.tables.case_statistics` makes them.
_SPREADS = {
    "hu": ("percentile_0.5", "percentile_50", "percentile_99.5"),
    "dose_gy": ("percentile_50", "percentile_98"),
}
_MOMENTS = ("voxels", "mean", "std", "min", "max")


@checked(frozen=True, config=_STRICT)
class _Statistics:
    volumes_cc: dict[_Name, _Positive]
    hu: dict[_Name, _Number] | None = None
    dose_gy: dict[_Name, _Number] | None = None
    source_spacing_mm: _Triple | None = None
    extent_mm: _Triple | None = None
    targets_extent_mm: _Triple | None = None

    @model_validator(mode="after")
    def _whole(self) -> _Statistics:
        for name, percentiles in _SPREADS.items():
            spread = getattr(self, name)
            if spread is not None and (set(spread) != {*_MOMENTS, *percentiles} or spread["voxels"] < 1):
                raise ValueError(f"{name} holds other figures")
        return self


@dataclass(frozen=True, kw_only=True)
class _Record(CaseLine):
    """The line of a case in the index, with all that `dataset.tables.case_record` writes."""

    fractions: Annotated[int, Field(strict=True, ge=1, le=200)] | None
    has_ct: Annotated[bool, Field(strict=True)]
    technique: _Name
    spacing_mm: _Triple
    # Hashes of where a case of DICOM comes from.
    study: _Text | None = None
    frame_of_reference: _Text | None = None


@checked(frozen=True, config=_STRICT)
class _Staged:
    id: _Name
    key: _Text
    state: Literal["staged"]
    files: _Files
    extent: tuple[_Triple, _Triple]


@checked(frozen=True, config=_STRICT)
class _PlanFigures:
    """The figures of a simulated plan."""

    site: _Text
    goals: _Name
    arcs: _Count
    outcome: _Name
    mu: _Positive
    control_points: _Count
    goals_met: _Count
    goals_judged: _Count
    violations: _Count


@checked(frozen=True, config=_STRICT)
class _DoseFigures:
    """The figures of a dose of free fluence."""

    site: _Text
    goals: _Name
    beams: _Name
    d2_gy: _Positive
    goals_met: _Count
    goals_judged: _Count


@checked(frozen=True, config=_STRICT)
class _Done:
    id: _Name
    key: _Text
    state: Literal["done"]
    files: _Files
    record: _Record
    statistics: _Statistics
    shape: _Shape | None = None
    cut_percent: dict[_Name, _Positive] | None = None
    figures: _PlanFigures | _DoseFigures | Annotated[dict[_Name, Any], Field(max_length=0)] | None = None
    seconds: _Positive = 0.0


@checked(frozen=True, config=_STRICT)
class _Rejected:
    id: _Name
    key: _Text
    state: Literal["rejected"]
    reason: _Text
    defect: Annotated[bool, Field(strict=True)]
    trace: _Text = ""


@dataclass(frozen=True)
class _Begun:
    """What is used of `dataset.json`, or of the record that stands for it until it is written."""

    settings: dict[_Name, Any]
    shape: _Shape | None


_STATE: TypeAdapter[Any] = TypeAdapter(Annotated[_Staged | _Done | _Rejected, Field(discriminator="state")])
_BEGUN = TypeAdapter(_Begun)


def is_state(tree: Any) -> bool:
    """Whether a tree of JSON is the state of a case as `case_states` writes it."""
    return _fits(_STATE, tree)


def is_begun(tree: Any) -> bool:
    """Whether a tree of JSON holds the settings and the shape of a data set."""
    return isinstance(tree, dict) and _fits(_BEGUN, tree)


def _fits(adapter: TypeAdapter[Any], tree: Any) -> bool:
    try:
        adapter.validate_python(tree)
    except ValidationError:
        return False
    return True
