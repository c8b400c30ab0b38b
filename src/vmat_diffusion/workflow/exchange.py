"""`export nifti` and `import nifti`: a case as NIfTI or NRRD volumes, for image analysis and back.

The folder holds `ct`, `dose` and `masks/NAME`, each a volume, and `case.json` with roles, prescription and
patient position. nnU-Net's folders and TotalSegmentator's masks are read and nnU-Net's are written too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.dicom.names import cleaned, load_table
from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import read_json, write_json
from vmat_diffusion.geometry import PATIENT_POSITIONS
from vmat_diffusion.volumes import ENDINGS, FileVolume, read_volume, write_volume
from vmat_diffusion.workflow.output import appearing_whole, require_apart

Format = Literal["nifti", "nrrd"]
RECORD = "case.json"
_NNUNET = "dataset.json"
# TotalSegmentator's names that are not those of the table: parts are joined.
_PARTS = {
    **{f"lung_{part}_lobe_left": "Lung_L" for part in ("upper", "lower")},
    **{f"lung_{part}_lobe_right": "Lung_R" for part in ("upper", "middle", "lower")},
    **{
        "kidney_left": "Kidney_L",
        "kidney_right": "Kidney_R",
        "femur_left": "Femur_L",
        "femur_right": "Femur_R",
    },
    **{
        "urinary_bladder": "Bladder",
        "spinal_cord": "SpinalCord",
        "small_bowel": "Bowel_Small",
        "body": "BODY",
    },
}


@dataclass(frozen=True)
class Exported:
    """The files that were written."""

    files: tuple[Path, ...]

    def summary(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {"files": [str(file) for file in self.files]}


def export_case(
    case: Case,
    out: Path,
    *,
    kind: Format = "nifti",
    layout: Literal["masks", "nnunet"] = "masks",
    dose: Dose | None = None,
    name: str = "case_0001",
) -> Exported:
    """Write a case and a dose into a new folder; masks are exact, doses as 32-bit numbers on their grid.

    nnU-Net's layout has one label volume: of masks that overlap the smaller one keeps the voxel.
    """
    ending = ENDINGS[kind][0]
    with appearing_whole(out, overwrite=False) as folder:
        if layout == "nnunet":
            _write_nnunet(folder, case, name, ending)
        else:
            write_volume(folder / f"ct{ending}", _as_stored(case.hu), case.grid)
            (folder / "masks").mkdir()
            for structure in case.structures.values():
                values = structure.mask.astype(np.uint8)
                write_volume(folder / "masks" / f"{cleaned(structure.name)}{ending}", values, case.grid)
            write_json(folder / RECORD, _record(case))
        if dose is not None:
            write_volume(folder / f"dose{ending}", np.asarray(dose.gy, np.float32), dose.grid)
    return Exported(tuple(sorted(path for path in out.resolve().rglob("*") if path.is_file())))


def _record(case: Case) -> dict[str, Any]:
    prescription = case.prescription
    return {
        "id": case.id,
        "site": case.site,
        "patient_position": case.patient_position,
        "structures": {
            cleaned(s.name): {"name": s.name, "role": s.role, "alias": s.alias}
            for s in case.structures.values()
        },
        "prescription": None
        if prescription is None
        else {"fractions": prescription.fractions, "target_gy": dict(prescription.target_gy)},
    }


def _as_stored(hu: NDArray) -> NDArray:
    """Whole numbers as 16 bit, others as they are."""
    whole = np.rint(hu)
    exact = np.array_equal(whole, hu) and whole.min() >= -32768 and whole.max() < 32768
    return whole.astype(np.int16) if exact else np.asarray(hu, np.float32)


def _write_nnunet(folder: Path, case: Case, name: str, ending: str) -> None:
    by_size = sorted(case.structures.values(), key=lambda s: -s.voxels)
    labels = np.zeros(case.grid.shape, np.uint8 if len(by_size) < 256 else np.uint16)
    for number, structure in enumerate(by_size, start=1):
        labels[structure.mask] = number
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    write_volume(folder / "imagesTr" / f"{name}_0000{ending}", _as_stored(case.hu), case.grid)
    write_volume(folder / "labelsTr" / f"{name}{ending}", labels, case.grid)
    record = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{s.name: k for k, s in enumerate(by_size, start=1)}},
        "numTraining": 1,
        "file_ending": ending,
    }
    write_json(folder / _NNUNET, record)


def read_exchanged(folder: Path) -> tuple[Case, Dose | None]:
    """The case in a folder of volumes, and its dose where it has one.

    `ct` with masks beside it, in `masks` or in TotalSegmentator's `segmentations`; or nnU-Net's folders with
    one case. Raises CaseError for what is missing or lies on another grid than the CT.
    """
    nnunet = read_json(folder / _NNUNET)
    if isinstance(nnunet, dict):
        ct, masks = _read_nnunet(folder, nnunet)
        record: Mapping[str, Any] = {}
    else:
        ct = read_volume(_one(folder, "ct"))
        masks = {stem: read_volume(file).values != 0 for stem, file in _mask_files(folder).items()}
        found = read_json(folder / RECORD)
        record = found if isinstance(found, dict) else {}
    for stem, mask in masks.items():
        if mask.shape != ct.grid.shape:
            raise CaseError(f"mask {stem} has {mask.shape} voxels, the CT {ct.grid.shape}; resample it")
    dose_file = next((f for f in _volumes(folder).items() if f[0] == "dose"), None)
    dose = None
    if dose_file is not None:
        volume = read_volume(dose_file[1])
        dose = Dose(volume.grid, np.asarray(volume.values, np.float32))
    return _case(record, ct, masks, folder.name), dose


def _volumes(folder: Path) -> dict[str, Path]:
    endings = [ending for each in ENDINGS.values() for ending in each]
    found = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        ending = next((e for e in endings if file.name.endswith(e)), None)
        if ending is not None:
            found[file.name.removesuffix(ending)] = file
    return found


def _one(folder: Path, stem: str) -> Path:
    file = _volumes(folder).get(stem)
    if file is None:
        raise CaseError(
            f"the folder holds no {stem}.nii.gz, .nii or .nrrd and no {_NNUNET}; give one that does"
        )
    return file


def _mask_files(folder: Path) -> dict[str, Path]:
    for name in ("masks", "segmentations"):
        if (folder / name).is_dir():
            return _volumes(folder / name)
    return {stem: file for stem, file in _volumes(folder).items() if stem not in ("ct", "dose")}


def _read_nnunet(folder: Path, record: Mapping[str, Any]) -> tuple[FileVolume, dict[str, NDArray]]:
    images = _volumes(folder / "imagesTr")
    if len(images) != 1:
        raise CaseError(f"imagesTr holds {len(images)} volumes; import a folder of one case with one channel")
    ((stem, file),) = images.items()
    ct, labels = read_volume(file), read_volume(_one(folder / "labelsTr", re.sub(r"_0000$", "", stem)))
    named = record.get("labels")
    if not isinstance(named, dict) or not all(isinstance(v, int | list) for v in named.values()):
        raise CaseError(f"{_NNUNET}: labels must be names with numbers; correct it")
    masks = {
        str(name): np.isin(labels.values, number) for name, number in named.items() if number not in (0, [0])
    }
    return ct, masks


def _case(record: Mapping[str, Any], ct: FileVolume, masks: Mapping[str, NDArray], name: str) -> Case:
    table = load_table()
    kept = record.get("structures") if isinstance(record.get("structures"), dict) else {}
    structures: dict[str, Structure] = {}
    for stem, mask in masks.items():
        entry = kept.get(stem) if kept else None
        if isinstance(entry, dict):
            made = Structure(
                str(entry.get("name")), entry.get("role", "other"), mask, str(entry.get("alias", ""))
            )
        else:
            wanted = _PARTS.get(stem, stem)
            match = table.match(wanted)
            made = Structure(
                match.name if match else cleaned(wanted), match.role if match else "other", mask, stem
            )
        before = structures.get(made.name)
        structures[made.name] = replace(before, mask=before.mask | mask) if before else made
    if not any(structure.role == "body" for structure in structures.values()):
        from vmat_diffusion.dicom.structure_set.body import body_from_ct

        structures["BODY"] = Structure("BODY", "body", body_from_ct(np.asarray(ct.values, float), ct.grid))
    given = record.get("prescription")
    position = str(record.get("patient_position", "HFS"))
    if position not in PATIENT_POSITIONS:
        raise CaseError(f"{RECORD}: patient position {position[:8]} is not known; correct it")
    try:
        prescription = Prescription(int(given["fractions"]), dict(given["target_gy"])) if given else None
    except (KeyError, TypeError, ValueError):
        raise CaseError(f"{RECORD}: its prescription cannot be read; correct it") from None
    return Case(
        id=str(record.get("id") or cleaned(name) or "case"),
        site=str(record.get("site", "")),
        grid=ct.grid,
        hu=np.asarray(ct.values, np.float64 if ct.values.dtype == np.float64 else np.float32),
        structures=structures,
        prescription=prescription,
        patient_position=position,
    )


def import_volumes(folder: Path, out: Path) -> Exported:
    """Write the case in a folder of volumes as DICOM CT and structure set, and its dose as RD.dcm."""
    from vmat_diffusion.dicom import read_case, write_case, write_dose

    require_apart(out, folder)
    case, dose = read_exchanged(folder)
    with appearing_whole(out, overwrite=False) as made:
        write_case(made, case)
        if dose is not None:
            write_dose(made / "RD.dcm", dose, read_case(made), plan_file=None)
    return Exported(tuple(sorted(out.resolve().iterdir())))
