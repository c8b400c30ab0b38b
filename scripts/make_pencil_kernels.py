"""Compute the pencil beams in water from which `dose/kernels.py` makes those of any spectrum.

Development-time only; about five minutes on two cores.

    python scripts/make_pencil_kernels.py src/vmat_diffusion/dose/data/pencils.npz

A pencil of one energy enters a half space of water. The Monte Carlo engine scores primary dose and
scatter apart; the eight equivalent octants are averaged, and each depth is decomposed into Gaussians
of fixed widths by non-negative least squares on the dose of whole voxels.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy.optimize import nnls
from scipy.special import ndtr

from vmat_diffusion.dose.monte_carlo.engine import Phantom, simulate
from vmat_diffusion.dose.monte_carlo.kernel import EVERYTHING, PRIMARY, SCATTER
from vmat_diffusion.dose.monte_carlo.source import Openings, frames, photon_source
from vmat_diffusion.machine import load_machine

PHOTON_MEV = (0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0, 1.4, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0)
ELECTRON_MEV = (0.35, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
# The narrowest stands for what is absorbed on the pencil itself.
SIGMA_MM = np.array([0.15, *np.round(0.6 * 1.52 ** np.arange(14), 4)])
HALF_WIDTHS_MM = np.array([0, 0.6, 1.2, 2, 3, 4.2, 6, 8, 11, 15, 20, 27, 36, 50, 70, 100, 140, 200, 300.0])
DEPTH_EDGES_MM = np.concatenate(
    [np.arange(0, 10, 1), np.arange(10, 30, 2), np.arange(30, 60, 5), np.arange(60, 120, 10),
     np.arange(120, 501, 20)]
).astype(float)  # fmt: skip
KEPT_DEPTHS = int(np.searchsorted(DEPTH_EDGES_MM, 440.0))  # deeper ones lack the scatter from behind
HISTORIES = 160_000
_PENCIL_MM = 1e-4


def phantom() -> Phantom:
    """The half space: y is depth."""
    lateral = np.concatenate([-HALF_WIDTHS_MM[:0:-1], HALF_WIDTHS_MM])
    shape = (len(lateral) - 1, len(DEPTH_EDGES_MM) - 1, len(lateral) - 1)
    return Phantom(lateral, DEPTH_EDGES_MM, lateral, np.ones(shape), np.zeros(shape, np.uint8))


def pencil_dose(
    water: Phantom, energy_mev: float, part: int, *, electrons: bool = False
) -> tuple[NDArray, NDArray]:
    """Dose per particle in Gy and its sigma, `[z, depth, x]`."""
    beam = replace(
        load_machine("point_source").require_beam(),
        spectrum_low_mev=energy_mev * (1 - 1e-6),
        spectrum_upper_mev=(energy_mev,),
        spectrum_number=(1.0,),
    )
    if electrons:
        spectrum = {"electron_mean_mev": 1e-4, "electron_max_mev": energy_mev}
        beam = replace(beam, electrons_per_photon=1.0, electron_sampling=0.999999, **spectrum)
    zero, b = np.zeros(1), _PENCIL_MM
    openings = Openings(
        np.array([[-b, b, -b, b, -b, b]]), np.ones(1), np.zeros(1, np.int64), frames(zero, zero, zero, "HFS")
    )
    source = photon_source(openings, beam, (0.0, 0.0, 0.0), 1e5)
    if electrons:  # one energy: the lowest of the spectrum is the highest
        source = source._replace(electron_min_mev=energy_mev)
    run = simulate(
        water, source, uncertainty=1e-9, max_histories=HISTORIES, seed=1, part=part, batch_histories=1000
    )
    area_cm2 = (2 * b / 10) ** 2
    return run.gy.astype(float) / area_cm2, run.sigma_gy.astype(float) / area_cm2


def octants(values: NDArray) -> NDArray:
    """The mean over the eight equivalent octants, `[depth, i, j]`."""
    n = len(HALF_WIDTHS_MM) - 1
    v = np.moveaxis(values, 1, 0)
    quarter = (
        v[:, n:, n:] + v[:, n:, n - 1 :: -1] + v[:, n - 1 :: -1, n:] + v[:, n - 1 :: -1, n - 1 :: -1]
    ) / 4
    return (quarter + np.swapaxes(quarter, 1, 2)) / 2


def decomposed(dose: NDArray, sigma: NDArray) -> NDArray:
    """Weights `[depth, sigma]` in Gy cm2 of Gaussians whose voxel integrals fit the dose.

    Each voxel counts by its noise, taken to follow the fitted dose (weights from the dose itself would favour
    voxels that came out low), plus 1 % of it. The sum over voxels is kept.
    """
    area_cm2 = np.outer(np.diff(HALF_WIDTHS_MM), np.diff(HALF_WIDTHS_MM)) / 100
    integral = octants(dose) * area_cm2
    variance = octants(sigma**2) * area_cm2**2 / 8
    inside = [np.diff(ndtr(HALF_WIDTHS_MM / s)) for s in SIGMA_MM]
    design = np.stack([np.outer(g, g).ravel() for g in inside], axis=1)
    out = np.zeros((KEPT_DEPTHS, len(SIGMA_MM)))
    for d in range(KEPT_DEPTHS):
        y = integral[d].ravel()
        total = y.sum()
        if total <= 0:
            continue
        level = variance[d].sum() / total
        expected = np.maximum(y, 1e-3 * total)
        for _ in range(4):
            error = np.sqrt(level * expected + (0.01 * expected) ** 2)
            found = nnls(design / error[:, None], y / error)[0]
            expected = np.maximum(design @ found, 1e-5 * total)
        out[d] = found * total / (design @ found).sum()
    return out


def main(path: Path) -> None:
    """Run every pencil and write the file."""
    water = phantom()
    jobs = [(e, part, False) for e in PHOTON_MEV for part in (PRIMARY, SCATTER)]
    jobs += [(e, EVERYTHING, True) for e in ELECTRON_MEV]
    found: dict[int, list[NDArray]] = {PRIMARY: [], SCATTER: [], EVERYTHING: []}
    for energy, part, electrons in track(jobs, "pencils"):
        found[part].append(decomposed(*pencil_dose(water, energy, part, electrons=electrons)))
    np.savez_compressed(
        path,
        depth_mm=((DEPTH_EDGES_MM[1:] + DEPTH_EDGES_MM[:-1]) / 2)[:KEPT_DEPTHS],
        sigma_mm=SIGMA_MM,
        photon_mev=np.array(PHOTON_MEV),
        primary=np.array(found[PRIMARY], np.float32),
        scatter=np.array(found[SCATTER], np.float32),
        electron_mev=np.array(ELECTRON_MEV),
        electron=np.array(found[EVERYTHING], np.float32),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
