"""The gate: what must hold before a plan may be written, and why it does not. See `docs/gate.md`."""

from vmat_diffusion.qa.agreement import denoised, smooth_difference, uncertainty_percent
from vmat_diffusion.qa.files import PlanFiles, plan_differences, release_plan, write_plan
from vmat_diffusion.qa.gate import judge
from vmat_diffusion.qa.limits import GateSettings, gate_limits, load_gate
from vmat_diffusion.qa.verdict import Check, Outcome, Verdict, warning

__all__ = [
    "Check",
    "GateSettings",
    "Outcome",
    "PlanFiles",
    "Verdict",
    "denoised",
    "gate_limits",
    "judge",
    "load_gate",
    "plan_differences",
    "release_plan",
    "smooth_difference",
    "uncertainty_percent",
    "warning",
    "write_plan",
]
