"""What the patients of all sites have in common: seeds, posture, and the parts of which a case is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vmat_diffusion.anatomy.solids import Space, bent_space
from vmat_diffusion.anatomy.tissue import Tissue
from vmat_diffusion.case import Prescription, Role
from vmat_diffusion.geometry import Mask, Point

# Targets end this far below the skin, where the dose builds up; the habit of most clinics.
SKIN_MARGIN_MM = 5.0
# Planning volumes end this far from the spinal cord, which no plan may trade for coverage.
CORD_MARGIN_MM = 3.0


@dataclass(frozen=True)
class Scan:
    """One patient's posture and the seeds of shape and texture.

    `turn_deg` are small angles about x, y and z, `bend_mm` the largest displacement by bending.
    """

    shape_seed: int
    texture_seed: int
    noise_hu: float
    turn_deg: Point
    bend_mm: float

    def space(self, low: Point, high: Point, spacing_mm: Point) -> Space:
        """The voxels between two corners in this patient's posture."""
        return bent_space(
            low, high, spacing_mm, self.shape_seed, bend_mm=self.bend_mm, turn_deg=self.turn_deg
        )


@dataclass(frozen=True, eq=False)
class Parts:
    """What a site builds: contours by canonical name, and layers of tissue, the later on top."""

    space: Space
    contours: Mapping[str, tuple[Role, Mask]]
    layers: Sequence[tuple[Mask, Tissue]]
    prescription: Prescription


def draw_scan(rng: np.random.Generator, *, turn_deg: float, bend_mm: float) -> Scan:
    """Posture and seeds: angles with that standard deviation, bending up to `bend_mm`; chosen."""
    shape_seed, texture_seed = (int(s) for s in rng.integers(0, 2**31, 2))
    turn = tuple(truncated(rng, 0.0, turn_deg, -2 * turn_deg, 2 * turn_deg) for _ in range(3))
    return Scan(
        shape_seed,
        texture_seed,
        uniform(rng, 10.0, 25.0),
        turn,  # type: ignore[arg-type]
        uniform(rng, bend_mm / 3, bend_mm),
    )


def truncated(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    """A normal number; one beyond the limits is put on them."""
    return float(np.clip(rng.normal(mean, sd), low, high))


def skewed(rng: np.random.Generator, median: float, log_sd: float, low: float, high: float) -> float:
    """A log-normal number; one beyond the limits is put on them."""
    return float(np.clip(median * np.exp(rng.normal(0.0, log_sd)), low, high))


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between limits, all equally likely."""
    return float(rng.uniform(low, high))


def some_of(rng: np.random.Generator, names: Sequence[str], probability: float) -> tuple[str, ...]:
    """Each name with a probability, in their order."""
    return tuple(name for name in names if rng.uniform() < probability)
