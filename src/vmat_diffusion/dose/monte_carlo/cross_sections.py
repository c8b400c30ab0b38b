"""Cross sections and stopping powers of all media, as tables by the logarithm of the energy.

Every derived number (restricted losses, hard collisions, elastic scattering) follows from the data of
`dose/tissue.py` (NIST XCOM and ESTAR) and from the formulas cited here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.tissue import ELECTRON_MEV, Medium, attenuation, log_interpolated, media

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


@dataclass(frozen=True, eq=False)
class Tables:
    """What the kernels read: `[medium, energy, column]` on POINTS energies, even in ln E.

    `photon` columns: total without coherent, coherent, share of incoherent in the former, share of
    incoherent plus pair. `electron` columns: restricted loss in MeV cm2/g, hard collisions per MeV
    lost, share of Moller in them, elastic collisions per MeV lost times the screening parameter, the
    screening parameter. `alike[medium, medium]`: electrons scatter alike, see `scatter_alike`.
    """

    photon: NDArray[np.float64]
    electron: NDArray[np.float64]
    alike: NDArray[np.bool_]


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
        scatter_alike(),
    )


def scatter_alike() -> NDArray[np.bool_]:
    """Pairs of media in which an electron of 1 MeV is turned alike per energy lost, within a fifth.

    Water, lung and soft tissue differ by 1 %, adipose and air from them by 11 to 17 %, bone by 30 % and more.
    """
    one_mev = np.ones(1)
    turning = np.array([
        elastic(m, one_mev)[0][0] / (restricted_collision(m, one_mev)[0] + brems_soft_hard(m, one_mev)[0][0])
        for m in media()
    ])  # fmt: skip
    return np.abs(np.log(turning[:, None] / turning)) < np.log(1.2)


def _photon_table(medium: Medium, energy: NDArray) -> NDArray:
    coherent, incoherent, photo, pair = attenuation(medium, energy).T
    total = incoherent + photo + pair
    return np.stack([total, coherent, incoherent / total, (incoherent + pair) / total], axis=1)


def restricted_collision(medium: Medium, energy_mev: NDArray, cut_mev: float = ECUT) -> NDArray[np.float64]:
    """Collision loss in MeV cm2/g to transfers below the cut.

    Berger and Seltzer's formula in the form of ICRU 37, eq. 2.20 and 2.21: only F(tau, eta) depends on
    the cut, so the difference to the full loss needs no density effect.
    """
    full = log_interpolated(energy_mev, medium.electron_mev, medium.collision)
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
    loss = log_interpolated(energy_mev, medium.electron_mev, medium.radiative)
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
    share = np.divide(moller, hard, out=np.zeros_like(hard), where=hard > 0)
    # A Rutherford collision has mean (1 - cos) = 2 eta (ln(1 + 1 / eta) - 1) to first order in eta.
    collisions = transport / loss / (2 * (np.log1p(np.exp(-log_screening)) - 1))
    return np.stack([loss, hard / loss, share, collisions, np.exp(log_screening)], axis=1)
