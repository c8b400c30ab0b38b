"""Planning runs: what the user chose goes in, a folder of results and its record come out."""

from vmat_diffusion.workflow.checks import check_plan, dose_statistics, machine_table
from vmat_diffusion.workflow.recompute import check_references, compare_doses, compute_dose, second_check
from vmat_diffusion.workflow.run import FILES, STAGES, PlanRun, plan_case, run_demo
from vmat_diffusion.workflow.search_and_check import PlanningTools
from vmat_diffusion.workflow.settings import PlanSettings, plan_settings

__all__ = [
    "FILES",
    "STAGES",
    "PlanRun",
    "PlanSettings",
    "PlanningTools",
    "check_plan",
    "check_references",
    "compare_doses",
    "compute_dose",
    "dose_statistics",
    "machine_table",
    "plan_case",
    "plan_settings",
    "run_demo",
    "second_check",
]
