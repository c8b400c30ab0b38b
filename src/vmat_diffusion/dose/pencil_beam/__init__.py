"""The pencil beam: the fast engine of planning, differentiable in leaves, jaws and MU.

Method, validation and limits: `docs/dose_engine.md`.
"""

from vmat_diffusion.dose.pencil_beam.engine import PencilBeam, point_dose

__all__ = ["PencilBeam", "point_dose"]
