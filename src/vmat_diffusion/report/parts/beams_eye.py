"""The beam's eye view of an arc as a film strip: leaves, jaws and targets at a number of control points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Case
from vmat_diffusion.geometry import beam_axes, project
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.report.charts import INK, line_style
from vmat_diffusion.report.looks import Look

APERTURE, LEAF, JAW = "#fdf3c8", "#9fb0c0", "#1d2733"
_PANELS, _COLUMNS = 12, 4
_PANEL_IN, _TITLE_IN = 2.7, 0.26
# Room around jaws and targets; the raster of a projected target, and how far its points may lie apart.
_MARGIN_MM, _RASTER_MM = 12.0, 2.0
_POINTS_MAX = 40_000


def chosen_points(arc: Arc) -> NDArray[np.intp]:
    """The control points of the strip: first, last, and between them as evenly as can be."""
    return np.unique(np.rint(np.linspace(0, len(arc.gantry_deg) - 1, _PANELS)).astype(int))


def film_strip(arc: Arc, plan: Plan, machine: Machine, case: Case, targets: Sequence[Look]) -> Figure:
    """The view from the source at `chosen_points`, all to one scale. Cost: about 0.1 s a control point."""
    points = chosen_points(arc)
    surfaces = [_surface(case, target) for target in targets]
    shadows = []
    for k in points:
        axes = beam_axes(float(arc.gantry_deg[k]), arc.collimator_deg, arc.couch_deg, plan.patient_position)
        shadows.append([project(s, axes, plan.isocenter_mm, machine.sad_mm)[:, :2] for s in surfaces])
    left, right, low, high = _window(arc, points, shadows)
    rows = -(-len(points) // _COLUMNS)
    columns = min(_COLUMNS, len(points))
    panel_height = _PANEL_IN * min((high - low) / (right - left), 1.3)
    height = rows * (panel_height + _TITLE_IN)
    figure = Figure(figsize=(_COLUMNS * _PANEL_IN, height), facecolor="white")
    for place, (k, shadow) in enumerate(zip(points, shadows, strict=True)):
        row, column = divmod(place, columns)
        panel = figure.add_axes(
            (
                (column + 0.02) / _COLUMNS,
                1 - ((row + 1) * (panel_height + _TITLE_IN)) / height + 0.02 / rows,
                0.96 / _COLUMNS,
                0.97 * panel_height / height,
            )
        )
        _draw_panel(panel, arc, int(k), machine, list(zip(shadow, targets, strict=True)))
        panel.set(xlim=(left, right), ylim=(low, high), aspect="equal")
    return figure


def _surface(case: Case, target: Look) -> NDArray[np.float64]:
    """Centres of the voxels at the surface of a target, `(n, 3)` in mm."""
    mask = target.structure.mask
    shell = np.flatnonzero(mask & ~ndimage.binary_erosion(mask))
    return case.grid.points_mm(shell[:: max(1, len(shell) // _POINTS_MAX)])


def _window(
    arc: Arc, points: NDArray[np.intp], shadows: Sequence[Sequence[NDArray]]
) -> tuple[float, float, float, float]:
    """Left, right, lower and upper border in mm of what all panels show."""
    jaws = arc.jaws_mm[points]
    u = [
        jaws[:, 0].min(),
        jaws[:, 1].max(),
        *(f(s[:, 0]) for row in shadows for s in row for f in (np.min, np.max)),
    ]
    v = [
        jaws[:, 2].min(),
        jaws[:, 3].max(),
        *(f(s[:, 1]) for row in shadows for s in row for f in (np.min, np.max)),
    ]
    return (
        float(min(u)) - _MARGIN_MM,
        float(max(u)) + _MARGIN_MM,
        float(min(v)) - _MARGIN_MM,
        float(max(v)) + _MARGIN_MM,
    )


def _draw_panel(
    axes: Axes, arc: Arc, k: int, machine: Machine, shadows: Sequence[tuple[NDArray, Look]]
) -> None:
    x1, x2, y1, y2 = arc.jaws_mm[k]
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=APERTURE, edgecolor="none"))
    axes.add_collection(_leaves(arc, k, machine))
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=JAW, lw=1.1))
    for shadow, target in shadows:
        _draw_shadow(axes, shadow, target)
    axes.plot(0, 0, "+", color=INK, ms=7, mew=0.9)
    mu = f", {arc.mu[k]:.2f} MU" if k < len(arc.mu) else ", end"
    title = f"{k}: gantry {arc.gantry_deg[k] % 360:.1f}°{mu}"
    axes.set_title(title, fontsize=8.5, color=INK, loc="left", pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#b4bcc6")


def _leaves(arc: Arc, k: int, machine: Machine) -> PolyCollection:
    """Both banks of all layers as rectangles from far outside to the leaf ends."""
    far, first, shapes = 400.0, 0, []
    for layer in machine.mlc.layers:
        edges = np.asarray(layer.boundaries_mm)
        for pair in range(layer.pairs):
            low, high = edges[pair], edges[pair + 1]
            for end, outside in zip(arc.leaves_mm[k, :, first + pair], (-far, far), strict=True):
                shapes.append([(outside, low), (end, low), (end, high), (outside, high)])
        first += layer.pairs
    return PolyCollection(shapes, facecolors=LEAF, edgecolors="#7e8fa0", linewidths=0.25, alpha=0.8)


def _draw_shadow(axes: Axes, shadow: NDArray, target: Look) -> None:
    """The outline of a projected target, from its points on a raster with the gaps between them closed."""
    if len(shadow) < 3:
        return
    corner = shadow.min(axis=0) - 4 * _RASTER_MM
    cells = np.rint((shadow - corner) / _RASTER_MM).astype(int)
    raster = np.zeros(tuple(cells.max(axis=0) + 5), bool)
    raster[cells[:, 0], cells[:, 1]] = True
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(raster, iterations=2))
    u, v = (corner[a] + _RASTER_MM * np.arange(raster.shape[a]) for a in (0, 1))
    smooth = ndimage.gaussian_filter(filled.T.astype(np.float32), 0.7)
    axes.contour(
        u, v, smooth, levels=[0.5], colors=[target.ink], linewidths=1.5, linestyles=[line_style(target)["ls"]]
    )
