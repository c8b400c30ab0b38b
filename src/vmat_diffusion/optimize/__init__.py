"""From goals to deliverable arcs: fluence maps, leaf sequencing, direct aperture optimisation."""

from vmat_diffusion.optimize.objective_terms import ObjectiveTerm
from vmat_diffusion.optimize.planner import optimize
from vmat_diffusion.optimize.result import Optimized, Outcome, Settings

__all__ = ["ObjectiveTerm", "Optimized", "Outcome", "Settings", "optimize"]
