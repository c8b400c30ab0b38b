"""Photon dose engines: the fast pencil beam for planning, differentiable in leaves, jaws and MU."""

from vmat_diffusion.dose.pencil_beam import DoseEngine, PencilBeam, dose_grid

__all__ = ["DoseEngine", "PencilBeam", "dose_grid"]
