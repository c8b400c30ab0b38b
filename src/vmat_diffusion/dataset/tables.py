"""The tables of a data set: the index of its cases, its fingerprint, and the rejected cases.

All commands that make training cases write these files. The same cases make the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion import __version__
from vmat_diffusion.case import prescription_text
from vmat_diffusion.dataset.cases import SCHEMA, TrainingCase
from vmat_diffusion.dataset.index import INDEX
from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import parse_json, sha256_of, written_whole
from vmat_diffusion.lettering import csv_cell

DATASET, REJECTED = "dataset.json", "rejected.csv"
_HU_PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True)
class Rejection:
    """A case that was left out, the reason, and the remedy."""

    case: str
    reason: str
    remedy: str


def rejection(case: str, sentence: str) -> Rejection:
    """A rejection from a sentence of the form "reason; remedy"."""
    reason, _, remedy = sentence.strip().rpartition("; ")
    if not reason:
        reason, remedy = remedy, "look at the folder with vmat-diffusion inspect"
    return Rejection(case, reason, remedy)


def case_record(
    training: TrainingCase, file: Path, *, technique: str = "unknown", patient: str = ""
) -> dict[str, Any]:
    """The line of `index.jsonl` for a case and its file.

    `patient` is a pseudonym that all plans of one patient share; "" takes the case's own id. A case from
    DICOM has the hashes of its study and frame of reference too.
    """
    case = training.case
    prescription = case.prescription
    uids = training.provenance.get("uid_hashes", {})
    of_dicom = {key: uids[key] for key in ("study", "frame_of_reference") if uids.get(key)}
    return {
        "id": case.id,
        "site": case.site,
        "file": file.name,
        "sha256": sha256_of(file),
        "shape": list(case.grid.shape),
        "spacing_mm": list(case.grid.spacing_mm),
        "prescription_gy": dict(prescription.target_gy) if prescription else {},
        "fractions": prescription.fractions if prescription else None,
        "targets": [s.name for s in case.targets],
        "organs": [s.name for s in case.structures.values() if s.role == "organ"],
        "has_ct": training.has_ct,
        "has_dose": case.reference_dose is not None,
        "technique": technique,
        "patient": patient or case.id,
        **of_dicom,
    }


def case_statistics(training: TrainingCase) -> dict[str, Any]:
    """The share of a case in the fingerprint of its data set: HU in the body, dose, volumes."""
    case = training.case
    out: dict[str, Any] = {
        "volumes_cc": {
            name: round(s.voxels * case.grid.voxel_cc, 4)
            for name, s in case.structures.items()
            if s.role != "body"
        }
    }
    if training.has_ct:
        out["hu"] = _spread(case.hu[case.body.mask], _HU_PERCENTILES)
    if (dose := case.reference_dose) is not None and training.possible_dose.any():
        out["dose_gy"] = _spread(dose.gy[training.possible_dose], (50.0, 98.0))
    return out


def _spread(values: NDArray, percentiles: Sequence[float]) -> dict[str, Any]:
    wide = values.astype(np.float64)
    at = np.percentile(values, percentiles)
    return {
        "voxels": int(values.size),
        "mean": round(float(wide.mean()), 6),
        "std": round(float(wide.std()), 6),
        "min": round(float(values.min()), 4),
        "max": round(float(values.max()), 4),
        **{f"percentile_{p:g}": round(float(v), 4) for p, v in zip(percentiles, at, strict=True)},
    }


def fingerprint(
    records: Sequence[Mapping[str, Any]], statistics: Sequence[Mapping[str, Any]], rejected: int
) -> dict[str, Any]:
    """The data set in numbers, from the cases' index lines and statistics in the same order.

    HU and doses are pooled over all voxels of bodies and of possible dose; percentiles are medians of the
    cases' percentiles. Optional values of the statistics (`source_spacing_mm`, `extent_mm`) are described
    by minimum, median, 95th percentile and maximum along x, y and z.
    """
    presence: dict[str, list[float]] = {}
    for entry in statistics:
        for name, cc in entry["volumes_cc"].items():
            presence.setdefault(name, []).append(cc)
    out: dict[str, Any] = {
        "cases": len(records),
        "rejected": rejected,
        "patients": len({r["patient"] for r in records}),
        "sites": _counted(r["site"] for r in records),
        "techniques": _counted(r["technique"] for r in records),
        "prescriptions": _counted(prescription_of(r) for r in records),
        "with_dose": sum(r["has_dose"] for r in records),
        "with_ct": sum(r["has_ct"] for r in records),
        "structures": {
            name: {
                "cases": len(volumes),
                "volume_cc": {
                    "min": min(volumes),
                    "median": float(np.median(volumes)),
                    "max": max(volumes),
                },
            }
            for name, volumes in sorted(presence.items())
        },
    }
    for key in ("source_spacing_mm", "extent_mm", "targets_extent_mm"):
        if rows := [s[key] for s in statistics if key in s]:
            out[key] = _along_axes(np.array(rows, float))
    for key in ("hu", "dose_gy"):
        if rows := [s[key] for s in statistics if key in s]:
            out[key] = _pooled(rows)
    return out


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def prescription_of(record: Mapping[str, Any]) -> str:
    """The prescription of a case's line in the index in words, `none` where there is none."""
    levels = record["prescription_gy"]
    return prescription_text(levels, record["fractions"]) if levels else "none"


