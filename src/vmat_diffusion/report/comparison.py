"""Several doses or plans side by side: gamma maps, histograms, box plots and trade-offs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.gamma import GammaResult
from vmat_diffusion.evaluate.goals import GoalResult
from vmat_diffusion.geometry import Point, bounding_box, resample
from vmat_diffusion.lettering import one_line
from vmat_diffusion.report.charts import FAINT, GRID, INK, LIMIT, LINE, draw_dvh, plain_axes, png, write_png
from vmat_diffusion.report.looks import Shown, shown_structures
from vmat_diffusion.report.planes import draw_letters, window_hu

# Pale where the doses agree, so that what fails stands out; the change of hue is at gamma 1.
_COLOURS = LinearSegmentedColormap.from_list(
    "gamma", [(0.0, "#f2f7f4"), (0.5, "#8fc9a3"), (0.665, "#2f8f5b"), (0.67, "#f4a259"), (1.0, "#a3161c")]
)
_TOP = 1.5
_MARGIN_VOXELS = 6
_PLANES_IN, _TITLE_IN = 9.5, 0.35
# Per structure and DVH point, each patient's difference in Gy.
Differences = Mapping[tuple[str, str], Sequence[float]]
_BOXES_IN, _FEWEST_FOR_BOX, _BETTER = (12.0, 5.6), 4, "#2f8f5b"
_TRADE_OFF_COLUMNS, _PANEL_IN = 4, (3.0, 2.5)
_POINTS, _DASHED = 300, (0, (4, 2))


def gamma_figure(case: Case, result: GammaResult, point_mm: Point) -> Figure:
    """Axial, coronal and sagittal planes of the gamma map through a point, over the CT.

    The planes are those of the map's own grid nearest to the point; targets are outlined.
    """
    grid = result.grid
    hu = resample(case.hu, case.grid, grid, fill=-1000.0)
    targets = [resample(t.mask.astype(np.float32), case.grid, grid) for t in case.targets if t.mask.any()]
    low, high = _region(~np.isnan(result.map))
    at = np.rint(grid.index(np.array(point_mm))).astype(int)
    size = [(h - lo) * step for lo, h, step in zip(low, high, grid.spacing_mm[::-1], strict=True)]
    inch_per_mm = _PLANES_IN / (2 * size[2] + size[1])
    height_in = max(size[0], size[1]) * inch_per_mm + _TITLE_IN
    figure = Figure(figsize=(11.0, height_in), facecolor="white")
    panels = figure.subplots(1, 3, width_ratios=(size[2], size[2], size[1]))
    figure.subplots_adjust(left=0.01, right=0.9, top=1 - _TITLE_IN / height_in, bottom=0.01, wspace=0.04)
    for axes, title, axis in zip(panels, ("Axial", "Coronal", "Sagittal"), (0, 1, 2), strict=True):
        k = int(np.clip(at[axis], 0, grid.shape[axis] - 1))
        across, up = (a for a in (2, 1, 0) if a != axis)
        box = tuple(k if a == axis else slice(low[a], high[a]) for a in range(3))
        aspect = grid.spacing_mm[2 - up] / grid.spacing_mm[2 - across]
        image = _draw_layer(
            axes,
            hu[box],
            result.map[box],
            [t[box] for t in targets],
            window_hu(case),
            # Slices ascend towards the head, which belongs on top; rows of an axial plane run downwards.
            origin="upper" if axis == 0 else "lower",
            aspect=aspect,
        )
        draw_letters(axes, 2 - axis)
        where = grid.axes_mm[2 - axis][k]
        axes.set_title(f"{title}, {'zyx'[axis]} = {where:.1f} mm", fontsize=9.5, color=INK, loc="left", pad=4)
    bar = figure.colorbar(image, cax=figure.add_axes((0.92, 0.1, 0.014, 0.74)), ticks=[0, 0.5, 1.0, 1.5])
    bar.ax.set_yticklabels(["0", "0.5", "1", "1.5 +"], fontsize=8.5, color=INK)
    bar.ax.set_title("gamma", fontsize=8.5, color=INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _region(compared: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Index corners of what was compared, with a margin."""
    box = bounding_box(compared) or tuple(slice(0, n) for n in compared.shape)
    low = [max(part.start - _MARGIN_VOXELS, 0) for part in box]
    high = [min(part.stop + _MARGIN_VOXELS, n) for part, n in zip(box, compared.shape, strict=True)]
    return low, high


