"""What the user chooses for the benchmarks of predictions and of TG-119 plans."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vmat_diffusion.errors import InputError
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.planning.request import plan_settings
from vmat_diffusion.workflow.settings import (
    ArcCount,
    Calculation,
    CheckMinutes,
    GateFile,
    GridMm,
    MachineName,
    PlanSettings,
    PredictSettings,
    SampleMethod,
    SampleSteps,
    SampleTemperature,
    SearchMinutes,
    Seed,
    Uncertainty,
    WeightsName,
)

if TYPE_CHECKING:
    from vmat_diffusion.benchmark.tg119_cases import Tg119Case

_CASES = Field(
    description="Folder of the cases: OpenKBP patients as pt_N.npz files or pt_N folders, by split."
)
_CASES_OPTION = Option(metavar="DIR")
OpenkbpFolder = Annotated[Path, _CASES, _CASES_OPTION]
OpenkbpFolderOrNone = Annotated[Path | None, _CASES, _CASES_OPTION]
# Patients of OpenKBP's validation split by number: so many, from one on. Each benchmark has its own bounds.
COUNT, FIRST = "Plan so many validation patients.", "The lowest patient number."
_NAMES = "multitarget, prostate, headneck, cshape_easy or cshape_hard"


@dataclass(frozen=True)
class SteeringRequest:
    """A change of an organ's mean dose that is asked for, in Gy."""

    organ: str
    change_gy: float


def _request(given: Any) -> Any:
    """`Parotid_L:-5` as a request; anything else as it is."""
    if not isinstance(given, str):
        return given
    organ, _, change = given.partition(":")
    try:
        gy = float(change)
    except ValueError:
        gy = 0.0
    if not organ or not -70 <= gy <= 70 or gy == 0:
        raise InputError(
            f"steer {given!r} is no organ with a change of its mean of -70 to 70 Gy; write Parotid_L:-5"
        )
    return SteeringRequest(organ, gy)


def _numbers(given: Any) -> Any:
    """Numbers and ranges between commas, each number once and in ascending order; others as they are."""
    if not isinstance(given, str):
        return given
    from vmat_diffusion.dataset.openkbp import SPLIT_NUMBERS

    largest = max(of_split[-1] for of_split in SPLIT_NUMBERS.values())
    numbers: set[int] = set()
    for part in given.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last <= largest:
            raise InputError(
                f"patients {given!r}: {part!r} is no number and no range of the challenge's 1 to {largest}; "
                "write 201-210,215"
            )
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def _limits(given: Any) -> Any:
    """Limits between commas, each once, ascending, None for off as the last one; others as they are."""
    if isinstance(given, (list, tuple)):
        return tuple(None if limit == "off" else limit for limit in given)
    if not isinstance(given, str):
        return given
    limits: set[float] = set()
    words = [word.strip() for word in given.split(",")]
    for word in words:
        try:
            limit = 0.0 if word == "off" else float(word)
        except ValueError:
            limit = -1.0
        if word != "off" and not 0 < limit < float("inf"):
            raise InputError(
                f"--mu-per-gy {given!r}: {word!r} is neither a number above 0 nor off; write 250,300,off"
            )
        limits.add(limit)
    return (*sorted(limits - {0.0}), *([None] if "off" in words else []))


_Patients = Annotated[tuple[int, ...], BeforeValidator(_numbers)]
_PATIENTS = Option(metavar="201-210,215", text="whole")


@settings
class BenchmarkSettings:
    """What `benchmark openkbp` predicts and scores.

    The defaults are those of `predict`: with `samples` the mean of so many is scored beside the regression
    and one sample. `fit_spread` takes bands without the factor of the weights. `patients` are numbers of
    the split, None for all.
    """

    data: OpenkbpFolder
    split: Annotated[
        Literal["train", "validation", "test"],
        Field(description="Split of the data set: the patients of this one."),
    ] = "validation"
    weights: WeightsName = "shipped"
    samples: Annotated[
        int, Field(ge=0, le=64, description="Samples to draw: 0 gives the regression alone.")
    ] = PredictSettings.samples
    steps: SampleSteps = PredictSettings.steps
    method: SampleMethod = PredictSettings.method
    temperature: SampleTemperature = PredictSettings.temperature
    seed: Seed = 0
    patients: Annotated[
        _Patients | None, Field(description="Only these patients of the split; by default all."), _PATIENTS
    ] = None
    fit_spread: Annotated[
        _Patients,
        Field(description="Fit the spread of the samples on these patients and judge it on the others."),
        _PATIENTS,
    ] = ()
    steer: Annotated[
        tuple[Annotated[SteeringRequest, BeforeValidator(_request)], ...],
        Field(description="Ask for this change of an organ's mean dose, such as Parotid_L:-5."),
        Option(metavar="ORGAN:GY", text="each"),
    ] = ()
    steer_cases: Annotated[
        int, Field(ge=1, le=1000, description="Patients of whom each change is asked.")
    ] = 10
    baseline: Annotated[
        Literal["boosting"] | None,
        Field(description="Also score gradient-boosted trees that see single voxels."),
    ] = None
    boosting_cases: Annotated[
        int, Field(ge=1, le=10_000, description="Cases of the split train that the trees are fitted to.")
    ] = 60
    train_data: Annotated[
        Path | None,
        Field(description="Folder with the split train for the trees, if it is not in the data folder."),
        Option(metavar="DIR"),
    ] = None
    gamma: Annotated[bool, Field(description="Compute gamma 3 %/3 mm, some seconds for each patient.")] = True
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="Computing device.")] = "auto"

    def __post_init__(self) -> None:
        if self.fit_spread and self.samples < 2:
            raise InputError(
                f"benchmark: {self.samples} samples have no spread that could be fitted; ask for 8 samples"
            )

    @property
    def boosting(self) -> bool:
        """Whether trees are fitted and scored as well."""
        return self.baseline is not None


