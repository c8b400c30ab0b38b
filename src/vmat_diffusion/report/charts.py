"""Charts of a plan: DVH, control points and the course of the optimisation, and how figures are saved.

Nothing here keeps global state, so that reports may be made from several threads.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import get_font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MultipleLocator
from numpy.typing import NDArray

from vmat_diffusion.case import Prescription
from vmat_diffusion.evaluate.complexity import OPEN_GAP_MM
from vmat_diffusion.files import written_whole
from vmat_diffusion.lettering import legend_label, legible
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan, timing
from vmat_diffusion.report.looks import Look, Shown

# DejaVu Sans comes with matplotlib; the PDF takes it too.
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
INK = "#1d2733"
FAINT = "#6b7785"
LINE = "#1f5f99"
LIMIT = "#c0392b"
GRID = "#e4e8ec"


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as PNG."""
    return _saved(figure, "png", dpi)


def jpeg(figure: Figure, dpi: int = 125) -> bytes:
    """The figure as JPEG with full colour resolution: a quarter of a PNG where there is a CT."""
    FigureCanvasAgg(figure)
    _as_written(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=dpi, pil_kwargs={"quality": 90, "subsampling": 0})
    return buffer.getvalue()


def write_png(path: Path, figure: Figure, dpi: int = 120) -> Path:
    """Write the figure as a PNG file, which appears whole or not at all."""
    with written_whole(path) as part:
        part.write_bytes(png(figure, dpi))
    return path


def svg(figure: Figure) -> bytes:
    """The figure as SVG, with text as outlines."""
    return _saved(figure, "svg", 72)


def _saved(figure: Figure, kind: str, dpi: int) -> bytes:
    FigureCanvasAgg(figure)
    _as_written(figure)
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def _as_written(figure: Figure) -> None:
    """Every text of a figure letter by letter: a name between dollar signs is no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
        text.set_text(in_letters(text.get_text()))


@cache
def _letters() -> frozenset[int]:
    """The characters of the font of pictures and PDF."""
    return frozenset(get_font(str(FONTS / "DejaVuSans.ttf")).get_charmap())


def in_letters(text: str) -> str:
    """A text in characters that can be seen and that the font has; others are spelled out."""
    known = _letters()
    return "".join(c if c in "\n\t" or ord(c) in known else f"\\u{ord(c):04x}" for c in legible(text))


def dvh_figure(shown: Sequence[Shown], prescription: Prescription | None) -> Figure:
    """Cumulative DVHs: targets thick, organs thin, the legend outside."""
    figure = Figure(figsize=(11.0, max(4.6, 0.19 * len(shown) + 1.0)), facecolor="white")
    draw_dvh(figure, shown, prescription)
    return figure


def draw_dvh(figure: Figure | SubFigure, shown: Sequence[Shown], prescription: Prescription | None) -> None:
    """Draw the DVHs into a figure or a part of one."""
    axes = figure.add_axes((0.065, 0.125, 0.70, 0.83))
    curves = [s for s in shown if not s.is_body]
    top = (
        max([s.dvh.max_gy for s in curves] + list(prescription.target_gy.values() if prescription else ()))
        * 1.04
    )
    handles = []
    for s in curves:
        style = line_style(s)
        gy, percent = s.dvh.curve(500, top)
        axes.plot(gy, percent, **style)
        handles.append(Line2D([], [], label=legend_label(s.name), **style))
    for level in sorted(set(prescription.target_gy.values())) if prescription else ():
        axes.axvline(level, color=FAINT, lw=0.8, ls=(0, (2, 3)), zorder=0)
        axes.annotate(
            f"{level:g} Gy", (level, 101.5), color=FAINT, fontsize=8, ha="center", annotation_clip=False
        )
    axes.set(
        xlim=(0, top), ylim=(0, 100.8), xlabel="Dose [Gy]", ylabel="Volume receiving at least the dose [%]"
    )
    axes.set_yticks(range(0, 101, 10))
    plain_axes(axes)
    axes.grid(color=GRID, lw=0.7)
    columns = 1 if len(handles) <= 26 else 2
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.015, 1.02),
        frameon=False,
        fontsize=8.5 if columns == 1 else 7.5,
        ncols=columns,
        handlelength=2.6,
        labelcolor=INK,
    )


def line_style(s: Look) -> dict[str, Any]:
    """Line style; the dash tells structures apart that share a colour."""
    dashes: tuple = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
    return {"color": s.ink, "lw": 2.4 if s.is_target else 1.4, "ls": dashes[s.repeat % len(dashes)]}


def plain_axes(axes: Axes) -> None:
    """Axes without a frame, in the colours of the report."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b4bcc6")
    axes.tick_params(which="both", labelcolor=INK, labelsize=8.5, color="#b4bcc6")
    axes.xaxis.label.set(color=INK, fontsize=9.5)
    axes.yaxis.label.set(color=INK, fontsize=9.5)


