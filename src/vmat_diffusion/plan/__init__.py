"""Plans, their delivery times, the machine limits that they break, and their trajectories."""

from vmat_diffusion.plan.arc import Arc, Plan
from vmat_diffusion.plan.deliverability import beam_differences, turns_through, violations
from vmat_diffusion.plan.fluence_fields import FluenceFields
from vmat_diffusion.plan.timing import Timing, arc_delivery_s, at_pace_of_leaves, delivery_s, timing
from vmat_diffusion.plan.trajectory import SAMPLE_S, Trajectory, trajectory

__all__ = [
    "SAMPLE_S",
    "Arc",
    "FluenceFields",
    "Plan",
    "Timing",
    "Trajectory",
    "arc_delivery_s",
    "at_pace_of_leaves",
    "beam_differences",
    "delivery_s",
    "timing",
    "trajectory",
    "turns_through",
    "violations",
]
