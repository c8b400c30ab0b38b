"""Figures of the independent check: where the two engines disagree, and both histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.gamma import GammaResult
from vmat_diffusion.geometry import Point, bounding_box, resample
from vmat_diffusion.report.charts import INK, draw_dvh
from vmat_diffusion.report.content import Shown
from vmat_diffusion.report.planes import draw_letters, window_hu

# Pale where the doses agree, so that what fails stands out; the change of hue is at gamma 1.
_COLOURS = LinearSegmentedColormap.from_list(
    "gamma", [(0.0, "#f2f7f4"), (0.5, "#8fc9a3"), (0.665, "#2f8f5b"), (0.67, "#f4a259"), (1.0, "#a3161c")]
)
_TOP = 1.5
_MARGIN_VOXELS = 6
_PLANES_IN, _TITLE_IN = 9.5, 0.35


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
        axes.plot(gy, percent, color=s.colour, lw=2.0 if s.is_target else 1.2, ls=(0, (4, 2)))
    keys = [
        Line2D([], [], color=INK, lw=1.6, label="planned"),
        Line2D([], [], color=INK, lw=1.6, ls=(0, (4, 2)), label="independent"),
    ]
    figure.legend(handles=keys, loc="lower right", frameon=False, fontsize=8.5, bbox_to_anchor=(0.99, 0.02))
    return figure
