"""Photon dose: two engines that share what a plan delivers and the patient's tissue, and nothing else.

`PencilBeam` is fast and differentiable, `MonteCarlo` checks it. Names load with the engine they belong to.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmat_diffusion.dose.engines import DoseEngine, dose_engine
    from vmat_diffusion.dose.monte_carlo import MonteCarlo
    from vmat_diffusion.dose.pencil_beam import PencilBeam
    from vmat_diffusion.dose.tissue import dose_grid

__all__ = ["DoseEngine", "MonteCarlo", "PencilBeam", "dose_engine", "dose_grid"]
_MODULE = {
    "DoseEngine": "engines",
    "MonteCarlo": "monte_carlo",
    "PencilBeam": "pencil_beam",
    "dose_engine": "engines",
    "dose_grid": "tissue",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use, so that one engine never brings the other with it."""
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
