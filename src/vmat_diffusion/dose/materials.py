"""Media of the Monte Carlo engine: cross sections and stopping powers as tables by log energy.

Data: NIST XCOM and ESTAR through `scripts/make_material_tables.py`; every derived number (restricted
losses, hard collisions, elastic scattering) follows from them and from the formulas cited here.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

MEDIA = ("water", "lung", "soft_tissue", "adipose", "bone_soft", "bone_cortical", "air", "titanium")
ELECTRON_MEV = 0.51099895
# What is thinner is air, as the band of that medium says: no tissue takes its dose. It is at about -950 HU,
# where emphysema begins; inflated lung lies above.
AIR_BELOW_G_CM3 = 0.05

# Energies in MeV, all kinetic. Electrons below ECUT and photons below PCUT are absorbed where they
# are; collisions that set free more than ECUT and bremsstrahlung above BREMS are single events.
ECUT = 0.189
PCUT = 0.015
BREMS = 0.05
LOWEST, HIGHEST, POINTS = 0.01, 20.0, 1024

_CLASSICAL_RADIUS2 = 7.9407877e-26  # r_e^2 in cm2
_AVOGADRO = 6.02214076e23
_BETHE = 2 * np.pi * _CLASSICAL_RADIUS2 * _AVOGADRO * ELECTRON_MEV  # 0.1535 MeV cm2 / mol
_FINE_STRUCTURE = 1 / 137.035999
_BOHR_MEV = 3.7289e-3  # hbar c / Bohr radius in MeV

# Density bands in g/cm3 by which a voxel's medium is chosen. Pure water is a narrow band around 1 so
# that phantoms stay water; the bands' borders follow the HU ranges of ICRU 44 tissues.
_BAND_TOP = np.array([AIR_BELOW_G_CM3, 0.75, 0.985, 0.995, 1.005, 1.11, 1.45, 2.6])
_BAND = (
    "air",
    "lung",
    "adipose",
    "soft_tissue",
    "water",
    "soft_tissue",
    "bone_soft",
    "bone_cortical",
    "titanium",
)


def medium_of(density_g_cm3: NDArray) -> NDArray[np.uint8]:
    """Index into MEDIA for each mass density; the stated bands, nothing else."""
    index = np.array([MEDIA.index(name) for name in _BAND], np.uint8)
    return index[np.searchsorted(_BAND_TOP, density_g_cm3, side="left")]


@dataclass(frozen=True, eq=False)
class Medium:
    """Raw data of one medium: composition, mass attenuation (cm2/g), stopping powers (MeV cm2/g)."""

    name: str
    density_g_cm3: float
    z: NDArray
    atomic_mass: NDArray
    mass_share: NDArray
    photon_mev: NDArray
    attenuation: NDArray
    electron_mev: NDArray
    collision: NDArray
    radiative: NDArray
    range_g_cm2: NDArray

    @property
    def electrons_mol_g(self) -> float:
        """Moles of electrons in a gram: Z / A."""
        return float((self.mass_share * self.z / self.atomic_mass).sum())


def _rows(name: str) -> dict[str, NDArray]:
    """Numbers of one committed CSV, by medium."""
    path = resources.files("vmat_diffusion") / "dose" / "data" / name
    table: dict[str, list[list[float]]] = {}
    for row in list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:]:
        table.setdefault(row[0], []).append([float(v) for v in row[1:]])
    return {medium: np.array(rows) for medium, rows in table.items()}


@lru_cache(maxsize=1)
def media() -> tuple[Medium, ...]:
    """All media in the order of MEDIA."""
    composition, photons, electrons = _rows("media.csv"), _rows("photons.csv"), _rows("electrons.csv")
    out = []
    for name in MEDIA:
        c, p, e = composition[name], photons[name], electrons[name]
        out.append(
            Medium(
                name,
                float(c[0, 0]),
                c[:, 1],
                c[:, 2],
                c[:, 3],
                p[:, 0],
                p[:, 1:],
                e[:, 0],
                e[:, 1],
                e[:, 2],
                e[:, 3],
            )
        )
    return tuple(out)


@dataclass(frozen=True, eq=False)
class Tables:
    """What the kernels read: `[medium, energy, column]` on POINTS energies, even in ln E.

    `photon` columns: total without coherent, coherent, share of incoherent in the former, share of
    incoherent plus pair. `electron` columns: restricted loss in MeV cm2/g, hard collisions per MeV
    lost, share of Moller in them, elastic collisions per MeV lost times the screening parameter, the
    screening parameter, CSDA range in g/cm2.
    """

    photon: NDArray[np.float64]
    electron: NDArray[np.float64]


def energy_grid() -> NDArray[np.float64]:
    """Energies of the tables in MeV."""
    return np.geomspace(LOWEST, HIGHEST, POINTS)


@lru_cache(maxsize=1)
def tables() -> Tables:
    """Tables of all media; a tenth of a second."""
    energy = energy_grid()
    return Tables(
        np.stack([_photon_table(m, energy) for m in media()]),
        np.stack([_electron_table(m, energy) for m in media()]),
    )


def _log_interp(x: NDArray, nodes: NDArray, values: NDArray) -> NDArray:
    tiny = 1e-30
    return np.exp(np.interp(np.log(x), np.log(nodes), np.log(np.maximum(values, tiny))))


def attenuation(medium: Medium, energy_mev: NDArray) -> NDArray[np.float64]:
    """Coherent, incoherent, photoelectric and pair coefficients in cm2/g; shape (energies, 4)."""
    parts = [_log_interp(energy_mev, medium.photon_mev, medium.attenuation[:, k]) for k in range(3)]
    # Pair production starts from zero at 1.022 MeV, where a logarithm has no value.
    parts.append(np.interp(energy_mev, medium.photon_mev, medium.attenuation[:, 3]))
    return np.stack(parts, axis=1)


def _photon_table(medium: Medium, energy: NDArray) -> NDArray:
    coherent, incoherent, photo, pair = attenuation(medium, energy).T
    total = incoherent + photo + pair
    return np.stack([total, coherent, incoherent / total, (incoherent + pair) / total], axis=1)


def restricted_collision(medium: Medium, energy_mev: NDArray, cut_mev: float = ECUT) -> NDArray[np.float64]:
    """Collision loss in MeV cm2/g to transfers below the cut.

    Berger and Seltzer's formula in the form of ICRU 37, eq. 2.20 and 2.21: only F(tau, eta) depends on
    the cut, so the difference to the full loss needs no density effect.
    """
    full = _log_interp(energy_mev, medium.electron_mev, medium.collision)
    tau = energy_mev / ELECTRON_MEV
    beta2 = tau * (tau + 2) / (tau + 1) ** 2

    def f(eta: NDArray | float) -> NDArray:
        bracket = tau**2 * np.square(eta) / 2 + (2 * tau + 1) * np.log1p(-np.asarray(eta))
        return (
            np.log(4 * np.asarray(eta) * (1 - np.asarray(eta)))
            + 1 / (1 - np.asarray(eta))
            + bracket / (tau + 1) ** 2
        )

    eta = np.minimum(cut_mev / energy_mev, 0.5)
    return full - _BETHE * medium.electrons_mol_g / beta2 * (f(0.5) - f(eta))


def moller_cm2_g(medium: Medium, energy_mev: NDArray, cut_mev: float = ECUT) -> NDArray[np.float64]:
    """Collisions per g/cm2 that set an electron above the cut free (Moller 1932, integrated)."""
    tau = energy_mev / ELECTRON_MEV
    beta2 = tau * (tau + 2) / (tau + 1) ** 2
    low = np.minimum(cut_mev / energy_mev, 0.5)
    a1, a2 = (2 * tau + 1) / (tau + 1) ** 2, (tau / (tau + 1)) ** 2
    bracket = 1 / low - 1 / (1 - low) + (0.5 - low) * a2 - a1 * np.log((1 - low) / low)
    return _BETHE * medium.electrons_mol_g / (beta2 * energy_mev) * bracket


def brems_soft_hard(medium: Medium, energy_mev: NDArray) -> tuple[NDArray, NDArray]:
    """Radiative loss to photons below BREMS (MeV cm2/g), and photons above it per g/cm2.

    The spectrum is k dN/dk = 1 - x + 0.75 x^2 (x = k / T), scaled to ESTAR's radiative loss.
    """
    loss = _log_interp(energy_mev, medium.electron_mev, medium.radiative)
    x = np.minimum(BREMS / energy_mev, 1.0)
    soft = loss * (x - x**2 / 2 + x**3 / 4) / 0.75
    hard = loss / (0.75 * energy_mev) * (-np.log(x) - (1 - x) + 0.375 * (1 - x**2))
    return soft, hard


def elastic(medium: Medium, energy_mev: NDArray, cut_mev: float = ECUT) -> tuple[NDArray, NDArray]:
    """First transport coefficient in cm2/g and mean ln of the screening parameter.

    Screened Rutherford scattering with Moliere's screening angle (Bethe, Phys Rev 89:1256, 1953),
    without spin; scattering by electrons counts only up to the deflection of the Moller cut.
    """
    energy = np.asarray(energy_mev)[:, None]
    tau = energy / ELECTRON_MEV
    momentum = np.sqrt(energy * (energy + 2 * ELECTRON_MEV))
    beta2 = tau * (tau + 2) / (tau + 1) ** 2
    z = medium.z[None, :]
    chi2 = (_BOHR_MEV * z ** (1 / 3) / 0.88534 / momentum) ** 2
    eta = chi2 * (1.13 + 3.76 * (z * _FINE_STRUCTURE) ** 2 / beta2) / 4
    transfer = np.minimum(cut_mev, energy / 2)
    cosine = np.sqrt(
        (energy - transfer) * (energy + 2 * ELECTRON_MEV) / (energy * (energy - transfer + 2 * ELECTRON_MEV))
    )
    nucleus = np.log1p(1 / eta) - 1 / (1 + eta)
    widest = (1 - cosine) / 2
    electron = np.log1p(widest / eta) - widest / (widest + eta)
    density = _AVOGADRO * medium.mass_share / medium.atomic_mass
    strength = density * (z**2 * nucleus + z * electron)
    front = 2 * np.pi * _CLASSICAL_RADIUS2 * (ELECTRON_MEV / momentum) ** 2 / beta2
    mean_log = (strength * np.log(eta)).sum(1) / strength.sum(1)
    return (front * strength).sum(1), mean_log


def _electron_table(medium: Medium, energy: NDArray) -> NDArray:
    soft, brems = brems_soft_hard(medium, energy)
    moller = np.where(energy > 2 * ECUT, moller_cm2_g(medium, energy), 0.0)
    loss = restricted_collision(medium, energy) + soft
    hard = moller + brems
    transport, log_screening = elastic(medium, energy)
    reach = _log_interp(energy, medium.electron_mev, medium.range_g_cm2)
    share = np.divide(moller, hard, out=np.zeros_like(hard), where=hard > 0)
    # A Rutherford collision has mean (1 - cos) = 2 eta (ln(1 + 1 / eta) - 1) to first order in eta.
    collisions = transport / loss / (2 * (np.log1p(np.exp(-log_screening)) - 1))
    return np.stack([loss, hard / loss, share, collisions, np.exp(log_screening), reach], axis=1)


def electron_density(density_g_cm3: NDArray) -> NDArray[np.float32]:
    """Electrons per volume relative to water, of voxels of these mass densities."""
    electrons = np.array([m.electrons_mol_g for m in media()])
    return (density_g_cm3 * (electrons / electrons[0])[medium_of(density_g_cm3)]).astype(np.float32)


def kerma_ratios(energy_mev: NDArray, number: NDArray) -> NDArray[np.float64]:
    """Collision kerma of each medium relative to water in the same photon fluence, by XCOM.

    In charged particle equilibrium this is the dose to the medium over the dose to water. Energy radiated by
    electrons is left out of the ratio (below 0.2 % up to bone).
    """
    energy = np.asarray(energy_mev, float)
    given = np.array([_mean_compton_share(e) for e in energy])
    pair = np.maximum(1 - 2 * ELECTRON_MEV / energy, 0.0)
    kerma = []
    for medium in media():
        _, incoherent, photo, to_pair = attenuation(medium, energy).T
        kerma.append(np.sum(number * energy * (incoherent * given + photo + to_pair * pair)))
    return np.array(kerma) / kerma[0]


def _mean_compton_share(energy_mev: float) -> float:
    """Mean share of its energy that a photon gives to the electron (Klein and Nishina), by quadrature."""
    cosine, weight = np.polynomial.legendre.leggauss(200)
    ratio = 1 / (1 + energy_mev / ELECTRON_MEV * (1 - cosine))
    section = ratio**2 * (ratio + 1 / ratio - 1 + cosine**2) * weight
    return float(np.sum(section * (1 - ratio)) / np.sum(section))
