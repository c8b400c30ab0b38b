"""A case that reads in milliseconds, a plan for it, and a stand-in for optimiser and independent engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.geometry import Grid
from vmat_diffusion.jobs.together import Job
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.workflow import PlanningTools

UNIFORM_GY = 52.0


def small_case() -> Case:
    """A water block of 12 cm with a cubic PTV of 3 cm and a core beside it."""
    grid = Grid((20, 24, 24), (5.0, 5.0, 6.0), (-57.5, -57.5, -57.0))
    masks = {name: np.zeros(grid.shape, bool) for name in ("BODY", "PTV", "Core")}
    masks["BODY"][:, 2:-2, 2:-2] = True
    masks["PTV"][8:13, 9:15, 9:15] = True
    masks["Core"][8:13, 9:15, 17:20] = True
    roles = {"BODY": "body", "PTV": "target", "Core": "organ"}
    hu = np.where(masks["BODY"], 0.0, -1000.0)
    structures = {name: Structure(name, roles[name], mask) for name, mask in masks.items()}
    return Case("small", "test", grid, hu, structures, Prescription(25, {"PTV": 50.0}))


def open_arc(isocenter_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Plan:
    """One slow open arc with a 4 x 4 cm field."""
    n = 19
    leaves = np.zeros((n, 2, 60))
    leaves[:, 0], leaves[:, 1] = -0.3, 0.3
    leaves[:, 0, 26:34], leaves[:, 1, 26:34] = -20.0, 20.0
    jaws = np.tile([-20.0, 20.0, -20.0, 20.0], (n, 1))
    arc = Arc(np.linspace(182.0, 218.0, n), 10.0, 0.0, leaves, jaws, np.full(n - 1, 4.0), "A1", 1)
    return Plan((arc,), isocenter_mm, 25, "generic_6mv")


class StandIn:
    """Stands in for the optimiser and the independent engine: `plan_case(..., tools=stand_in.tools)`.

    Calling it says what the next runs do: the optimiser hands over `plan` with a uniform dose, after
    `change(optimized, number_of_the_call)`, or fails; the engine finds the uniform dose times each of
    `engine` in turn. It returns the list in which the optimiser notes its arguments. Several plans are made
    one after the other in this process.
    """

    def __init__(self) -> None:
        self.tools = PlanningTools(
            self.optimize,
            lambda machine, settings, correction: self._engine,
            _in_turn,
            yardstick=lambda task, made, results, settings, progress: None,
        )
        self()

    def __call__(
        self,
        plan: Plan | None = None,
        *,
        failing: BaseException | None = None,
        noise: str = "",
        engine: tuple[float, ...] = (1.0, 1.0, 1.0),
        change: Callable[[SimpleNamespace, int], None] = lambda made, call: None,
    ) -> list[dict]:
        self._plan, self._failing, self._noise, self._change = plan, failing, noise, change
        self._factors = list(engine)
        self._calls: list[dict] = []
        return self._calls

    def optimize(self, case: Case, sheet: object, machine: object, **keywords: object) -> SimpleNamespace:
        from vmat_diffusion.optimize import Outcome

        self._calls.append({"sheet": sheet, **keywords})
        if self._noise:
            print(self._noise)
        if self._failing is not None:
            raise self._failing
        grid = case.grid.around(*case.grid.bounds_mm, (3.0, 3.0, 3.0))
        gy = np.full(grid.shape, UNIFORM_GY, np.float32)
        made = SimpleNamespace(
            plan=keywords["finalize"](self._plan or open_arc()),
            dose=Dose(grid, gy, provenance={"engine": "uniform"}),
            conflicts=(),
            outcome=Outcome.CONVERGED,
            history=({"stage": "test", "objective": 2.0}, {"stage": "test", "objective": 1.0}),
            fluence={"ideal_mu": np.ones((2, 3, 4), np.float32)},
            seconds={"dose": 0.0},
        )
        self._change(made, len(self._calls) - 1)
        return made

    def _engine(self, plan: Plan, case: Case, grid: Grid | None = None, progress: object = None) -> Dose:
        assert grid is not None
        gy = np.full(grid.shape, UNIFORM_GY * self._factors.pop(0), np.float32)
        return Dose(grid, gy, provenance={"engine": "stand-in"})


def _in_turn(jobs: Sequence[Job], report: object) -> list[object]:
    """Does the jobs in this process; None for those from an interrupt on."""
    done: list[object] = []
    for job in jobs:
        try:
            done.append(job.function(*job.arguments, report, **job.keywords))
        except KeyboardInterrupt:
            if not done:
                raise
            break
    return [*done, *[None] * (len(jobs) - len(done))]
