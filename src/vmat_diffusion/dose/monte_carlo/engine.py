"""Batches of histories until the dose is known well enough, and the sigma of every voxel."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.monte_carlo.cross_sections import tables
from vmat_diffusion.dose.monte_carlo.kernel import EVERYTHING, Physics, Voxels, collect, run_batches
from vmat_diffusion.dose.monte_carlo.source import Source
from vmat_diffusion.dose.monte_carlo.tallies import GROUPS, Tallies
from vmat_diffusion.dose.tissue import AIR_BELOW_G_CM3, MEDIA
from vmat_diffusion.errors import CaseError
from vmat_diffusion.progress import Progress

GRAY_PER_MEV_G = 1.602176634e-10
# Interaction points of a photon of the source. Single voxels hold up the gate: with 80 they need half the
# time that they need with 24; regions, whose noise is that of the photons, are still ten times as certain.
SPLIT = 80
_FEWEST_BATCHES = 32
# A run that needs more histories than this (days on a workstation) to reach its uncertainty is ended, and its
# sigma says so.
_HISTORIES_MAX = 2e10
# Looks at what is asked of the dose come with at most so many times the histories of the one before, and a
# run gives up with so many times those of the first: half of its sigma.
_APART, _MOST_LOOKED_FOR = 1.5, 4


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
    """Dose in Gy per unit source strength (one photon per cm2), its sigma, and what it took.

    `gy_per_mev[voxel]` makes doses of energies in a voxel that one batch left there. `decided`: the run ended
    as nothing more was asked of the dose, not as time or histories ran out.
    """

    gy: NDArray[np.float32]
    sigma_gy: NDArray[np.float32]
    histories: int
    photons: int
    seconds: float
    uncertainty: float
    tallies: Tallies
    gy_per_mev: NDArray[np.float64]
    decided: bool = False

    def replicates_gy(self) -> NDArray[np.float32]:
        """The doses of the groups of batches, `[group, z, y, x]`: independent, and of equal weight."""
        each = self.gy_per_mev * (GROUPS / self.tallies.batches)
        groups = self.tallies.groups_mev * each.astype(np.float32)
        return groups.reshape(GROUPS, *self.gy.shape)


# Told the dose so far: how many times the histories so far it takes; 1 or less where they are enough.
Look = Callable[[Estimate], float]


@dataclass(frozen=True)
class Ends:
    """When a run ends: at the mean relative `uncertainty`, or earlier at either limit.

    With `look` the uncertainty is where the dose is looked at first. The run goes on until a look says that
    it is enough, with looks at most half as many histories again apart, but not beyond four times the
    histories of the first. `interrupted` is asked after every round.
    """

    uncertainty: float
    max_seconds: float | None = None
    max_histories: int | None = None
    look: Look | None = None
    interrupted: Callable[[], bool] | None = None


def simulate(
    phantom: Phantom,
    source: Source,
    *,
    uncertainty: float = 0.02,
    max_seconds: float | None = None,
    max_histories: int | None = None,
    ends: Ends | None = None,
    seed: int = 0,
    split: int = SPLIT,
    to_water: bool = False,
    part: int = EVERYTHING,
    batch_histories: int = 5000,
    begun: Tallies | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Run until the mean relative sigma over voxels above half of the maximum is below `uncertainty`.

    Stops earlier at either limit, and where the uncertainty is out of reach; `ends` stands for all three.
    Raises CaseError where no photon reaches tissue. Without `max_seconds` the result depends on the arguments
    alone, not on the number of threads. Sigma is that of the mean over batches. `part` leaves out
    either what the source's photons set free themselves or what their scatter does. A run that goes on from
    `begun`, the tallies of an earlier part, ends with the same tallies as one that was never interrupted.
    """
    ends = ends or Ends(uncertainty, max_seconds, max_histories)
    voxels, data = _voxels(phantom), tables()
    tally = np.zeros((GROUPS, phantom.density_g_cm3.size), np.float32)
    now = begun or Tallies.empty(phantom.density_g_cm3.size)
    mass = phantom.mass_g().ravel()
    scale = np.zeros(mass.size)
    np.divide(source.photons_cm2[-1] * GRAY_PER_MEV_G / batch_histories, mass, out=scale, where=mass > 0)
    # Voxels of air are noisy without meaning much; they neither set the maximum nor hold up the run.
    tissue = voxels.density_g_cm3 >= min(AIR_BELOW_G_CM3, float(voxels.density_g_cm3.max()))
    physics = Physics(data.photon, data.electron, data.alike, to_water)
    setup = (seed, split, part, source, voxels, physics)
    # One small batch first, so that compiling does not count as computing.
    run_batches(0, 1, *setup, tally[:1])
    tally[:] = 0
    started, before_s, first = time.perf_counter(), now.seconds, now.batches
    while True:
        photons = now.photons + int(run_batches(now.batches, batch_histories, *setup, tally).sum())
        collect(tally, now.groups_mev, now.square_mev2)
        seconds = time.perf_counter() - started
        now = replace(now, batches=now.batches + GROUPS, photons=photons, seconds=before_s + seconds)
        sigma = _mean_relative_sigma(now, mass, tissue)
        if progress:
            progress("dose", min(1.0, (ends.uncertainty / max(sigma, 1e-9)) ** 2), _note(sigma, now))
        histories = now.batches * batch_histories
        if now.batches >= _FEWEST_BATCHES and not np.isfinite(sigma):
            raise CaseError(
                f"no photon of {histories} reaches tissue: the beams miss the patient or are "
                "closed; give the CT that the plan was made on"
            )
        found = partial(_estimate, phantom, now, scale, batch_histories, sigma)
        now, decided, given_up = _looked(now, found, sigma, ends, first)
        late = ends.max_seconds is not None and seconds >= ends.max_seconds
        many = ends.max_histories is not None and histories >= ends.max_histories
        needed = histories * (sigma / ends.uncertainty) ** 2
        endless = now.batches >= _FEWEST_BATCHES and needed > _HISTORIES_MAX
        stopped = ends.interrupted is not None and ends.interrupted()
        if decided or given_up or late or many or endless or stopped:
            return replace(found(), tallies=now, decided=decided)


