"""Time the gamma index against pymedphys on 128 x 128 x 64 voxels, 3 %/3 mm.

    python benchmarks/gamma.py [--everywhere]

The dose is smooth with its high part in the middle, as that of a plan (about an eighth of the voxels
above the threshold), or fills the volume with --everywhere. The evaluated dose is moved, scaled and
noisy. Prints seconds of wall clock and of all processor cores, pass rates and the largest difference.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

import numpy as np
import pymedphys
from scipy import ndimage

from vmat_diffusion.case import Dose
from vmat_diffusion.evaluate.gamma import gamma
from vmat_diffusion.geometry import Grid

GRID = Grid((64, 128, 128), (2.5, 2.5, 3.0), (0.0, 0.0, 0.0))


def doses(*, everywhere: bool) -> tuple[Dose, Dose]:
    """A smooth random dose up to 60 Gy, and the same with the errors of a mediocre second engine."""
    random = np.random.default_rng(7)
    field = ndimage.gaussian_filter(random.random(GRID.shape), 4)
    field = (field - field.min()) / np.ptp(field)
    if not everywhere:
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape), indexing="ij")
        radius = np.sqrt(x**2 + y**2 + z**2)
        field = (0.7 + 0.3 * field) / (1 + np.exp((radius - 0.5) / 0.04))
    field = 60 * field / field.max()
    moved = ndimage.shift(field, (0.4, 0.5, -0.3), order=1, mode="nearest")
    moved = 1.01 * moved + random.normal(0, 1.0, GRID.shape) * (field > 1)
    return Dose(GRID, field.astype(np.float32)), Dose(GRID, np.maximum(moved, 0).astype(np.float32))


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--everywhere", action="store_true", help="dose in the whole volume")
    reference, evaluated = doses(everywhere=parser.parse_args().everywhere)
    started = time.perf_counter()
    corner = Grid((8, 8, 8), GRID.spacing_mm, GRID.origin_mm)
    gamma(
        Dose(corner, np.full(corner.shape, 1.0, np.float32)), Dose(corner, np.ones(corner.shape, np.float32))
    )
    compiled = time.perf_counter() - started
    started, processor = time.perf_counter(), time.process_time()
    ours = gamma(reference, evaluated)
    wall, cpu = time.perf_counter() - started, time.process_time() - processor
    axes = reference.grid.axes_mm[::-1]
    warnings.simplefilter("ignore")
    started, processor = time.perf_counter(), time.process_time()
    theirs = pymedphys.gamma(
        axes, reference.gy, axes, evaluated.gy, 3, 3,
        lower_percent_dose_cutoff=10, interp_fraction=10, max_gamma=2.0,
    )  # fmt: skip
    wall_theirs, cpu_theirs = time.perf_counter() - started, time.process_time() - processor
    scored = ~np.isnan(theirs)
    print(f"{ours.points} of {reference.gy.size} voxels, {ours.criteria}, {os.cpu_count()} cores")
    print(f"first call (compiling or loading the kernel): {compiled:.2f} s")
    print(f"vmat-diffusion  {wall:7.2f} s wall {cpu:7.2f} s processor  {ours.pass_percent:.4f} % pass")
    rate = 100 * np.mean(theirs[scored] <= 1)
    print(f"pymedphys       {wall_theirs:7.2f} s wall {cpu_theirs:7.2f} s processor  {rate:.4f} % pass")
    worst = np.abs(theirs[scored] - ours.map[scored]).max()
    print(f"{wall_theirs / wall:.1f} times faster; largest difference of gamma {worst:.1e}")


if __name__ == "__main__":
    main()
