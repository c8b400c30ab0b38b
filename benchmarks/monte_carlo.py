"""Speed of the Monte Carlo engine, and its doses against EGSnrc.

    python benchmarks/monte_carlo.py                # speed and all reference cases, about half an hour
    python benchmarks/monte_carlo.py --minutes 0.5  # per reference case; noisier
    python benchmarks/monte_carlo.py --only pyradmc # or speed, or cases; the others stay as they are

Speed: a 10 x 10 cm2 field of the point source on a 30 cm cube of 3 mm voxels, of water and with 8 cm of
lung, in processor seconds. The time for a two-arc plan is in the table of plans. pyRadMC: the same in water
and with a thin slab, on one thread, after each other; left out where it is not installed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
from computer import today
from figures import load, save
from second_oracle import is_installed, second_dose

from vmat_diffusion.dose.monte_carlo.engine import SPLIT, Phantom, simulate
from vmat_diffusion.dose.monte_carlo.source import Openings, Source, frames, photon_source
from vmat_diffusion.dose.tissue import MEDIA
from vmat_diffusion.machine import load_machine
from vmat_diffusion.workflow import check_references

ROOT = Path(__file__).resolve().parents[1]
EGSNRC = "EGSnrc on one core of such a computer: 158 to 174 s to 2 % of the maximum."


def water_cube() -> tuple[Phantom, Source]:
    """The set-up: 30 cm of water centred 50 mm behind the isocentre's plane, field 10 x 10 cm2."""
    edges = np.linspace(-150.0, 150.0, 101)
    shape = (100, 100, 100)
    zero = np.zeros(1)
    box = np.array([[-50.0, 50.0, -50.0, 50.0, -50.0, 50.0]])
    openings = Openings(box, np.ones(1), np.zeros(1, np.int64), frames(zero, zero, zero, "HFS"))
    source = photon_source(openings, load_machine("point_source").require_beam(), (0.0, 0.0, 0.0), 1000.0)
    return Phantom(edges, edges + 50.0, edges, np.ones(shape), np.zeros(shape, np.uint8)), source


def lung_slab() -> tuple[Phantom, Source]:
    """The same with lung of 0.26 g/cm3 from 5 to 13 cm depth."""
    phantom, source = water_cube()
    density, medium = phantom.density_g_cm3.copy(), phantom.medium.copy()
    depth_mm = phantom.y_mm[:-1] - phantom.y_mm[0]
    slab = (depth_mm >= 50) & (depth_mm < 130)
    density[:, slab], medium[:, slab] = 0.26, MEDIA.index("lung")
    return replace(phantom, density_g_cm3=density, medium=medium), source


def speed() -> list[dict[str, float | str]]:
    """Histories per processor second and processor seconds to 2 %, by the square-root law, one core and all.

    Two definitions of 2 %, both means over voxels above half of the maximum: of each voxel's dose, and of
    the maximum.
    """
    every, rows = numba.config.NUMBA_NUM_THREADS, []
    for name, (phantom, source) in (("water", water_cube()), ("lung slab", lung_slab())):
        for threads in sorted({1, every}):
            numba.set_num_threads(threads)
            simulate(phantom, source, uncertainty=1.0, max_seconds=0.0, batch_histories=10)
            begun = time.process_time()
            run = simulate(phantom, source, uncertainty=0.005, max_seconds=30.0)
            seconds = time.process_time() - begun
            high = run.gy > 0.5 * np.partition(run.gy, -50, axis=None)[-50]
            of_maximum = float(run.sigma_gy[high].mean() / np.partition(run.gy, -50, axis=None)[-50])
            rows.append(
                {
                    "phantom": name,
                    "threads": threads,
                    "histories_per_s": run.histories / seconds,
                    "to_2_percent_s": seconds * (run.uncertainty / 0.02) ** 2,
                    "to_2_percent_of_maximum_s": seconds * (of_maximum / 0.02) ** 2,
                }
            )
    numba.set_num_threads(every)
    return rows


# For pyRadMC, whose history is one photon without splitting: some minutes.
_ANALOGUE_HISTORIES = 4_000_000


