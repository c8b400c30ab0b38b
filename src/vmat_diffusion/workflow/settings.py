"""What the user chooses for one plan or prediction, checked at the door."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmat_diffusion.case import Case, load_ct_table
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.jobs.together import turns_of, workers_for

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet


@dataclass(frozen=True)
class Reading:
    """How a folder of DICOM files is read; `mapping` and `ct_table` are paths, None for what is shipped."""

    mapping: str | None = None
    ct_table: str | None = None
    patient_position: str | None = None
    allow_outside_body: bool = False


def read_with_goals(folder: Path, goals: str, how: Reading) -> tuple[Case, GoalSheet]:
    """The case in a DICOM folder and a goal sheet, fitted to each other; wrong names are refused first.

    Raises InputError where the folder, the sheet or the table cannot be used.
    """
    from vmat_diffusion.evaluate.goals import load_goals

    sheet = load_goals(goals)
    table = load_ct_table(how.ct_table)
    if not folder.is_dir():
        raise CaseError(f"case folder {folder} does not exist; give a folder of DICOM files")
    from vmat_diffusion.dicom import read_case

    case = read_case(
        folder,
        mapping=how.mapping,
        site=sheet.site,
        patient_position=how.patient_position,
        allow_outside_body=how.allow_outside_body,
    )
    return fitted(replace(case, ct_table=table), sheet)


def fitted(case: Case, sheet: GoalSheet) -> tuple[Case, GoalSheet]:
    """The case with the sheet's prescription and unions, and the sheet for the targets that it has."""
    from vmat_diffusion.evaluate.goals import add_unions, fit_to_case

    sheet = fit_to_case(sheet, case)
    return add_unions(sheet, replace(case, prescription=sheet.prescription)), sheet


# The least that each of several searches gets: preparation counts in it, and would leave little of less.
_LEAST_MINUTES = 1.0

_Settings = TypeVar("_Settings")


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PlanSettings:
    """What the user chooses for one plan; the resolved copy is saved in `run.json`.

    `goals` and `machine` are shipped names or paths, `mapping` and `ct_table` paths. With the prior
    `diffusion` the plan aims at the dose that `weights` predict, or with several `candidates` one plan each
    at as many samples. Angles are IEC 61217; `None` leaves the choice to the optimiser. `collimator_deg`
    and `couch_deg` hold one angle for all arcs or one per arc; `avoid_deg` sectors, clockwise, that no beam
    comes from. Arcs of the `span` partial go round the side of the targets only. A full turn of the gantry
    takes about `seconds_per_turn`; the longer, the further leaves can move. `jaws` follow the leaves or stay
    fixed during an arc.
    `normalize_gy` takes the place of the dose in the sheet's normalisation. `patient_position` stands in
    where the CT does not state it. `uncertainty` is asked of the Monte Carlo dose that the plan is judged
    with, which ends after `check_minutes` at the latest; `gate` is a TOML file of limits. `improve` is an
    RTPLAN file to start from. With `trajectory` the expected positions of every arc are written too.
    """

    goals: str
    machine: str = "generic_6mv"
    prior: Literal["goals", "diffusion"] = "goals"
    weights: str = "shipped"
    candidates: Annotated[int, Field(ge=1, le=16)] = 1
    arcs: Annotated[int, Field(ge=1, le=6)] = 2
    arc_start_deg: Annotated[float, Field(ge=-360, le=360)] | None = None
    arc_stop_deg: Annotated[float, Field(ge=-360, le=360)] | None = None
    span: Literal["full", "partial"] = "full"
    collimator_deg: tuple[Annotated[float, Field(ge=-360, le=360)], ...] | None = None
    couch_deg: tuple[Annotated[float, Field(ge=-90, le=90)], ...] | None = None
    avoid_deg: tuple[
        tuple[Annotated[float, Field(ge=-360, le=360)], Annotated[float, Field(ge=-360, le=360)]], ...
    ] = ()
    seconds_per_turn: Annotated[float, Field(ge=30, le=600)] = 100.0
    jaws: Literal["tracking", "fixed"] | None = None
    normalize_gy: Annotated[float, Field(gt=0)] | None = None
    grid_mm: Annotated[float, Field(ge=1, le=10)] = 3.0
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu)$")] = "auto"
    max_minutes: Annotated[float, Field(gt=0)] = 5.0
    uncertainty: Annotated[float, Field(ge=0.001, le=0.2)] = 0.02
    check_minutes: Annotated[float, Field(gt=0)] | None = None
    gate: str | None = None
    improve: str | None = None
    trajectory: Literal["csv"] | None = None
    mapping: str | None = None
    ct_table: str | None = None
    patient_position: Literal["HFS", "HFP", "FFS", "FFP"] | None = None
    allow_outside_body: bool = False

    @property
    def reading(self) -> Reading:
        """How the case is read."""
        return Reading(self.mapping, self.ct_table, self.patient_position, self.allow_outside_body)


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PredictSettings:
    """What the user chooses for one prediction; the resolved copy is saved in `prediction.json`.

    `goals` is a shipped name or a path, `weights` "shipped" or a path. With 0 samples there is the
    regression alone. `guidance` is that of the goals told to the model, `pull` that of their gradient.
    """

    goals: str
    samples: Annotated[int, Field(ge=0, le=100)] = 8
    steps: Annotated[int, Field(ge=1, le=1000)] = 8
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    weights: str = "shipped"
    guidance: Annotated[float, Field(ge=0, le=10)] = 1.0
    pull: Annotated[float, Field(ge=0, le=1)] = 0.0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda)$")] = "auto"
    mapping: str | None = None
    ct_table: str | None = None
    patient_position: Literal["HFS", "HFP", "FFS", "FFP"] | None = None
    allow_outside_body: bool = False

    @property
    def reading(self) -> Reading:
        """How the case is read."""
        return Reading(self.mapping, self.ct_table, self.patient_position, self.allow_outside_body)


