"""Planes of a plan: CT, dose, isodoses and contours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.evaluate.goals import GoalResult
from vmat_diffusion.geometry import Grid, Point, mask_bounds_mm, subgrid
from vmat_diffusion.lettering import legend_label
from vmat_diffusion.plan import Plan
from vmat_diffusion.report.charts import INK, draw_dvh, line_style, write_png
from vmat_diffusion.report.document import Key
from vmat_diffusion.report.looks import Look, Shown, ShownDose, shown_dose

ISODOSE_PERCENT = (30, 50, 70, 80, 90, 95, 100, 105, 107)
_ISODOSE_COLOURS = (
    "#3b4cc0",
    "#2f86e0",
    "#18b4d8",
    "#1cbf8c",
    "#6cc832",
    "#d4dc2a",
    "#ffc400",
    "#ff8000",
    "#e8114f",
)
_WINDOW_HU = (-260.0, 340.0)
_LUNG_WINDOW_HU = (-1000.0, 300.0)
_REGION_SHARE = 0.25
_MARGIN_MM = 25.0
_RIM_MM = 6.0
_WIDTH_IN = 13.0
_KEYS_IN = 2.35
_KEY_ROW_IN = 0.155
_ISODOSE_KEYS_IN = 1.85
_PLANE_HEIGHT_IN = 5.6
_TITLE_IN = 0.3
_GAP_IN = 0.12
# A zoomed plane: its width, what lies around the targets, and the sides that it may have to each other.
_ZOOM_IN = 8.1
_ZOOM_MARGIN_MM = 28.0
_ZOOM_RATIO = (0.62, 0.9)


def plan_picture(
    path: str | Path,
    *,
    case: Case,
    plan: Plan,
    dose: Dose,
    results: Sequence[GoalResult] = (),
    prescription: Prescription | None = None,
) -> Path:
    """Write one PNG with three planes through the isocentre and the DVH.

    `prescription` is the case's own where it is not given.
    """
    prescription = prescription or case.prescription
    shown = shown_dose(case, dose, results, prescription)
    heights = (_planes_height_in(shown), 4.4)
    figure = Figure(figsize=(_WIDTH_IN, sum(heights)), facecolor="white")
    rows = figure.add_gridspec(2, 1, height_ratios=heights, left=0, right=1, bottom=0, top=1, hspace=0)
    top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    _draw_planes(top, shown, plan.isocenter_mm)
    draw_dvh(bottom, shown.structures, prescription)
    return write_png(Path(path), figure, dpi=110)


def planes_figure(shown: ShownDose, point_mm: Point, *, mark: str = "+") -> Figure:
    """Axial, coronal and sagittal planes through a point: CT, dose wash, isodoses, contours.

    All three have one scale. `mark` is drawn at the point. Letters are the patient's own directions, since
    the frame is the patient's, whatever the position on the couch.
    """
    figure = Figure(figsize=(_WIDTH_IN, _planes_height_in(shown)), facecolor="white")
    _draw_planes(figure, shown, point_mm, mark=mark)
    return figure


def zoomed_figure(shown: ShownDose, point_mm: Point, axis: int, *, mark: str = "+") -> Figure:
    """One plane through a point across `axis` (0 = x, 1 = y, 2 = z), zoomed to the targets.

    Isodoses lie over thin contours and bear their percent, so that both can be told apart beside a target.
    """
    across, up = (k for k in (0, 1, 2) if k != axis)
    low, high = _zoom(shown, point_mm)
    width, height = high[across] - low[across], high[up] - low[up]
    # The shorter side grows until the picture is neither a strip nor a tower.
    ratio = min(max(height / width, _ZOOM_RATIO[0]), _ZOOM_RATIO[1])
    size = max(width, height / ratio), max(height, width * ratio)
    middle = (low[across] + high[across]) / 2, (low[up] + high[up]) / 2
    total_in = _ZOOM_IN * size[1] / size[0] + _TITLE_IN
    figure = Figure(figsize=(_ZOOM_IN, total_in), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1 - _TITLE_IN / total_in))
    plane = plane_at(shown.case.grid, point_mm, axis)
    draw_ct(axes, shown.case, plane)
    gy = np.squeeze(shown.dose.on(plane.grid), 2 - axis)
    draw_contours(axes, shown.structures, plane, thin=True)
    _draw_isodoses(axes, *plane.coordinates_mm, gy, shown.reference_gy, labels=True)
    axes.plot(point_mm[across], point_mm[up], mark, color="white", ms=11, mew=1.4)
    axes.set_xlim(middle[0] - size[0] / 2, middle[0] + size[0] / 2)
    bottom, top = middle[1] - size[1] / 2, middle[1] + size[1] / 2
    axes.set_ylim(*((top, bottom) if axis == 2 else (bottom, top)))
    draw_letters(axes, axis)
    _draw_scale(axes)
    name = {2: "Axial", 1: "Coronal", 0: "Sagittal"}[axis]
    where = f"{name}, {'xyz'[axis]} = {point_mm[axis]:.1f} mm"
    axes.set_title(where, fontsize=11, color=INK, loc="left", pad=5)
    return figure


def _zoom(shown: ShownDose, point_mm: Point) -> tuple[NDArray, NDArray]:
    """Corners `(x, y, z)` in mm around the targets and the point; without targets those of `_region`."""
    case = shown.case
    found = [mask_bounds_mm(s.mask, case.grid) for s in case.targets if s.mask.any()]
    if not found:
        low, high = _region(shown)
        return np.asarray(low), np.asarray(high)
    point = np.asarray(point_mm)
    low_mm = np.minimum(np.min([c[0] for c in found], axis=0) - _ZOOM_MARGIN_MM, point - _ZOOM_MARGIN_MM / 2)
    high_mm = np.maximum(np.max([c[1] for c in found], axis=0) + _ZOOM_MARGIN_MM, point + _ZOOM_MARGIN_MM / 2)
    return low_mm, high_mm


def _draw_scale(axes: Axes) -> None:
    """A bar of 20 mm at the lower left."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    x, y = left + 0.03 * (right - left), bottom + 0.03 * (top - bottom)
    around = [Stroke(linewidth=4, foreground="black"), Normal()]
    axes.plot([x, x + 20.0], [y, y], color="white", lw=2, solid_capstyle="butt", path_effects=around)
    axes.text(
        x,
        y + 0.012 * (top - bottom),
        "20 mm",
        color="white",
        fontsize=8.5,
        va="bottom",
        path_effects=[Stroke(linewidth=2, foreground="black"), Normal()],
    )


