"""What commands show: tables that nothing is cut from, and progress for terminals and logs."""

from __future__ import annotations

import io
import re
import sys

import pytest
import rich.console

from vmat_diffusion.cli import display
from vmat_diffusion.cli.display import progress_bar, table

ROWS = [["PTV_70", "D95% >= 66.5 Gy", 66.53, "a note that is longer than a narrow terminal has room for"]]
HEADER = ["structure", "goal", "value", "note"]


def test_nothing_is_cut_from_a_table_in_a_pipe() -> None:
    lines = table(HEADER, [*ROWS, ["Core", "D10% <= 25 Gy", 123456.789, ""]], left=2).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == HEADER and set(lines[1]) == {"-", " "}
    assert lines[2].endswith(ROWS[0][3]) and "PTV_70     D95% >= 66.5 Gy       66.53" in lines[2]
    assert "123456.789" in lines[3] and not lines[3].endswith(" ")


def test_a_table_keeps_to_a_terminal_and_its_numbers_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    text = table(HEADER, ROWS, left=2)
    assert max(map(len, text.splitlines())) <= 60
    words = text.split()
    assert {"66.53", "PTV_70", *str(ROWS[0][3]).split()} <= set(words)


def test_brackets_in_a_table_are_no_markup() -> None:
    assert "mlc.layers[0]  [red]" in table(["key", "value"], [["mlc.layers[0]", "[red]"]], left=2)


class _Clock:
    """A clock that the test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def test_a_log_has_a_line_for_each_stage_and_each_tenth(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar() as progress:
        for step in range(101):
            clock.now = 3.0 * step
            progress("optimise", step / 100, f"{step} steps")
        progress("read", 0.0, "")
        progress("read", 1.0, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["optimise ...", "optimise 10 %, 4:30 to go: 10 steps"]
    assert lines[10] == "optimise 100 %, in 5:00: 100 steps"
    assert lines[11:] == ["read ..."]  # no second line for what takes no time


def test_quiet_shows_nothing_and_verbose_each_note(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(quiet=True) as progress:
        progress("optimise", 0.5, "half")
    assert not capsys.readouterr().err
    with progress_bar(verbose=True) as progress:
        for note in ("", "one", "one", "two"):
            progress("optimise", 0.01, note)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["optimise ...", "optimise 1 %, 0:00 to go: one", "optimise 1 %, 0:00 to go: two"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal in place of stderr is sent."""
    shown, whole = io.StringIO(), rich.console.Console

    def console(**options: object) -> rich.console.Console:
        if options.get("stderr"):
            return whole(file=shown, force_terminal=True, width=100, color_system=None)
        return whole(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(rich.console, "Console", console)
    return shown


def _last_percent(shown: str, stage: str) -> str:
    return re.findall(rf"{stage} .*?(\d+)%", shown)[-1]


def test_bars_close_at_the_end(terminal: io.StringIO) -> None:
    with progress_bar() as progress:
        progress("read", 1.0, "")
        progress("report", 0.25, "")
    assert _last_percent(terminal.getvalue(), "read") == "100"
    assert _last_percent(terminal.getvalue(), "report") == "100"


def test_a_failure_leaves_its_bar_where_it_was(terminal: io.StringIO) -> None:
    with pytest.raises(ValueError), progress_bar() as progress:
        progress("check", 0.25, "")
        raise ValueError
    assert _last_percent(terminal.getvalue(), "check") == "25"
