"""OpenKBP: its patients as training cases on the challenge's grid, its splits, and doses in its format.

Reference: Babier et al., Med Phys 48:5549 (2021); files at github.com/ababier/open-kbp. Its volumes are
indexed (anterior to posterior, patient's right to left, head to feet), ours `[z, y, x]` with z to the
head. Only the order of voxels changes: no value is interpolated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion import __version__
from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.dataset.cases import UNREADABLE, TrainingCase, constraints_of
from vmat_diffusion.dataset.prepare import AIR_HU
from vmat_diffusion.dataset.schema import check_sizes
from vmat_diffusion.dataset.splits import SPLITS, Split
from vmat_diffusion.dicom.structure_set.body import BODY_THRESHOLD_HU, body_from_ct, without_holes
from vmat_diffusion.errors import CaseError
from vmat_diffusion.evaluate.goals import fit_to_case, load_goals
from vmat_diffusion.files import written_whole
from vmat_diffusion.geometry import Grid, Mask, Point

SOURCE = "OpenKBP, Babier et al., Med Phys 48:5549 (2021)"
SHAPE = (128, 128, 128)
FRACTIONS = 35
# Decimals of doses in Gy, in the files of the challenge and in predictions for it.
DECIMALS = 3
GOALS = "head_neck_70_63_56"
# Names in the files, in the order of their bits in the npz layout, to canonical names.
NAMES: Mapping[str, str] = {
    "Brainstem": "Brainstem",
    "SpinalCord": "SpinalCord",
    "RightParotid": "Parotid_R",
    "LeftParotid": "Parotid_L",
    "Esophagus": "Esophagus",
    "Larynx": "Larynx",
    "Mandible": "Bone_Mandible",
    "PTV56": "PTV_56",
    "PTV63": "PTV_63",
    "PTV70": "PTV_70",
}
TARGET_GY: Mapping[str, float] = {"PTV_70": 70.0, "PTV_63": 63.0, "PTV_56": 56.0}
_POSSIBLE_DOSE_BIT = 15

# The files do not say what 0 HU is. In the 202 patients with a CT at hand the peaks of homogeneous fat
# and muscle lie at 906 and 1040 (medians), so 1000 makes -94 and 40 HU of them, and the noise of air is
# cut off at 0; 1024 would make fat -118 and muscle 16 HU.
_WATER = 1000
# Values above 12 bits belong to scanners that store 16; the paper asks for this limit.
_CT_MAX = 4095
_VOXEL_MM = (0.5, 20.0)
_PATIENT = re.compile(r"pt_\d{1,6}")
# The numbers of the challenge's patients.
SPLIT_NUMBERS = dict(zip(SPLITS, (range(1, 201), range(201, 241), range(241, 341)), strict=True))
# Names of folders that are a split: test, valid-pats, test-pats-no-dose.
_SPLIT_FOLDER = re.compile(r"(train|valid|test)[a-z]*([-_]pats.*)?")


@dataclass(frozen=True, eq=False)
class OpenKbpPatient:
    """The files of a patient, in OpenKBP's order of axes; masks by canonical name.

    `ct` and `dose_gy` are None where they are missing.
    """

    id: str
    ct: NDArray | None
    dose_gy: NDArray | None
    masks: Mapping[str, Mask]
    possible_dose: Mask
    voxel_mm: Point

    @property
    def voxel_cc(self) -> float:
        """Volume of a voxel in cm3."""
        return float(np.prod(self.voxel_mm)) / 1000

    @property
    def structures(self) -> Mapping[str, tuple[bool, Mask]]:
        """Targets and organs as `evaluate.openkbp.score` takes them: whether it is a target, and its mask."""
        return {name: (name in TARGET_GY, mask) for name, mask in self.masks.items()}


def from_openkbp(values: NDArray) -> NDArray:
    """A volume from OpenKBP's axes `[128, 128, 128]` to `[z, y, x]`."""
    return np.ascontiguousarray(values.transpose(2, 0, 1)[::-1])


def to_openkbp(values: NDArray) -> NDArray:
    """A volume `[z, y, x]` of an imported case on the challenge's axes: the inverse of `from_openkbp`."""
    return np.ascontiguousarray(values[::-1].transpose(1, 2, 0))


