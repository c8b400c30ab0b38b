"""The gate: what must hold before a plan may be written, and why it does not. See `docs/gate.md`."""

from vmat_diffusion.qa.agreement import denoised, smooth_difference, uncertainty_percent
from vmat_diffusion.qa.decision import Decision
from vmat_diffusion.qa.files import PlanFiles, plan_differences, release_plan, write_plan
from vmat_diffusion.qa.gate import judge, with_way_on
from vmat_diffusion.qa.limits import GateSettings, gate_limits, load_gate
from vmat_diffusion.qa.robustness import robustness_of, with_robustness
from vmat_diffusion.qa.robustness_result import Robustness
from vmat_diffusion.qa.verdict import Check, Outcome, Verdict, warning

__all__ = [
    "Check",
    "Decision",
    "GateSettings",
    "Outcome",
    "PlanFiles",
    "Robustness",
    "Verdict",
    "denoised",
    "gate_limits",
    "judge",
    "load_gate",
    "plan_differences",
    "release_plan",
    "robustness_of",
    "smooth_difference",
    "uncertainty_percent",
    "warning",
    "with_robustness",
    "with_way_on",
    "write_plan",
]
