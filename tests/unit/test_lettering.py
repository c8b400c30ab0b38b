"""Texts of others in terminals, tables, pages and pictures."""

from __future__ import annotations

import ast
import csv
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

import vmat_diffusion
from vmat_diffusion.cli.display import progress_bar, show, table
from vmat_diffusion.lettering import csv_cell, legend_label, legible, one_line
from vmat_diffusion.report.charts import png, svg

SOURCES = Path(vmat_diffusion.__file__).parent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("PTV_70", "PTV_70"),
        ("Größe 王 ≥ 3", "Größe 王 ≥ 3"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\u202eb", r"a\u202eb"),
        ("cord\u200b", r"cord\u200b"),
        ("\x9b31m", r"\x9b31m"),
        ("two\nlines\tof", "two\nlines\tof"),
        ("\ud800", r"\ud800"),
        ("tag \U000e0041", r"tag \U000e0041"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text: str, shown: str) -> None:
    assert legible(text) == shown
    assert "\n" not in one_line(text)


@given(st.text())
def test_any_text_becomes_one_that_can_be_seen(text: str) -> None:
    shown = one_line(text)
    assert legible(shown) == shown and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    shown.encode("utf-8")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", " =", "\u200b=", "\u00a0@"])
def test_no_cell_is_a_formula(start: str) -> None:
    assert csv_cell(f"{start}cmd|' /C calc'!A0") == f"'{start}cmd|' /C calc'!A0"


@pytest.mark.parametrize("value", ["-1.5", "+3", "PTV", "", 3, -2.0, None, "1e-3"])
def test_numbers_and_names_are_cells_as_they_are(value: object) -> None:
    assert csv_cell(value) == value


def test_every_table_written_goes_through_csv_cell() -> None:
    """A module that makes a writer of the library names `csv_cell`, or writes numbers alone."""
    writers = []
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        calls = [
            node
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and node.attr in ("writer", "DictWriter")
        ]
        if calls and "csv." in text:
            writers.append(path.name)
            assert "csv_cell" in text, path
    assert sorted(writers) == ["plans_tables.py", "run_files.py", "tables.py", "trade_tables.py"]


NAMES = ["$PTV_{70}$", r"PTV\$", "$$", r"\frac{1}{2}", "$\\undefined{x}$", "a$b$c$", "_PTV", "x^2", "$"]


@pytest.mark.parametrize("name", [*NAMES, "\x1b[31mPTV", "PTV\u202e07", "two\nlines"])
def test_a_name_is_drawn_letter_by_letter(name: str) -> None:
    def drawn() -> Figure:
        figure = Figure()
        axes = figure.add_subplot()
        axes.set_title(name)
        axes.set_xticks([0, 1], [one_line(name), "b"])
        axes.annotate(name, (0.5, 0.5))
        axes.legend(handles=[Line2D([], [], label=legend_label(name))], title=name)
        figure.legend(handles=[Line2D([], [], label=legend_label(name))])
        return figure

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = drawn()
        assert png(figure) and svg(drawn())
    texts = [t.get_text() for t in figure.findobj(Text)]
    assert sum(t.strip() in (legible(name), one_line(name)) for t in texts) >= 6
    assert not any(t.get_parse_math() for t in figure.findobj(Text) if t.get_text().strip() == name)


def test_figures_are_saved_in_one_place() -> None:
    found = [p.name for p in SOURCES.rglob("*.py") if ".savefig(" in p.read_text(encoding="utf-8")]
    assert found == ["charts.py"]


def test_the_terminal_gets_no_escape_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b]52;c;evil\x07PTV\u202e"
    show(f"structure {name}")
    show(table(["structure"], [[name + "\nx"]], left=1))
    with progress_bar(verbose=True) as progress:
        progress("read", 0.5, name)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\u202e" not in out + err and r"\x1b]52" in out


def test_notes_are_no_markup() -> None:
    from rich.console import Console

    from vmat_diffusion.cli.display import _bars

    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with _bars(console, verbose=True) as progress:
        progress("read", 0.5, "PTV [/] [red]70")
    assert "PTV [/] [red]70" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_table_of_control_points_has_no_formula(tmp_path: Path) -> None:
    from dataclasses import replace

    from small_case import open_arc

    from vmat_diffusion.machine import load_machine
    from vmat_diffusion.workflow.planning.run_files import write_control_points

    plan = open_arc()
    plan = replace(plan, arcs=(replace(plan.arcs[0], name="=1+1", mu=np.full(18, 4.0)),))
    file = write_control_points(tmp_path / "c.csv", plan, load_machine("generic_6mv"))
    with file.open(newline="") as stream:
        assert next(iter(csv.DictReader(stream)))["name"] == "'=1+1"