def _most_batches(first_look: int, begun: int) -> int:
    """Where a run gives up although something is still asked; one that was given up and goes on, later."""
    most = _MOST_LOOKED_FOR * first_look
    while most <= begun:
        most *= 2
    return most


def _looked(
    now: Tallies, found: Callable[[], Estimate], sigma: float, ends: Ends, begun: int
) -> tuple[Tallies, bool, bool]:
    """The tallies with the next look, and whether the run is decided and whether it gives up."""
    if now.batches < _FEWEST_BATCHES or sigma > ends.uncertainty or now.batches < now.next_look:
        return now, False, False
    if ends.look is None:
        return now, True, False
    need = ends.look(found())
    if need <= 1.0:
        return now, True, False
    first = now.first_look or now.batches
    then = GROUPS * int(np.ceil(now.batches * min(max(need, 1.0), _APART) / GROUPS))
    now = replace(now, first_look=first, next_look=max(then, now.batches + GROUPS))
    return now, False, now.batches >= _most_batches(first, begun)


def _note(sigma: float, now: Tallies) -> str:
    """What a reader is told while a run goes on."""
    asked = ", some of what is asked is still open" if now.next_look else ""
    return f"sigma {100 * sigma:.2f} %{asked}"


def _estimate(
    phantom: Phantom, now: Tallies, gy_per_mev: NDArray, batch_histories: int, sigma: float
) -> Estimate:
    """Dose and sigma of tallies."""
    mean = now.total_mev() / now.batches
    variance = np.maximum(now.square_mev2 / now.batches - mean**2, 0) / (now.batches - 1)
    shape = phantom.density_g_cm3.shape
    return Estimate(
        gy=(mean * gy_per_mev).reshape(shape).astype(np.float32),
        sigma_gy=(np.sqrt(variance) * gy_per_mev).reshape(shape).astype(np.float32),
        histories=now.batches * batch_histories,
        photons=now.photons,
        seconds=now.seconds,
        uncertainty=sigma,
        tallies=now,
        gy_per_mev=gy_per_mev,
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


def _mean_relative_sigma(now: Tallies, mass: NDArray, inside: NDArray) -> float:
    """Mean of sigma over dose where the dose is above half of a robust maximum; inf without a dose."""
    mean, batches = now.total_mev()[inside] / now.batches, now.batches
    dose = mean / mass[inside]
    # The maximum of a noisy dose is too high; the 99.9th percentile of the upper doses stands for it.
    if not dose.max() > 0:
        return float("inf")
    top = np.partition(dose, -min(50, len(dose)))[-min(50, len(dose))]
    high = dose > 0.5 * top
    variance = np.maximum(now.square_mev2[inside][high] / batches - mean[high] ** 2, 0) / (batches - 1)
    return float(np.mean(np.sqrt(variance) / mean[high]))