def _along_axes(rows: NDArray) -> dict[str, dict[str, float]]:
    def described(values: NDArray) -> dict[str, float]:
        middle, high = np.percentile(values, (50, 95))
        found = {"min": values.min(), "median": middle, "percentile_95": high, "max": values.max()}
        return {key: round(float(value), 4) for key, value in found.items()}

    return {axis: described(rows[:, k]) for k, axis in enumerate("xyz")}


def _pooled(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    voxels, mean, std = (np.array([row[key] for row in rows], float) for key in ("voxels", "mean", "std"))
    share = voxels / voxels.sum()
    middle = float(share @ mean)
    variance = float(share @ (std**2 + (mean - middle) ** 2))
    out = {"mean": middle, "std": variance**0.5}
    out |= {"min": min(row["min"] for row in rows), "max": max(row["max"] for row in rows)}
    for key in (k for k in rows[0] if k.startswith("percentile_")):
        out[key] = float(np.median([row[key] for row in rows]))
    return {key: round(value, 4) for key, value in out.items()}


def write_index(folder: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """`index.jsonl`: one JSON object per case, in the order of their ids."""
    ordered = sorted(records, key=lambda r: str(r["id"]))
    return write_text(folder / INDEX, "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in ordered))


def write_rejected(folder: Path, rejections: Iterable[Rejection]) -> Path:
    """`rejected.csv`: case, reason and remedy of each rejection, in the order of the ids."""
    ordered = sorted(rejections, key=lambda r: (r.case, r.reason))
    rows = ((entry.case, entry.reason, entry.remedy) for entry in ordered)
    return write_table(folder / REJECTED, ("case", "reason", "remedy"), rows)


def write_dataset(
    folder: Path,
    *,
    settings: Mapping[str, Any],
    shape: Sequence[int] | None,
    numbers: Mapping[str, Any],
) -> Path:
    """`dataset.json`: schema, versions, the settings that made the data set and its fingerprint."""
    record = {
        "schema": SCHEMA,
        "program": {"name": "vmat-diffusion", "version": __version__},
        "settings": dict(settings),
        "shape": list(shape) if shape else None,
        **numbers,
    }
    return write_text(folder / DATASET, json.dumps(record, indent=1) + "\n")


def read_dataset(folder: Path) -> dict[str, Any] | None:
    """The content of `dataset.json`; None without the file. Raises CaseError for a damaged one."""
    path = folder / DATASET
    if not path.is_file():
        return None
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        return {**record, "settings": dict(record["settings"])}
    except (OSError, ValueError, TypeError, KeyError):
        raise CaseError(f"{path} is damaged; remove it and run again with --resume") from None


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    """Rows below a header as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows([[csv_cell(cell) for cell in row] for row in rows])
    return write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> Path:
    """Text as a file that appears whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path
