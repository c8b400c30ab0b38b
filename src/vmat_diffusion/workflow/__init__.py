"""What a user can ask for: settings go in, a folder of results and its record come out.

The names are imported when they are used: the command line asks for the settings alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmat_diffusion.workflow.checks import check_plan, check_sheet, dose_statistics, machine_table
    from vmat_diffusion.workflow.planning.request import plan_settings
    from vmat_diffusion.workflow.planning.result import PlanRun
    from vmat_diffusion.workflow.planning.run import STAGES, plan_case, run_demo
    from vmat_diffusion.workflow.planning.run_files import FILES
    from vmat_diffusion.workflow.planning.search import PlanningTools
    from vmat_diffusion.workflow.recompute import check_references, compare_doses, compute_dose, second_check
    from vmat_diffusion.workflow.settings import PlanSettings

_HOMES = {
    "checks": ("check_plan", "check_sheet", "dose_statistics", "machine_table"),
    "planning.request": ("plan_settings",),
    "planning.result": ("PlanRun",),
    "planning.run": ("STAGES", "plan_case", "run_demo"),
    "planning.run_files": ("FILES",),
    "planning.search": ("PlanningTools",),
    "recompute": ("check_references", "compare_doses", "compute_dose", "second_check"),
    "settings": ("PlanSettings",),
}

__all__ = [
    "FILES",
    "STAGES",
    "PlanRun",
    "PlanSettings",
    "PlanningTools",
    "check_plan",
    "check_references",
    "check_sheet",
    "compare_doses",
    "compute_dose",
    "dose_statistics",
    "machine_table",
    "plan_case",
    "plan_settings",
    "run_demo",
    "second_check",
]


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
