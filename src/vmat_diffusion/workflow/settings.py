"""What the user chooses, checked at the door: one frozen dataclass for each kind of work.

A field of such a class is written once, with its type, its range and its sentence of help. The command
line, `--config` files, the records of runs and the tables in `docs/commands.md` are made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vmat_diffusion.errors import InputError
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.reading import DoseReading, TargetReading

# Fields that several classes share: type, range and help are written here and nowhere else. The words
# before a colon say what the option means and are the same everywhere.

GoalsName = Annotated[
    str,
    Field(description="Goal sheet: a shipped sheet's name, a TOML file, or a site of the profile."),
    Option(metavar="SHEET", profile=True),
]
JudgedGoals = Annotated[
    str | None,
    Field(
        description="Goal sheet: a shipped sheet's name, a TOML file, or a site of the profile; its "
        "goals are "
        "judged too."
    ),
    Option(metavar="SHEET", profile=True),
]
Conditions = Annotated[
    tuple[str, ...],
    Field(description="Condition of the goal sheet that holds for the patient; `goals show` lists them."),
    Option(long="--with", metavar="CONDITION"),
]
EngineName = Annotated[
    Literal["pencil-beam", "monte-carlo"], Field(description="Dose engine that computes the dose.")
]
MachineName = Annotated[
    str,
    Field(description="Machine: a shipped machine's name or a TOML file."),
    Option(metavar="NAME", profile=True),
]
WeightsName = Annotated[
    str,
    Field(description="Weights of the dose model: 'shipped' or a safetensors file."),
    Option(metavar="FILE"),
]
GeneratorName = Annotated[
    str,
    Field(description="Weights of the generator of fluence: 'shipped' or a safetensors file."),
    Option(metavar="FILE"),
]
ReverseSteps = Annotated[
    int,
    Field(ge=0, le=100, description="Steps of the reverse process; 0 takes the regression."),
]
PriorName = Annotated[
    str,
    Field(
        description="What drives the plan: the goals alone, with diffusion also a predicted dose, with an "
        "RTDOSE or npz file also the dose in it."
    ),
    Option(metavar="goals|diffusion|FILE"),
]
ArcCount = Annotated[int, Field(ge=1, le=6, description="Number of arcs.")]
ChosenArcs = Annotated[
    Annotated[int, Field(ge=1, le=6)] | None,
    Field(description="Number of arcs."),
]
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
        "above half of the maximum; a check goes on from there until all is decided.",
    ),
]
# Just below the gate's limit of 2.5 %: what is not decided then takes more.
FIRST_LOOK = 0.024
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
    Option(metavar="FILE", profile=True),
]
RobustnessAction = Annotated[
    Literal["warn", "stop"] | None,
    Field(
        description="What becomes of a plan that small errors of the linac change too much: by default what "
        "the gate's limits say, which is warn."
    ),
]
TrajectoryKind = Annotated[
    Literal["csv"] | None,
    Field(description="Also write the expected position of every axis over time, a file for each arc."),
]
Angle = Annotated[float, Field(ge=-360, le=360)]
VoxelMm = Annotated[float, Field(ge=1, le=6)]
Force = Annotated[
    bool,
    Field(
        description="Go on although the files contradict each other in patient, frame of reference, position "
        "or plan; the output says so."
    ),
]

# A limit of the delivery: a number, "off" for none, or None for what the goal sheet says.
DeliveryLimit = Annotated[float, Field(gt=0)] | Literal["off"] | None
IdentityShown = Annotated[
    bool,
    Field(
        description="Print the patient's name, ID and birth date on the report, for the chart; nowhere else."
    ),
]
IDENTITY_SHARED = "--identity names the patient, whom --shareable leaves out; give one of them"
Shareable = Annotated[
    bool,
    Field(
        description="Report, record and tables without the day and without names of machines, beams and "
        "structures as written."
    ),
]


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
class Calculation:
    """What the user chooses wherever a dose is computed or checked."""

    machine: MachineName = "generic_6mv"
    grid_mm: GridMm = 3.0
    uncertainty: Uncertainty = 0.02
    check_minutes: CheckMinutes = None
    seed: Seed = 0


@settings
class Search(Calculation):
    """What the user chooses wherever a plan is searched and judged, whatever the case."""

    uncertainty: Uncertainty = FIRST_LOOK
    prior: PriorName = "goals"
    weights: WeightsName = "shipped"
    start: Annotated[
        Literal["search", "generated"],
        Field(
            description="Where leaves begin: at fluence maps that are searched for, or at those of a "
            "generated sample."
        ),
    ] = "search"
    generator: GeneratorName = "shipped"
    arcs: ChosenArcs = None
    search_minutes: SearchMinutes = 5.0
    gate: GateFile = None
    robustness: RobustnessAction = None


@settings
class PlanSettings(Search, TargetReading):
    """What the user chooses for one plan; the resolved copy is saved in `run.json`.

    Angles are IEC 61217, in degrees.
    """

    goals: GoalsName
    conditions: Conditions = ()
    candidates: Annotated[
        int,
        Field(
            ge=1,
            le=16,
            description="Plans to choose from, each for one sample: of the predicted dose, or of the start.",
        ),
    ] = 1
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
        Literal["full", "partial"] | None,
        Field(
            description="Full turns, or partial arcs around the side of the body where the targets are; by "
            "default chosen by site and target."
        ),
    ] = None
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
        tuple[Annotated[tuple[Angle, Angle], BeforeValidator(_sector)], ...] | None,
        Field(
            description="Sector of gantry angles, clockwise, from which no beam comes; by default those "
            "where the CT ends although the body goes on."
        ),
        Option(metavar="FROM:TO", old=("--avoid",), text="each"),
    ] = None
    seconds_per_turn: Annotated[
        Annotated[float, Field(ge=30, le=600)] | None,
        Field(
            description="Beam time of a full turn: the longer, the further leaves can move; by default 60, "
            "or less where the beam-on time is limited to less."
        ),
    ] = None
    mu_per_gy: Annotated[
        DeliveryLimit,
        Field(description="Most MU for each Gy of the highest prescription; by default as the goal sheet."),
        Option(metavar="X|off", text="whole"),
    ] = None
    leaf_mm_per_deg: Annotated[
        DeliveryLimit,
        Field(
            description="Most travel of a leaf for each degree of gantry, mm; by default as the goal sheet."
        ),
        Option(metavar="X|off", text="whole", long="--leaf-motion"),
    ] = None
    open_gap_mm: Annotated[
        DeliveryLimit,
        Field(description="Smallest gap of an open leaf pair, mm; by default as the goal sheet."),
        Option(metavar="X|off", text="whole", long="--open-gap"),
    ] = None
    edge_per_mm: Annotated[
        DeliveryLimit,
        Field(
            description="Most length of leaf sides for each area of the aperture, 1/mm, judged on the "
            "plan: the search has one price on edges; by default as the goal sheet."
        ),
        Option(metavar="X|off", text="whole", long="--edge"),
    ] = None
    beam_on_s: Annotated[
        DeliveryLimit,
        Field(description="Most beam-on time of the plan, s; by default as the goal sheet."),
        Option(metavar="X|off", text="whole", long="--beam-on-time"),
    ] = None
    jaws: Annotated[
        Literal["tracking", "fixed"] | None,
        Field(
            description="Jaws follow the leaves or stay fixed during an arc; by default as the machine can."
        ),
    ] = None
    yardstick: Annotated[
        Literal["missed", "always", "never"],
        Field(
            description="Measure the plan against ideal fluence, 20 to 40 s beyond the search: where a goal "
            "is missed, always or never."
        ),
    ] = "missed"
    normalize_gy: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="Dose of the goal sheet's normalisation in place of its own, Gy."),
    ] = None
    device: Annotated[
        Literal["auto", "cpu"], Field(description="Computing device: today both mean the processor.")
    ] = "auto"
    improve: Annotated[
        str | None,
        Field(description="Start from this RTPLAN, whoever made it; its arcs are kept."),
        Option(metavar="RP.dcm"),
    ] = None
    force: Force = False
    label: Annotated[
        str,
        Field(
            min_length=1,
            max_length=13,
            pattern=r"^[^\\]+$",
            description="Label of the plan, which planning systems show.",
        ),
    ] = "VMAT"
    dose_16bit: Annotated[
        bool, Field(description="Write RD.dcm with 16 bits, for systems that read no more.")
    ] = False
    dose_dvh: Annotated[
        bool, Field(description="Write the dose-volume histograms of all structures into RD.dcm.")
    ] = False
    trajectory: TrajectoryKind = None
    identity: IdentityShown = False
    shareable: Shareable = False

    @property
    def prior_file(self) -> Path | None:
        """The file of the dose to aim at; None where the prior is no file."""
        return None if self.prior in ("goals", "diffusion") else Path(self.prior)

    @property
    def generator_file(self) -> Path | None:
        """The file of the generator's weights, where they are not the shipped ones."""
        return None if self.generator == "shipped" else Path(self.generator)


