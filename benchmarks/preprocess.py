"""Measure the preparation of training cases: error, speed, memory, and what a killed run costs.

    python benchmarks/preprocess.py [--copies 8] [--small 1000] [--entries 10000] [--only dose speed ...]

The large case is hn_fullres from VMAT_SHARED_DATA; without it the small cases and the index are measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from computer import today
from figures import load, save
from scipy import ndimage

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dataset.cases import load_case, save_case
from vmat_diffusion.dataset.clinical_case import Preparation
from vmat_diffusion.dataset.prepare import common_shape, cut_to, extent_of, on_spacing, restore_dose
from vmat_diffusion.dataset.raw_cases import RawCase
from vmat_diffusion.dicom import read_case
from vmat_diffusion.geometry import average_onto
from vmat_diffusion.jobs.batch import Cluster
from vmat_diffusion.jobs.case_states import WORK, write_state
from vmat_diffusion.workflow import preprocess as module

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (sys.executable, "-m", "vmat_diffusion", "preprocess")
SPACING = (1.0, 1.0, 3.0)
PARTS = ("dose", "speed", "small", "index")
_SMALL_SPACING = ("--spacing-mm", "2", "2", "2.5")


def large_case(work: Path) -> Path | None:
    """The DICOM folder of 512 x 512 x 148; None where its archive is not at hand."""
    data = Path(os.environ.get("VMAT_SHARED_DATA", ROOT / ".." / "shared" / "data"))
    archive = data / "dicom" / "hn_fullres.tar.xz"
    if not archive.is_file():
        print("preprocess: hn_fullres is not in VMAT_SHARED_DATA", file=sys.stderr)
        return None
    with tarfile.open(archive) as tar:
        tar.extractall(work, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return work / "hn_fullres"


def made_dose(case: Case, spacing_mm: float) -> Dose:
    """A dose as a plan could have it: its prescriptions behind a penumbra of 5 mm, and a bath of scatter.

    Zero outside the body, on a grid of its own around it.
    """
    grid = case.grid.around(*case.grid.bounds_mm, (spacing_mm,) * 3)
    levels = {"PTV_56": 56.0, "PTV_70": 70.0}
    high = np.zeros(grid.shape, np.float32)
    for name, gy in levels.items():
        high = np.maximum(high, gy * average_onto(case.structures[name].mask, case.grid, grid))
    sharp, wide = (ndimage.gaussian_filter(high, mm / spacing_mm) for mm in (5.0, 35.0))
    gy = np.where(average_onto(case.body.mask, case.grid, grid) >= 0.5, np.maximum(sharp, 0.7 * wide), 0)
    return Dose(grid, gy.astype(np.float32))


def dose_error(folder: Path, work: Path) -> list[dict[str, float]]:
    """Mean |difference| in Gy of a dose that went into a training case's file and back to its own grid."""
    case, rows = read_case(folder), []
    for spacing in (2.5, 3.0):
        dose = made_dose(case, spacing)
        whole = on_spacing(replace(case, reference_dose=dose), SPACING)
        cut, _ = cut_to(whole, common_shape([extent_of(whole)], SPACING))
        kept = load_case(save_case(work / "dose.npz", cut)).case.reference_dose
        assert kept is not None
        back = restore_dose(kept, dose.grid)
        (low, high), axes = kept.grid.bounds_mm, dose.grid.axes_mm
        inside = [(a > lo) & (a < hi) for a, lo, hi in zip(axes, low, high, strict=True)]
        there = inside[2][:, None, None] & inside[1][None, :, None] & inside[0][None, None] & (dose.gy > 0)
        error = np.abs(back.gy - dose.gy)[there]
        warm = dose.gy[there] > 0.1 * dose.gy.max()
        rows.append(
            {
                "grid_mm": spacing,
                "mean_gy": float(error.mean()),
                "mean_above_10_percent_gy": float(error[warm].mean()),
                "percentile_99_gy": float(np.percentile(error, 99)),
            }
        )
    return rows


