"""Linacs as data: limits, multileaf collimator and photon beam, every number with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmat_diffusion.errors import MachineError
from vmat_diffusion.files import parse_toml, why_no_file

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
# How the source of a number was looked at, where a file says it; docs/machines.md has the meanings.
SEEN = ("publication", "transcription", "practice", "recalled", "chosen")
# Texts that go into plans, with the letters that DICOM allows them (LO, SH).
_WRITTEN = {"manufacturer": 64, "tolerance_table": 16}
# Strict: text is no number, so that none can stand in a file without its source.
# No number of a linac is above the photon fluence per cm2 and MU, about 1e9; the others have tighter limits.
_Number = Annotated[float, Field(strict=True, ge=-1e4, le=1e4)]
_Positive = Annotated[float, Field(strict=True, gt=0, le=1e5)]
_NotNegative = Annotated[float, Field(strict=True, ge=0, le=1e5)]
_Fluence = Annotated[float, Field(strict=True, gt=0, le=1e12)]
_Share = Annotated[float, Field(strict=True, ge=0, lt=1)]

_JAW_TYPES = ("X", "Y", "ASYMX", "ASYMY")
_LEAF_TYPES = ("MLCX", "MLCX1", "MLCX2")


_Section = TypeVar("_Section")


@checked(frozen=True, config=_STRICT)
class Limits:
    """What the linac can do. All speeds are maxima; accelerations bound changes of speed.

    With `jaw_tracking` jaws may move while the beam is on.
    `gantry_stop_deg` is the angle that a C-arm cannot turn through; a ring has none. Of the other optional
    fields None means that nothing is known to limit it: `dose_rate_change_mu_min_s` is the most that the
    dose rate changes in a second; `dose_rate_levels_mu_min`, ascending, are the only rates there are;
    `gantry_speed_step_deg_s` is the step of gantry speeds.
    """

    gantry_speed_deg_s: _Positive
    gantry_speed_min_deg_s: _Positive
    gantry_acceleration_deg_s2: _Positive
    leaf_speed_mm_s: _Positive
    jaw_speed_mm_s: _Positive
    dose_rate_mu_min: _Positive
    mu_per_deg_min: _NotNegative
    mu_per_deg_max: _Positive
    leaf_gap_mm: _NotNegative
    leaf_position_mm: _Positive
    leaf_span_mm: _Positive
    jaw_position_mm: _Positive
    jaw_overtravel_x_mm: _Number
    jaw_overtravel_y_mm: _Number
    control_points_max: Annotated[int, Field(strict=True, ge=2, le=100_000)]
    jaw_tracking: Annotated[bool, Field(strict=True)] = False
    gantry_stop_deg: Annotated[float, Field(ge=-360, le=720)] | None = None
    leaf_acceleration_mm_s2: _Positive | None = None
    jaw_acceleration_mm_s2: _Positive | None = None
    dose_rate_change_mu_min_s: _Positive | None = None
    dose_rate_levels_mu_min: Annotated[tuple[_Positive, ...], Field(min_length=1)] | None = None
    gantry_speed_step_deg_s: _Positive | None = None

    def __post_init__(self) -> None:
        levels = self.dose_rate_levels_mu_min
        if levels is None:
            return
        if np.any(np.diff(levels) <= 0) or levels[-1] > self.dose_rate_mu_min:
            raise ValueError("dose_rate_levels_mu_min must ascend to dose_rate_mu_min at most")
        if self.gantry_speed_step_deg_s is not None:
            raise ValueError(
                "dose_rate_levels_mu_min and gantry_speed_step_deg_s exclude each other: in a segment "
                "of given MU and angle one follows from the other"
            )


@checked(frozen=True, config=_STRICT)
class Layer:
    """One bank pair of leaves: DICOM device type and the n + 1 leaf boundaries in mm, ascending."""

    device: str
    boundaries_mm: tuple[_Number, ...]

    def __post_init__(self) -> None:
        if self.device not in _LEAF_TYPES:
            raise ValueError(f"device {self.device!r} is not one of {', '.join(_LEAF_TYPES)}")
        if self.pairs < 1 or np.any(np.diff(self.boundaries_mm) <= 0):
            raise ValueError(f"boundaries_mm of {self.device} must be at least two, ascending")

    @property
    def pairs(self) -> int:
        """Number of leaf pairs."""
        return len(self.boundaries_mm) - 1


@checked(frozen=True, config=_STRICT)
class Mlc:
    """The multileaf collimator. Most have one layer; stacked ones list two, leaves concatenated.

    `gap_offset_mm` is how much wider than its leaf positions say a gap acts on the axis, as rounded leaf ends
    let photons through; `gap_growth_mm` is added where leaf ends are `gap_growth_at_mm` off the axis, linear
    in between. Between neighbour leaves `tongue_mm` at the isocentre is covered by the side of one leaf alone
    where only the other is open, which passes `tongue_transmission`; 0 mm has no tongues.
    """

    layers: tuple[Layer, ...]
    interdigitation: bool
    transmission: _Share
    gap_offset_mm: _Number
    source_distance_mm: _Positive
    gap_growth_at_mm: tuple[_NotNegative, ...] = ()
    gap_growth_mm: tuple[_Number, ...] = ()
    tongue_mm: _NotNegative = 0.0
    tongue_transmission: _Share = 0.0

    def __post_init__(self) -> None:
        at = self.gap_growth_at_mm
        if len(at) != len(self.gap_growth_mm) or len(at) == 1 or np.any(np.diff(at) <= 0):
            raise ValueError("gap_growth_at_mm must ascend and hold one value per gap_growth_mm, two or more")
        if self.tongue_mm and len(self.layers) > 1:
            raise ValueError(
                "tongue_mm must be 0 where layers are stacked: each shades the other's boundaries"
            )
        narrowest = min(float(np.diff(layer.boundaries_mm).min()) for layer in self.layers)
        if self.tongue_mm >= narrowest:
            raise ValueError(f"tongue_mm must be below the narrowest leaf's {narrowest:g} mm")
        if self.tongue_mm and self.tongue_transmission < self.transmission:
            raise ValueError("tongue_transmission must be at least the transmission of a whole leaf")

    def gap_offset_of(self, position_mm: NDArray) -> NDArray[np.float64]:
        """The gap offset in mm of leaf ends at these positions."""
        if not self.gap_growth_mm:
            return np.full(np.shape(position_mm), self.gap_offset_mm)
        growth = np.interp(np.abs(position_mm), self.gap_growth_at_mm, self.gap_growth_mm)
        return np.asarray(self.gap_offset_mm + growth)

    @property
    def ideal(self) -> bool:
        """Whether leaves are opaque and sharp, as in no linac."""
        return not (self.transmission or self.gap_offset_mm or self.gap_growth_mm or self.tongue_mm)

    @property
    def pairs(self) -> int:
        """Leaf pairs of all layers together: the length of `Arc.leaves_mm` along its last axis."""
        return sum(layer.pairs for layer in self.layers)


@checked(frozen=True, config=_STRICT)
class BeamModel:
    """The treatment head: all that either dose engine knows of the beam. See `docs/beam_model.md`.

    `photons_cm2_mu` is the photon fluence per cm2 and MU on the axis at the isocentre plane of an open
    field; it is set so that the dose is `gy_per_mu` at the stated reference point. Spectrum: relative
    numbers in bins that end at `spectrum_upper_mev`. A share of the photons starts from a Gaussian of
    `head_sigma_mm` in a plane `head_distance_mm` below the target, the others from a Gaussian of
    `focal_sigma_mm` at the target. At radius r of the isocentre plane energies fall by
    `1 - softening r^2` and numbers are multiplied by the off-axis ratio `horn(r)`. Contaminant electrons
    start from the head's plane with their own spread and an exponential spectrum.
    """

    energy: str
    fluence_mode: str
    reference_point: str
    sad_mm: _Positive
    gy_per_mu: _Positive
    photons_cm2_mu: _Fluence
    angular: str
    spectrum_low_mev: _NotNegative
    spectrum_upper_mev: tuple[_Positive, ...]
    spectrum_number: tuple[_NotNegative, ...]
    collimator_mm: _Positive
    focal_sigma_mm: _NotNegative = 0.0
    head_share: _Share = 0.0
    head_sigma_mm: _NotNegative = 0.0
    head_distance_mm: _NotNegative = 0.0
    softening_per_mm2: _Number = 0.0
    horn_radius_mm: tuple[_NotNegative, ...] = (0.0,)
    horn: tuple[_Positive, ...] = (1.0,)
    electrons_per_photon: _NotNegative = 0.0
    electron_mean_mev: _Positive = 1.0
    electron_max_mev: _Positive = 6.0
    electron_sigma_mm: _NotNegative = 0.0
    electron_sampling: _Share = 0.1

    def __post_init__(self) -> None:
        if self.angular not in ("isotropic", "uniform_in_plane"):
            raise ValueError("angular must be isotropic or uniform_in_plane")
        if len(self.spectrum_upper_mev) != len(self.spectrum_number) or not sum(self.spectrum_number):
            raise ValueError("spectrum_number must hold one value per spectrum_upper_mev, not all zero")
        if len(self.horn) != len(self.horn_radius_mm):
            raise ValueError("horn must hold one value per horn_radius_mm")
        for name, nodes in (
            ("spectrum_upper_mev", (self.spectrum_low_mev, *self.spectrum_upper_mev)),
            ("horn_radius_mm", self.horn_radius_mm),
        ):
            if np.any(np.diff(nodes) <= 0):
                raise ValueError(f"{name} must ascend")
        if not self.head_distance_mm < self.collimator_mm < self.sad_mm:
            raise ValueError("head_distance_mm, collimator_mm and sad_mm must ascend")


@dataclass(frozen=True, eq=False)
class Machine:
    """A linac. `jaws` lists the DICOM device types it has, such as ASYMX and ASYMY.

    `manufacturer` and the label of its `tolerance_table` are written into plans, where they are not empty.
    """

    name: str
    title: str
    jaws: tuple[str, ...]
    limits: Limits
    mlc: Mlc
    beam: BeamModel | None
    sources: Mapping[str, str]
    manufacturer: str = ""
    tolerance_table: str = ""

    @property
    def sad_mm(self) -> float:
        """Distance from the source to the isocentre."""
        return self.beam.sad_mm if self.beam else 1000.0

    def require_beam(self) -> BeamModel:
        """The beam model, or an error that says what to do without one."""
        if self.beam is None:
            raise MachineError(
                f"machine {self.name} has a geometry but no beam model, so no dose can be computed; "
                f"choose one of {', '.join(m for m in machine_names() if load_machine(m).beam)} or fit a beam"
            )
        return self.beam

    def row_edges_mm(self) -> NDArray[np.float64]:
        """Edges in mm of the leaf rows, ascending: the leaf boundaries of all layers together."""
        edges = np.concatenate([np.asarray(la.boundaries_mm) for la in self.mlc.layers])
        return np.unique(np.round(edges, 6))

    def row_pairs(self) -> NDArray[np.intp]:
        """The leaf pair of each layer in each leaf row between `row_edges_mm`, -1 where there is none.

        Shape `(rows, layers)`; pairs are numbered through all layers, as in `Arc.leaves_mm`.
        """
        edges = self.row_edges_mm()
        middle = (edges[1:] + edges[:-1]) / 2
        columns, first = [], 0
        for layer in self.mlc.layers:
            pair = np.searchsorted(layer.boundaries_mm, middle) - 1
            inside = (pair >= 0) & (pair < layer.pairs)
            columns.append(np.where(inside, pair + first, -1))
            first += layer.pairs
        return np.stack(columns, axis=1)


def machine_names() -> tuple[str, ...]:
    """Names of the machines shipped with the package."""
    folder = resources.files("vmat_diffusion") / "machines"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def load_machine(name: str | Path) -> Machine:
    """A shipped machine by name, or one from a TOML file by path.

    Raises MachineError for an unknown name, an unknown or missing key, or a number without source.
    """
    return parse_machine(machine_text(name), Path(name).stem if _is_file(name) else str(name))


def machine_text(name: str | Path) -> str:
    """The TOML text of a machine, shipped or in a file. Raises MachineError where there is none."""
    if _is_file(name):
        path = Path(name)
        if not path.is_file():
            raise MachineError(f"machine file {path} {why_no_file(path)}; give a name or an existing file")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MachineError(f"machine file {path} cannot be read as text ({error}); check it") from None
    if name not in machine_names():
        raise MachineError(
            f"machine {str(name)!r} is not known; known are {', '.join(machine_names())}, "
            "or give the path of a .toml file"
        )
    return (resources.files("vmat_diffusion") / "machines" / f"{name}.toml").read_text(encoding="utf-8")


def _is_file(name: str | Path) -> bool:
    return str(name).endswith(".toml")


def parse_machine(text: str, label: str) -> Machine:
    """The machine that a TOML text describes. Raises MachineError naming the key at fault."""
    try:
        tree = parse_toml(text)
    except ValueError as error:
        raise MachineError(f"machine {label}: not valid TOML ({error}); correct the file") from None
    sources: dict[str, str] = {}
    plain = _strip_sources(tree, "", sources, label)
    allowed = {"name", "title", "jaws", "limits", "mlc", "beam", *_WRITTEN}
    if unknown := set(plain) - allowed:
        raise MachineError(f"machine {label}: unknown key {sorted(unknown)[0]!r}; known: {sorted(allowed)}")
    for device in (jaws := tuple(plain.get("jaws", ()))):
        if device not in _JAW_TYPES:
            raise MachineError(
                f"machine {label}: jaws: {device!r} is not one of {', '.join(_JAW_TYPES)}; correct the file"
            )
    for key, most in _WRITTEN.items():
        if not isinstance(text := plain.get(key, ""), str) or len(text) > most or "\\" in text:
            raise MachineError(f"machine {label}: {key} must be a text of at most {most} letters; correct it")
    return Machine(
        name=str(plain.get("name", label)),
        title=str(plain.get("title", "")),
        jaws=jaws,
        limits=_section(Limits, "limits", plain.get("limits", {}), label),
        mlc=_section(Mlc, "mlc", plain.get("mlc", {}), label),
        beam=_section(BeamModel, "beam", plain["beam"], label) if "beam" in plain else None,
        sources=sources,
        manufacturer=plain.get("manufacturer", ""),
        tolerance_table=plain.get("tolerance_table", ""),
    )


def _section(kind: type[_Section], name: str, plain: Any, label: str) -> _Section:
    """One table of the file as its dataclass. Raises MachineError naming the key by its path."""
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in (name, *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise MachineError(f"machine {label}: {where}: {message}; correct the file") from None


def _strip_sources(node: Any, path: str, sources: dict[str, str], label: str) -> Any:
    """Replace every `{value = ..., source = ...}` by its value and note the source by key path.

    A `seen` beside them follows the source in brackets.
    """
    if isinstance(node, dict):
        if "value" in node:
            if not str(node.get("source", "")).strip() or set(node) - {"seen"} != {"value", "source"}:
                raise MachineError(f"machine {label}: {path} needs exactly a value and a source")
            if (seen := node.get("seen", "")) not in ("", *SEEN):
                raise MachineError(
                    f"machine {label}: {path}: seen {seen!r} is not one of {', '.join(SEEN)}; "
                    "correct the file"
                )
            sources[path] = str(node["source"]) + (f" [{seen}]" if seen else "")
            return node["value"]
        return {
            key: _strip_sources(value, f"{path}.{key}".lstrip("."), sources, label)
            for key, value in node.items()
        }
    if isinstance(node, list) and not any(_is_number(v) for v in node):
        return [_strip_sources(v, f"{path}[{i}]", sources, label) for i, v in enumerate(node)]
    if isinstance(node, list) or _is_number(node):
        shown = "[...]" if isinstance(node, list) else node
        raise MachineError(
            f"machine {label}: {path} has no source; write {{ value = {shown}, source = '...' }}"
        )
    return node


def _is_number(node: Any) -> bool:
    return isinstance(node, int | float) and not isinstance(node, bool)
