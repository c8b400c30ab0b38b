"""A case that reads in milliseconds, a plan for it, and a stand-in for the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.geometry import Grid
from vmat_diffusion.plan import Arc, Plan

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


def replace_optimiser(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., list[dict]]:
    """A function that installs a stand-in: it hands over a given plan with a uniform dose, or fails.

    It returns the list in which the stand-in notes its keyword arguments. The independent engine is
    replaced by one that finds the uniform dose times each of `engine` in turn. Several plans are made one
    after the other in this process, each on a third of the time.
    """
    import vmat_diffusion.optimize as package
    import vmat_diffusion.workflow.search_and_check as judging
    import vmat_diffusion.workflow.search_and_check as optimising
    from vmat_diffusion.jobs.together import Job

    def one_by_one(jobs: list[Job], report: object) -> list[object]:
        return [job.function(*job.arguments, report, **job.keywords) for job in jobs]

    def install(
        plan: Plan | None = None,
        *,
        failing: BaseException | None = None,
        noise: str = "",
        engine: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> list[dict]:
        calls: list[dict] = []
        factors = list(engine)

        def second(plan: Plan, case: Case, grid: Grid | None = None, progress: object = None) -> Dose:
            assert grid is not None
            gy = np.full(grid.shape, UNIFORM_GY * factors.pop(0), np.float32)
            return Dose(grid, gy, provenance={"engine": "stand-in"})

        def optimize(case: Case, sheet: object, machine: object, **keywords: object) -> SimpleNamespace:
            calls.append(keywords)
            if noise:
                print(noise)
            if failing is not None:
                raise failing
            made = keywords["finalize"](plan or open_arc())
            grid = case.grid.around(*case.grid.bounds_mm, (6.0, 6.0, 6.0))
            return SimpleNamespace(
                plan=made,
                dose=Dose(
                    grid, np.full(grid.shape, UNIFORM_GY, np.float32), provenance={"engine": "uniform"}
                ),
                conflicts=(),
                outcome=package.Outcome.CONVERGED,
                history=({"stage": "test", "objective": 2.0}, {"stage": "test", "objective": 1.0}),
                fluence={"ideal_mu": np.ones((2, 3, 4), np.float32)},
                seconds={"dose": 0.0},
            )

        monkeypatch.setattr(package, "optimize", optimize)
        monkeypatch.setattr(optimising, "made_together", one_by_one)
        monkeypatch.setattr(optimising, "turns_of", lambda jobs: 3)
        monkeypatch.setattr(judging, "dose_engine", lambda name, machine, **settings: second)
        return calls

    return install