def patient_paths(source: Path) -> tuple[Path, ...]:
    """Patients below a folder, by number: `pt_N.npz` files and `pt_N` folders of CSV files, at any depth.

    Links are followed, but not to a folder on the way to them. Raises CaseError where there is none.
    """
    if not source.is_dir():
        raise CaseError(
            f"folder {source.name or source} does not exist; give the folder with OpenKBP patients"
        )
    found = [
        path
        for path in _below(source)
        if _PATIENT.fullmatch(path.stem)
        and (path.is_dir() if path.suffix == "" else path.suffix == ".npz" and path.is_file())
    ]
    if not found:
        raise CaseError(
            f"folder {source.name or source} holds no pt_N.npz file and no pt_N folder; give the folder with "
            "OpenKBP patients"
        )
    return tuple(sorted(found, key=lambda p: (int(p.stem.removeprefix("pt_")), p.as_posix())))


def split_of_folder(path: Path, source: Path) -> Split | None:
    """The split in the name of the innermost folder between `source` and a patient; None without one."""
    for folder in path.relative_to(source).parts[-2::-1]:
        for split in SPLITS:
            if folder.lower().startswith(split[:5]):
                return split
    return None


def patients_of_split(source: Path, split: Split) -> tuple[Path, ...]:
    """The patients of a split below `source`, by number; of two with one number the one with dose.

    Folders called train..., valid... or test... define the split. Patients in no such folder have the split
    of their number in the challenge (1-200, 201-240, 241-340); if that gives no patient, the name of
    `source` itself counts. Raises CaseError where there is no patient.
    """
    paths = patient_paths(source)
    named = {path: split_of_folder(path, source) for path in paths}
    found = [
        p for p in paths if named[p] == split or (named[p] is None and _number(p) in SPLIT_NUMBERS[split])
    ]
    own = source.resolve().name.lower()
    if not found and _SPLIT_FOLDER.fullmatch(own) and own.startswith(split[:5]):
        found = [path for path in paths if named[path] is None]
    if not found:
        raise CaseError(
            f"none of the {len(paths)} patients below {source.name or source} is of split {split}; put them "
            f"in a folder called {split} or name another --split"
        )
    best: dict[str, Path] = {}
    for path in found:
        if path.stem not in best or (not _has_dose(best[path.stem]) and _has_dose(path)):
            best[path.stem] = path
    return tuple(best.values())


def read_openkbp(path: Path) -> TrainingCase:
    """One patient from a `pt_N.npz` file or a published `pt_N` folder of sparse CSV files.

    See `training_case`. Raises CaseError for files that are missing (CT and structures aside), damaged or
    do not belong together.
    """
    patient = read_patient(path)
    if patient.dose_gy is None:
        raise CaseError(f"{patient.id}: the dose is missing; fetch it again or leave the patient out")
    outside = int(np.count_nonzero(patient.dose_gy[~patient.possible_dose]))
    if outside:
        raise CaseError(
            f"{patient.id}: {outside} voxels outside the possible-dose mask have dose, 0 are allowed; "
            "fetch the patient again"
        )
    return training_case(patient)


def read_patient(path: Path) -> OpenKbpPatient:
    """The files of a patient, with or without dose; for the errors see `read_openkbp`.

    A dose that is 0 everywhere counts as missing.
    """
    patient = _from_folder(path) if path.is_dir() else _from_npz(path)
    if patient.dose_gy is not None and not patient.dose_gy.any():
        return replace(patient, dose_gy=None)
    return patient


def training_case(patient: OpenKbpPatient) -> TrainingCase:
    """A patient as a training case.

    The CT becomes Hounsfield units. A missing CT is replaced by water inside the body, and `has_ct` is False.
    OpenKBP has no body contour: it is made here, and the steps name it. Doses are rounded to 0.01 Gy. Raises
    CaseError where there is no target.
    """
    if not any(name in patient.masks for name in TARGET_GY):
        raise CaseError(f"{patient.id}: no PTV56, PTV63 or PTV70 has voxels; leave the patient out")
    grid = _grid(patient.voxel_mm)
    possible = from_openkbp(patient.possible_dose)
    masks = {name: from_openkbp(mask) for name, mask in patient.masks.items()}
    inside = np.logical_or.reduce([possible, *masks.values()])
    hu, body, steps = _hu_and_body(patient, grid, inside)
    structures = {
        name: Structure(name, "target" if name in TARGET_GY else "organ", mask)
        for name, mask in masks.items()
    }
    structures["BODY"] = Structure("BODY", "body", body)
    dose = None
    if patient.dose_gy is not None:
        dose = Dose(grid, from_openkbp(np.round(patient.dose_gy, 2).astype(np.float32)))
    case = Case(
        id=patient.id,
        site="head_neck",
        grid=grid,
        hu=hu,
        structures=structures,
        prescription=Prescription(FRACTIONS, {n: gy for n, gy in TARGET_GY.items() if n in masks}),
        reference_dose=dose,
    )
    return TrainingCase(
        case=case,
        possible_dose=possible,
        has_ct=patient.ct is not None,
        constraints=constraints_of(fit_to_case(load_goals(GOALS), case), case),
        names=(*NAMES.values(), "BODY"),
        provenance={
            "source": SOURCE,
            "patient": f"openkbp_{patient.id}",
            "technique": "IMRT",
            "program": f"vmat-diffusion {__version__}",
            "steps": steps,
        },
    )


