"""What the user chooses, checked at the door: one frozen dataclass for each kind of work.

A field of such a class is written once, with its type, its range and its sentence of help. The command
line, `--config` files, the records of runs and the tables in `docs/commands.md` are made from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache, wraps
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict, dataclass_transform

from vmat_diffusion.errors import CaseError, InputError

if TYPE_CHECKING:
    from vmat_diffusion.case import Case
    from vmat_diffusion.evaluate.goals import GoalSheet

_Kind = TypeVar("_Kind", bound=type)


@dataclass(frozen=True)
class Option:
    """How a field is spelled on the command line; without one it is `--its-name VALUE`.

    Attributes:
        short: Letters such as "-o" that mean the same.
        positional: It is an argument in the order of the fields, `CASE`, not an option.
        metavar: What stands for the value in help; None leaves it to the field's type.
        old: Spellings that are accepted, with a hint, until the next release; without dashes a last argument.
        text: The value is read as text, which a validator of the field takes apart.
    """

    short: tuple[str, ...] = ()
    positional: bool = False
    metavar: str | None = None
    old: tuple[str, ...] = ()
    text: bool = False


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(kind: _Kind) -> _Kind:
    """Make a frozen, keyword-only dataclass whose values are checked as it is made.

    Raises InputError, one sentence with the option at fault, for a missing value, one out of its range, and
    an unknown name.
    """
    made: Any = dataclass(frozen=True, kw_only=True)(kind)
    unchecked = made.__init__

    @wraps(unchecked)
    def init(self: Any, **values: Any) -> None:
        unchecked(self, **_checked(made, values))

    made.__init__ = init
    return made  # type: ignore[no-any-return]


def _checked(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    for field in fields(kind):
        if field.default is MISSING and field.name not in values:
            raise InputError(f"{spelled(field.name)} is missing; give it")
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise InputError(_sentence(kind, error)) from None


@cache
def _adapter(kind: type) -> TypeAdapter[dict[str, Any]]:
    # Built with the first values, not with the class: `--help` needs none and should answer at once.
    dictionary: Any = TypedDict  # which types are made only now
    shape = dictionary(kind.__name__, get_type_hints(kind, include_extras=True), total=False)
    shape.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    return TypeAdapter(shape)


def spelled(name: str) -> str:
    """The option of a field: `--grid-mm` for `grid_mm`."""
    return "--" + name.replace("_", "-")


def marks_of(kind: type) -> dict[str, tuple[Any, FieldInfo, Option]]:
    """Type, description with range, and spelling of each field, a class's own before those it inherits."""
    hints = get_type_hints(kind, include_extras=True)
    order = dict.fromkeys(name for base in kind.__mro__ for name in get_annotations(base))
    return {name: _marks(hints[name]) for name in order if name in hints}


def _marks(hint: Any) -> tuple[Any, FieldInfo, Option]:
    found = getattr(hint, "__metadata__", ())
    bare = hint.__origin__ if found else hint
    info = next((m for m in found if isinstance(m, FieldInfo)), FieldInfo())
    return bare, info, next((m for m in found if isinstance(m, Option)), Option())


def range_of(hint: Any) -> dict[str, float]:
    """The bounds `ge`, `gt`, `le`, `lt` that the innermost annotation of a type has."""
    bounds: dict[str, float] = {}
    for mark in _metadata(hint):
        for item in mark.metadata if isinstance(mark, FieldInfo) else ():
            for bound in ("ge", "gt", "le", "lt"):
                if (value := getattr(item, bound, None)) is not None:
                    bounds[bound] = value
    return bounds


def _metadata(hint: Any) -> Iterator[Any]:
    yield from getattr(hint, "__metadata__", ())
    for inner in get_args(hint):
        if not isinstance(inner, (str, FieldInfo, Option)):
            yield from _metadata(inner)


def range_text(bounds: dict[str, float]) -> str:
    """`1 to 6`, `above 0`; "" for a value without a range."""
    low, high = bounds.get("ge"), bounds.get("le")
    if low is not None and high is not None:
        return f"{low:.10g} to {high:.10g}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[bound]} {value:g}" for bound, value in bounds.items())


