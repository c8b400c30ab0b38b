"""Volumes and building time of synthetic patients as a table, and the picture of docs/anatomy.md.

python benchmarks/anatomy.py [--patients 20] [--picture docs/images/anatomy.png]
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import matplotlib
import numpy as np

from vmat_diffusion.anatomy import SITES, synthetic_case
from vmat_diffusion.case import Case

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from PIL import Image

SPACING_MM = (4.0, 4.0, 4.0)
# Per site: window in HU, z of two axial planes, x of a sagittal and y of a coronal plane, in mm.
PLANES = {
    "prostate": ((-200, 300), (0, 20), 0, -8),
    "head_neck": ((-250, 450), (-20, 5), 0, 15),
    "lung": ((-1000, 300), (-30, 20), 70, 0),
}
COLOURS = {"target": "#ff5252", "organ": "#58c4ff", "body": "#7bd88f", "other": "#cccccc"}


def volumes(patients: int) -> str:
    """A table of the volumes of all structures: how many have it, least, median and largest."""
    lines = ["| site | structure | in | least | median | largest |", "|---|---|---:|---:|---:|---:|"]
    for site in SITES:
        found: dict[str, list[float]] = {}
        for seed in range(patients):
            case = synthetic_case(site, seed, SPACING_MM)
            for name, structure in case.structures.items():
                found.setdefault(name, []).append(structure.voxels * case.grid.voxel_cc)
        for name, cc in sorted(found.items()):
            row = f"{min(cc):.3g} | {np.median(cc):.3g} | {max(cc):.3g}"
            lines.append(f"| {site} | {name} | {len(cc)} | {row} |")
    return "\n".join(lines)


def seconds(site: str) -> float:
    """Time to build one patient at the default spacing."""
    start = time.perf_counter()
    synthetic_case(site, 0)
    return time.perf_counter() - start


def draw_plane(ax: plt.Axes, case: Case, axis: int, at_mm: float, window: tuple[int, int]) -> None:
    """One plane across an axis (0 = x, 1 = y, 2 = z) with all contours."""
    axes = case.grid.axes_mm
    index = int(np.argmin(np.abs(axes[axis] - at_mm)))
    across, along = [k for k in (0, 1, 2) if k != axis]
    extent = (axes[across][0], axes[across][-1], axes[along][0], axes[along][-1])
    plane = np.take(case.hu, index, axis=2 - axis)
    ax.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, origin="lower")
    for structure in case.structures.values():
        mask = np.take(structure.mask, index, axis=2 - axis)
        if mask.any() and not mask.all():
            ax.contour(
                mask, [0.5], colors=COLOURS[structure.role], linewidths=0.7, extent=extent, origin="lower"
            )
    if axis == 2:
        ax.invert_yaxis()
    ax.set_axis_off()


def picture(path: Path) -> None:
    """Two seeds of every site: an axial plane of each, a sagittal and a coronal one of the second."""
    fig, rows = plt.subplots(len(SITES), 4, figsize=(10, 7), facecolor="black", layout="constrained")
    for row, site in zip(rows, SITES, strict=True):
        window, axial, x, y = PLANES[site]
        first, second = (synthetic_case(site, seed) for seed in (3, 5))
        draw_plane(row[0], first, 2, axial[0], window)
        draw_plane(row[1], second, 2, axial[1], window)
        draw_plane(row[2], second, 0, x, window)
        draw_plane(row[3], second, 1, y, window)
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=90)
    # 48 colours are enough for grey and contours, and a third of the size.
    Image.open(buffer).convert("RGB").quantize(48).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/anatomy.png"))
    arguments = parser.parse_args()
    picture(arguments.picture)
    print(volumes(arguments.patients))
    for site in SITES:
        print(f"{site}: {seconds(site):.1f} s")


if __name__ == "__main__":
    main()