def speed(folder: Path, work: Path, copies: int) -> dict[str, float]:
    """Cases per minute on two workers, and seconds and peak memory of one case in a process of its own."""
    raw = work / "large"
    raw.mkdir()
    for k in range(copies):
        (raw / f"case_{k:04d}").symlink_to(folder)
    command = [*PROGRAM, "--raw", raw, "--out", work / "set", "--relax-filter", "--workers", "2", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    summary = json.loads(done.stdout)
    one = subprocess.run(
        [sys.executable, __file__, "--one", folder, "--work", work],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return {"cases": copies, "cases_per_minute": summary["cases_per_minute"], **json.loads(one.stdout)}


def one_case(folder: Path, work: Path) -> dict[str, float]:
    """Both passes of one case in this process."""
    out = work / "one"
    (out / WORK).mkdir(parents=True)
    case, settings = RawCase("case_1", folder, ""), Preparation(relax=True)
    seconds = []
    for shape in (None, (112, 224, 224)):
        started = time.perf_counter()
        module.prepare(case, settings, out, shape)
        seconds.append(time.perf_counter() - started)
    return {"first_pass_s": seconds[0], "second_pass_s": seconds[1], "peak_gb": _peak_gb()}


def _peak_gb() -> float:
    """The most memory of this process; getrusage would count the parent's on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    return float("nan")


def small_cases(work: Path, count: int) -> dict[str, Any]:
    """End to end on many small cases; the same killed twice and resumed must make the same bytes."""
    sys.path.insert(0, str(ROOT / "tests"))
    from raw_patients import raw_patient

    raw, undisturbed, killed = work / "small", work / "undisturbed", work / "killed"
    for k in range(count):
        raw_patient(raw / f"case_{k:05d}", number=k)
    command = [*PROGRAM, "--raw", raw, "--workers", "2", *_SMALL_SPACING, "--out"]
    started = time.perf_counter()
    subprocess.run([*command, undisturbed], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole = time.perf_counter() - started
    for pattern in (".work/*.state", "*.npz"):
        process = subprocess.Popen(
            [*command, killed, "--resume"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while len(list(killed.glob(pattern))) < count // 2:
            if process.poll() is not None:
                sys.exit("the run ended before it could be killed")
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    started = time.perf_counter()
    subprocess.run(
        [*command, killed, "--resume"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    resumed = time.perf_counter() - started
    started = time.perf_counter()
    subprocess.run(
        [*command, killed, "--resume"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return {
        "cases": count,
        "undisturbed_s": whole,
        "last_resume_s": resumed,
        "nothing_left_s": time.perf_counter() - started,
        "identical": _contents(undisturbed) == _contents(killed),
    }


def _contents(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir() if p.is_file()}


def _stand_in(case: RawCase, settings: Preparation, out: Path, shape: Any) -> str:
    """A job that does nothing but what is kept of it."""
    record = {
        "id": case.id,
        "site": "none",
        "patient": case.id,
        "technique": "VMAT",
        "prescription_gy": {"PTV": 50.0},
        "fractions": 25,
        "has_ct": True,
        "has_dose": True,
        "targets": ["PTV"],
    }
    (out / f"{case.id}.npz").touch()
    made = {"record": record, "statistics": {"volumes_cc": {"PTV": 1.0}}, "cut_percent": {}}
    files, key = {f"{case.id}.npz": 0}, module._key(case)
    write_state(out, case.id, key, state="done", shape=list(shape), files=files, **made)
    return case.id


def index(work: Path, entries: int) -> list[dict[str, float]]:
    """Seconds of everything but the cases themselves: first run, and a resumption that finds all done."""
    rows, real = [], module.prepare
    module.prepare = _stand_in
    try:
        for count in (entries // 10, entries):
            raw, out = work / f"raw_{count}", work / f"out_{count}"
            for k in range(count):
                folder = raw / f"case_{k:06d}"
                folder.mkdir(parents=True)
                (folder / "a").touch()
            seconds = []
            for resume in (False, True):
                started = time.perf_counter()
                done = module.preprocess(
                    raw, out, Preparation(), shape=(8, 8, 8), cluster=Cluster(kind="serial"), resume=resume
                )
                if len(done.records) != count:
                    sys.exit(f"{len(done.rejections)} of {count} cases failed; there is nothing to measure")
                seconds.append(time.perf_counter() - started)
            rows.append({"entries": count, "first_s": seconds[0], "resume_s": seconds[1]})
    finally:
        module.prepare = real
    return rows


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about preprocessing; none without figures."""
    figures = load("preprocess")
    if not figures:
        return
    yield ""
    yield "## Preprocessing"
    yield ""
    yield f"`python benchmarks/preprocess.py`, {figures['date']}."
    if rows := figures.get("dose"):
        yield ""
        yield "A made dose of 70/56 Gy on the head-and-neck CT of 512 x 512 x 148, through the file of the"
        yield "training case (1 x 1 x 3 mm) and back to its own grid: mean of the absolute differences."
        yield ""
        yield "| dose grid, mm | body, Gy | above 10 %, Gy | 99th percentile, Gy |"
        yield "|---:|---:|---:|---:|"
        for row in rows:
            yield (
                f"| {row['grid_mm']:g} | {row['mean_gy']:.3f} | {row['mean_above_10_percent_gy']:.3f} | "
                f"{row['percentile_99_gy']:.2f} |"
            )
    if row := figures.get("speed"):
        yield ""
        yield (
            f"{row['cases']} times that CT with its 27 contoured regions on two workers: "
            f"{row['cases_per_minute']:.1f} cases/min. One case alone: {row['first_pass_s']:.1f} s for "
            f"reading and resampling, {row['second_pass_s']:.1f} s for cutting, writing and drawing, "
            f"peak memory {row['peak_gb']:.2f} GB."
        )
    if row := figures.get("small"):
        same = "the same bytes as" if row["identical"] else "**other bytes than**"
        yield ""
        yield (
            f"{row['cases']} small cases on two workers: {row['undisturbed_s']:.0f} s; killed (SIGKILL) in "
            f"each pass and resumed: {same} an undisturbed run; a resumption that finds all done: "
            f"{row['nothing_left_s']:.1f} s."
        )
    if rows := figures.get("index"):
        yield ""
        yield "Everything but the cases themselves (scan, records, tables), serially:"
        yield ""
        yield "| cases | first run, s | resumption, s |"
        yield "|---:|---:|---:|"
        for row in rows:
            yield f"| {row['entries']} | {row['first_s']:.1f} | {row['resume_s']:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copies", type=int, default=8, help="of the large case")
    parser.add_argument("--small", type=int, default=1000, help="number of small cases")
    parser.add_argument("--entries", type=int, default=10_000, help="cases of the simulated run")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_case(given.one, given.work)))
        return
    figures: dict[str, Any] = load("preprocess")
    with tempfile.TemporaryDirectory(prefix="vmat_preprocess_") as name:
        work = Path(name)
        folder = large_case(work) if {"dose", "speed"} & set(given.only) else None
        if folder and "dose" in given.only:
            figures["dose"] = dose_error(folder, work)
        if folder and "speed" in given.only:
            figures["speed"] = speed(folder, work, given.copies)
        if "small" in given.only:
            figures["small"] = small_cases(work, given.small)
        if "index" in given.only:
            figures["index"] = index(work, given.entries)
    figures["date"] = today()
    save("preprocess", figures)
    print("\n".join(section()))


if __name__ == "__main__":
    main()