def isodose_keys(reference_gy: float) -> tuple[Key, ...]:
    """What the colours of isodoses mean, the highest first."""
    pairs = reversed(list(zip(ISODOSE_PERCENT, _ISODOSE_COLOURS, strict=True)))
    return tuple(Key(f"{p} % = {p / 100 * reference_gy:.1f} Gy", colour, "area") for p, colour in pairs)


def structure_keys(shown: Sequence[Look]) -> tuple[Key, ...]:
    """What the colours of contours mean."""
    return tuple(Key(s.name, s.colour, "broken" if s.repeat else "line") for s in shown)


def _planes_scale(shown: ShownDose) -> tuple[list[float], list[float], float]:
    """Corners of the drawn region in mm, and inches per mm, so that the three planes fill the width."""
    low, high = _region(shown)
    x, y, z = (h - lo for lo, h in zip(low, high, strict=True))
    room = _WIDTH_IN - _KEYS_IN - 3 * _GAP_IN
    return low, high, min(room / (2 * x + y), _PLANE_HEIGHT_IN / max(y, z))


def _planes_height_in(shown: ShownDose) -> float:
    low, high, scale = _planes_scale(shown)
    tallest = max(high[1] - low[1], high[2] - low[2]) * scale
    keys = _ISODOSE_KEYS_IN + 0.35 + _KEY_ROW_IN * min(len(shown.structures), 12)
    return max(tallest + _TITLE_IN + _GAP_IN, keys)


def _draw_planes(figure: Figure | SubFigure, shown: ShownDose, point_mm: Point, *, mark: str = "+") -> None:
    low, high, scale = _planes_scale(shown)
    height_in = _planes_height_in(shown)
    left_in = _GAP_IN / 2
    seen: set[str] = set()
    for name, axis in (("Axial", 2), ("Coronal", 1), ("Sagittal", 0)):
        across, up = (k for k in (0, 1, 2) if k != axis)
        size = (high[across] - low[across]) * scale, (high[up] - low[up]) * scale
        bottom_in = height_in - _TITLE_IN - size[1]
        axes = figure.add_axes(
            (left_in / _WIDTH_IN, bottom_in / height_in, size[0] / _WIDTH_IN, size[1] / height_in)
        )
        seen |= _draw_plane(axes, shown, point_mm, axis, mark=mark)
        axes.set_xlim(low[across], high[across])
        axes.set_ylim(*((high[up], low[up]) if axis == 2 else (low[up], high[up])))
        where = f"{'xyz'[axis]} = {point_mm[axis]:.1f} mm"
        axes.set_title(f"{name}, {where}", fontsize=9.5, color=INK, loc="left", pad=4)
        left_in += size[0] + _GAP_IN
    keys = figure.add_axes((left_in / _WIDTH_IN, 0.0, 1 - left_in / _WIDTH_IN, 1 - 0.06 / height_in))
    keys.set_axis_off()
    cut = [s for s in shown.structures if s.name in seen]
    _draw_keys(keys, cut, shown.reference_gy, height_in)


