"""Speed of the Monte Carlo engine: histories per second, and time to 2 % in 3 mm voxels.

    python benchmarks/monte_carlo.py

A 10 x 10 cm2 field of the point source on a 30 cm water cube of 3 mm voxels. One history is one photon
of the source with its 24 interaction points. For comparison, EGSnrc needs 158 to 174 s on one core for
2 % of the maximum in the same set-up.
"""

from __future__ import annotations

import numba
import numpy as np

from vmat_diffusion.dose.monte_carlo.engine import SPLIT, Estimate, Phantom, simulate
from vmat_diffusion.dose.monte_carlo.source import Openings, frames, sampled
from vmat_diffusion.machine import load_machine


def water_cube() -> tuple[Phantom, tuple]:
    """The set-up: 30 cm of water centred 50 mm behind the isocentre's plane, field 10 x 10 cm2."""
    edges = np.linspace(-150.0, 150.0, 101)
    shape = (100, 100, 100)
    zero = np.zeros(1)
    box = np.array([[-50.0, 50.0, -50.0, 50.0, -50.0, 50.0]])
    openings = Openings(box, np.ones(1), np.zeros(1, np.int64), frames(zero, zero, zero, "HFS"))
    source = sampled(openings, load_machine("point_source").require_beam(), (0.0, 0.0, 0.0), 1000.0)
    return Phantom(edges, edges + 50.0, edges, np.ones(shape), np.zeros(shape, np.uint8)), source


def seconds_to(estimate: Estimate, uncertainty: float) -> float:
    """Time to reach an uncertainty, by the square-root law."""
    return estimate.seconds * (estimate.uncertainty / uncertainty) ** 2


def main() -> None:
    """Print the figures for one core and for all."""
    phantom, source = water_cube()
    every = numba.config.NUMBA_NUM_THREADS
    for threads in sorted({1, every}):
        numba.set_num_threads(threads)
        run = simulate(phantom, source, uncertainty=0.005, max_seconds=30.0)
        rate = run.histories / run.seconds
        print(
            f"{threads} thread(s): {rate:,.0f} histories/s (x {SPLIT} by splitting), sigma "
            f"{100 * run.uncertainty:.2f} % in {run.seconds:.0f} s, 2 % in {seconds_to(run, 0.02):.0f} s"
        )


if __name__ == "__main__":
    main()
