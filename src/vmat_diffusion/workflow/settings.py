"""What the user chooses, checked at the door: one frozen dataclass for each kind of work.

A field of such a class is written once, with its type, its range and its sentence of help. The command
line, `--config` files, the records of runs and the tables in `docs/commands.md` are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vmat_diffusion.errors import CaseError, GoalError, InputError
from vmat_diffusion.options import Option, settings

if TYPE_CHECKING:
    from vmat_diffusion.case import Case
    from vmat_diffusion.evaluate.goals import GoalSheet

# Fields that several classes share: type, range and help are written here and nowhere else. The words
# before a colon say what the option means and are the same everywhere.

GoalsName = Annotated[
    str, Field(description="Goal sheet: a shipped sheet's name or a TOML file."), Option(metavar="SHEET")
]
Conditions = Annotated[
    tuple[str, ...],
    Field(description="Condition of the goal sheet that holds for the patient; `goals show` lists them."),
    Option(long="--with", metavar="CONDITION"),
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
Force = Annotated[
    bool,
    Field(
        description="Go on although the files contradict each other in patient, frame of reference, position "
        "or plan; the output says so."
    ),
]
AllowOutsideBody = Annotated[bool, Field(description="Accept targets that reach outside the body contour.")]

IgnoreDensityOverrides = Annotated[
    bool,
    Field(
        description="Compute with the CT's densities although the structure set prescribes others; the "
        "record names them."
    ),
]


@settings
class Reading:
    """How a folder of DICOM files is read; `mapping` and `ct_table` are paths, None for what is shipped."""

    mapping: MappingFile = None
    ct_table: CtTableFile = None
    patient_position: PatientPosition = None
    allow_outside_body: AllowOutsideBody = False
    ignore_density_overrides: IgnoreDensityOverrides = False


def require_case_folder(folder: Path) -> None:
    """Raise CaseError where a case's folder is a file or absent."""
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise CaseError(f"case folder {folder} {what}; give a folder of DICOM files")


def read_with_goals(
    folder: Path, goals: str, how: Reading, conditions: Sequence[str] = ()
) -> tuple[Case, GoalSheet]:
    """The case in a DICOM folder and a goal sheet, fitted to each other; wrong names are refused first.

    Goals with one of the `conditions` count. Raises InputError where the folder, the sheet or the table
    cannot be used.
    """
    from vmat_diffusion.case import load_ct_table
    from vmat_diffusion.evaluate.goals import load_goals, with_conditions

    sheet = with_conditions(load_goals(goals), conditions)
    table = load_ct_table(how.ct_table)
    require_case_folder(folder)
    from vmat_diffusion.dicom import read_case, refuse_density_overrides
    from vmat_diffusion.evaluate.task import fit_to_each_other

    case = read_case(
        folder,
        mapping=how.mapping,
        site=sheet.site,
        patient_position=how.patient_position,
        allow_outside_body=how.allow_outside_body,
    )
    if not how.ignore_density_overrides:
        refuse_density_overrides(case)
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
    conditions: Conditions = ()
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
        Option(metavar="FROM:TO", old=("--avoid",), text="each"),
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
    conditions: Conditions = ()
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


# What a goal sheet may have in [plan]: how the arcs lie and how finely is computed. What is given beside one
# of the first decides over the others.
_ARCS = ("span", "arc_start_deg", "arc_stop_deg", "collimator_deg", "couch_deg", "avoid_deg", "arcs")
_SHEET_MAY_SAY = (*_ARCS, "seconds_per_turn", "jaws", "grid_mm", "search_minutes", "uncertainty")


def sheet_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a plan that its goal sheet has in [plan], but for those that are `given`.

    A given sector or angle decides over what it contradicts, and the arcs of a plan to be improved over all.
    Of a sheet that cannot be read there are none: it is refused where its goals are read. Raises GoalError
    for a sheet that names a setting that it may not or that is wrong.
    """
    from vmat_diffusion.evaluate.goals import load_goals

    goals = str(given.get("goals"))
    try:
        sheet = load_goals(goals)
    except GoalError:
        return {}
    for name in sheet.plan:
        if name not in _SHEET_MAY_SAY:
            raise GoalError(
                f"goal sheet {sheet.name}: plan may not say {name}; it may say {', '.join(_SHEET_MAY_SAY)}"
            )
    try:
        PlanSettings(goals=goals, **sheet.plan)
    except InputError as fault:
        raise GoalError(f"goal sheet {sheet.name}: plan: {fault}") from None
    without: set[str] = set(_ARCS) if given.get("improve") else set()
    if given.get("arc_start_deg") is not None or given.get("arc_stop_deg") is not None:
        without |= {"span", "arc_start_deg", "arc_stop_deg"}
    if "span" in given:
        without |= {"arc_start_deg", "arc_stop_deg"}
    if given.get("arcs", sheet.plan.get("arcs")) != sheet.plan.get("arcs"):
        without |= {"collimator_deg", "couch_deg"}
    return {name: value for name, value in sheet.plan.items() if name not in without and name not in given}


# The least that each of several searches gets: preparation counts in it, and would leave little of less.
_LEAST_MINUTES = 1.0


def plan_settings(**values: Any) -> PlanSettings:
    """Checked settings from keywords; raises InputError with one sentence for a wrong one.

    What is not given is as the goal sheet has it in [plan], else the default.
    """
    settings = PlanSettings(**(sheet_defaults(values) | values))
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
