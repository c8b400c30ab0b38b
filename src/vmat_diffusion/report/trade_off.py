"""The plot of a trade-off: target coverage against the dose of each organ, a point for each plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vmat_diffusion.report.charts import INK, plain_axes, png

_COLUMNS, _PANEL_IN = 4, (3.0, 2.5)
_COLOUR, _LIMIT = "#1f5f99", "#c0392b"


@dataclass(frozen=True)
class Panel:
    """A goal on an organ and what each plan reaches, None where it could not be evaluated."""

    title: str
    unit: str
    limit: float
    values: tuple[float | None, ...]


def trade_off_png(
    names: Sequence[str],
    coverage_percent: Sequence[float | None],
    complete: Sequence[bool],
    panels: Sequence[Panel],
) -> bytes:
    """The plot as PNG; plans are numbered from 1, those that are not `complete` are hollow."""
    return png(trade_off_figure(names, coverage_percent, complete, panels))


def trade_off_figure(
    names: Sequence[str],
    coverage_percent: Sequence[float | None],
    complete: Sequence[bool],
    panels: Sequence[Panel],
) -> Figure:
    """The figure of `trade_off_png`: a panel for each organ's goal, better is up and left."""
    columns = min(_COLUMNS, max(len(panels), 2))
    rows = max(math.ceil(len(panels) / columns), 1)
    size = (_PANEL_IN[0] * columns, _PANEL_IN[1] * rows + 0.5 + 0.2 * len(names))
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for own, panel in zip(axes, panels, strict=False):
        _draw(own, panel, coverage_percent, complete)
    for own in axes[len(panels) :]:
        own.set_visible(False)
    keys = [
        _point(done, label=f"{k}  {name}" + ("" if done else ", not complete"))
        for k, (name, done) in enumerate(zip(names, complete, strict=True), start=1)
    ]
    keys.append(Line2D([], [], color=_LIMIT, lw=0.9, ls=(0, (4, 3)), label="limit of the goal"))
    figure.legend(handles=keys, loc="outside upper left", frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _draw(
    axes: Axes, panel: Panel, coverage_percent: Sequence[float | None], complete: Sequence[bool]
) -> None:
    plain_axes(axes)
    axes.axvline(panel.limit, color=_LIMIT, lw=0.9, ls=(0, (4, 3)))
    axes.axhline(100, color="#6b7785", lw=0.7, ls=(0, (2, 3)))
    for k, (x, y, done) in enumerate(zip(panel.values, coverage_percent, complete, strict=True), start=1):
        if x is None or y is None:
            continue
        axes.add_line(_point(done, [x], [y]))
        axes.annotate(str(k), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.margins(0.12)
    axes.autoscale_view()
    axes.set_title(panel.title, fontsize=8.5, color=INK, loc="left")
    axes.set_xlabel(panel.unit)
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("Least covered target,\n% of its goal")


def _point(done: bool, x: Sequence[float] = (), y: Sequence[float] = (), label: str = "") -> Line2D:
    fill = _COLOUR if done else "white"
    return Line2D(x, y, ls="", marker="o", ms=6, mfc=fill, mec=_COLOUR, label=label)