def _draw_layer(
    axes: Axes,
    hu: NDArray,
    values: NDArray,
    targets: Sequence[NDArray],
    window: tuple[float, float],
    *,
    origin: Literal["upper", "lower"],
    aspect: float,
) -> AxesImage:
    """The CT of a layer in its window, the gamma map over it, and the outlines of the targets."""
    axes.imshow(hu, cmap="gray", vmin=window[0], vmax=window[1], origin=origin, aspect=aspect)
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=_COLOURS,
        vmin=0.0,
        vmax=_TOP,
        alpha=0.8,
        origin=origin,
        aspect=aspect,
        interpolation="nearest",
    )
    for mask in targets:
        if mask.max() > 0.5 > mask.min():
            axes.contour(mask, levels=[0.5], colors=[INK], linewidths=1.2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return image


def both_dvh_figure(
    shown: Sequence[Shown], case: Case, check: Dose, prescription: Prescription | None
) -> Figure:
    """The planned dose's histograms solid, the independent engine's dashed, in the same colours."""
    figure = Figure(figsize=(11.0, max(4.6, 0.19 * len(shown) + 1.0)), facecolor="white")
    solid = [Shown(s.structure, s.colour, 0, s.dvh) for s in shown]
    draw_dvh(figure, solid, prescription)
    axes = figure.axes[0]
    top = axes.get_xlim()[1]
    for s in solid:
        if s.is_body:
            continue
        gy, percent = structure_dvh(check, s.structure, case.grid).curve(500, top)
        axes.plot(gy, percent, color=s.colour, lw=2.0 if s.is_target else 1.2, ls=_DASHED)
    keys = [
        Line2D([], [], color=INK, lw=1.6, label="planned"),
        Line2D([], [], color=INK, lw=1.6, ls=_DASHED, label="independent"),
    ]
    _draw_keys(figure, keys)
    return figure


def _draw_keys(figure: Figure, keys: Sequence[Artist]) -> None:
    """What the kinds of lines mean, below the legend of the structures."""
    figure.legend(handles=keys, loc="lower right", frameon=False, fontsize=8.5, bbox_to_anchor=(0.99, 0.02))


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
            axes.plot(gy, percent[chosen], color=s.colour, lw=0.9, ls=_DASHED)
    keys: list[Artist] = [Line2D([], [], color=INK, lw=1.6, label="mean" if samples else "regression")]
    if samples:
        keys.append(
            Patch(color=INK, alpha=0.18, lw=0, label=f"all {len(samples)} samples, not an uncertainty")
        )
    if chosen is not None:
        keys.append(Line2D([], [], color=INK, lw=0.9, ls=_DASHED, label=f"sample {chosen}, chosen"))
    _draw_keys(figure, keys)
    return write_png(path, figure)


def write_plan_boxes(path: Path, differences: Differences) -> Path:
    """Write the PNG of `plan_boxes_figure`."""
    return write_png(path, plan_boxes_figure(differences))


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
    figure = Figure(figsize=_BOXES_IN, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=[max(len(side), 1) for side in sides])
    for axes, side, title in zip(panels, sides, ("Targets", "Organs"), strict=True):
        _draw_boxes(axes, side)
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


def _draw_boxes(axes: Axes, side: Differences) -> None:
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
                boxprops={"color": LINE},
                whiskerprops={"color": LINE},
                capprops={"color": LINE},
                medianprops={"color": INK, "lw": 1.6},
            )
        across = column + (np.linspace(-0.18, 0.18, gy.size) if gy.size > 1 else np.zeros(1))
        axes.scatter(across, gy, s=14, c=np.where(better, _BETTER, LIMIT), alpha=0.75, lw=0, zorder=3)
    labels = [one_line(f"{name} {metric}") for name, metric in side]
    axes.set_xticks(range(len(side)), labels, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.7, max(len(side), 1) - 0.3)
    axes.set_ylabel("Gy")
    axes.grid(axis="y", color=GRID, lw=0.7)


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
    columns = min(_TRADE_OFF_COLUMNS, max(len(panels), 2))
    rows = max(math.ceil(len(panels) / columns), 1)
    size = (_PANEL_IN[0] * columns, _PANEL_IN[1] * rows + 0.5 + 0.2 * len(names))
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for own, panel in zip(axes, panels, strict=False):
        _draw_panel(own, panel, coverage_percent, complete)
    for own in axes[len(panels) :]:
        own.set_visible(False)
    keys = [
        _point(done, label=f"{k}  {one_line(name)}" + ("" if done else ", not complete"))
        for k, (name, done) in enumerate(zip(names, complete, strict=True), start=1)
    ]
    keys.append(Line2D([], [], color=LIMIT, lw=0.9, ls=(0, (4, 3)), label="limit of the goal"))
    figure.legend(handles=keys, loc="outside upper left", frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _draw_panel(
    axes: Axes, panel: Panel, coverage_percent: Sequence[float | None], complete: Sequence[bool]
) -> None:
    plain_axes(axes)
    axes.axvline(panel.limit, color=LIMIT, lw=0.9, ls=(0, (4, 3)))
    axes.axhline(100, color=FAINT, lw=0.7, ls=(0, (2, 3)))
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
    fill = LINE if done else "white"
    return Line2D(x, y, ls="", marker="o", ms=6, mfc=fill, mec=LINE, label=label)
