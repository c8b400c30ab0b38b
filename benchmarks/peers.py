"""Time this project beside pyRadPlan and PyDoseRT, on the same case and cores.

    python benchmarks/peers.py                     # one core and all cores, 4 mm grid
    python benchmarks/peers.py --large             # with a grid of 128 x 128 x 100 voxels of 3 mm
    python benchmarks/peers.py --only pydosert --threads 1

Influence matrix: the TG-119 phantom that pyRadPlan brings. Dose and gradient: a water cylinder with the
clinical two-arc plan in VMAT_SHARED_DATA. Each peer gets a virtual environment of its own under --venvs;
one that cannot be installed, or whose case is not at hand, is left out with a line that says so. Every
measurement is a process of its own, bound to as many cores as it may have threads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from computer import stamp
from figures import load, save

from vmat_diffusion.dicom import read_plan
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
DRIVERS = Path(__file__).resolve().parent / "peer_drivers"
PLAN = "rtplans/eclipse_truebeam_tg119_cshape_2arc.dcm"
COLLIMATOR = "generic_hd120"
# pyRadPlan 0.5 does not work with later pydantic. PyDoseRT computes with the torch that this project has.
TORCH = f"torch=={metadata.version('torch').split('+')[0]}"
PEERS = {
    "pyradplan": ("pyRadPlan[numba]==0.5.0", "pydantic==2.12.*"),
    "pydosert": ("pydosert==1.5.0", TORCH),
}
SMALL, LARGE = ((75, 75, 75), 4.0), ((100, 128, 128), 3.0)
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def environment(peer: str, folder: Path) -> Path | None:
    """The Python of a peer's own environment, made once; None where it cannot be installed."""
    home = folder / peer
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = home / ".installed"
    wanted = "\n".join(PEERS[peer])
    if done.is_file() and done.read_text() == wanted:
        return python
    print(f"{peer}: installing into {home}", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", home],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEERS[peer]],
    ):
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if ended.returncode:
            why = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{peer}: left out, cannot be installed: {why}", file=sys.stderr)
            return None
    done.write_text(wanted)
    return python


def driver(python: str | Path, name: str, threads: int, *arguments: object) -> dict[str, Any]:
    """What a driver reports, run on as many cores as it has threads."""
    limits = dict.fromkeys(THREADS, str(threads))
    command: list[object] = [python, DRIVERS / f"run_{name}.py", *arguments]
    if hasattr(os, "sched_setaffinity"):
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
        bind = f"import os, sys; os.sched_setaffinity(0, {{{cores}}}); os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", bind, *command]
    with tempfile.NamedTemporaryFile(suffix=".json") as figures:
        # Idle threads that spin would take the time of those that work.
        environ = {**os.environ, **limits, "OMP_WAIT_POLICY": "PASSIVE"}
        start, all_busy, own_busy = time.perf_counter(), busy_s(), sum(os.times()[2:4])
        subprocess.run([*map(str, command), figures.name], check=True, env=environ, stdout=subprocess.DEVNULL)
        others = busy_s() - all_busy - (sum(os.times()[2:4]) - own_busy)
        busy = max(others / (time.perf_counter() - start), 0.0) if all_busy else None
        return json.loads(Path(figures.name).read_text()) | {"others_cores": busy}


def busy_s() -> float:
    """Processor seconds of everything on this computer since it was started; 0 where it does not say."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0
    user, nice, system, _idle, _wait, *interrupts = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts[:2])) / os.sysconf("SC_CLK_TCK")


def _others(figures: dict[str, Any]) -> str:
    """Cores that other programs kept busy while these figures were measured."""
    busy = figures.get("others_cores")
    return "" if busy is None else f"{busy:.1f}"


def matrix(python: Path, beams: int, threads: int, work: Path) -> dict[str, Any]:
    """Both influence matrices: the peer's first, because its phantom and beamlets are the case."""
    phantom = work / "phantom.npz"
    peer = driver(python, "pyradplan", threads, beams, phantom)
    ours = driver(sys.executable, "ours", threads, "matrix", phantom)
    return {"threads": threads, "ours": ours, "peer": peer}


