"""Time and memory of whole plans of four patients, from DICOM to the checked files.

    python benchmarks/patients.py                     # all patients
    python benchmarks/patients.py --only pt_3 pt_22   # measure these again, keep the other figures

Each case is planned in a process of its own, so that its peak memory is its own. Patients come from
the folder in VMAT_SHARED_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from computer import stamp
from figures import load, save

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (sys.executable, "-m", "vmat_diffusion")


@dataclass(frozen=True)
class Bench:
    """One patient to plan: the folder `source` in the file `archive`."""

    name: str
    source: str
    goals: str
    archive: str
    options: tuple[str, ...] = ()


BENCHES = (
    Bench("pt_3", "pt_3", "head_neck_70_63_56", "openkbp_dicom"),
    Bench("pt_22", "pt_22", "head_neck_70_63_56", "openkbp_dicom"),
    Bench("pt_201", "pt_201", "head_neck_70_63_56", "openkbp_dicom"),
    Bench("hn_fullres", "hn_fullres", "head_neck_70_63_56", "hn_fullres"),
)


def case_folder(bench: Bench, work: Path) -> Path | None:
    """The DICOM folder of a patient, unpacked in `work`; None where the archive is not at hand."""
    folder = work / bench.source
    if folder.is_dir():
        return folder
    data = Path(os.environ.get("VMAT_SHARED_DATA", ROOT / ".." / "shared" / "data"))
    archive = data / "dicom" / f"{bench.archive}.tar.xz"
    if not archive.is_file():
        return None
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.name.split("/")[0] == bench.source]
        if hasattr(tarfile, "data_filter"):
            tar.extractall(work, members, filter="data")
        else:
            tar.extractall(work, members)
    return folder


def measure(bench: Bench, work: Path, keep: Path | None) -> dict[str, Any] | None:
    """Plan one case; the object that `plan --json` prints, with wall time, date and machine."""
    case = case_folder(bench, work)
    if case is None:
        print(f"{bench.name}: left out, its archive is not in VMAT_SHARED_DATA", file=sys.stderr)
        return None
    out = (keep or work / "plans") / bench.name
    command = [*PROGRAM, "plan", case, "--goals", bench.goals, "--out", out, "--overwrite", "--json"]
    start, used = time.perf_counter(), _processor_s()
    done = subprocess.run([*command, *bench.options], stdout=subprocess.PIPE, text=True)
    wall_s = time.perf_counter() - start
    record: dict[str, Any] = {
        "sheet": bench.goals,
        "options": list(bench.options),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(_processor_s() - used, 1),
    }
    if done.returncode in (0, 1):
        record |= json.loads(done.stdout)
        record["files"] = [Path(f).name for f in record["files"]]
        case_plan = json.loads((out / "run.json").read_text())
        record["missed"] = [
            f"{g['structure']} {g['goal']}" for g in case_plan["goals"] if g["status"] == "fail"
        ]
    else:
        record["failed"] = f"ended with exit code {done.returncode}"
    return record | stamp()


def _processor_s() -> float:
    """Processor seconds of all processes started here that have ended; 0 where the system does not say."""
    return sum(os.times()[2:4])


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about these plans; none without figures."""
    kept = load("patients")
    if not kept:
        return
    figures = {b.name: kept[b.name] for b in BENCHES if b.name in kept}
    yield ""
    yield "## Time, memory, delivery"
    yield ""
    yield "`python benchmarks/plans.py`. Times are seconds of wall clock, one run each; CPU is processor"
    yield "seconds of all cores. Goals are judged on the dose of the written plan, by the engine that"
    yield "planned it."
    yield ""
    stages = list(dict.fromkeys(s for f in figures.values() for s in f.get("seconds", {})))
    columns = [
        "case",
        "total",
        "CPU",
        *stages,
        "peak GB",
        "MU",
        "beam on, s",
        "violations",
        "gate",
        "optimiser",
        "date",
    ]
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'---:|' * (len(stages) + 6)}---|---|---|"
    for name, f in figures.items():
        if "failed" in f:
            blank = " |" * (len(stages) + 5)
            yield f"| {name} | {f['wall_s']:.0f} | {f['cpu_s']:.0f} |{blank} {f['failed']} | {f['date']} |"
            continue
        seconds = " | ".join(f"{f['seconds'].get(s, 0):.1f}" for s in stages)
        outcome = f["outcome"].lower().replace("_", " ")
        yield (
            f"| {name} | {f['wall_s']:.0f} | {f['cpu_s']:.0f} | {seconds} | {f['peak_gb']} | {f['mu']:.0f} | "
            f"{f['delivery_s']:.0f} | {len(f['violations'])} | {_gate(f)} | {outcome} | {f['date']} |"
        )
    for name, f in figures.items():
        if "failed" not in f:
            yield from _goals(name, f)
    yield ""
    yield "## Computers"
    yield ""
    for computer in dict.fromkeys(f["machine"] for f in figures.values()):
        names = [name for name, f in figures.items() if f["machine"] == computer]
        yield f"- {', '.join(names)}: {computer}"


def _gate(figures: dict[str, Any]) -> str:
    """What the gate said; a figure measured before there was one has no verdict."""
    verdict = figures.get("verdict")
    if verdict is None:
        return "not asked"
    failed = ", ".join(c["name"] for c in verdict["checks"] if not c["passed"])
    return ("corrected: " if verdict["corrected"] else "") + (f"**failed**: {failed}" if failed else "passed")


def _goals(name: str, figures: dict[str, Any]) -> Iterator[str]:
    judged = [g for g in figures["goals"] if g["value"] is not None]
    absent = list(dict.fromkeys(g["structure"] for g in figures["goals"] if g["value"] is None))
    reached = sum(g["status"] != "fail" for g in judged)
    yield ""
    yield f"## {name}: {reached} of {len(judged)} goals reached (`{figures['sheet']}`)"
    yield ""
    yield "| structure | goal | value | status |"
    yield "|---|---|---:|---|"
    for g in judged:
        status = "**missed**" if g["status"] == "fail" else g["status"]
        yield f"| {g['structure']} | {g['goal']} | {g['value']:.2f} {g['unit']} | {status} |"
    if absent:
        yield ""
        yield f"Not contoured and so not evaluated: {', '.join(absent)}."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[b.name for b in BENCHES], help="cases to measure")
    parser.add_argument("--keep", type=Path, help="keep the plans in this folder")
    arguments = parser.parse_args()
    figures = load("patients")
    with tempfile.TemporaryDirectory(prefix="vmat_bench_") as work:
        for bench in BENCHES:
            if arguments.only and bench.name not in arguments.only:
                continue
            print(f"== {bench.name}", file=sys.stderr, flush=True)
            measured = measure(bench, Path(work), arguments.keep)
            if measured is not None:
                figures[bench.name] = measured
                save("patients", figures)
    print("\n".join(section()))
    failed = [name for name, f in figures.items() if "failed" in f or f["violations"]]
    sys.exit(f"failed or not deliverable: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