@settings
class GenerateSettings(Calculation, TargetReading):
    """What the user chooses for plans as samples."""

    goals: GoalsName
    conditions: Conditions = ()
    uncertainty: Uncertainty = FIRST_LOOK
    generator: GeneratorName = "shipped"
    samples: Annotated[int, Field(ge=1, le=16, description="Samples to draw: the best is judged.")] = 4
    reverse_steps: ReverseSteps = 4
    descents: Annotated[
        int,
        Field(
            ge=0, le=400, description="Evaluations of the plan's objective after each step of the process."
        ),
    ] = 10
    projection: Annotated[
        bool, Field(description="Hold fluence to what leaves deliver after each step of the process.")
    ] = True
    leaf_steps: Annotated[
        int, Field(ge=0, le=300, description="Steps of a short search for leaves on every sample.")
    ] = 0
    arcs: ChosenArcs = None
    gate: GateFile = None
    robustness: RobustnessAction = None
    shareable: Shareable = False


@settings
class DoseSettings(Calculation, DoseReading):
    """What the user chooses where the dose of a finished plan is computed."""

    engine: EngineName = "monte-carlo"


@settings
class QaSettings(DoseSettings):
    """What the user chooses where a finished plan is judged; without `goals` none are checked."""

    uncertainty: Uncertainty = FIRST_LOOK
    goals: JudgedGoals = None
    conditions: Conditions = ()
    gate: GateFile = None
    robustness: RobustnessAction = None
    identity: IdentityShown = False
    shareable: Shareable = False


