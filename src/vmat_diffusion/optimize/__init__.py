"""From goals to deliverable arcs: fluence maps, leaf sequencing, direct aperture optimisation."""

from vmat_diffusion.optimize.planner import Optimized, Outcome, Settings, optimize

__all__ = ["Optimized", "Outcome", "Settings", "optimize"]