def window_hu(case: Case) -> tuple[float, float]:
    """The CT window of the planes: soft tissue, or wide enough for lungs in the thorax."""
    return _LUNG_WINDOW_HU if case.site in ("lung", "esophagus", "thorax", "breast") else _WINDOW_HU


def _region(shown: ShownDose) -> tuple[list[float], list[float]]:
    """Corners `(x, y, z)` in mm of what is drawn: where dose matters and the targets, within the body."""
    case, dose = shown.case, shown.dose
    irradiated = dose.gy >= _REGION_SHARE * shown.reference_gy
    drawn = [(s.mask, case.grid) for s in case.targets] + [(irradiated, dose.grid)]
    found = [mask_bounds_mm(mask, grid) for mask, grid in drawn if mask.any()]
    body = case.body.mask
    low, high = mask_bounds_mm(body, case.grid) if body.any() else case.grid.bounds_mm
    if found:
        low = np.maximum(low, np.min([c[0] for c in found], axis=0) - _MARGIN_MM)
        high = np.minimum(high, np.max([c[1] for c in found], axis=0) + _MARGIN_MM)
    grid_low, grid_high = case.grid.bounds_mm
    return (
        list(np.maximum(np.asarray(low) - _RIM_MM, grid_low)),
        list(np.minimum(np.asarray(high) + _RIM_MM, grid_high)),
    )


def _draw_plane(axes: Axes, shown: ShownDose, point_mm: Point, axis: int, *, mark: str) -> set[str]:
    """Draw one plane across `axis` (0 = x, 1 = y, 2 = z); returns the structures that it cuts."""
    dose = shown.dose
    plane = plane_at(shown.case.grid, point_mm, axis)
    draw_ct(axes, shown.case, plane)
    gy = np.squeeze(dose.on(plane.grid), 2 - axis)
    _draw_isodoses(axes, *plane.coordinates_mm, gy, shown.reference_gy)
    seen = draw_contours(axes, shown.structures, plane)
    across, up = plane.in_plane
    axes.plot(point_mm[across], point_mm[up], mark, color="white", ms=9, mew=1.2)
    draw_letters(axes, axis)
    return seen


@dataclass(frozen=True, eq=False)
class Plane:
    """One layer of a grid across x, y or z (0, 1, 2), the slices that cut it out, and its own grid."""

    axis: int
    box: tuple[slice, ...]
    grid: Grid

    @property
    def in_plane(self) -> tuple[int, int]:
        """The axes to the right and upwards."""
        across, up = (k for k in (0, 1, 2) if k != self.axis)
        return across, up

    @property
    def coordinates_mm(self) -> tuple[NDArray, NDArray]:
        """Voxel centres to the right and upwards."""
        across, up = self.in_plane
        return self.grid.axes_mm[across], self.grid.axes_mm[up]

    @property
    def extent_mm(self) -> tuple[float, float, float, float]:
        """Left, right, lower and upper border."""
        (low, high), (across, up) = self.grid.bounds_mm, self.in_plane
        return low[across], high[across], low[up], high[up]

    def of(self, values: NDArray) -> NDArray:
        """The layer of a volume on the whole grid."""
        return np.squeeze(values[self.box], 2 - self.axis)


def plane_at(grid: Grid, point_mm: Point, axis: int) -> Plane:
    """The layer of voxels across an axis that is nearest to a point."""
    size = grid.shape[::-1][axis]
    index = int(np.clip(round((point_mm[axis] - grid.origin_mm[axis]) / grid.spacing_mm[axis]), 0, size - 1))
    box = tuple(slice(index, index + 1) if 2 - a == axis else slice(0, grid.shape[a]) for a in range(3))
    return Plane(axis, box, subgrid(grid, box))