def _sentence(kind: type, error: ValidationError) -> str:
    """What is wrong with the first value at fault, and its remedy."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)
    name, given = str(first["loc"][0]) if first["loc"] else "", first.get("input")
    if first["type"] == "extra_forbidden":
        return f"setting {name} is not known; known are {', '.join(f.name for f in fields(kind))}"
    hint = get_type_hints(kind, include_extras=True).get(name)
    shown = f"{given:g}" if isinstance(given, float) else str(given)
    if first["type"] in (
        "greater_than_equal",
        "greater_than",
        "less_than_equal",
        "less_than",
        "finite_number",
    ):
        bounds = range_text(range_of(hint))
        if " to " in bounds:
            return f"{spelled(name)} {shown} is outside {bounds}; choose one within"
        return f"{spelled(name)} {shown} is not {bounds or 'a finite number'}; choose another"
    if first["type"] == "literal_error":
        words = first["ctx"]["expected"].replace("'", "")
        return f"{spelled(name)} {shown} is not known; choose {words}"
    return f"{spelled(name)} {shown}: {first['msg']}; correct it"


# Fields that several classes share: type, range and help are written here and nowhere else. The words
# before a colon say what the option means and are the same everywhere.

GoalsName = Annotated[
    str, Field(description="Goal sheet: a shipped sheet's name or a TOML file."), Option(metavar="SHEET")
]
MachineName = Annotated[
    str, Field(description="Machine: a shipped machine's name or a TOML file."), Option(metavar="NAME")
]
WeightsName = Annotated[
    str,
    Field(description="Weights of the dose model: 'shipped' or a safetensors file."),
    Option(metavar="FILE"),
]
PriorName = Annotated[
    Literal["goals", "diffusion"],
    Field(description="What drives the plan: the goals alone, or with diffusion also a predicted dose."),
]
ArcCount = Annotated[int, Field(ge=1, le=6, description="Number of arcs.")]
Seed = Annotated[
    int,
    Field(ge=0, le=2**32 - 1, description="Random seed: the same seed gives the same result on one device."),
]
GridMm = Annotated[float, Field(ge=1, le=10, description="Spacing of the dose grid, mm.")]
Uncertainty = Annotated[
    float,
    Field(
        ge=0.001,
        le=0.2,
        description="Monte Carlo ends at this mean standard deviation, as a share of the dose, in voxels "
        "above half of the maximum.",
    ),
]
SearchMinutes = Annotated[
    float,
    Field(gt=0, description="The search for a plan ends after this time, minutes."),
    Option(old=("--max-minutes",)),
]
CheckMinutes = Annotated[
    float | None,
    Field(
        gt=0,
        description="Monte Carlo ends after this time, minutes; by default when it is precise enough.",
    ),
]
GateFile = Annotated[
    str | None,
    Field(description="Limits of the gate: a TOML file such as `gate copy` prints."),
    Option(metavar="FILE"),
]
TrajectoryKind = Annotated[
    Literal["csv"] | None,
    Field(description="Also write the expected position of every axis over time, a file for each arc."),
]
Angle = Annotated[float, Field(ge=-360, le=360)]
VoxelMm = Annotated[float, Field(ge=1, le=6)]
MappingFile = Annotated[
    str | None,
    Field(description="Structure names: a JSON file such as `mapping copy` prints."),
    Option(metavar="FILE"),
]
CtTableFile = Annotated[
    str | None,
    Field(description="CT numbers to density: a CSV file with the columns hu,density_g_cm3."),
    Option(metavar="FILE"),
]
PatientPosition = Annotated[
    Literal["HFS", "HFP", "FFS", "FFP"] | None,
    Field(description="Patient position where the CT does not state it."),
]
AllowOutsideBody = Annotated[bool, Field(description="Accept targets that reach outside the body contour.")]


@settings
class Reading:
    """How a folder of DICOM files is read; `mapping` and `ct_table` are paths, None for what is shipped."""

    mapping: MappingFile = None
    ct_table: CtTableFile = None
    patient_position: PatientPosition = None
    allow_outside_body: AllowOutsideBody = False


def read_with_goals(folder: Path, goals: str, how: Reading) -> tuple[Case, GoalSheet]:
    """The case in a DICOM folder and a goal sheet, fitted to each other; wrong names are refused first.

    Raises InputError where the folder, the sheet or the table cannot be used.
    """
    from vmat_diffusion.case import load_ct_table
    from vmat_diffusion.evaluate.goals import load_goals

    sheet = load_goals(goals)
    table = load_ct_table(how.ct_table)
    if not folder.is_dir():
        raise CaseError(f"case folder {folder} does not exist; give a folder of DICOM files")
    from vmat_diffusion.dicom.read import read_case
    from vmat_diffusion.evaluate.task import fit_to_each_other

    case = read_case(
        folder,
        mapping=how.mapping,
        site=sheet.site,
        patient_position=how.patient_position,
        allow_outside_body=how.allow_outside_body,
    )
    return fit_to_each_other(replace(case, ct_table=table), sheet)


def _sector(given: Any) -> Any:
    """`80:120` as two angles; anything else as it is."""
    if not isinstance(given, str):
        return given
    first, _, second = given.partition(":")
    try:
        return float(first), float(second)
    except ValueError:
        raise InputError(
            f"--avoid-deg {given!r} is no sector; write two angles in degrees as 80:120"
        ) from None


@settings
class PlanSettings(Reading):
    """What the user chooses for one plan; the resolved copy is saved in `run.json`.

    Angles are IEC 61217, in degrees.
    """

    goals: GoalsName
    machine: MachineName = "generic_6mv"
    prior: PriorName = "goals"
    weights: WeightsName = "shipped"
    candidates: Annotated[
        int,
        Field(ge=1, le=16, description="Plans to choose from, each for one sample of the predicted dose."),
    ] = 1
    arcs: ArcCount = 2
    arc_start_deg: Annotated[
        Angle | None,
        Field(description="Gantry angle at which the first arc starts; by default the optimiser chooses."),
        Option(old=("--arc-start",)),
    ] = None
    arc_stop_deg: Annotated[
        Angle | None,
        Field(description="Gantry angle at which the first arc stops; by default the optimiser chooses."),
        Option(old=("--arc-stop",)),
    ] = None
    span: Annotated[
        Literal["full", "partial"],
        Field(description="Full turns, or partial arcs around the side of the body where the targets are."),
    ] = "full"
    collimator_deg: Annotated[
        tuple[Angle, ...] | None,
        Field(description="Collimator angle: one for all arcs or one for each."),
        Option(old=("--collimator",)),
    ] = None
    couch_deg: Annotated[
        tuple[Annotated[float, Field(ge=-90, le=90)], ...] | None,
        Field(description="Couch angle: one for all arcs or one for each."),
        Option(old=("--couch",)),
    ] = None
    avoid_deg: Annotated[
        tuple[Annotated[tuple[Angle, Angle], BeforeValidator(_sector)], ...],
        Field(description="Sector of gantry angles, clockwise, from which no beam comes."),
        Option(metavar="FROM:TO", old=("--avoid",), text=True),
    ] = ()
    seconds_per_turn: Annotated[
        float,
        Field(
            ge=30, le=600, description="Beam time of a full turn: the longer, the further leaves can move."
        ),
    ] = 100.0
    jaws: Annotated[
        Literal["tracking", "fixed"] | None,
        Field(
            description="Jaws follow the leaves or stay fixed during an arc; by default as the machine can."
        ),
    ] = None
    normalize_gy: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="Dose of the goal sheet's normalisation in place of its own, Gy."),
    ] = None
    grid_mm: GridMm = 3.0
    seed: Seed = 0
    device: Annotated[
        Literal["auto", "cpu"], Field(description="Computing device: today both mean the processor.")
    ] = "auto"
    search_minutes: SearchMinutes = 5.0
    uncertainty: Uncertainty = 0.02
    check_minutes: CheckMinutes = None
    gate: GateFile = None
    improve: Annotated[
        str | None,
        Field(description="Start from this RTPLAN, whoever made it; its arcs are kept."),
        Option(metavar="RP.dcm"),
    ] = None
    trajectory: TrajectoryKind = None


@settings
class PredictSettings(Reading):
    """What the user chooses for one prediction; the resolved copy is saved in `prediction.json`."""

    goals: GoalsName
    samples: Annotated[
        int, Field(ge=0, le=100, description="Samples of the predicted dose: 0 gives the regression alone.")
    ] = 8
    steps: Annotated[int, Field(ge=1, le=1000, description="Steps of the sampler for each sample.")] = 8
    seed: Seed = 0
    weights: WeightsName = "shipped"
    guidance: Annotated[
        float,
        Field(
            ge=0, le=10, description="Weight of the goals that the model is conditioned on; 1 as in training."
        ),
    ] = 1.0
    pull: Annotated[
        float,
        Field(ge=0, le=1, description="Share of a missed goal that each step of the sampler corrects."),
    ] = 0.0
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="Computing device.")] = "auto"


@settings
class Simulation:
    """How every patient of a data set is planned.

    Without `search_minutes` plans depend on the seed alone, not on the clock. `spacing_mm` (x, y, z) is the
    grid of synthetic patients.
    """

    machine: MachineName = "generic_6mv"
    seed: Seed = 0
    grid_mm: GridMm = 3.0
    effort: Annotated[
        float, Field(ge=0.01, le=10, description="Factor on the number of the optimiser's iterations.")
    ] = 1.0
    search_minutes: Annotated[
        Annotated[float, Field(ge=0.01, le=1440)] | None,
        Field(description="The search for a plan ends after this time, minutes: by default at convergence."),
        Option(old=("--max-minutes",)),
    ] = None
    spacing_mm: Annotated[
        tuple[VoxelMm, VoxelMm, VoxelMm],
        Field(description="Size of voxels, mm: of synthetic patients."),
        Option(metavar="X Y Z"),
    ] = (2.0, 2.0, 2.5)


def predict_settings(**values: Any) -> PredictSettings:
    """Checked settings from keywords; raises InputError with one sentence for a wrong one."""
    return PredictSettings(**values)


# The least that each of several searches gets: preparation counts in it, and would leave little of less.
_LEAST_MINUTES = 1.0


def plan_settings(**values: Any) -> PlanSettings:
    """Checked settings from keywords; raises InputError with one sentence for a wrong one."""
    settings = PlanSettings(**values)
    if (settings.arc_start_deg is None) != (settings.arc_stop_deg is None):
        raise InputError("an arc needs both a start and a stop angle; give both or neither")
    if settings.span == "partial" and settings.arc_start_deg is not None:
        raise InputError("start and stop say where arcs go; leave them out or --span partial")
    angles = (settings.collimator_deg, settings.couch_deg, settings.avoid_deg)
    if settings.improve and (settings.arc_start_deg is not None or settings.span != "full" or any(angles)):
        raise InputError(
            f"the arcs of {settings.improve} are kept, so angles have no effect; leave out --arc-start-deg, "
            "--arc-stop-deg, --span, --collimator-deg, --couch-deg and --avoid-deg or --improve"
        )
    if settings.candidates > 1 and settings.prior == "goals":
        raise InputError(
            f"{settings.candidates} candidates need as many doses to aim at, which the prior "
            "goals does not give; choose --prior diffusion or one candidate"
        )
    from vmat_diffusion.jobs.together import turns_of, workers_for

    least = _LEAST_MINUTES * turns_of(settings.candidates)
    if settings.candidates > 1 and settings.search_minutes < least:
        raise InputError(
            f"{settings.search_minutes:g} minutes are too short for {settings.candidates} "
            f"candidates of at least {_LEAST_MINUTES:g} minute each, {workers_for(settings.candidates)} at a "
            f"time; give --search-minutes {least:g} or fewer --candidates"
        )
    for what, given in (("collimator", settings.collimator_deg), ("couch", settings.couch_deg)):
        if given is not None and len(given) not in (1, settings.arcs):
            raise InputError(
                f"{len(given)} {what} angles for {settings.arcs} arcs; give one for all or one for each"
            )
    return settings