def write_dose_csv(path: Path, gy: NDArray) -> Path:
    """Write a dose on OpenKBP's axes as the challenge takes it: flat index in C order, Gy, without zeros."""
    if gy.shape != SHAPE:
        raise ValueError(f"a dose of shape {gy.shape} is not on the challenge's grid {SHAPE}")
    flat = np.round(gy.ravel(), DECIMALS)
    index = np.flatnonzero(flat)
    rows = "".join(f"{i},{v:.{DECIMALS}f}\n" for i, v in zip(index, flat[index], strict=True))
    with written_whole(path) as part:
        part.write_text(",data\n" + rows, encoding="ascii", newline="\n")
    return path


def _hu_and_body(
    patient: OpenKbpPatient, grid: Grid, inside: Mask
) -> tuple[NDArray[np.int16], Mask, list[str]]:
    """Hounsfield units, a body that contains the mask `inside`, and the steps taken."""
    if patient.ct is None:
        body = without_holes(inside)
        hu = np.where(body, 0, AIR_HU).astype(np.int16)
        steps = [
            "stand-in-ct: the CT is missing; 0 HU inside the body, air outside",
            "body-from-masks: the possible-dose mask and the structures, without holes",
        ]
        return hu, body, steps
    steps = [f"ct-to-hu: {_WATER} taken off the stored values"]
    over = int(np.count_nonzero(patient.ct > _CT_MAX))
    if over:
        steps.append(f"clip-ct: {over} voxels above {_CT_MAX} set to it")
    hu = from_openkbp(np.clip(np.rint(patient.ct), 0, _CT_MAX)).astype(np.int16) - np.int16(_WATER)
    body = without_holes(body_from_ct(hu, grid) | inside)
    steps.append(
        f"body-from-ct: largest region above {BODY_THRESHOLD_HU:g} HU with the possible-dose mask and the "
        f"structures, without holes, {np.count_nonzero(body) * grid.voxel_cc / 1000:.2f} litres"
    )
    return hu, body, steps


def _grid(voxel_mm: Point) -> Grid:
    """The challenge's grid, centred at 0: its place in the scanner is not published."""
    y, x, z = voxel_mm
    origin = tuple(-(n - 1) / 2 * s for n, s in zip(SHAPE[::-1], (x, y, z), strict=True))
    return Grid(SHAPE, (x, y, z), origin)  # type: ignore[arg-type]


def _from_npz(path: Path) -> OpenKbpPatient:
    try:
        check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        bits, voxel = arrays["structures"], arrays["voxel_mm"]
    except UNREADABLE as fault:
        raise CaseError(f"{path.name} is no readable OpenKBP npz ({fault}); fetch it again") from None
    ct, dose = arrays.get("ct"), arrays.get("dose_cGy")
    for name, values in (("structures", bits), ("dose_cGy", dose), ("ct", ct)):
        if values is not None and (values.shape != SHAPE or values.dtype.kind not in "fiu"):
            found = f"{values.dtype} {values.shape}"
            raise CaseError(f"{path.name}: {name} is {found}, numbers {SHAPE} are needed; fetch it again")
    if not np.issubdtype(bits.dtype, np.integer):
        raise CaseError(f"{path.name}: structures are of type {bits.dtype}, whole numbers are needed")
    masks = {name: (bits >> k & 1).astype(bool) for k, name in enumerate(NAMES.values())}
    return OpenKbpPatient(
        id=path.stem,
        ct=ct,
        dose_gy=None if dose is None else dose.astype(np.float64) / 100,
        masks={name: mask for name, mask in masks.items() if mask.any()},
        possible_dose=_not_empty(bits >> _POSSIBLE_DOSE_BIT & 1, path.stem),
        voxel_mm=_voxel_mm(voxel, path.stem),
    )


