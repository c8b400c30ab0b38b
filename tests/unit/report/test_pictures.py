"""Beam's eye view, zoomed planes and colours: where things are drawn, and that they can be told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from small_case import UNIFORM_GY, open_arc, small_case

from vmat_diffusion.case import Dose, Source
from vmat_diffusion.geometry import mask_bounds_mm
from vmat_diffusion.machine import load_machine
from vmat_diffusion.report.looks import looks, luminance, shown_dose
from vmat_diffusion.report.parts.beams_eye import chosen_points, film_strip
from vmat_diffusion.report.planes import zoomed_figure


def shown():  # type: ignore[no-untyped-def]
    case = small_case()
    z, y, x = np.indices(case.grid.shape)
    gy = UNIFORM_GY - 0.05 * ((x - 11.5) ** 2 + (y - 11.5) ** 2 + (z - 10) ** 2)
    return shown_dose(case, Dose(case.grid, np.clip(gy, 0, None).astype(np.float32)), (), case.prescription)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_zoomed_plane_holds_the_target_and_is_three_times_larger(axis: int) -> None:
    """The planes were 270 pixels wide, the target 40."""
    what = shown()
    figure = zoomed_figure(what, (0.0, 0.0, 0.0), axis)
    (axes,) = figure.axes
    assert axes.get_window_extent().width * 125 / figure.dpi >= 3 * 270
    (target,) = what.case.targets
    low, high = mask_bounds_mm(target.mask, what.case.grid)
    across, up = (k for k in (0, 1, 2) if k != axis)
    for k, (first, last) in ((across, axes.get_xlim()), (up, axes.get_ylim())):
        assert min(first, last) < low[k] and max(first, last) > high[k]
    share = (high[across] - low[across]) / abs(np.diff(axes.get_xlim())[0])
    assert share * axes.get_window_extent().width * 125 / figure.dpi > 3 * 40
    assert {t.get_text() for t in axes.texts} >= {"20 mm"}


def test_isodoses_bear_their_percent_and_the_colour_of_the_key() -> None:
    from matplotlib.contour import QuadContourSet

    from vmat_diffusion.report.planes import isodose_keys

    figure = zoomed_figure(shown(), (0.0, 0.0, 0.0), 2)
    (axes,) = figure.axes
    sets = [c for c in axes.get_children() if isinstance(c, QuadContourSet)]
    keys = {round(float(k.label.split("= ")[1].split()[0]), 1): k.colour for k in isodose_keys(50.0)}
    for filled in (True, False):
        (found,) = [c for c in sets if c.filled == filled and len(c.levels) > 2]
        colours = found.get_facecolor() if filled else found.get_edgecolor()
        levels = found.levels[:-1] if filled else found.levels
        for level, colour in zip(levels, colours, strict=False):
            assert to_hex(colour) == keys[round(float(level), 1)]
    assert {t.get_text() for t in axes.texts} & {"70", "80", "90", "95", "100"}


def test_the_film_strip_shows_leaves_jaws_and_the_target_where_they_are() -> None:
    """The target is a block of 30 mm and more beside the isocentre."""
    case, plan, machine = small_case(), open_arc(), load_machine("generic_6mv")
    (arc,) = plan.arcs
    points = chosen_points(arc)
    assert (points[0], points[-1], len(points)) == (0, 18, 12)
    targets = [s for s in looks(case) if s.is_target]
    figure = film_strip(arc, plan, machine, case, targets)
    assert len(figure.axes) == 12
    first = figure.axes[0]
    assert first.get_title(loc="left") == "0: gantry 182.0°, 4.00 MU"
    (outline,) = [c for c in first.collections if len(c.get_paths()) == 1]
    low, high = outline.get_paths()[0].get_extents().get_points()
    grid = case.grid
    corner_low, corner_high = mask_bounds_mm(case.targets[0].mask, grid)
    middle = [(a + b) / 2 for a, b in zip(corner_low, corner_high, strict=True)]
    # Turned by the collimator's 10 degrees sides a and b become a cos + b sin wide; voxel centres lie half a
    # voxel within the sides, and the raster is 2 mm.
    side = [b - a for a, b in zip(corner_low, corner_high, strict=True)]
    turn = np.cos(np.radians(10)), np.sin(np.radians(10))
    assert high[0] - low[0] == pytest.approx(turn[0] * (side[0] - 5) + turn[1] * (side[2] - 6), abs=4.0)
    assert (high[1] + low[1]) / 2 == pytest.approx(turn[0] * middle[2], abs=3.0)
    jaws = first.patches[0].get_bbox()
    assert (jaws.x0, jaws.x1, jaws.y0, jaws.y1) == (-20.0, 20.0, -20.0, 20.0)
    leaves = next(c for c in first.collections if len(c.get_paths()) == 2 * machine.mlc.pairs)
    ends = sorted({round(float(v), 1) for p in leaves.get_paths() for v in p.vertices[:, 0]})
    assert ends == [-400.0, -20.0, -0.3, 0.3, 20.0, 400.0]


def test_structures_have_the_colours_of_the_structure_set_and_lines_can_be_seen_on_white() -> None:
    case = replace(small_case(), source=Source(colours={"PTV": "#ffff00", "Core": "#ffff00"}))
    target, organ, body = looks(case)
    assert (target.colour, organ.colour, body.colour) == ("#ffff00", "#ffff00", "#9aa3ad")
    assert (target.repeat, organ.repeat) == (0, 1)  # the dash tells them apart
    rgb = [int(target.ink[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    assert 1.05 / (luminance(rgb) + 0.05) >= 2.15 and rgb[0] == rgb[1] > 0.5 and rgb[2] == 0
    assert organ.ink != organ.colour and replace(target, colour="#0000ff").ink == "#0000ff"