def predict_settings(**values: Any) -> PredictSettings:
    """Checked settings from keywords; raises InputError with one sentence for a wrong one."""
    return _checked(PredictSettings, "prediction", values)


def _checked(kind: type[_Settings], what: str, values: dict[str, Any]) -> _Settings:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"] if not str(p).startswith("function"))
        given = f" (given: {first['input']!r})" if "input" in first else ""
        raise InputError(f"{what} setting {where}: {first['msg']}{given}; correct it") from None


def plan_settings(**values: Any) -> PlanSettings:
    """Checked settings from keywords; raises InputError with one sentence for a wrong one."""
    settings = _checked(PlanSettings, "plan", values)
    if (settings.arc_start_deg is None) != (settings.arc_stop_deg is None):
        raise InputError("plan settings: an arc needs both a start and a stop angle; give both or neither")
    if settings.span == "partial" and settings.arc_start_deg is not None:
        raise InputError("plan settings: start and stop say where arcs go; leave them out or --span partial")
    angles = (settings.collimator_deg, settings.couch_deg, settings.avoid_deg)
    if settings.improve and (settings.arc_start_deg is not None or settings.span != "full" or any(angles)):
        raise InputError(
            f"plan settings: the arcs of {settings.improve} are kept, so angles have no effect; leave out "
            "--arc-start, --arc-stop, --span, --collimator, --couch and --avoid or --improve"
        )
    if settings.candidates > 1 and settings.prior == "goals":
        raise InputError(
            f"plan settings: {settings.candidates} candidates need as many doses to aim at, which the prior "
            "goals does not give; choose --prior diffusion or one candidate"
        )
    least = _LEAST_MINUTES * turns_of(settings.candidates)
    if settings.candidates > 1 and settings.max_minutes < least:
        raise InputError(
            f"plan settings: {settings.max_minutes:g} minutes are too short for {settings.candidates} "
            f"candidates of at least {_LEAST_MINUTES:g} minute each, {workers_for(settings.candidates)} at a "
            f"time; give --max-minutes {least:g} or fewer --candidates"
        )
    for what, given in (("collimator", settings.collimator_deg), ("couch", settings.couch_deg)):
        if given is not None and len(given) not in (1, settings.arcs):
            raise InputError(
                f"plan settings: {len(given)} {what} angles for {settings.arcs} arcs; "
                "give one for all or one for each"
            )
    return settings
