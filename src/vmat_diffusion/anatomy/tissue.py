"""From masks to Hounsfield units: tissues, bone with a cortex, texture, resolution and noise of a CT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.anatomy.solids import Space, generator
from vmat_diffusion.geometry import Mask


@dataclass(frozen=True)
class Tissue:
    """Mean HU, the standard deviation of its coarse texture, and a denser rim where there is one."""

    hu: float
    mottle_hu: float = 0.0
    cortex_hu: float | None = None
    cortex_mm: float = 0.0


# HU of ICRU Report 44 tissues at 120 kV after Schneider W, Bortfeld T, Schlegel W, Phys Med Biol 45:459
# (2000), rounded; texture, and all that is not in the report, chosen by the look of planning CTs.
AIR = Tissue(-1000)
GAS = Tissue(-950)
FAT = Tissue(-100, 8)
SKIN = Tissue(20)
MUSCLE = Tissue(50, 9)
SOFT = Tissue(35, 8)
BRAIN = Tissue(35, 4)
CORD = Tissue(32, 3)
CARTILAGE = Tissue(110, 20)
URINE = Tissue(8, 2)
PROSTATE = Tissue(40, 5)
STOOL = Tissue(15, 35)
GLAND = Tissue(0, 15)
BLOOD = Tissue(45, 3)
LIVER = Tissue(60, 4)
TUMOUR = Tissue(40, 8)
EYE = Tissue(12, 1)
LENS = Tissue(75)
LUNG = Tissue(-770, 25)
DEPENDENT_LUNG = Tissue(-720, 25)
BONE = Tissue(250, 40, cortex_hu=900, cortex_mm=3.0)
SKULL = Tissue(550, 60, cortex_hu=1150, cortex_mm=2.5)
TEETH = Tissue(1700, 150)

_RESOLUTION_MM = 0.8
_NOISE_GRAIN_MM = 1.2
_MOTTLE_MM = 5.0


def render(
    space: Space, layers: Sequence[tuple[Mask, Tissue]], *, texture_seed: int, noise_hu: float
) -> NDArray[np.int16]:
    """The CT of layers of tissue, of which a later one covers the earlier, in air.

    Noise has the standard deviation `noise_hu` and the grain of a reconstructed CT.
    """
    hu = np.full(space.grid.shape, AIR.hu, np.float32)
    mottle = np.zeros(space.grid.shape, np.float32)
    for mask, tissue in layers:
        hu[mask] = tissue.hu
        mottle[mask] = tissue.mottle_hu
        if tissue.cortex_hu is not None:
            rim = np.clip((tissue.cortex_mm - space.depth_mm(mask)[mask]) / 1.5 + 0.5, 0, 1)
            hu[mask] += rim * (tissue.cortex_hu - tissue.hu)
    rng = generator(texture_seed, "texture")
    hu += mottle * _grainy(rng, space, _MOTTLE_MM)
    hu = ndimage.gaussian_filter(hu, _voxels(space, _RESOLUTION_MM))
    hu += noise_hu * _grainy(rng, space, _NOISE_GRAIN_MM)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def _grainy(rng: np.random.Generator, space: Space, grain_mm: float) -> NDArray[np.float32]:
    """Gaussian noise of unit variance that is smooth over `grain_mm`."""
    noise = rng.standard_normal(space.grid.shape, np.float32)
    noise = ndimage.gaussian_filter(noise, _voxels(space, grain_mm), truncate=3.0)
    return noise / noise.std()


def _voxels(space: Space, length_mm: float) -> list[float]:
    return [length_mm / s for s in space.grid.spacing_mm[::-1]]
