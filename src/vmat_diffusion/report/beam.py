"""The picture of a beam fit: scans as points, model as lines, residuals below."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vmat_diffusion.commissioning.beam_fit import Scan
from vmat_diffusion.report.charts import INK, png

_PROFILE_DEPTHS = 3


def beam_fit_png(scan: Scan, dose: NDArray) -> bytes:
    """Depth doses and profiles of every field with the model's doses `dose[points]`, as PNG.

    Doses in percent of the reference dose, residuals in percent of it too.
    """
    figure = Figure(figsize=(12.0, 7.2), facecolor="white", layout="constrained")
    grid = figure.subplots(2, 2, height_ratios=(3, 1), sharex="col")
    sides = np.unique(scan.side_mm)
    shades = np.linspace(0.15, 0.9, len(sides))
    for side, shade in zip(sides, shades, strict=True):
        color = colormaps["viridis"](shade)
        label = f"{side / 10:g} x {side / 10:g} cm"
        own = (scan.side_mm == side) & (scan.kind == 0)
        _pair(grid[:, 0], scan.depth_mm[own], scan.dose[own], dose[own], color=color, label=label)
        depths = np.unique(scan.depth_mm[(scan.side_mm == side) & (scan.kind == 1)])
        for depth in (
            depths[np.linspace(0, len(depths) - 1, _PROFILE_DEPTHS).astype(int)] if len(depths) else ()
        ):
            at = (scan.side_mm == side) & (scan.kind == 1) & (scan.depth_mm == depth)
            order = np.argsort(scan.x_mm[at])
            columns = (scan.x_mm[at][order], scan.dose[at][order], dose[at][order])
            _pair(grid[:, 1], *columns, color=color)
    for column, along in ((0, "depth, mm"), (1, "off axis, mm")):
        grid[0, column].set_ylabel("dose, % of the reference point")
        grid[1, column].set_ylabel("model - scan, %")
        grid[1, column].set_xlabel(along, color=INK)
        grid[1, column].set_ylim(-3, 3)
        grid[1, column].axhline(0, color=INK, lw=0.6)
    grid[0, 0].set_title("Depth doses: points measured, lines model")
    grid[0, 1].set_title("Profiles, shallow to deep")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return png(figure)


def _pair(
    axes: NDArray,
    at: NDArray,
    measured: NDArray,
    model: NDArray,
    *,
    color: tuple,
    label: str | None = None,
) -> None:
    upper: Axes = axes[0]
    lower: Axes = axes[1]
    upper.plot(at, 100 * measured, ".", ms=2, color=color)
    upper.plot(at, 100 * model, "-", lw=0.9, color=color, label=label)
    lower.plot(at, 100 * (model - measured), "-", lw=0.6, color=color)
