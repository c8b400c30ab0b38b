"""Limits of the gate, their file (`gate.toml` beside this module, or one's own), and the floors of both."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmat_diffusion.errors import InputError
from vmat_diffusion.files import parse_toml, why_no_file

Percent = Annotated[float, Field(ge=0, le=100)]


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class GateSettings:
    """Limits of the gate; `gate.toml` beside this file holds the same numbers with their sources.

    All in percent, mm and degrees. The range of each ends at its floor: what is looser is refused.
    """

    # TG-218: 3 %/2 mm, global, threshold 10 %, action limit 90 %.
    gamma_dose_percent: Annotated[float, Field(ge=0.1, le=3.0)] = 3.0
    gamma_distance_mm: Annotated[float, Field(ge=0.1, le=3.0)] = 3.0
    gamma_local: bool = False
    gamma_threshold_percent: Annotated[float, Field(ge=0, le=10.0)] = 10.0
    gamma_pass_percent: Annotated[float, Field(ge=90.0, le=100)] = 95.0
    gamma_voxels: Annotated[int, Field(ge=50)] = 200
    gamma_sigmas: Annotated[float, Field(ge=0, le=1.0)] = 1.0
    strict_dose_percent: Annotated[float, Field(ge=0.1, le=3.0)] = 3.0
    strict_distance_mm: Annotated[float, Field(ge=0.1, le=3.0)] = 2.0
    strict_tolerance_percent: Annotated[float, Field(ge=90.0, le=100)] = 95.0
    strict_action_percent: Annotated[float, Field(ge=90.0, le=100)] = 90.0
    peak_percent: Annotated[float, Field(ge=1.0, le=30.0)] = 20.0
    target_mean_percent: Annotated[float, Field(ge=0.1, le=3.0)] = 2.0
    factor_percent: Annotated[float, Field(ge=0.1, le=5.0)] = 3.0
    target_dvh_percent: Annotated[float, Field(ge=0.1, le=5.0)] = 3.0
    organ_dvh_percent: Annotated[float, Field(ge=0.1, le=8.0)] = 4.0
    organ_mean_percent: Annotated[float, Field(ge=0.1, le=3.0)] = 2.0
    region_percent: Annotated[float, Field(ge=0.1, le=6.0)] = 4.0
    voxel_percent: Annotated[float, Field(ge=1.0, le=20.0)] = 15.0
    shift_mm: Annotated[float, Field(ge=0.1, le=2.0)] = 1.0
    turn_deg: Annotated[float, Field(ge=0.1, le=2.0)] = 1.0
    jaw_mm: Annotated[float, Field(ge=0.1, le=3.0)] = 2.0
    leaf_mm: Annotated[float, Field(ge=0.1, le=2.0)] = 1.0
    outline_shift_mm: Annotated[float, Field(ge=0.5, le=3.0)] = 2.0
    outline_side_mm: Annotated[float, Field(ge=1.0, le=8.0)] = 4.0
    grid_mm: Annotated[float, Field(ge=0.5, le=4.0)] = 3.0
    target_outside_percent: Annotated[float, Field(ge=0, le=1.0)] = 0.0
    body_outside_percent: Annotated[float, Field(ge=0, le=5.0)] = 1.0
    uncertainty_percent: Annotated[float, Field(ge=0.1, le=3.0)] = 2.5
    correctable_gamma_percent: Percent = 80.0
    robustness: Literal["warn", "stop"] = "warn"

    def looser(self) -> tuple[str, ...]:
        """Where these limits let more pass than the shipped ones, as `uncertainty_percent 3 (2.5)`."""
        shipped = GateSettings()
        out = []
        for name, value in asdict(self).items():
            usual = getattr(shipped, name)
            less = value < usual if name in _LOOSER_IF_LESS else value > usual
            if less and name not in _NOT_A_LIMIT:
                out.append(f"{name} {value:g} ({usual:g})")
        return tuple(out)


_LOOSER_IF_LESS = ("gamma_pass_percent", "gamma_voxels", "strict_tolerance_percent", "strict_action_percent")
# A local gamma is stricter; whether a plan is corrected lets none pass; a robustness that stops is stricter.
_NOT_A_LIMIT = ("gamma_local", "correctable_gamma_percent", "robustness")


def load_gate(file: Path | str | None = None) -> GateSettings:
    """Limits from a TOML file, what it leaves out by default. Raises InputError for an unknown key."""
    if file is None:
        return GateSettings()
    path = Path(file)
    if not path.is_file():
        raise InputError(f"gate file {path} {why_no_file(path)}; give an existing TOML file or none")
    try:
        values = parse_toml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"gate file {path}: not valid TOML ({error}); correct the file") from None
    try:
        return TypeAdapter(GateSettings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        floor = first["type"] in ("less_than_equal", "greater_than_equal")
        remedy = "no gate is looser than its floor; correct the file" if floor else "correct the file"
        raise InputError(f"gate file {path}: {where}: {first['msg']}; {remedy}") from None


def gate_limits(
    file: Path | str | None, uncertainty: float, robustness: Literal["warn", "stop"] | None = None
) -> GateSettings:
    """The gate's limits from a TOML file or by default; `uncertainty` is what Monte Carlo is asked for.

    A `robustness` may only be as strict as that of the file or stricter. Raises InputError where it is not,
    and where the uncertainty is too large for any plan to pass.
    """
    limits = load_gate(file)
    if robustness == "warn" and limits.robustness == "stop":
        raise InputError(
            f'gate file {file} says robustness = "stop", which --robustness warn cannot loosen; leave it out'
        )
    if robustness is not None:
        limits = replace(limits, robustness=robustness)
    if 100.0 * uncertainty >= limits.uncertainty_percent:
        raise InputError(
            f"uncertainty {uncertainty:g} is not below the gate's limit of {limits.uncertainty_percent:g} %, "
            "so no plan could pass; ask for a smaller one, such as 0.02"
        )
    return limits
