"""A training case at a glance: three planes with CT, contours and dose, as one small PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageOps

from vmat_diffusion.case import prescription_text
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.dataset.prepare import target_middle_mm
from vmat_diffusion.files import written_whole
from vmat_diffusion.geometry import mask_bounds_mm
from vmat_diffusion.lettering import legend_label
from vmat_diffusion.report.charts import INK, line_style, png
from vmat_diffusion.report.looks import Look, looks, reference_gy
from vmat_diffusion.report.planes import Plane, draw_contours, draw_ct, draw_letters, plane_at

_DPI = 100
_WIDTH_IN = 12.0
_PLANES_IN = (3.1, 4.6)  # least and most height of the planes
_TITLE_IN, _CAPTION_IN, _GAP_IN = 0.32, 0.22, 0.08
_BAR_IN, _KEYS_IN = 0.95, 1.5
_RIM_MM = 8.0
# Dose below this share is not drawn: it would veil the CT everywhere.
_LEAST_PERCENT, _MOST_PERCENT = 10.0, 110.0
_KEYS_MOST = 24


def case_picture(path: Path, training: TrainingCase) -> Path:
    """Write the PNG of a case: planes through the middle of its targets, as far as the body reaches.

    Dose is in percent of the highest prescription, or of the maximum where none is known. Cost: 0.7 s.
    """
    case = training.case
    middle = target_middle_mm(case)
    shown = looks(case, prescription=case.prescription)
    low, high = _region(training)
    size_x, size_y, size_z = (b - a for a, b in zip(low, high, strict=True))
    room = _WIDTH_IN - _KEYS_IN - _BAR_IN - 4 * _GAP_IN
    scale = min(room / (2 * size_x + size_y), _PLANES_IN[1] / max(size_y, size_z))
    planes_in = max(scale * max(size_y, size_z), _PLANES_IN[0])
    figure = Figure(figsize=(_WIDTH_IN, _TITLE_IN + _CAPTION_IN + planes_in + _GAP_IN), facecolor="white")
    height_in = figure.get_figheight()
    figure.text(
        0.008, 1 - 0.6 * _TITLE_IN / height_in, _title(training), fontsize=9.5, color=INK, va="center"
    )
    left, seen = _GAP_IN, set[str]()
    for name, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        plane = plane_at(case.grid, middle, axis)
        across, up = plane.in_plane
        width, height = (high[across] - low[across]) * scale, (high[up] - low[up]) * scale
        axes = _place(figure, left, _GAP_IN + planes_in - height, width, height)
        seen |= _draw_plane(axes, training, shown, plane)
        axes.set_xlim(low[across], high[across])
        axes.set_ylim(*((high[up], low[up]) if axis == 2 else (low[up], high[up])))
        title = f"{name}, {'xyz'[axis]} = {middle[axis]:.0f} mm"
        axes.set_title(title, fontsize=8.5, color=INK, loc="left", pad=3)
        left += width + _GAP_IN
    if case.reference_dose is not None:
        _draw_bar(_place(figure, left + 0.08, 0.2, 0.14, planes_in - 0.4), training)
    keys = _place(figure, _WIDTH_IN - _KEYS_IN, 0.0, _KEYS_IN, height_in - _TITLE_IN)
    _draw_keys(keys, [s for s in shown if s.name in seen])
    with written_whole(path) as part:
        part.write_bytes(_smaller(png(figure, dpi=_DPI)))
    return path


def _smaller(data: bytes) -> bytes:
    """The PNG with 32 shades of each colour, half the size: data sets have thousands of them."""
    out = io.BytesIO()
    ImageOps.posterize(Image.open(io.BytesIO(data)).convert("RGB"), 5).save(out, "png", optimize=True)
    return out.getvalue()


def _region(training: TrainingCase) -> tuple[list[float], list[float]]:
    """Corners (x, y, z) in mm of what is drawn: the body in the volume, with a rim."""
    grid = training.case.grid
    box = mask_bounds_mm(training.case.body.mask, grid)
    borders = grid.bounds_mm
    low = [max(a - _RIM_MM, b) for a, b in zip(box[0], borders[0], strict=True)]
    high = [min(a + _RIM_MM, b) for a, b in zip(box[1], borders[1], strict=True)]
    return low, high


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a rectangle in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def _title(training: TrainingCase) -> str:
    case = training.case
    parts = [case.id, case.site.replace("_", " ")]
    if case.prescription is not None:
        parts.append(prescription_text(case.prescription.target_gy, case.prescription.fractions))
    kind = str(training.provenance.get("technique", ""))
    parts.append(f"{len(training.plan.arcs)} beams, {kind}" if training.plan else "no plan")
    if case.reference_dose is None:
        parts.append("no dose")
    if not training.has_ct:
        parts.append("no CT")
    shape = " x ".join(str(n) for n in case.grid.shape[::-1])
    spacing = " x ".join(f"{s:g}" for s in case.grid.spacing_mm)
    return "   |   ".join([*parts, f"{shape} voxels of {spacing} mm"])


def _draw_plane(axes: Axes, training: TrainingCase, shown: tuple[Look, ...], plane: Plane) -> set[str]:
    case = training.case
    draw_ct(axes, case, plane)
    if (dose := case.reference_dose) is not None:
        percent = 100 * plane.of(dose.gy) / reference_gy(dose, case.prescription)
        axes.imshow(
            np.ma.masked_less(percent, _LEAST_PERCENT),
            cmap="turbo",
            vmin=_LEAST_PERCENT,
            vmax=_MOST_PERCENT,
            alpha=0.42,
            extent=plane.extent_mm,
            origin="lower",
            interpolation="nearest",
        )
    draw_letters(axes, plane.axis)
    return draw_contours(axes, shown, plane)


def _draw_bar(axes: Axes, training: TrainingCase) -> None:
    case = training.case
    assert case.reference_dose is not None
    colours = ScalarMappable(Normalize(_LEAST_PERCENT, _MOST_PERCENT), "turbo")
    bar = axes.figure.colorbar(colours, cax=axes, ticks=[10, 30, 50, 70, 80, 90, 95, 100, 105, 110])
    bar.ax.tick_params(labelsize=7.5, labelcolor=INK, length=2)
    bar.outline.set_visible(False)
    gy = reference_gy(case.reference_dose, case.prescription)
    of = "prescription" if case.prescription else "maximum"
    axes.set_title(f"% of {of}\n({gy:.4g} Gy)", fontsize=7.5, color=INK, loc="left", pad=4)


def _draw_keys(axes: Axes, shown: Sequence[Look]) -> None:
    axes.set_axis_off()
    rest = len(shown) - _KEYS_MOST
    axes.legend(
        handles=[Line2D([], [], label=legend_label(s.name), **line_style(s)) for s in shown[:_KEYS_MOST]],
        title=f"Structures ({rest} more)" if rest > 0 else "Structures",
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        fontsize=8 if len(shown) <= 18 else 6.5,
        title_fontsize=8.5,
        frameon=False,
        alignment="left",
        labelspacing=0.35,
        handlelength=1.8,
        labelcolor=INK,
    )