def draw_ct(axes: Axes, case: Case, plane: Plane) -> None:
    """The CT of a plane on black, without ticks."""
    low, high = window_hu(case)
    axes.imshow(
        plane.of(case.hu),
        cmap="gray",
        vmin=low,
        vmax=high,
        extent=plane.extent_mm,
        origin="lower",
        interpolation="bilinear",
    )
    axes.set_aspect("equal")
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def draw_contours(axes: Axes, shown: Sequence[Look], plane: Plane, *, thin: bool = False) -> set[str]:
    """Outlines of the structures in a plane; returns the names of those that it cuts."""
    seen = set()
    # A dark rim keeps a contour apart from an isodose of like colour.
    halo = [] if thin else [Stroke(linewidth=3.2, foreground="#00000090"), Normal()]
    for s in shown:
        mask = plane.of(s.structure.mask)
        if not mask.any():
            continue
        seen.add(s.name)
        style = line_style(s)
        axes.contour(
            *plane.coordinates_mm,
            mask.astype(np.float32),
            levels=[0.5],
            colors=[s.colour],
            linewidths=0.8 if s.is_body else (1.7, 1.3)[thin] + (0.3 if s.is_target else -0.2),
            linestyles=[style["ls"]],
        ).set_path_effects([] if s.is_body else halo)
    return seen


def _draw_isodoses(
    axes: Axes, x: NDArray, y: NDArray, gy: NDArray, reference: float, *, labels: bool = False
) -> None:
    levels = [p / 100 * reference for p in ISODOSE_PERCENT]
    top = float(gy.max())
    if top <= levels[0]:
        return
    bands = [*levels, max(top, levels[-1]) * 1.01 + 1e-6]
    wash = 0.2 if labels else 0.28
    axes.contourf(x, y, gy, levels=bands, colors=_ISODOSE_COLOURS, alpha=wash, antialiased=True)
    present = [i for i, level in enumerate(levels) if level < top]
    lines = axes.contour(
        x,
        y,
        gy,
        levels=[levels[i] for i in present],
        colors=[_ISODOSE_COLOURS[i] for i in present],
        linewidths=1.3 if labels else 0.8,
    )
    if labels:
        lines.set_path_effects([Stroke(linewidth=2.3, foreground="#000000a0"), Normal()])
        named = {levels[i]: str(ISODOSE_PERCENT[i]) for i in present}
        for text in axes.clabel(lines, fmt=named, fontsize=9.5, inline_spacing=2, colors="white"):
            text.set_path_effects([Stroke(linewidth=2.4, foreground="black"), Normal()])


def draw_letters(axes: Axes, axis: int) -> None:
    """The patient's directions at the four borders of a plane across x, y or z (0, 1, 2)."""
    places = (
        (0.015, 0.5, "left", "center"),
        (0.985, 0.5, "right", "center"),
        (0.5, 0.985, "center", "top"),
        (0.5, 0.015, "center", "bottom"),
    )
    letters = {2: ("R", "L", "A", "P"), 1: ("R", "L", "H", "F"), 0: ("A", "P", "H", "F")}[axis]
    for (x, y, ha, va), letter in zip(places, letters, strict=True):
        axes.text(
            x,
            y,
            letter,
            ha=ha,
            va=va,
            color="#f2d34f",
            fontsize=10,
            fontweight="bold",
            transform=axes.transAxes,
            path_effects=[Stroke(linewidth=2, foreground="black"), Normal()],
        )


def _draw_keys(axes: Axes, shown: Sequence[Shown], reference: float, height_in: float) -> None:
    isodoses = [
        Patch(facecolor=colour, label=f"{percent} %   {percent / 100 * reference:.1f} Gy")
        for percent, colour in reversed(list(zip(ISODOSE_PERCENT, _ISODOSE_COLOURS, strict=True)))
    ]
    style: dict[str, Any] = {
        "frameon": False,
        "alignment": "left",
        "labelspacing": 0.3,
        "labelcolor": INK,
        "loc": "upper left",
    }
    first = axes.legend(
        handles=isodoses,
        title=f"Isodoses, 100 % = {reference:g} Gy",
        bbox_to_anchor=(0.0, 1.0),
        fontsize=8,
        title_fontsize=8.5,
        **style,
    )
    axes.add_artist(first)
    columns = 1 if len(shown) <= 12 else 2
    axes.legend(
        handles=[Line2D([], [], label=legend_label(s.name), **line_style(s)) for s in shown],
        title="Structures",
        bbox_to_anchor=(0.0, 1.0 - _ISODOSE_KEYS_IN / height_in),
        fontsize=8 if columns == 1 else 7,
        title_fontsize=8.5,
        ncols=columns,
        columnspacing=1.0,
        handlelength=1.8,
        **style,
    )
