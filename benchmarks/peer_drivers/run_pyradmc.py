"""Dose and processor seconds of pyRadMC on one thread; run by monte_carlo.py and by the oracle tests.

run_pyradmc.py HISTORIES CASE.npz DOSE.npz FIGURES.json

CASE holds the phantom: `density[z, y, x]` in g/cm3, `medium[z, y, x]` in its numbers, `origin_cm` and
`spacing_cm` along x, y, z; the spectrum: `energy_mev` and `number` per bin; and the openings of a point
source as `dose/monte_carlo/source.py` has them. DOSE gets `gy` and `sigma_gy` `[z, y, x]` for one photon
per cm2.
"""

from __future__ import annotations

import sys
from importlib import metadata

import numpy as np
from clock import report, timed
from pyradmc import AnalyticCrossSections, SpectralBeamSource, Spectrum, VoxelGrid, WarpEngine
from pyradmc.geometry.source import Primary, Source

GRAY_PER_MEV_G = 1.602176634e-10
BATCHES = 20


class OpeningsSource(Source):
    """A point source behind the openings of all exposures of a plan: each drawn by its number of photons."""

    def __init__(self, case: dict[str, np.ndarray], spectrum: Spectrum) -> None:
        self._case, self._spectrum = case, spectrum

    @property
    def max_energy(self) -> float:
        """For the size of the tables."""
        return self._spectrum.max_energy

    def emit(self, rng_state: object) -> Primary:
        """Not needed: `sample_batch` makes all primaries."""
        raise NotImplementedError

    def sample_batch(self, seed: int, history_offset: int, n: int) -> dict[str, np.ndarray]:
        """Primaries as columns, drawn anew for each chunk."""
        c, rng = self._case, np.random.default_rng((seed, history_offset))
        box = np.minimum(
            np.searchsorted(c["photons_cm2"], rng.random(n) * c["photons_cm2"][-1]), len(c["photons_cm2"]) - 1
        )
        x1s, x2s, x1e, x2e, y1, y2 = c["box_cm"][box].T
        # Leaf edges move linearly; where the gap is wider, more photons pass.
        start, end = x2s - x1s, x2e - x1e
        u = rng.random(n)
        level = np.abs(end - start) > 1e-9 * np.maximum(start + end, 1e-9)
        with np.errstate(divide="ignore", invalid="ignore"):
            part = (np.sqrt(start**2 + u * (end**2 - start**2)) - start) / (end - start)
        part = np.where(level, part, u)
        low, wide = x1s + part * (x1e - x1s), start + part * (end - start)
        a, b = low + rng.random(n) * wide, y1 + rng.random(n) * (y2 - y1)
        axes = c["axes"][c["frame"][box]]
        focal = c["isocenter_cm"] + float(c["sad_cm"]) * axes[:, 2]
        target = c["isocenter_cm"] + a[:, None] * axes[:, 0] + b[:, None] * axes[:, 1]
        direction = target - focal
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        columns = [self._spectrum.sample_energies(rng.random(n), rng.random(n)), *focal.T, *direction.T]
        named = dict(zip(("energy", "x", "y", "z", "ux", "uy", "uz"), columns, strict=True))
        out = {name: np.asarray(values, np.float32) for name, values in named.items()}
        return {"particle_type": np.ones(n, np.int32), "weight": np.ones(n, np.float32), **out}


def source_of(case: dict[str, np.ndarray]) -> Source:
    """The beam; an open field from one direction by pyRadMC's own generator, which is the faster one."""
    # It takes no spectrum from 0 on; slower photons than this carry no dose.
    spectrum = Spectrum(np.maximum(case["energy_mev"], 1e-3), case["number"])
    if len(case["box_cm"]) > 1:
        return OpeningsSource(case, spectrum)
    x1, x2, _, _, y1, y2 = case["box_cm"][0]
    x, y, to_source = case["axes"][0]
    isocenter, sad = case["isocenter_cm"], float(case["sad_cm"])
    centre = isocenter + (x1 + x2) / 2 * x + (y1 + y2) / 2 * y
    return SpectralBeamSource(
        spectrum, tuple(isocenter + sad * to_source), tuple(centre), x2 - x1, y2 - y1, tuple(x), tuple(y)
    )


def main(histories: int, case_file: str, dose_file: str, figures: str) -> None:
    """Compile with a short run, then time one of so many histories."""
    case = dict(np.load(case_file))
    density = np.ascontiguousarray(case["density"].transpose(2, 1, 0), np.float64)
    medium = np.ascontiguousarray(case["medium"].transpose(2, 1, 0), np.int32)
    grid = VoxelGrid(
        density.shape, tuple(case["spacing_cm"]), density, medium, origin=tuple(case["origin_cm"])
    )
    sections = AnalyticCrossSections(geometry_densities=grid.max_density_by_material())
    engine, source = WarpEngine(grid=grid, cross_sections=sections, device="cpu"), source_of(case)
    first, _ = timed(lambda: engine.run(source, n_histories=2000, n_batches=2, seed=1))
    seconds, result = timed(lambda: engine.run(source, n_histories=histories, n_batches=BATCHES, seed=2))
    scale = GRAY_PER_MEV_G * case["photons_cm2"][-1]
    gy, sigma = (
        np.asarray(d, np.float64).transpose(2, 1, 0) * scale for d in (result.dose, result.dose_sigma)
    )
    np.savez(dose_file, gy=gy, sigma_gy=sigma)
    version = {name: metadata.version(name) for name in ("pyradmc", "warp-lang")}
    report(figures, {"version": version, "histories": histories, "first_s": first["wall_s"], "run": seconds})


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
