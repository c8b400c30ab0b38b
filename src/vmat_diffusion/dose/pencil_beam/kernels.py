"""Dose of a photon pencil in water as a sum of Gaussians, for any spectrum.

The data come from the project's own Monte Carlo engine: pencils of single energies, primary dose and
scatter apart, each depth decomposed into Gaussians (`scripts/make_pencil_kernels.py`). A spectrum is a sum
over energies. After Ahnesjo, Saxner and Trepp, Med Phys 19:263 (1992).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.tissue import attenuation, media


@dataclass(frozen=True, eq=False)
class Pencil:
    """A pencil beam in a half space of water, per photon (or per contaminant electron).

    Dose at depth `depth_mm[d]` and radius r is `sum_j weight[d, j] G(r, sigma_mm[j])` with Gaussians of
    unit integral, so that weights are in Gy cm2. `primary` is the dose of charged particles set free by
    first interactions, `scatter` the dose of all later ones.
    """

    depth_mm: NDArray[np.float64]
    sigma_mm: NDArray[np.float64]
    primary: NDArray[np.float64]
    scatter: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Library:
    """Single energies: `primary[e, d, j]`, `scatter` over energy and attenuation; `electron` as it is."""

    depth_mm: NDArray
    sigma_mm: NDArray
    photon_mev: NDArray
    primary: NDArray
    scatter: NDArray
    electron_mev: NDArray
    electron: NDArray


def water_attenuation_mm(energy_mev: NDArray) -> NDArray[np.float64]:
    """Attenuation of water without coherent scatter, per mm."""
    return attenuation(media()[0], energy_mev)[:, 1:].sum(axis=1) / 10


@lru_cache(maxsize=1)
def _library() -> _Library:
    with (resources.files("vmat_diffusion") / "dose" / "data" / "pencils.npz").open("rb") as file:
        data = dict(np.load(file).items())
    energy, depth = data["photon_mev"], data["depth_mm"]
    level = energy[:, None] * np.exp(-np.outer(water_attenuation_mm(energy), depth))
    primary, scatter = (data[name] / level[:, :, None] for name in ("primary", "scatter"))
    return _Library(
        depth, data["sigma_mm"], energy, primary, scatter, data["electron_mev"],
        data["electron"].astype(np.float64),
    )  # fmt: skip


def photon_pencil(energy_mev: NDArray, number: NDArray) -> Pencil:
    """The pencil of a spectrum given by `number` photons of each energy, per photon.

    Energies beyond those of the data (0.1 to 15 MeV) are treated as the nearest. Between them the dose
    divided by energy and attenuation is interpolated in ln E.
    """
    library = _library()
    share = np.asarray(number, float) / np.sum(number)
    energy = np.asarray(energy_mev, float)
    nodes = np.log(library.photon_mev)
    at = np.interp(np.log(energy), nodes, np.arange(len(nodes)))
    below = np.minimum(at.astype(int), len(nodes) - 2)
    part = (at - below)[:, None]
    fall = np.exp(-np.outer(water_attenuation_mm(energy), library.depth_mm))
    level = (share * energy)[:, None] * fall
    # Weights of the library's energies at each depth, so that the sum over the spectrum is one product.
    mix = np.zeros((len(nodes), len(library.depth_mm)))
    np.add.at(mix, below, level * (1 - part))
    np.add.at(mix, below + 1, level * part)
    return Pencil(
        library.depth_mm,
        library.sigma_mm,
        np.einsum("ed,edj->dj", mix, library.primary),
        np.einsum("ed,edj->dj", mix, library.scatter),
    )


def electron_pencil(energy_mev: NDArray, number: NDArray) -> NDArray[np.float64]:
    """Weights `[depth, sigma]` of contaminant electrons with a spectrum, per electron."""
    library = _library()
    share = np.asarray(number, float) / np.sum(number)
    mix = np.array([np.interp(np.asarray(energy_mev, float), library.electron_mev, row) @ share
                    for row in np.eye(len(library.electron_mev))])  # fmt: skip
    return np.einsum("e,edj->dj", mix, library.electron)
