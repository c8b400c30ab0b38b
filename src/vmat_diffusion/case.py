"""The patient as the planner sees it: HU and their table of densities, structures, prescription, dose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import why_no_file
from vmat_diffusion.geometry import Grid, Mask, Volume, resample_dose

Role = Literal["target", "organ", "body", "other"]
ROLES: tuple[Role, ...] = ("target", "organ", "body", "other")
# Begins the steps of a case that name a density which the structure set prescribes.
DENSITY_OVERRIDE = "density-override: "


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


def prescription_text(target_gy: Mapping[str, float], fractions: int) -> str:
    """The dose levels, the highest first, and the fractions: `70/63/56 Gy in 35`."""
    levels = sorted(set(target_gy.values()), reverse=True)
    return f"{'/'.join(f'{gy:g}' for gy in levels)} Gy in {fractions}"


@dataclass(frozen=True, eq=False)
class Dose:
    """A dose distribution in Gy for the whole course on its own grid.

    `std_gy` is the statistical or predictive standard deviation where the maker knows one. `replicates_gy`
    `[k, z, y, x]` are independent doses of equal weight whose mean is `gy`, where its maker draws at random:
    what is computed from them says how certain the same is of `gy`. `medium` says to what the dose is:
    "medium" or "water". `provenance` carries version, engine, settings and seed.
    """

    grid: Grid
    gy: Volume
    std_gy: Volume | None = None
    medium: str = "medium"
    provenance: Mapping[str, object] = field(default_factory=dict)
    replicates_gy: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.gy.shape != self.grid.shape:
            raise CaseError(f"dose of shape {self.gy.shape} does not fit its grid {self.grid.shape}")
        if not np.all(np.isfinite(self.gy)):
            raise CaseError("dose holds values that are not finite; compute or export it again")

    def on(self, grid: Grid) -> NDArray[np.float32]:
        """This dose in Gy at the voxel centres of another grid, by `resample_dose`; 0 outside."""
        return resample_dose(self.gy, self.grid, grid)


@dataclass(frozen=True, eq=False)
class Source:
    """Where the case came from: what an export must refer to. UIDs only, no names.

    `path` is kept so that a writer can copy the patient module from the original files; it is
    never printed. `steps` are the named repairs and conversions made while reading. `patient` is a code
    of the record number, for comparison with other files; "" where there is none. `colours` are those of the
    structure set, as `#rrggbb` by canonical name.
    """

    study_uid: str = ""
    frame_of_reference_uid: str = ""
    series_uid: str = ""
    image_uids: tuple[str, ...] = ()
    structure_set_uid: str = ""
    image_path: str = ""
    roi_numbers: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    patient: str = ""
    colours: Mapping[str, str] = field(default_factory=dict)

    @property
    def density_overrides(self) -> tuple[str, ...]:
        """What the structure set prescribes in place of the CT's densities, an entry for each."""
        found = (step for step in self.steps if step.startswith(DENSITY_OVERRIDE))
        return tuple(step.removeprefix(DENSITY_OVERRIDE) for step in found)


@dataclass(frozen=True)
class CtTable:
    """Mass density in g/cm3 by Hounsfield unit, piecewise linear, constant beyond its ends."""

    hu: tuple[float, ...]
    g_cm3: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.hu) != len(self.g_cm3) or len(self.hu) < 2:
            raise CaseError("a CT table needs one density for each HU and at least two of them; complete it")
        if np.any(np.diff(self.hu) <= 0):
            raise CaseError("the HU of a CT table must ascend; sort its rows")
        if not (min(self.g_cm3) >= 0 and max(self.g_cm3) <= 25):
            raise CaseError(
                f"a CT table's densities must lie in 0 to 25 g/cm3, not {self.g_cm3}; correct them"
            )


# Schneider U, Pedroni E, Lomax A, Phys Med Biol 41:111 (1996), fig. 4 as commonly tabulated; water is
# exactly 1.0 at 0 HU.
SCHNEIDER = CtTable(
    (-1000.0, -98.0, 0.0, 14.0, 23.0, 100.0, 101.0, 1600.0, 3071.0),
    (0.00121, 0.93, 1.0, 1.03, 1.031, 1.1199, 1.076, 1.964, 2.8),
)


def load_ct_table(path: str | Path | None) -> CtTable:
    """A scanner's table from a CSV with the columns `hu,density_g_cm3`; the shipped one for None.

    Raises CaseError naming file and line for what is no such table.
    """
    if path is None:
        return SCHNEIDER
    name = Path(path).name
    if not Path(path).is_file():
        raise CaseError(f"CT table {path} {why_no_file(Path(path))}; give a CSV file")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CaseError(f"CT table {path} is no readable text ({type(error).__name__}); give a CSV") from None
    rows = [
        (n, line.strip()) for n, line in enumerate(lines, start=1) if line.strip() and line.lstrip()[0] != "#"
    ]
    if not rows or rows[0][1].replace(" ", "") != "hu,density_g_cm3":
        raise CaseError(f"CT table {name} does not start with the line hu,density_g_cm3; add it")
    pairs = []
    for number, line in rows[1:]:
        try:
            hu, density = (float(v) for v in line.split(","))
        except ValueError:
            raise CaseError(
                f"CT table {name}, line {number}: {line!r} is not two numbers; correct it"
            ) from None
        if not (np.isfinite(hu) and np.isfinite(density)):
            raise CaseError(f"CT table {name}, line {number}: {line!r} is not finite; correct it")
        pairs.append((hu, density))
    return CtTable(tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))


def density_g_cm3(hu: NDArray, table: CtTable = SCHNEIDER) -> NDArray[np.float32]:
    """Mass density of each voxel from its HU by a table."""
    return np.interp(hu, table.hu, table.g_cm3).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Case:
    """A contoured CT. `structures` is keyed by canonical name; exactly one has the role body.

    `hu[z, y, x]` is in Hounsfield units on `grid`. `id` is a pseudonym. `patient_position` is the
    DICOM code of the CT (HFS and so on), which the beam geometry needs; `ct_table` turns HU to density.
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
    ct_table: CtTable = SCHNEIDER

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

    def union(self, names: Iterable[str]) -> Mask:
        """The voxels `[z, y, x]` of all structures of these names together; no voxel without a name."""
        mask = np.zeros(self.grid.shape, bool)
        for name in names:
            mask |= self.structures[name].mask
        return mask

    @property
    def targets(self) -> tuple[Structure, ...]:
        """All structures of role target, in the order in which they were read."""
        return tuple(s for s in self.structures.values() if s.role == "target")
