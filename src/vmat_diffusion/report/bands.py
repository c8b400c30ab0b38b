"""Histograms of a predicted dose: the mean as lines, what the samples span as bands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.goals import GoalResult
from vmat_diffusion.files import written_whole
from vmat_diffusion.report.charts import INK, draw_dvh, png
from vmat_diffusion.report.content import shown_structures

_POINTS = 300
_CHOSEN = (0, (4, 2))


def bands_picture(
    path: Path,
    *,
    case: Case,
    mean: Dose,
    samples: Sequence[Dose],
    chosen: int | None,
    results: Sequence[GoalResult] = (),
    prescription: Prescription | None = None,
) -> Path:
    """Write the PNG: the mean dose's histograms, the least and most volume of all samples, the chosen one."""
    shown = shown_structures(case, mean, results, prescription)
    figure = Figure(figsize=(11.0, max(4.6, 0.19 * len(shown) + 1.4)), facecolor="white")
    draw_dvh(figure, shown, prescription)
    axes = figure.axes[0]
    top = axes.get_xlim()[1]
    for s in (s for s in shown if not s.is_body):
        curves = [structure_dvh(dose, s.structure, case.grid).curve(_POINTS, top) for dose in samples]
        if not curves:
            continue
        gy, percent = curves[0][0], np.stack([c[1] for c in curves])
        axes.fill_between(gy, percent.min(axis=0), percent.max(axis=0), color=s.colour, alpha=0.18, lw=0)
        if chosen is not None:
            axes.plot(gy, percent[chosen], color=s.colour, lw=0.9, ls=_CHOSEN)
    keys: list[Line2D | Patch] = [
        Line2D([], [], color=INK, lw=1.6, label="mean" if samples else "regression")
    ]
    if samples:
        keys.append(Patch(color=INK, alpha=0.18, lw=0, label=f"all {len(samples)} samples"))
    if chosen is not None:
        keys.append(Line2D([], [], color=INK, lw=0.9, ls=_CHOSEN, label=f"sample {chosen}, chosen"))
    figure.legend(handles=keys, loc="lower right", frameon=False, fontsize=8.5, bbox_to_anchor=(0.99, 0.02))
    with written_whole(path) as part:
        part.write_bytes(png(figure))
    return path
