"""VMAT Diffusion: from a contoured CT and clinical goals to a deliverable, checked VMAT plan.

    import vmat_diffusion as vd

The names in `__all__` are the public interface; `examples/` shows them at work. Each is loaded when it is
first used, as torch and numba take seconds.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

# Two threading runtimes share the cores here. Threads that spin while they wait for work take the
# other's time: on a busy machine a plan costs three times the processor time. Must be set before
# torch and numba are loaded; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vmat_diffusion.case import Case, Dose, Prescription, Structure
    from vmat_diffusion.dicom import read_case, read_dose, read_plan, write_case, write_dose
    from vmat_diffusion.dose import DoseEngine, PencilBeam
    from vmat_diffusion.dose.monte_carlo import MonteCarlo
    from vmat_diffusion.evaluate.dvh import structure_dvh
    from vmat_diffusion.evaluate.gamma import gamma
    from vmat_diffusion.evaluate.goals import (
        GoalResult,
        GoalSheet,
        evaluate,
        fit_to_case,
        load_goals,
        normalized_at,
        parse_goals,
    )
    from vmat_diffusion.evaluate.task import Task
    from vmat_diffusion.geometry import Grid
    from vmat_diffusion.machine import Machine, load_machine
    from vmat_diffusion.optimize import ObjectiveTerm, Optimized, optimize
    from vmat_diffusion.optimize import Settings as OptimizerSettings
    from vmat_diffusion.phantom import phantom
    from vmat_diffusion.plan import Arc, Plan, violations
    from vmat_diffusion.qa import GateSettings, Verdict, judge, write_plan
    from vmat_diffusion.report import Identity, Reported, write_report
    from vmat_diffusion.workflow import PlanningTools, plan_case, plan_settings
    from vmat_diffusion.workflow.beam import fit_machine
    from vmat_diffusion.workflow.predict import predict_dose as predict

__all__ = [
    "Arc",
    "Case",
    "Dose",
    "DoseEngine",
    "GateSettings",
    "GoalResult",
    "GoalSheet",
    "Grid",
    "Identity",
    "Machine",
    "MonteCarlo",
    "ObjectiveTerm",
    "Optimized",
    "OptimizerSettings",
    "PencilBeam",
    "Plan",
    "PlanningTools",
    "Prescription",
    "Reported",
    "Structure",
    "Task",
    "Verdict",
    "evaluate",
    "fit_machine",
    "fit_to_case",
    "gamma",
    "judge",
    "load_goals",
    "load_machine",
    "normalized_at",
    "optimize",
    "parse_goals",
    "phantom",
    "plan_case",
    "plan_settings",
    "predict",
    "read_case",
    "read_dose",
    "read_plan",
    "structure_dvh",
    "violations",
    "write_case",
    "write_dose",
    "write_plan",
    "write_report",
]

# The module of each public name; the name in it where that is another one.
_HOMES = {
    "case": "Case Dose Prescription Structure",
    "dicom": "read_case read_dose read_plan write_case write_dose",
    "dose": "DoseEngine PencilBeam",
    "dose.monte_carlo": "MonteCarlo",
    "evaluate.dvh": "structure_dvh",
    "evaluate.gamma": "gamma",
    "evaluate.goals": "GoalResult GoalSheet evaluate fit_to_case load_goals normalized_at parse_goals",
    "evaluate.task": "Task",
    "geometry": "Grid",
    "machine": "Machine load_machine",
    "optimize": "ObjectiveTerm Optimized OptimizerSettings=Settings optimize",
    "phantom": "phantom",
    "plan": "Arc Plan violations",
    "qa": "GateSettings Verdict judge write_plan",
    "report": "Identity Reported write_report",
    "workflow": "PlanningTools plan_case plan_settings",
    "workflow.beam": "fit_machine",
    "workflow.predict": "predict=predict_dose",
}
_HOME = {
    name.partition("=")[0]: (f"{__name__}.{module}", name.rpartition("=")[2])
    for module, names in _HOMES.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, own_name = _HOME[name]
    found = getattr(import_module(module), own_name)
    # A name that is also a module's stays the module, which is called like the function.
    return globals().get(name, found)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallableModule(ModuleType):
    """A module with the name of a public function, such as `optimize`: calling it calls the function."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        module, own_name = _HOME[self.__name__.rpartition(".")[2]]
        return getattr(import_module(module), own_name)(*arguments, **keywords)


class _Package(ModuleType):
    """This package: Python sets a module on it when the module is first imported, by whomever."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
