"""pyRadMC 0.2.1 (Apache-2.0), a Monte Carlo code by others, beside ours: same phantom, spectrum and openings.

Its own cross sections are analytic ones of water, good to a few percent for soft photons; tabulated ones need
files that it does not bring. So all is water, of any density. It has no vacuum: what is outside the body is
thin.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.monte_carlo.engine import Phantom
from vmat_diffusion.dose.monte_carlo.source import Source
from vmat_diffusion.dose.tissue import MEDIA

DRIVER = Path(__file__).resolve().parent / "peer_drivers" / "run_pyradmc.py"
_THIN_G_CM3 = 1e-4
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
}


@dataclass(frozen=True, eq=False)
class SecondDose:
    """Dose and sigma in Gy for one photon per cm2, `[z, y, x]`, and what the driver reports."""

    gy: NDArray[np.float64]
    sigma_gy: NDArray[np.float64]
    figures: dict[str, Any]


def is_installed() -> bool:
    """Whether this Python has pyRadMC with its compiled backend."""
    return all(importlib.util.find_spec(name) is not None for name in ("pyradmc", "warp"))


def second_dose(phantom: Phantom, source: Source, histories: int) -> SecondDose:
    """The dose by pyRadMC on one thread. The source must be a point without head scatter or electrons."""
    if source.isotropic or source.focal_sigma_cm or source.head_share or source.electron_share:
        raise ValueError("pyRadMC gets a point source that is even in the plane of the isocentre alone")
    empty = phantom.density_g_cm3 <= 0
    if (phantom.medium[~empty] != MEDIA.index("water")).any():
        raise ValueError("pyRadMC's analytic cross sections are those of water alone")
    edges = [np.asarray(e, float) / 10 for e in (phantom.x_mm, phantom.y_mm, phantom.z_mm)]
    with tempfile.TemporaryDirectory() as folder:
        case, dose, figures = (Path(folder) / name for name in ("case.npz", "dose.npz", "figures.json"))
        np.savez(
            case,
            density=np.where(empty, _THIN_G_CM3, phantom.density_g_cm3),
            medium=np.zeros(phantom.medium.shape, np.int32),
            origin_cm=[e[0] for e in edges],
            spacing_cm=[e[1] - e[0] for e in edges],
            energy_mev=source.energy_mev,
            number=np.diff(source.energy_cdf),
            **{
                name: getattr(source, name)
                for name in ("photons_cm2", "box_cm", "frame", "axes", "isocenter_cm", "sad_cm")
            },
        )
        command = [sys.executable, DRIVER, str(histories), case, dose, figures]
        done = subprocess.run(
            [str(part) for part in command], env={**os.environ, **ONE_THREAD}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"pyRadMC: {done.stderr.strip()[-2000:]}")
        with np.load(dose) as kept:
            return SecondDose(kept["gy"], kept["sigma_gy"], json.loads(figures.read_text()))
