"""Batches of histories until the dose is known well enough, and the sigma of every voxel."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.monte_carlo.cross_sections import tables
from vmat_diffusion.dose.monte_carlo.kernel import EVERYTHING, Physics, Voxels, collect, run_batches
from vmat_diffusion.dose.monte_carlo.source import Source
from vmat_diffusion.dose.tissue import AIR_BELOW_G_CM3, MEDIA
from vmat_diffusion.errors import CaseError
from vmat_diffusion.progress import Progress

GRAY_PER_MEV_G = 1.602176634e-10
# Interaction points of a photon of the source. With 80, single voxels need half the time to 2 %, but a third
# of the photons, and the gate compares regions as well, whose noise is that of the photons.
SPLIT = 24
_ROUND = 16  # batches per round: fixed, so that the result does not depend on the number of threads
_FEWEST_BATCHES = 32
# A run that needs more histories than this (days on a workstation) to reach its uncertainty is ended, and its
# sigma says so.
_HISTORIES_MAX = 2e10


@dataclass(frozen=True, eq=False)
class Phantom:
    """Voxels between edges in mm along x, y and z; density in g/cm3 and index into MEDIA `[z, y, x]`."""

    x_mm: NDArray
    y_mm: NDArray
    z_mm: NDArray
    density_g_cm3: NDArray
    medium: NDArray

    def __post_init__(self) -> None:
        shape = (len(self.z_mm) - 1, len(self.y_mm) - 1, len(self.x_mm) - 1)
        if self.density_g_cm3.shape != shape or self.medium.shape != shape:
            raise CaseError(f"density of shape {self.density_g_cm3.shape} does not fit edges for {shape}")
        for edges in (self.x_mm, self.y_mm, self.z_mm):
            if np.any(np.diff(edges) <= 0):
                raise CaseError("voxel edges must ascend along x, y and z")
        if self.medium.max() >= len(MEDIA) or self.density_g_cm3.min() < 0:
            raise CaseError(f"media must be 0 to {len(MEDIA) - 1} and densities not negative")

    def mass_g(self) -> NDArray[np.float64]:
        """Mass of each voxel."""
        dx, dy, dz = (np.diff(e) / 10 for e in (self.x_mm, self.y_mm, self.z_mm))
        return self.density_g_cm3 * dz[:, None, None] * dy[None, :, None] * dx[None, None, :]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Dose in Gy per unit source strength (one photon per cm2), its sigma, and what it took."""

    gy: NDArray[np.float32]
    sigma_gy: NDArray[np.float32]
    histories: int
    photons: int
    seconds: float
    uncertainty: float


def simulate(
    phantom: Phantom,
    source: Source,
    *,
    uncertainty: float,
    max_seconds: float | None = None,
    max_histories: int | None = None,
    seed: int = 0,
    split: int = SPLIT,
    to_water: bool = False,
    part: int = EVERYTHING,
    batch_histories: int = 5000,
    progress: Progress | None = None,
) -> Estimate:
    """Run until the mean relative sigma over voxels above half of the maximum is below `uncertainty`.

    Stops earlier at either limit, and where the uncertainty is out of reach. Raises CaseError where no photon
    reaches tissue. Without `max_seconds` the result depends on the arguments alone,
    not on the number of threads. Sigma is that of the mean over batches. `part` leaves out
    either what the source's photons set free themselves or what their scatter does.
    """
    voxels, data = _voxels(phantom), tables()
    size = phantom.density_g_cm3.size
    tally = np.zeros((_ROUND, size), np.float32)
    total, square = np.zeros(size), np.zeros(size)
    mass = phantom.mass_g().ravel()
    # Voxels of air are noisy without meaning much; they neither set the maximum nor hold up the run.
    tissue = voxels.density_g_cm3 >= min(AIR_BELOW_G_CM3, float(voxels.density_g_cm3.max()))
    physics = Physics(data.photon, data.electron, data.alike, to_water)
    setup = (seed, split, part, source, voxels, physics)
    # One small batch first, so that compiling does not count as computing.
    run_batches(0, 1, *setup, tally[:1])
    tally[:] = 0
    started, batches, photons, sigma_now = time.perf_counter(), 0, 0, float("inf")
    while True:
        photons += int(run_batches(batches, batch_histories, *setup, tally).sum())
        collect(tally, total, square)
        batches += _ROUND
        seconds = time.perf_counter() - started
        sigma_now = _mean_relative_sigma(total, square, batches, mass, tissue)
        if progress:
            done = min(1.0, (uncertainty / max(sigma_now, 1e-9)) ** 2)
            progress("dose", done, f"sigma {100 * sigma_now:.2f} %")
        enough = batches >= _FEWEST_BATCHES and sigma_now <= uncertainty
        if batches >= _FEWEST_BATCHES and not np.isfinite(sigma_now):
            raise CaseError(
                f"no photon of {batches * batch_histories} reaches tissue: the beams miss the patient or are "
                "closed; give the CT that the plan was made on"
            )
        needed = batches * batch_histories * (sigma_now / uncertainty) ** 2
        endless = batches >= _FEWEST_BATCHES and needed > _HISTORIES_MAX
        late = max_seconds is not None and seconds >= max_seconds
        many = max_histories is not None and batches * batch_histories >= max_histories
        if enough or late or many or endless:
            break
    scale = np.zeros(size)
    inside = mass > 0
    scale[inside] = source.photons_cm2[-1] * GRAY_PER_MEV_G / batch_histories / mass[inside]
    mean = total / batches
    variance = np.maximum(square / batches - mean**2, 0) / (batches - 1)
    shape = phantom.density_g_cm3.shape
    return Estimate(
        gy=(mean * scale).reshape(shape).astype(np.float32),
        sigma_gy=(np.sqrt(variance) * scale).reshape(shape).astype(np.float32),
        histories=batches * batch_histories,
        photons=photons,
        seconds=time.perf_counter() - started,
        uncertainty=sigma_now,
    )


def _voxels(phantom: Phantom) -> Voxels:
    """The phantom as the compiled loop reads it, in cm."""
    x, y, z = (np.ascontiguousarray(e, np.float64) / 10 for e in (phantom.x_mm, phantom.y_mm, phantom.z_mm))
    return Voxels(
        x_cm=x,
        y_cm=y,
        z_cm=z,
        density_g_cm3=np.ascontiguousarray(phantom.density_g_cm3, np.float32).ravel(),
        medium=np.ascontiguousarray(phantom.medium, np.uint8).ravel(),
    )


def _mean_relative_sigma(
    total: NDArray, square: NDArray, batches: int, mass: NDArray, inside: NDArray
) -> float:
    """Mean of sigma over dose where the dose is above half of a robust maximum; inf without a dose."""
    mean = total[inside] / batches
    dose = mean / mass[inside]
    # The maximum of a noisy dose is too high; the 99.9th percentile of the upper doses stands for it.
    if not dose.max() > 0:
        return float("inf")
    top = np.partition(dose, -min(50, len(dose)))[-min(50, len(dose))]
    high = dose > 0.5 * top
    variance = np.maximum(square[inside][high] / batches - mean[high] ** 2, 0) / (batches - 1)
    return float(np.mean(np.sqrt(variance) / mean[high]))