def cylinder(shape: tuple[int, int, int]) -> np.ndarray:
    """Water along z that fills the grid but for one voxel at its side and two at its ends."""
    _, ny, nx = shape
    y, x = np.ogrid[:ny, :nx]
    inside = np.hypot(y - (ny - 1) / 2, x - (nx - 1) / 2) <= min(nx, ny) / 2 - 1
    density = np.zeros(shape, np.float32)
    density[2:-2, inside] = 1.0
    return density


def segments(plan: Plan) -> dict[str, np.ndarray]:
    """The middle of every segment with MU, for an engine that knows static apertures and no X jaws."""
    rows: dict[str, list[np.ndarray]] = {
        k: [] for k in ("gantry_deg", "collimator_deg", "leaves_mm", "jaws_y_mm", "mu")
    }
    for arc in plan.arcs:
        on = arc.mu > 0
        jaws = ((arc.jaws_mm[1:] + arc.jaws_mm[:-1]) / 2)[on]
        leaves = ((arc.leaves_mm[1:] + arc.leaves_mm[:-1]) / 2)[on]
        rows["gantry_deg"].append(((arc.gantry_deg[1:] + arc.gantry_deg[:-1]) / 2)[on])
        rows["collimator_deg"].append(np.full(on.sum(), arc.collimator_deg))
        rows["leaves_mm"].append(np.clip(leaves, jaws[:, :1, None], jaws[:, 1:2, None]).transpose(0, 2, 1))
        rows["jaws_y_mm"].append(jaws[:, 2:])
        rows["mu"].append(arc.mu[on])
    return {key: np.concatenate(parts) for key, parts in rows.items()}


def dose(
    python: Path,
    plan_file: Path,
    size: tuple[tuple[int, int, int], float],
    repeats: int,
    *,
    threads: int,
    work: Path,
) -> dict[str, Any]:
    """Forward dose and gradient of both on one grid of a water cylinder centred on the isocentre."""
    shape, spacing_mm = size
    machine = load_machine(COLLIMATOR)
    plan = read_plan(plan_file, machine)
    case = work / "case.npz"
    np.savez(
        case,
        **segments(plan),
        density=cylinder(shape),
        spacing_zyx_mm=np.full(3, spacing_mm),
        isocenter_zyx_mm=(np.array(shape) - 1) * spacing_mm / 2,  # from the first voxel's centre
        leaf_edges_mm=machine.row_edges_mm(),
        transmission=machine.mlc.transmission,
    )
    files = {name: work / f"{name}.npy" for name in ("ours", "peer")}
    ours = driver(sys.executable, "ours", threads, "dose", repeats, plan_file, case, files["ours"])
    peer = driver(python, "pydosert", threads, repeats, case, files["peer"])
    return {
        "threads": threads,
        "repeats": repeats,
        "grid": [*shape, spacing_mm],
        "differs_percent": difference_percent(np.load(files["ours"]), np.load(files["peer"])),
        "ours": ours,
        "peer": peer,
    }


