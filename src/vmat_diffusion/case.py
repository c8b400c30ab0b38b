"""The patient as the planner sees it: one grid, HU, structures, prescription, goals, dose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, Mask, Volume, resample

Role = Literal["target", "organ", "body", "other"]
ROLES: tuple[Role, ...] = ("target", "organ", "body", "other")


@dataclass(frozen=True, eq=False)
class Structure:
    """One contoured region: canonical TG-263 name, role, voxels, and the name in the source file."""

    name: str
    role: Role
    mask: Mask
    alias: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise CaseError(f"structure {self.name}: role {self.role!r} is not one of {ROLES}")
        if self.mask.ndim != 3 or self.mask.dtype != np.bool_:
            raise CaseError(f"structure {self.name}: mask must be a 3-D boolean array")

    @property
    def voxels(self) -> int:
        """Number of voxels inside."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Prescription:
    """Number of fractions and the dose of the whole course, in Gy, for each target by name."""

    fractions: int
    target_gy: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.fractions < 1:
            raise CaseError(f"prescription: {self.fractions} fractions; at least 1 is needed")
        for name, gy in self.target_gy.items():
            if not 0 < gy <= 200:
                raise CaseError(f"prescription of {name}: {gy} Gy is outside 0 to 200 Gy")


@dataclass(frozen=True, eq=False)
class Dose:
    """A dose distribution in Gy for the whole course on its own grid.

    `std_gy` is the statistical or predictive standard deviation where the maker knows one.
    `medium` says to what the dose is: "medium" or "water". `provenance` carries version, engine,
    settings and seed.
    """

    grid: Grid
    gy: Volume
    std_gy: Volume | None = None
    medium: str = "medium"
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gy.shape != self.grid.shape:
            raise CaseError(f"dose of shape {self.gy.shape} does not fit its grid {self.grid.shape}")
        if not np.all(np.isfinite(self.gy)):
            raise CaseError("dose holds values that are not finite; compute or export it again")

    def on(self, grid: Grid) -> NDArray[np.float32]:
        """This dose in Gy, interpolated at the voxel centres of another grid; 0 outside."""
        return resample(self.gy, self.grid, grid)


@dataclass(frozen=True, eq=False)
class Source:
    """Where the case came from: what an export must refer to. UIDs only, no names.

    `path` is kept so that a writer can copy the patient module from the original files; it is
    never printed. `steps` are the named repairs and conversions made while reading.
    """

    study_uid: str = ""
    frame_of_reference_uid: str = ""
    series_uid: str = ""
    image_uids: tuple[str, ...] = ()
    structure_set_uid: str = ""
    image_path: str = ""
    roi_numbers: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """A contoured CT. `structures` is keyed by canonical name; exactly one has the role body.

    `hu[z, y, x]` is in Hounsfield units on `grid`. `id` is a pseudonym. `patient_position` is the
    DICOM code of the CT (HFS and so on), which the beam geometry needs.
    """

    id: str
    site: str
    grid: Grid
    hu: NDArray
    structures: Mapping[str, Structure]
    prescription: Prescription | None = None
    patient_position: str = "HFS"
    source: Source = field(default_factory=Source)
    reference_dose: Dose | None = None

    def __post_init__(self) -> None:
        if self.hu.shape != self.grid.shape:
            raise CaseError(f"CT of shape {self.hu.shape} does not fit its grid {self.grid.shape}")
        for name, structure in self.structures.items():
            if structure.mask.shape != self.grid.shape:
                raise CaseError(
                    f"structure {name}: mask of shape {structure.mask.shape} does not fit the grid "
                    f"{self.grid.shape}"
                )
        bodies = [s.name for s in self.structures.values() if s.role == "body"]
        if len(bodies) != 1:
            raise CaseError(f"a case needs exactly one structure of role body, found {bodies}")

    @property
    def body(self) -> Structure:
        """The external contour."""
        return next(s for s in self.structures.values() if s.role == "body")

    @property
    def targets(self) -> tuple[Structure, ...]:
        """All structures of role target, in the order in which they were read."""
        return tuple(s for s in self.structures.values() if s.role == "target")


# HU -> mass density in g/cm3, piecewise linear. Source: Schneider U, Pedroni E, Lomax A,
# Phys Med Biol 41:111 (1996), fig. 4 as commonly tabulated; water is exactly 1.0 at 0 HU.
DENSITY_TABLE_HU = np.array([-1000.0, -98.0, 0.0, 14.0, 23.0, 100.0, 101.0, 1600.0, 3071.0])
DENSITY_TABLE_G_CM3 = np.array([0.00121, 0.93, 1.0, 1.03, 1.031, 1.1199, 1.076, 1.964, 2.8])


def density_g_cm3(hu: NDArray) -> NDArray[np.float32]:
    """Mass density of each voxel from its HU by the stated table; clamped at the table's ends."""
    return np.interp(hu, DENSITY_TABLE_HU, DENSITY_TABLE_G_CM3).astype(np.float32)