@settings
class InfluenceSettings(TargetReading):
    """Which beamlets and voxels an influence matrix has."""

    machine: MachineName = "generic_6mv"
    arcs: ArcCount = 2
    spacing_deg: Annotated[float, Field(description="Angle between control points, deg.")] = 4.0
    grid_mm: GridMm = 3.0
    beamlet_mm: Annotated[
        float, Field(description="Size of a beamlet along the leaves, mm; across them it is the leaf.")
    ] = 5.0
    voxels_per_structure: Annotated[int, Field(description="Voxels drawn from each structure at most.")] = (
        2000
    )
    cut: Annotated[
        float,
        Field(description="Doses below this share of a centred beamlet's dose are sampled, not all kept."),
    ] = 0.005
    max_gb: Annotated[float, Field(description="A matrix that needs more memory is refused, GB.")] = 4.0
    seed: Seed = 0


SampleSteps = Annotated[int, Field(ge=1, le=1000, description="Steps of the sampler for each sample.")]
SampleMethod = Annotated[
    Literal["dpm2", "ddim", "ddpm"],
    Field(description="Sampler: DPM-Solver++ 2M, DDIM or ancestral DDPM."),
]
SampleTemperature = Annotated[
    float,
    Field(
        ge=0.05,
        le=2,
        description="Factor on what a sample differs by from the regression; 1 as the model learnt it.",
    ),
]


@settings
class PredictSettings(TargetReading):
    """What the user chooses for one prediction; the resolved copy is saved in `prediction.json`."""

    goals: GoalsName
    conditions: Conditions = ()
    samples: Annotated[
        int, Field(ge=0, le=100, description="Samples to draw: 0 gives the regression alone.")
    ] = 8
    steps: SampleSteps = 8
    method: SampleMethod = "dpm2"
    temperature: SampleTemperature = 0.6
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
    shareable: Shareable = False


@settings
class Simulation:
    """How every patient of a data set is planned.

    Without `search_minutes` plans depend on the seed alone, not on the clock. `spacing_mm` (x, y, z) is the
    grid of synthetic patients. Each drawn goal sheet takes those of the `conditions` that it knows.
    """

    machine: MachineName = "generic_6mv"
    conditions: Conditions = ()
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
    beams: Annotated[
        Literal["drawn", "nine-fields", "full-arc", "partial-arc"],
        Field(description="Beams of doses without leaves: drawn for each patient, or the same for all."),
    ] = "drawn"
    spacing_mm: Annotated[
        tuple[VoxelMm, VoxelMm, VoxelMm],
        Field(description="Size of voxels, mm: of synthetic patients."),
        Option(metavar="X Y Z"),
    ] = (2.0, 2.0, 2.5)
