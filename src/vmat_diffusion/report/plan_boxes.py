"""Box plots of plans against clinical doses: every DVH point's difference, patient by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmat_diffusion.files import written_whole
from vmat_diffusion.report.charts import INK, plain_axes, png

# Per structure and DVH point, each patient's difference in Gy.
Differences = Mapping[tuple[str, str], Sequence[float]]
_SIZE_IN = (12.0, 5.6)
_FEWEST_FOR_BOX = 4
_BETTER, _WORSE = "#2f8f5b", "#c0392b"
_BOX = "#1f5f99"


def write_plan_boxes(path: Path, differences: Differences) -> Path:
    """Write the PNG of `plan_boxes_figure`."""
    with written_whole(path) as part:
        part.write_bytes(png(plan_boxes_figure(differences)))
    return path


def plan_boxes_figure(differences: Differences) -> Figure:
    """Plan less clinical dose at matched coverage in Gy: targets to the left, organs to the right.

    Each patient is a point, green where the plan is the better one. Boxes span the quartiles, whiskers 1.5
    times as much; below four patients there are points alone.
    """
    sides = [
        {k: v for k, v in differences.items() if (k[1] in ("D0.1cc", "mean")) is organs}
        for organs in (False, True)
    ]
    patients = max(map(len, differences.values()), default=0)
    figure = Figure(figsize=_SIZE_IN, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=[max(len(side), 1) for side in sides])
    for axes, side, title in zip(panels, sides, ("Targets", "Organs"), strict=True):
        _draw(axes, side)
        axes.set_title(title, fontsize=10, color=INK, loc="left")
    figure.suptitle(
        f"Plan less clinical dose, coverage matched, {patients} patient{'s' * (patients > 1)}: "
        "green points favour the plan",
        fontsize=10.5,
        color=INK,
        x=0.01,
        ha="left",
    )
    return figure


def _draw(axes: Axes, side: Differences) -> None:
    plain_axes(axes)
    axes.axhline(0, color=INK, lw=0.9)
    for column, ((_, metric), values) in enumerate(side.items()):
        gy = np.asarray(values)
        # Of targets D99 and D95 had better be higher, everything else lower.
        better = gy > 0 if metric in ("D99", "D95") else gy < 0
        if gy.size >= _FEWEST_FOR_BOX:
            axes.boxplot(
                gy,
                positions=[column],
                widths=0.62,
                showfliers=False,
                manage_ticks=False,
                boxprops={"color": _BOX},
                whiskerprops={"color": _BOX},
                capprops={"color": _BOX},
                medianprops={"color": INK, "lw": 1.6},
            )
        across = column + (np.linspace(-0.18, 0.18, gy.size) if gy.size > 1 else np.zeros(1))
        axes.scatter(across, gy, s=14, c=np.where(better, _BETTER, _WORSE), alpha=0.75, lw=0, zorder=3)
    labels = [f"{name} {metric}" for name, metric in side]
    axes.set_xticks(range(len(side)), labels, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.7, max(len(side), 1) - 0.3)
    axes.set_ylabel("Gy")
    axes.grid(axis="y", color="#e4e8ec", lw=0.7)