def control_points_figure(arc: Arc, plan: Plan, machine: Machine) -> Figure:
    """MU, dose rate, gantry speed and leaf motion of one beam along its segments, with the limits."""
    pace = timing(arc, machine.limits, plan.dose_rate_mu_min)
    limits = machine.limits
    travel = np.abs(np.diff(arc.leaves_mm, axis=0))
    seconds = np.maximum(pace.time_s, 1e-9)
    open_pair = _open_pairs(arc)
    # Of the leaves of open pairs; in a segment in which all are closed none counts as moving.
    counted = np.maximum(2 * open_pair.sum(axis=1), 1)
    mean_travel = np.where(open_pair[:, None, :], travel, 0.0).sum(axis=(1, 2)) / counted
    figure = Figure(figsize=(11.0, 6.0), facecolor="white")
    panels = figure.subplots(5, 1, sharex=True)
    figure.subplots_adjust(left=0.115, right=0.985, top=0.93, bottom=0.085, hspace=0.22)
    # The cap on the dose rate may stand below the machine's limit.
    rate = min(plan.dose_rate_mu_min or limits.dose_rate_mu_min, limits.dose_rate_mu_min)
    rows: tuple[tuple[str, NDArray, float | None], ...] = (
        ("MU per\nsegment", arc.mu, None),
        ("Dose rate\n[MU/min]", pace.dose_rate_mu_min, rate),
        (
            "Gantry speed\n[deg/s]",
            pace.gantry_speed_deg_s,
            limits.gantry_speed_deg_s if arc.rotates else None,
        ),
        ("Fastest leaf\n[mm/s]", travel.max(axis=(1, 2)) / seconds, limits.leaf_speed_mm_s),
        ("Mean leaf\ntravel [mm]", mean_travel, None),
    )
    edges = arc.gantry_deg if arc.rotates else np.arange(len(arc.gantry_deg))
    for axes, (label, values, limit) in zip(panels, rows, strict=True):
        axes.stairs(values, edges, color=LINE, lw=1.2, fill=True, facecolor=LINE + "30", edgecolor=LINE)
        if limit is not None:
            axes.axhline(limit, color=LIMIT, lw=0.9, ls=(0, (4, 3)))
        axes.set_ylim(0, 1.12 * max(float(np.max(values)), limit or 0.0, 1e-9))
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
        plain_axes(axes)
        axes.grid(axis="y", color=GRID, lw=0.7)
        axes.locator_params(axis="y", nbins=4)
    panels[0].set_xlim(edges[0], edges[-1])
    panels[-1].set_xlabel("Gantry angle [deg], in the order of delivery" if arc.rotates else "Segment")
    if arc.rotates:
        panels[-1].xaxis.set_major_locator(MultipleLocator(30))
        panels[-1].xaxis.set_major_formatter(lambda angle, _: f"{angle % 360:g}")
    panels[0].legend(
        handles=[Line2D([], [], color=LIMIT, lw=0.9, ls=(0, (4, 3)), label="limit")],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=8.5,
    )
    return figure


def _open_pairs(arc: Arc) -> NDArray[np.bool_]:
    """For each segment and pair whether the leaves stand open at either end."""
    gap = arc.leaves_mm[:, 1] - arc.leaves_mm[:, 0] > OPEN_GAP_MM
    return gap[1:] | gap[:-1]


def history_figure(history: Sequence[float]) -> Figure:
    """The objective at each iteration, on a logarithmic scale where it is positive."""
    figure = Figure(figsize=(11.0, 2.6), facecolor="white")
    axes = figure.add_axes((0.085, 0.2, 0.9, 0.74))
    values = np.asarray(history, float)
    axes.plot(np.arange(len(values)), values, color=LINE, lw=1.4)
    if np.all(values > 0):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.set(xlabel="Iteration", ylabel="Objective", xlim=(0, max(len(values) - 1, 1)))
    plain_axes(axes)
    axes.grid(color=GRID, lw=0.7)
    return figure
