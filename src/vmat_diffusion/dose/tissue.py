"""What the beam meets in a patient: mass density and medium of every voxel. Both dose engines share it.

HU become density by the table of the case (`density_g_cm3` in `case.py`), density becomes a medium by
fixed bands. Data of the
media: NIST XCOM and ESTAR through `scripts/make_material_tables.py`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, density_g_cm3
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, average_onto, mask_bounds_mm

MEDIA = ("water", "lung", "soft_tissue", "adipose", "bone_soft", "bone_cortical", "air", "titanium")
ELECTRON_MEV = 0.51099895  # rest energy of the electron
# Thinner than this is air, as the band of that medium says, and no tissue. It is the density at about
# -950 HU, where emphysema begins; inflated lung lies above.
AIR_BELOW_G_CM3 = 0.05

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
    """Index into MEDIA for each mass density in g/cm3, by the bands above; the shape stays."""
    index = np.array([MEDIA.index(name) for name in _BAND], np.uint8)
    return index[np.searchsorted(_BAND_TOP, density_g_cm3, side="left")]


@dataclass(frozen=True, eq=False)
class Medium:
    """Data of one medium: composition, mass attenuation (cm2/g), stopping powers (MeV cm2/g).

    `z`, `atomic_mass`, `mass_share` per element. `attenuation[photon_mev, 4]` are the coherent, incoherent,
    photoelectric and pair coefficients. `collision`, `radiative` and `range_g_cm2` (CSDA) by `electron_mev`.
    """

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
                name=name,
                density_g_cm3=float(c[0, 0]),
                z=c[:, 1],
                atomic_mass=c[:, 2],
                mass_share=c[:, 3],
                photon_mev=p[:, 0],
                attenuation=p[:, 1:],
                electron_mev=e[:, 0],
                collision=e[:, 1],
                radiative=e[:, 2],
                range_g_cm2=e[:, 3],
            )
        )
    return tuple(out)


def log_interpolated(x: NDArray, nodes: NDArray, values: NDArray) -> NDArray:
    """Values at `x`, straight between nodes in the logarithms of both; all arguments positive."""
    tiny = 1e-30
    return np.exp(np.interp(np.log(x), np.log(nodes), np.log(np.maximum(values, tiny))))


def attenuation(medium: Medium, energy_mev: NDArray) -> NDArray[np.float64]:
    """Coherent, incoherent, photoelectric and pair coefficients in cm2/g; shape (energies, 4)."""
    parts = [log_interpolated(energy_mev, medium.photon_mev, medium.attenuation[:, k]) for k in range(3)]
    # Pair production starts from zero at 1.022 MeV, where a logarithm has no value.
    parts.append(np.interp(energy_mev, medium.photon_mev, medium.attenuation[:, 3]))
    return np.stack(parts, axis=1)


def electron_density(density_g_cm3: NDArray) -> NDArray[np.float32]:
    """Electrons per volume relative to water, for voxels of these mass densities."""
    electrons = np.array([m.electrons_mol_g for m in media()])
    return (density_g_cm3 * (electrons / electrons[0])[medium_of(density_g_cm3)]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Density:
    """Mass density `g_cm3[z, y, x]` on a grid, zero outside the body contour."""

    grid: Grid
    g_cm3: NDArray[np.float32]

    @cached_property
    def electrons(self) -> NDArray[np.float32]:
        """Electrons per volume relative to water."""
        return electron_density(self.g_cm3)

    @cached_property
    def bordered_electrons(self) -> NDArray[np.float32]:
        """The same with a border of zeros one voxel wide."""
        return np.pad(self.electrons.astype(np.float32, copy=False), 1)

    @cached_property
    def outline_mm(self) -> NDArray[np.float64]:
        """Centres `[n, 3]` of the first and last voxel with any density in each row along x."""
        filled = self.g_cm3 > 0
        z, y = np.nonzero(filled.any(axis=2))
        if not len(z):
            return np.array([*zip(*self.grid.bounds_mm, strict=True)]).T
        ends = filled[z, y].argmax(axis=1), filled.shape[2] - 1 - filled[z, y, ::-1].argmax(axis=1)
        ends_zyx = np.concatenate([np.stack([z, y, x], axis=1) for x in ends])
        return np.asarray(self.grid.origin_mm) + ends_zyx[:, ::-1] * np.asarray(self.grid.spacing_mm)


def density_of(case: Case, grid: Grid) -> Density:
    """Density of a case on a grid, averaged over each voxel; nothing outside the body counts.

    Couch, mask and clothing outside the body contour therefore do not attenuate the beam.
    """
    fine = density_g_cm3(case.hu, case.ct_table)
    fine *= case.body.mask
    return Density(grid, np.ascontiguousarray(average_onto(fine, case.grid, grid)))


def medium_at(density: Density, points_mm: NDArray) -> NDArray[np.uint8]:
    """Index into MEDIA at points `[n, 3]` in mm: that of the nearest voxel."""
    at = (np.asarray(points_mm) - density.grid.origin_mm) / density.grid.spacing_mm
    x, y, z = np.clip(np.rint(at), 0, np.array(density.grid.shape[::-1]) - 1).astype(np.intp).T
    return medium_of(density.g_cm3[z, y, x])


def dose_grid(case: Case, spacing_mm: float = 3.0) -> Grid:
    """A cubic grid that covers the body contour, with one voxel of margin, inside the CT.

    Raises CaseError for a spacing outside 1 to 10 mm or an empty body contour.
    """
    if not 1.0 <= spacing_mm <= 10.0:
        raise CaseError(f"dose grid spacing {spacing_mm:g} mm is outside 1 to 10 mm; 2 to 4 mm are usual")
    low, high = (np.array(corner) for corner in mask_bounds_mm(case.body.mask, case.grid))
    return case.grid.around(tuple(low - spacing_mm), tuple(high + spacing_mm), (spacing_mm,) * 3)
