"""Limits of the gate and their file: `gate.toml` beside this module, or one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmat_diffusion.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0, le=100)]


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class GateSettings:
    """Limits of the gate; `gate.toml` beside this file holds the same numbers with their sources.

    All in percent and mm. The gamma of `strict_*` is reported, not judged.
    """

    gamma_dose_percent: Positive = 3.0
    gamma_distance_mm: Positive = 3.0
    gamma_local: bool = False
    gamma_threshold_percent: Percent = 10.0
    gamma_pass_percent: Percent = 95.0
    gamma_sigmas: Annotated[float, Field(ge=0, le=2)] = 1.0
    strict_dose_percent: Positive = 2.0
    strict_distance_mm: Positive = 2.0
    target_mean_percent: Positive = 2.0
    target_outside_percent: Percent = 0.0
    body_outside_percent: Percent = 1.0
    uncertainty_percent: Positive = 2.5
    correctable_gamma_percent: Percent = 80.0


def load_gate(file: Path | str | None = None) -> GateSettings:
    """Limits from a TOML file, what it leaves out by default. Raises InputError for an unknown key."""
    if file is None:
        return GateSettings()
    path = Path(file)
    if not path.is_file():
        raise InputError(f"gate file {path} does not exist; give an existing TOML file or none")
    try:
        return TypeAdapter(GateSettings).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"gate file {path}: not valid TOML ({error}); correct the file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"gate file {path}: {where}: {first['msg']}; correct the file") from None


def gate_limits(file: Path | str | None, uncertainty: float) -> GateSettings:
    """The gate's limits from a TOML file or by default; `uncertainty` is what Monte Carlo is asked for.

    Raises InputError where the uncertainty is too large for any plan to pass.
    """
    limits = load_gate(file)
    if 100.0 * uncertainty >= limits.uncertainty_percent:
        raise InputError(
            f"uncertainty {uncertainty:g} is not below the gate's limit of {limits.uncertainty_percent:g} %, "
            "so no plan could pass; ask for a smaller one, such as 0.02"
        )
    return limits