def difference_percent(ours: np.ndarray, peer: np.ndarray) -> float:
    """Mean difference above 10 % of the maximum, in percent of it, after one fitted factor.

    It shows that both computed the same plan, nothing more: the beams differ.
    """
    where = ours > 0.1 * ours.max()
    a, b = ours[where].astype(float), peer[where].astype(float)
    return float(100 * np.abs(a - b * (a @ b) / (b @ b)).mean() / ours.max())


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about other programs; none without figures."""
    figures = load("peers")
    if not figures:
        return
    yield from ("", "## Beside other programs", "", "`python benchmarks/peers.py --large`.")
    if rows := figures.get("pyradplan"):
        yield from _matrix_lines(rows)
    if rows := figures.get("pydosert"):
        yield from _dose_lines(rows)
    computers = dict.fromkeys(row["machine"] for rows in figures.values() for row in rows)
    yield from paragraph(
        f"""Measured on {"; ".join(computers)}. Programs ran one after another; "others" is how many cores
        the rest of the computer kept busy meanwhile: above 0.1 do not trust the wall clock."""
    )[:-1]


def paragraph(text: str) -> list[str]:
    """The text wrapped, between empty lines."""
    return ["", *textwrap.wrap(" ".join(text.split()), 110), ""]


def _matrix_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    peer, ours = rows[-1]["peer"], rows[-1]["ours"]
    yield from paragraph(
        f"""**Influence matrix against pyRadPlan {peer["version"]}** (with numba), {rows[-1]["date"]}: its
        TG-119 phantom, {peer["beams"]} beams, beamlets of 5 mm, its dose grid of 3 mm. Seconds of wall clock
        after a call with one beam, which compiles and reads beam data, for both. Ours: all
        {ours["voxels"]:,} voxels that the body touches, all beamlets of a box around those of pyRadPlan, the
        matrix and its transpose. pyRadPlan: one matrix, only beamlets that meet the target. Not the same: the
        beams (a fitted 6 MV; its generic machine), the kernels, indices of 4 and 8 bytes, and the cut-off.
        Ours has none in distance, but stands for doses below 0.5 % by a few larger entries with the same
        mean; pyRadPlan ends 50 mm beside each beamlet and keeps all entries before."""
    )
    yield (
        "| cores | program | s per beam | CPU s per beam | beamlets per beam | voxels reached | "
        "million entries per beam | GB in all | peak GB | others |"
    )
    yield "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        for name, key in (("VMAT Diffusion", "ours"), ("pyRadPlan", "peer")):
            f, n = row[key], row[key]["beams"]
            yield (
                f"| {row['threads']} | {name} | {f['seconds']['wall_s'] / n:.2f} | "
                f"{f['seconds']['cpu_s'] / n:.2f} | {f['beamlets'] / n:.0f} | {f['voxels_reached']:,} | "
                f"{f['entries'] / n / 1e6:.1f} | {f['gb']:.2f} | {f['peak_gb']:.1f} | {_others(f)} |"
            )
        wall, cpu = ratios(row, "seconds")
        yield f"| {row['threads']} | **ratio** | **{wall:.1f}** | {cpu:.1f} | | | | | | |"
    best = best_ratio(rows, "seconds")
    yield from paragraph(f"Each with the number of threads that suits it best: {best:.1f} times.")[:-1]


def _dose_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    last = rows[-1]
    yield from paragraph(
        f"""**Dose and gradient against PyDoseRT {last["peer"]["version"]}** (`DoseEngine`, FFT
        convolution, torch {last["peer"]["torch"]}), {last["date"]}: a water cylinder that fills the grid,
        a clinical plan of two arcs with the HD120 collimator. Seconds of wall clock, the best of
        {last["repeats"]} after a first call. The gradient is that of the summed squared dose, over all
        voxels, to leaves, jaws and MU; the forward pass is included. Both keep geometry between calls;
        ours keeps the map of `sampled_dose`, whose tabulation, once for each set of angles and voxels,
        stands apart. The ratio in its column is for a single gradient, tabulation included. Not the same:
        ours cuts the plan into {last["ours"]["exposures"]} exposures and averages leaf motion, PyDoseRT
        holds {last["peer"]["segments"]} segments at their middle, takes no X jaws (leaves are clipped to
        them), and has penumbra, head scatter and output factors off. It computes all voxels of the grid,
        ours those in the body. A map above 6 GB is made and used in parts."""
    )
    yield (
        "| grid | cores | program | forward, s | CPU s | tabulation, s | forward + backward, s | CPU s | "
        "first call, s | peak GB | others |"
    )
    yield "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        nz, ny, nx, mm = row["grid"]
        where = f"| {nx} x {ny} x {nz}, {mm:g} mm | {row['threads']} |"
        for name, key in (("VMAT Diffusion", "ours"), ("PyDoseRT", "peer")):
            f = row[key]
            tabulation = f"{f['tabulation']['wall_s']:.1f}" if "tabulation" in f else ""
            yield (
                f"{where} {name} | {f['forward']['wall_s']:.2f} | {f['forward']['cpu_s']:.2f} | "
                f"{tabulation} | {f['gradient']['wall_s']:.2f} | {f['gradient']['cpu_s']:.2f} | "
                f"{f['first_s']:.1f} | {f['peak_gb']:.1f} | {_others(f)} |"
            )
        forward, gradient = ratios(row, "forward"), ratios(row, "gradient")
        single = row["ours"]["gradient"]["wall_s"] + row["ours"]["tabulation"]["wall_s"]
        alone = row["peer"]["gradient"]["wall_s"] / single
        yield (
            f"{where} **ratio** | **{forward[0]:.1f}** | {forward[1]:.1f} | "
            f"{alone:.1f} | **{gradient[0]:.1f}** | {gradient[1]:.1f} | | | |"
        )
    for size in dict.fromkeys(tuple(row["grid"]) for row in rows):
        same = [row for row in rows if tuple(row["grid"]) == size]
        forward, both = best_ratio(same, "forward"), best_ratio(same, "gradient")
        yield from paragraph(
            f"""Each with the number of threads that suits it best, {size[3]:g} mm: forward {forward:.1f}
            times, forward + backward {both:.1f} times."""
        )[:-1]
    yield from paragraph(
        f"""Above a tenth of the maximum the two doses differ by {last["differs_percent"]:.1f} % of it on
        average, after one factor: the same plan was computed."""
    )[:-1]


def ratios(row: dict[str, Any], what: str) -> tuple[float, float]:
    """How many times longer the peer takes, in wall and in processor seconds; per beam for matrices."""
    beams = row["ours"].get("beams", 1) / row["peer"].get("beams", 1)
    peer, ours = row["peer"][what], row["ours"][what]
    return beams * peer["wall_s"] / ours["wall_s"], beams * peer["cpu_s"] / ours["cpu_s"]


def best_ratio(rows: list[dict[str, Any]], what: str) -> float:
    """The ratio of wall seconds when peer and ours each have the best of the numbers of threads."""
    ours, peer = (min(row[key][what]["wall_s"] for row in rows) for key in ("ours", "peer"))
    return peer / ours * rows[0]["ours"].get("beams", 1) / rows[0]["peer"].get("beams", 1)


def main() -> None:
    """Measure what can be measured, keep the figures and print the section."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venvs", type=Path, default=ROOT / ".venv-peers", help="folder of the environments")
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores}))
    parser.add_argument("--beams", type=int, default=3, help="of the influence matrix")
    parser.add_argument("--repeats", type=int, default=2, help="of each dose and gradient")
    parser.add_argument("--large", action="store_true", help="also the grid of 128 x 128 x 100 voxels")
    arguments = parser.parse_args()
    plan_file = Path(os.environ.get("VMAT_SHARED_DATA", ROOT / ".." / "shared" / "data")) / PLAN
    figures = load("peers")
    today = stamp()
    for peer in arguments.only:
        if peer == "pydosert" and not plan_file.is_file():
            print(f"pydosert: left out, {PLAN} is not in VMAT_SHARED_DATA", file=sys.stderr)
            continue
        python = environment(peer, arguments.venvs.resolve())
        if python is None:
            continue
        sizes = (SMALL, LARGE) if arguments.large else (SMALL,)
        try:
            with tempfile.TemporaryDirectory(prefix="vmat_peers_") as folder:
                if peer == "pyradplan":
                    rows = [matrix(python, arguments.beams, n, Path(folder)) for n in arguments.threads]
                else:
                    rows = [
                        dose(python, plan_file, size, arguments.repeats, threads=n, work=Path(folder))
                        for size in sizes
                        for n in arguments.threads
                    ]
        except subprocess.CalledProcessError as failed:
            if "run_ours.py" in str(failed.cmd):
                raise
            print(f"{peer}: left out, it ended with exit code {failed.returncode}", file=sys.stderr)
            continue
        figures[peer] = [today | row for row in rows]
        save("peers", figures)
    print("\n".join(section()))


if __name__ == "__main__":
    main()