def _from_folder(folder: Path) -> OpenKbpPatient:
    missing = [n for n in ("possible_dose_mask", "voxel_dimensions") if not _csv(folder, n).is_file()]
    if missing:
        raise CaseError(
            f"{folder.name}: {missing[0]}.csv is missing; fetch it again or leave the patient out"
        )
    try:
        voxel = np.loadtxt(_csv(folder, "voxel_dimensions"), ndmin=1)
    except (OSError, ValueError) as fault:
        raise CaseError(
            f"{folder.name}: voxel_dimensions.csv holds no numbers ({fault}); fetch it again"
        ) from None
    masks = {
        name: _sparse(_csv(folder, written), values=False).astype(bool)
        for written, name in NAMES.items()
        if _csv(folder, written).is_file()
    }
    has_ct, has_dose = (_csv(folder, name).is_file() for name in ("ct", "dose"))
    return OpenKbpPatient(
        id=folder.name,
        ct=_sparse(_csv(folder, "ct"), values=True) if has_ct else None,
        dose_gy=_sparse(_csv(folder, "dose"), values=True) if has_dose else None,
        masks={name: mask for name, mask in masks.items() if mask.any()},
        possible_dose=_not_empty(_sparse(_csv(folder, "possible_dose_mask"), values=False), folder.name),
        voxel_mm=_voxel_mm(voxel, folder.name),
    )


def _csv(folder: Path, name: str) -> Path:
    return folder / f"{name}.csv"


def _sparse(path: Path, *, values: bool) -> NDArray[np.float64]:
    """A volume from a CSV of flat indices in C order and, for CT and dose, a value each."""
    label = f"{path.parent.name}: {path.name}"
    out = np.zeros(SHAPE)
    try:
        with path.open(encoding="ascii") as stream:
            if stream.readline().strip() != ",data":
                raise ValueError("the first line is not ',data'")
            lines = [line for line in stream if line.strip()]
        columns = (0, 1) if values else (0,)
        rows = np.loadtxt(lines, delimiter=",", usecols=columns, ndmin=2) if lines else np.empty((0, 2))
    except (OSError, ValueError) as fault:
        raise CaseError(f"{label} is no sparse volume of OpenKBP ({fault}); fetch it again") from None
    index = rows[:, 0]
    if not (np.all(index >= 0) and np.all(index < out.size) and np.all(index == np.rint(index))):
        raise CaseError(f"{label} holds an index outside 0 to {out.size - 1}; fetch it again")
    if not np.all(np.isfinite(rows)):
        raise CaseError(f"{label} holds a value that is not finite; fetch it again")
    out.ravel()[index.astype(np.int64)] = rows[:, 1] if values else 1.0
    return out


def _not_empty(values: NDArray, label: str) -> Mask:
    mask = values.astype(bool)
    if not mask.any():
        raise CaseError(f"{label}: the possible-dose mask is empty; fetch the patient again")
    return mask


def _voxel_mm(values: NDArray, label: str) -> Point:
    low, high = _VOXEL_MM
    if values.shape != (3,) or values.dtype.kind not in "fiu" or not all(low <= v <= high for v in values):
        shown = values.tolist() if values.size <= 3 else f"of shape {values.shape}"
        raise CaseError(f"{label}: voxel dimensions {shown} mm are not three of {low:g} to {high:g} mm")
    a, b, c = (round(float(v), 4) for v in values)
    return a, b, c


def _below(source: Path) -> Iterator[Path]:
    """All files and folders below a folder, those behind links too."""
    # The real paths of the folders on the way to each: one that comes again is a circle of links.
    ways = {str(source): frozenset({os.path.realpath(source)})}
    for base, folders, files in os.walk(source, followlinks=True):
        on_the_way = ways.pop(base)
        real = {name: os.path.realpath(os.path.join(base, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in on_the_way]
        ways |= {os.path.join(base, name): on_the_way | {real[name]} for name in folders}
        yield from (Path(base, name) for name in (*folders, *files))


def _has_dose(path: Path) -> bool:
    """Whether a patient's files hold a reference dose; False as well where they cannot be read."""
    if path.is_dir():
        return (path / "dose.csv").is_file()
    try:
        with np.load(path, allow_pickle=False) as file:
            return "dose_cGy" in file.files
    except UNREADABLE:
        return False


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("pt_"))