def _require_known(cases: tuple[str, ...]) -> None:
    """Raises InputError for a case that TG-119 does not have."""
    from vmat_diffusion.benchmark.tg119_cases import CASES

    for name in cases:
        if name not in CASES:
            raise InputError(f"benchmark: case {name!r} is not known; known are {', '.join(CASES)}")


def _named(cases: tuple[str, ...]) -> list[Tg119Case]:
    """The cases of these names in the report's order, all where none is named."""
    from vmat_diffusion.benchmark.tg119_cases import CASES

    return [case for case in CASES.values() if not cases or case.name in cases]


@settings
class Tg119Settings(Calculation):
    """What `benchmark tg119` plans, and what `plan` would be asked for with each of the cases.

    Raises InputError for a case that is not known.
    """

    cases: Annotated[
        tuple[str, ...],
        Field(description=f"Cases: {_NAMES}; all five where none is named."),
        Option(positional=True, metavar="NAME", old=("--cases",)),
    ] = ()
    search_minutes: SearchMinutes = 5.0
    gate: GateFile = None

    def __post_init__(self) -> None:
        _require_known(self.cases)

    def wanted(self) -> list[Tg119Case]:
        """The cases in the report's order, all where none is named."""
        return _named(self.cases)

    def of_plan(self, case: Tg119Case) -> PlanSettings:
        """The settings of one case's plan."""
        own = {name: value for name, value in asdict(self).items() if name != "cases"}
        return plan_settings(goals=case.goals, yardstick="never", **own)


@settings
class GapSettings:
    """Which cases are planned and measured against ideal fluence, and how.

    TG-119 cases by name, and `count` OpenKBP validation patients in `data` by number from `first` on; all
    five TG-119 cases where neither is named.
    """

    cases: Annotated[
        tuple[str, ...],
        Field(description=f"Cases: {_NAMES}; all five where neither a name nor --data is given."),
        Option(positional=True, metavar="NAME"),
    ] = ()
    data: OpenkbpFolderOrNone = None
    count: Annotated[int, Field(ge=1, le=1000, description=COUNT)] = 5
    first: Annotated[int, Field(ge=1, description=FIRST)] = 1
    machine: MachineName = "generic_6mv"
    arcs: ArcCount = 2
    grid_mm: GridMm = 3.0
    seed: Seed = 0
    search_minutes: SearchMinutes = 5.0

    def __post_init__(self) -> None:
        _require_known(self.cases)

    @property
    def phantoms(self) -> tuple[str, ...]:
        """The TG-119 cases that are planned."""
        from vmat_diffusion.benchmark.tg119_cases import CASES

        return self.cases or (() if self.data else tuple(CASES))

    def of_plan(self, goals: str) -> dict[str, Any]:
        """What the plan of a case depends on."""
        same = ("machine", "arcs", "grid_mm", "seed", "search_minutes")
        return {"goals": goals, **{name: getattr(self, name) for name in same}}


@settings
class TradeSettings:
    """What `benchmark trade` plans: each case at each limit, else with the defaults of its sheet.

    `mu_per_gy` has None for no limit. `count` patients of OpenKBP's validation split from `first` on, where
    `data` is given, and cases of TG-119. Raises InputError where there is nothing to plan.
    """

    mu_per_gy: Annotated[
        Annotated[tuple[Annotated[float, Field(gt=0)] | None, ...], BeforeValidator(_limits)],
        Field(description="Limits of MU for each Gy of the highest prescription, or off for none."),
        Option(metavar="250,300,off", text="whole"),
    ] = (250.0, 300.0, 350.0, 500.0)
    data: OpenkbpFolderOrNone = None
    count: Annotated[int, Field(ge=1, description=COUNT)] = 20
    first: Annotated[int, Field(description=FIRST)] = 201
    tg119: Annotated[bool, Field(description="Plan the five cases of TG-119.")] = False
    case: Annotated[
        tuple[str, ...],
        Field(description=f"Only this case of TG-119: {_NAMES}."),
        Option(metavar="NAME"),
    ] = ()
    gamma: Annotated[
        bool,
        Field(description="Compute gamma 3 %/2 mm against the Monte Carlo dose, minutes for each plan."),
        Option(long="--check-gamma"),
    ] = False
    search_minutes: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="The search for a plan ends after this time, minutes: by default as for `plan`."),
    ] = None
    machine: MachineName = "generic_6mv"
    uncertainty: Uncertainty = 0.02
    check_minutes: CheckMinutes = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        _require_known(self.case)
        if not self.mu_per_gy or len(set(self.mu_per_gy)) < len(self.mu_per_gy):
            raise InputError("--mu-per-gy names no limit or one twice; write 250,300,off")
        if self.data is None and not self.tg119_cases():
            raise InputError(
                "benchmark trade: there is nothing to plan; give --data, --tg119 or --case, or see "
                "vmat-diffusion benchmark trade --help"
            )

    def tg119_cases(self) -> list[Tg119Case]:
        """The cases of TG-119 that are asked for, in the report's order."""
        return _named(self.case) if self.tg119 or self.case else []

    def of_plan(self, goals: str, limit: float | None) -> PlanSettings:
        """The settings of one plan."""
        minutes: dict[str, Any] = {}
        if self.search_minutes is not None:
            minutes["search_minutes"] = self.search_minutes
        return plan_settings(
            goals=goals,
            mu_per_gy="off" if limit is None else limit,
            machine=self.machine,
            uncertainty=self.uncertainty,
            check_minutes=self.check_minutes,
            seed=self.seed,
            **minutes,
        )