def beside_pyradmc() -> list[dict[str, Any]]:
    """Processor seconds to 2 % on one thread by both codes, and how far their doses differ."""
    if not is_installed():
        print("Monte Carlo: pyradmc and warp-lang are not installed, nothing beside ours", file=sys.stderr)
        return []
    rows = []
    numba.set_num_threads(1)
    for name, slab in (("water", False), ("thin slab", True)):
        phantom, source = water_cube()
        source = source._replace(isotropic=False)
        if slab:
            density = phantom.density_g_cm3.copy()
            density[:, 17:43] = 0.26
            phantom = replace(phantom, density_g_cm3=density)
        simulate(phantom, source, uncertainty=1.0, max_seconds=0.0, batch_histories=10)
        begun = time.process_time()
        ours = simulate(phantom, source, uncertainty=0.02)
        seconds = time.process_time() - begun
        theirs = second_dose(phantom, source, _ANALOGUE_HISTORIES)
        high = ours.gy > 0.5 * np.partition(ours.gy, -50, axis=None)[-50]
        sigma = float((theirs.sigma_gy[high] / theirs.gy[high]).mean())
        other = float(theirs.figures["run"]["cpu_s"]) * (sigma / 0.02) ** 2
        axis, second = (d[46:54, :, 46:54].mean(axis=(0, 2)) for d in (ours.gy, theirs.gy))
        percent = 100 * (axis - second)[5:] / axis.max()
        rows.append(
            {
                "phantom": name,
                "ours_s": seconds * (ours.uncertainty / 0.02) ** 2,
                "pyradmc_s": other,
                "high_dose_ratio": float(ours.gy[high].sum(dtype=float) / theirs.gy[high].sum()),
                "axis_mean_pct": float(percent.mean()),
                "axis_most_pct": float(np.abs(percent).max()),
                "version": theirs.figures["version"],
            }
        )
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    return rows


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about Monte Carlo; none without figures."""
    figures = load("monte_carlo")
    if not figures:
        return
    yield ""
    yield "## Monte Carlo"
    yield ""
    yield f"`python benchmarks/monte_carlo.py`, {figures['date']}."
    yield f"10 x 10 cm2 on a 30 cm cube, 3 mm voxels. A history has {figures['split']} interaction points."
    yield "Seconds are the processor's, all cores together; 2 % is the mean above half of the maximum."
    yield EGSNRC
    yield ""
    yield "| phantom | threads | histories/s | seconds to 2 % of the voxel's dose | to 2 % of the maximum |"
    yield "|---|---:|---:|---:|---:|"
    for row in figures["speed"]:
        yield (
            f"| {row['phantom']} | {row['threads']} | {row['histories_per_s']:,.0f} | "
            f"{row['to_2_percent_s']:.0f} | {row['to_2_percent_of_maximum_s']:.0f} |"
        )
    if peers := figures.get("pyradmc"):
        yield ""
        version = peers[0]["version"]["pyradmc"]
        yield f"Beside pyRadMC {version} (Warp, no variance reduction, analytic cross sections of water): one"
        yield "thread each, processor seconds to 2 % of the voxel's dose, doses per photon, nothing rescaled."
        yield "Axis: over 24 x 24 mm2 beyond 15 mm, percent of the maximum. The slab has 0.26 g/cm3."
        yield ""
        yield "| phantom | ours | pyRadMC | ratio | high dose, ours / theirs | axis, mean | axis, largest |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        for row in peers:
            yield (
                f"| {row['phantom']} | {row['ours_s']:.0f} | {row['pyradmc_s']:.0f} | "
                f"{row['pyradmc_s'] / row['ours_s']:.1f} | {row['high_dose_ratio']:.4f} | "
                f"{row['axis_mean_pct']:+.2f} | {row['axis_most_pct']:.2f} |"
            )
    if cases := figures["cases"]:
        yield ""
        yield "Against EGSnrc, nothing rescaled; differences in percent of the maximum, single voxels for the"
        yield "largest; axis: the worst depth beyond build-up over 12 x 12 mm2. Gamma is global above 10 %,"
        yield "the dose criterion widened in quadrature by one sigma of both doses."
        yield f"Measured with {figures['cases_split']} interaction points."
        yield ""
        yield "| case | mean | largest | axis | gamma 3 %/3 mm | 2 %/2 mm | seconds |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        for case in cases:
            axis = "" if case["cax_diff_pct"] is None else f"{case['cax_diff_pct']:.2f}"
            yield (
                f"| {case['name']} | {case['mean_diff_pct']:+.2f} | {case['max_diff_pct']:.1f} | {axis} | "
                f"{case['gamma_3_3']:.2f} | {case['gamma_2_2']:.2f} | {case['seconds']:.0f} |"
            )


def main() -> None:
    """Measure, keep the figures and print the section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="at most for each reference case")
    parser.add_argument("--only", choices=("speed", "pyradmc", "cases"), default=None)
    given = parser.parse_args()
    minutes, figures = given.minutes, {**load("monte_carlo"), "date": today()}
    if given.only in (None, "speed"):
        figures |= {"speed": speed(), "split": SPLIT}
    if given.only in (None, "pyradmc"):
        figures["pyradmc"] = beside_pyradmc()
    folder = Path(os.environ.get("VMAT_SHARED_DATA", ROOT / ".." / "shared" / "data")) / "reference_dose"
    if given.only not in (None, "cases"):
        pass
    elif folder.is_dir():
        figures["cases_split"] = SPLIT
        figures["cases"] = check_references(folder, uncertainty=0.01, check_minutes=minutes)["cases"]
    else:
        print("Monte Carlo: no reference doses in VMAT_SHARED_DATA, speed only", file=sys.stderr)
        figures["cases"] = []
    save("monte_carlo", figures)
    print("\n".join(section()))


if __name__ == "__main__":
    main()
