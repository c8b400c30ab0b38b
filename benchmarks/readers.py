"""Which other programs read our files, and whether they find in them what we wrote.

    python benchmarks/readers.py [--run RUN --case CASE] [--python PROGRAM=PYTHON ...]

RUN is a folder of `plan` with a passed plan, CASE that of its CT and structure set; without them those of a
small case are made. A program that is not installed in this Python may be in another, such as
`--python dicompyler-core=venv/bin/python`; one that is nowhere is left out. The exit code is 1 if a program
finds other figures than ours or cannot read a file.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from figures import keep_row, load

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks" / "peer_drivers")]
DRIVER = ROOT / "benchmarks" / "peer_drivers" / "read_files.py"
KINDS = ("CT", "RTSTRUCT", "RTPLAN", "RTDOSE", "PDF")
PROGRAMS = (
    *("pydicom", "dicompyler-core", "pymedphys", "SimpleITK", "rt-utils", "platipy", "dcmtk"),
    "dicom3tools",
)
_TITLES = {
    "structures": "{:g} structures",
    "with_volume": "{:g} of them with a volume",
    "slices": "{:g} slices",
    "pixels": "{:g} pixels",
    "mu": "{:.2f} MU",
    "control_points": "{:g} control points",
    "beams": "{:g} beam(s)",
    "prescribed_gy": "{:g} Gy prescribed",
    "max_gy": "highest dose {:.3f} Gy",
    "bytes": "{:g} bytes",
    "warnings": "{:g} warnings",
    "errors": "{:g} errors",
}
_TIMEOUT_S = 600
# What a program says that it does not take: how its refusal begins, and the words for the table.
LIMITS = {
    ("pymedphys", "RTPLAN"): (
        "ValueError: Currently only DICOM files where the beam limiting devices",
        "takes plans with MLCX and ASYMY alone, as those of an Agility",
    )
}


def small_files(folder: Path) -> dict[str, Path]:
    """The files of a run of the small case, by kind; those of the CT alone in a folder."""
    from network_peers import planning_run

    return files_of(planning_run(folder / "run"), folder / "case", folder)


def files_of(run: Path, case: Path, scratch: Path) -> dict[str, Path]:
    """The files of a run by kind, its report as an object of its study made in `scratch`."""
    from pydicom import dcmread

    from vmat_diffusion.network.results import parcels_of_run

    images = scratch / "images"
    images.mkdir()
    found: dict[str, Path] = {"CT": images}
    for file in sorted(case.rglob("*.dcm")):
        kind = dcmread(file, stop_before_pixels=True).Modality
        if kind == "CT":
            (images / file.name).symlink_to(file.resolve())
        elif kind == "RTSTRUCT":
            found[kind] = file
    sent = {parcel.label: parcel.path for parcel in parcels_of_run(run, scratch)}
    return found | {kind: sent[kind] for kind in ("RTPLAN", "RTDOSE", "PDF")}


def written(files: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """What the files hold, by our own readers."""
    from pydicom import dcmread

    from vmat_diffusion.dicom import read_dose, read_plan

    plan, gy = read_plan(files["RTPLAN"]), read_dose(files["RTDOSE"]).gy
    images = [dcmread(file) for file in files["CT"].iterdir()]
    structures = dcmread(files["RTSTRUCT"])
    drawn = [r for r in structures.ROIContourSequence if len(r.get("ContourSequence") or ())]
    return {
        "CT": {
            "slices": len(images),
            "pixels": sum(image.Rows * image.Columns for image in images),
            "errors": 0,
        },
        "RTSTRUCT": {
            "structures": len(structures.StructureSetROISequence),
            "with_volume": len(drawn),
            "warnings": 0,
            "errors": 0,
        },
        "RTPLAN": {
            "mu": plan.total_mu,
            "beams": len(plan.arcs),
            "prescribed_gy": float(dcmread(files["RTPLAN"]).DoseReferenceSequence[0].TargetPrescriptionDose),
            "control_points": sum(len(arc.gantry_deg) for arc in plan.arcs),
            "warnings": 0,
            "errors": 0,
        },
        "RTDOSE": {"max_gy": float(gy.max()), "warnings": 0, "errors": 0},
        "PDF": {"bytes": dcmread(files["PDF"]).EncapsulatedDocumentLength, "errors": 0},
    }


def read_by(program: str, files: Mapping[str, Path], python: str = sys.executable) -> dict[str, Any] | None:
    """What a program reads, with its version; None where it is not installed or cannot be loaded."""
    done = subprocess.run(
        [python, str(DRIVER), program, *(str(files[kind]) for kind in KINDS)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise RuntimeError(f"{program}: {last[0]}")
    found: dict[str, Any] = json.loads(lines[-1])
    for kind, said in found["read"].items():
        begin, words = LIMITS.get((program, kind), ("", ""))
        if begin and isinstance(said, str) and said.startswith(begin):
            found["read"][kind] = {"limit": words}
    return found if found["version"] is not None else None


def differences(read: Mapping[str, Any], ours: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What a program could not read, or found otherwise than we do, a sentence each."""
    out = []
    for kind, found in read.items():
        if isinstance(found, str):
            out.append(f"{kind}: {found}")
            continue
        for name, value in found.items():
            if name != "limit" and not math.isclose(value, ours[kind][name], rel_tol=1e-4, abs_tol=1e-6):
                out.append(f"{kind}: {name} {value:g}, ours {ours[kind][name]:g}")
    return out


def section() -> Iterator[str]:
    """The section of the page."""
    kept = load("readers")
    if not kept:
        return
    yield ""
    yield "## Other programs that read our files"
    yield ""
    yield f"`python benchmarks/readers.py`, {kept['date']}. Each program reads with its own reader, in a"
    yield "Python of its own; a dash: it has no reader for that kind. All figures are those that we wrote,"
    yield "unless the cell says otherwise. The files are those of a small case made for it."
    yield ""
    yield "| program | CT | RTSTRUCT | RTPLAN | RTDOSE | report (PDF) |"
    yield "|---|---|---|---|---|---|"
    for program, row in kept["programs"].items():
        told = {text.split(":")[0]: text for text in row["differences"]}
        cells = [_cell(row["read"].get(kind), told.get(kind, "")) for kind in KINDS]
        name = f"{program} {row['version']}".strip()
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(found: Mapping[str, Any] | str | None, difference: str) -> str:
    if found is None:
        return "–"
    if difference:
        return f"differs: {difference}"
    if "limit" in found:
        return f"not read: it {found['limit']}"
    return ", ".join(_TITLES[name].format(value) for name, value in found.items())


def main() -> None:
    """Have all programs read, print and keep the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--case", type=Path)
    parser.add_argument("--python", nargs="+", default=[], metavar="PROGRAM=PYTHON")
    given = parser.parse_args()
    pythons = dict(word.split("=", 1) for word in given.python)
    wrong = False
    with tempfile.TemporaryDirectory(prefix="vmat-readers-") as name:
        scratch = Path(name)
        made = files_of(given.run, given.case, scratch) if given.run and given.case else small_files(scratch)
        ours = written(made)
        for program in PROGRAMS:
            found = read_by(program, made, pythons.get(program, sys.executable))
            if found is None:
                print(f"{program}: not installed here")
                continue
            row = {**found, "differences": differences(found["read"], ours)}
            wrong |= bool(row["differences"])
            keep_row("readers", "programs", program, row)
            print(f"{program} {found['version']}: {row['differences'] or 'as written'}", flush=True)
    print("\n".join(section()))
    sys.exit(wrong)


if __name__ == "__main__":
    main()
