"""Quality against MU per Gy as a plot: a row of panels for patients, one for cases of TG-119."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmat_diffusion.lettering import one_line
from vmat_diffusion.report.charts import GRID, INK, LINE, plain_axes, write_png

# A quartile, the median, and the other quartile.
Spread = tuple[float, float, float]
_ROW_IN, _WIDE_IN = 3.4, 11.5


@dataclass(frozen=True)
class Panel:
    """A quantity over MU per Gy, and its unit in curves with and without a clinical dose."""

    title: str
    clinical_unit: str
    own_unit: str


@dataclass(frozen=True)
class CurvePoint:
    """MU per Gy of the plans at a limit, and a value for each panel, None where there is none."""

    limit: str
    mu_per_gy: Spread
    values: tuple[Spread | None, ...]


@dataclass(frozen=True)
class Curve:
    """The points of one case, or of all patients, by limit; `clinical` where there are clinical doses."""

    name: str
    points: tuple[CurvePoint, ...]
    clinical: bool


def write_trade_curves(path: Path, panels: Sequence[Panel], curves: Sequence[Curve]) -> Path:
    """Write the PNG of `trade_curves_figure`."""
    return write_png(path, trade_curves_figure(panels, curves))


def trade_curves_figure(panels: Sequence[Panel], curves: Sequence[Curve]) -> Figure:
    """A column for each panel: curves with clinical doses in the first row, the others in a row of their own.

    Points are medians with quartiles, and each has its limit beside it.
    """
    rows = [own for side in (True, False) if (own := [c for c in curves if c.clinical is side])]
    size = (_WIDE_IN, _ROW_IN * max(len(rows), 1) + 0.3)
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    grid = figure.subplots(max(len(rows), 1), len(panels), squeeze=False)
    for own, line in zip(rows, grid, strict=True):
        for column, (axes, panel) in enumerate(zip(line, panels, strict=True)):
            _draw(axes, panel, column, own)
        if len(own) > 1:
            line[-1].legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
    return figure


def _draw(axes: Axes, panel: Panel, column: int, curves: Sequence[Curve]) -> None:
    plain_axes(axes)
    unit = panel.clinical_unit if curves[0].clinical else panel.own_unit
    for number, curve in enumerate(curves):
        # One row of points for each limit, in ascending order of the MU that plans need.
        found = sorted((p.mu_per_gy, p.values[column], p.limit) for p in curve.points if p.values[column])
        if not found:
            continue
        colour = LINE if len(curves) == 1 else colormaps["tab10"](number)
        x, y = [mu for mu, _, _ in found], [value for _, value, _ in found if value is not None]
        axes.errorbar(
            [mid for _, mid, _ in x],
            [mid for _, mid, _ in y],
            xerr=_bars(x) if curve.clinical else None,
            yerr=_bars(y) if curve.clinical else None,
            color=colour,
            marker="o",
            ms=4.5,
            lw=1.3,
            elinewidth=0.8,
            label=one_line(curve.name),
        )
        if number == 0:
            for (_, across, _), (_, up, _), (_, _, limit) in zip(x, y, found, strict=True):
                axes.annotate(
                    limit,
                    (across, up),
                    xytext=(4, 5),
                    textcoords="offset points",
                    fontsize=8,
                    color=INK,
                )
    name = curves[0].name if len(curves) == 1 else "TG-119"
    axes.set_title(f"{panel.title}, {one_line(name)}", fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel("MU/Gy")
    axes.set_ylabel(unit)
    axes.grid(color=GRID, lw=0.7)


def _bars(spreads: Sequence[Spread]) -> list[list[float]]:
    """The distances of the quartiles from the median, as matplotlib takes them."""
    return [[mid - low for low, mid, _ in spreads], [high - mid for _, mid, high in spreads]]
