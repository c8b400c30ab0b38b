"""What the commands show: data on stdout, progress and the chatter of libraries on stderr."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from vmat_diffusion.lettering import legible, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from vmat_diffusion.cli.fields import Working
    from vmat_diffusion.dataset.tables import Rejection
    from vmat_diffusion.evaluate.complexity import Complexity
    from vmat_diffusion.evaluate.goals import DeliveryResult, GoalResult, GoalSheet
    from vmat_diffusion.progress import Progress
    from vmat_diffusion.qa import Verdict
    from vmat_diffusion.workflow import PlanRun

_REJECTIONS_SHOWN = 20
# Columns whose cells are all this short are not folded on a narrow terminal.
_NEVER_FOLDED = 12
_LONGEST_WORD = 20
# A table without lines but for dashes under the header: eight rows of a rich box, left, line, cross, right.
_DASHES = "    \n    \n -  \n    \n    \n    \n    \n    \n"


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Sends what libraries print to stderr, so that stdout holds the data alone."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def work_shown(options: Working) -> Iterator[Progress]:
    """The progress of a command's work, as its options ask; what libraries print goes to stderr."""
    with stdout_kept(), progress_bar(quiet=options.quiet, verbose=options.verbose) as progress:
        yield progress


@contextmanager
def progress_bar(*, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Bars on stderr; where stderr is no terminal, a line for each stage and each tenth of it.

    `quiet` shows nothing, `verbose` each note as a line of its own.
    """
    from rich.console import Console

    from vmat_diffusion.progress import silent

    console = Console(stderr=True)
    if quiet:
        yield silent
    elif console.is_terminal:
        with _bars(console, verbose=verbose) as progress:
            yield progress
    else:
        yield _Lines(verbose=verbose)


class _Lines:
    """Progress for a log: `optimise ...`, `optimise 10 %, 1:20 to go: 12 of 120`."""

    def __init__(self, *, verbose: bool) -> None:
        self.verbose = verbose
        self.began: dict[str, float] = {}
        self.tenths: dict[str, int] = {}
        self.notes: dict[str, str] = {}

    def __call__(self, stage: str, fraction: float, note: str) -> None:
        """Print a line where a stage begins, where it reaches another tenth, and if asked each note."""
        now = time.monotonic()
        if stage not in self.began:
            self.began[stage] = now
            print(stage, "...", file=sys.stderr, flush=True)
        spent_s, tenth = now - self.began[stage], int(10 * fraction + 1e-9)
        # A stage of less than a second needs no line but its first.
        further = tenth > self.tenths.get(stage, 0) and spent_s >= 1
        news = self.verbose and note not in ("", self.notes.get(stage))
        if not (further or news):
            return
        self.tenths[stage], self.notes[stage] = max(tenth, self.tenths.get(stage, 0)), note
        left = f"{_clock(spent_s * (1 - fraction) / fraction)} to go" if 0 < fraction < 1 else ""
        when = left or (f"in {_clock(spent_s)}" if fraction >= 1 else "")
        words = ", ".join(part for part in (f"{stage} {100 * fraction:.0f} %", when) if part)
        print(f"{words}: {one_line(note)}" if note else words, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


@contextmanager
def _bars(console: Console, *, verbose: bool) -> Iterator[Progress]:
    """A bar for each stage, with percent, time spent and time to go."""
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}
        notes: dict[str, str] = {}

        def move(stage: str, fraction: float, note: str) -> None:
            note = one_line(note)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0, note="")
            bars.update(tasks[stage], completed=fraction, note=note)
            if verbose and note not in ("", notes.get(stage)):
                notes[stage] = note
                bars.console.print(f"{stage}: {note}", markup=False, highlight=False)

        yield move
        for task in tasks.values():  # what ended without saying so is closed; a failure leaves its bar open
            bars.update(task, completed=1.0)


def run_text(run: PlanRun) -> str:
    """A planning run: its goals, delivery, verdict, times and files."""
    levels = ", ".join(f"{target} {gy:g} Gy" for target, gy in run.task.sheet.prescription.target_gy.items())
    seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in run.seconds.items())
    parts = [
        f"{run.task.sheet.title}: {levels} in {run.plan.fractions} fractions, "
        f"normalised to {run.task.sheet.normalization}",
        goals_text(run.results, run.task.sheet),
        *delivery_text(run.delivery_results),
        *_candidates(run),
        f"{run.plan.total_mu:.1f} MU in {len(run.plan.arcs)} arcs, {run.delivery_s:.0f} s beam on; "
        f"optimiser: {run.outcome.lower().replace('_', ' ')}",
        *([run.arrangement] if run.arrangement else []),
        *(["\n".join(run.conflicts)] if run.conflicts else []),
        *_far_from_ideal(run),
        *([f"The plan before: {run.before}"] if run.before else []),
        "Deliverable: no violations"
        if not run.violations
        else f"NOT DELIVERABLE: {len(run.violations)} violations\n" + "\n".join(run.violations),
        ("Optimised again with the engines' difference\n" if run.corrected else "")
        + verdict_text(run.verdict),
        f"Seconds: {seconds}" + (f"; peak memory {run.peak_gb:.1f} GB" if run.peak_gb else ""),
        "\n".join(str(file) for file in run.files),
    ]
    return "\n\n".join(parts)


def _far_from_ideal(run: PlanRun) -> list[str]:
    """What ideal fluence makes of the goals that the plan misses."""
    missed = run.yardstick.missed if run.yardstick else ()
    return ["\n".join(["How far from ideal:", *map(str, missed)])] if missed else []


def _candidates(run: PlanRun) -> list[str]:
    if not run.candidates:
        return []
    rows = [
        [
            f"{c.number}, chosen" if c.chosen else c.number,
            *c.score.missed,
            f"{c.score.excess_percent:.1f}",
            f"{c.score.used_percent:.1f}",
        ]
        for c in run.candidates
    ]
    return [table(["candidate", "must", "should", "wish", "excess %", "limits used %"], rows, left=1)]


def verdict_text(verdict: Verdict) -> str:
    """The checks as a table under the verdict, and why they failed."""
    rows = []
    for check in verdict.checks:
        value = "" if check.value is None else f"{check.value:.2f}"
        value += "" if check.error is None else f" +- {check.error:.2f}"
        limit = "" if check.limit is None else f"{check.limit:g}"
        mark = check.word.upper() if check.warns or not check.passed else check.word
        rows.append([check.name, mark, value, limit, check.unit])
    text = table(["check", "result", "value", "limit", "unit"], rows, left=2)
    why = [f"{check.name}: {check.why}" for check in verdict.checks if check.warns or not check.passed]
    head = {
        "PASSED": "PASSED",
        "FAILED": f"FAILED: {_checks(len(verdict.failed))} failed",
        "INCONCLUSIVE": f"INCONCLUSIVE: {_checks(len(verdict.undecided))} could not be decided",
    }[verdict.outcome.value]
    return "\n".join([*_banner(verdict), head, text, *why])


def _checks(count: int) -> str:
    return f"{count} check" + ("s" if count != 1 else "")


def _banner(verdict: Verdict) -> list[str]:
    """A line in capitals where the limits were looser than the shipped ones."""
    return [f"LOOSER LIMITS: {verdict.looser}"] if verdict.looser else []


def goals_text(results: Sequence[GoalResult], sheet: GoalSheet | None = None) -> str:
    """The goals as a table, the groups, which could not be evaluated, and what to know of the sheet."""
    from vmat_diffusion.evaluate.goal_results import group_results, left_out_text, unpublished_text

    rows = []
    for r in (r for r in results if r.value is not None):
        acceptable = "" if r.goal.variation is None else f"{r.goal.variation:g}"
        status = "FAIL" if r.word == "fail" else r.word
        value = f"{r.value:.2f} {r.goal.unit}".rstrip()
        applies = f"applies to {r.goal.applies_to}" if r.goal.applies_to else ""
        note = "; ".join(part for part in (r.note, applies) if part)
        rows.append([r.goal.priority, r.goal.structure, r.goal.statement, acceptable, value, status, note])
    header = ["priority", "structure", "goal", "acceptable", "value", "status", "note"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    parts = [table(header, rows, left=7)]
    for group in group_results(results):
        mark = "NOT MET" if group.missed else group.status
        parts.append(
            f"Group {group.group.name}, priority {group.priority}: {mark}, {group.counted}; {group.statement}"
        )
    absent: dict[str, list[str]] = {}
    for r in (r for r in results if r.value is None):
        what = "NOT MET, required but not evaluated" if r.missed else "Not evaluated"
        absent.setdefault(f"{what}, {r.note}", []).append(r.goal.structure)
    parts += [f"{why}: {', '.join(dict.fromkeys(names))}" for why, names in absent.items()]
    if sheet is not None:
        parts += [f"Holds: {sheet.conditions.get(name, name)}" for name in sheet.conditions_on]
        parts += left_out_text(sheet)
    parts += [line for line in (unpublished_text(results),) if line]
    if sheet is not None:
        parts += [f"Warning: {remark}" for remark in sheet.remarks]
    return "\n\n".join(parts)


def delivery_text(results: Sequence[DeliveryResult]) -> list[str]:
    """The goals on the delivery as a table; nothing where there are none."""
    if not results:
        return []
    rows = [
        [
            r.goal.priority,
            r.goal.statement,
            "" if r.goal.variation is None else f"{r.goal.variation:g}",
            r.value_text,
            "FAIL" if r.status == "fail" else r.status,
            "; ".join(part for part in (r.note, r.goal.source if r.goal.of_run else "") if part),
        ]
        for r in results
    ]
    return [table(["priority", "delivery", "acceptable", "value", "status", "note"], rows, left=6)]


def complexity_text(found: Complexity | None, outside: Sequence[str], site: str = "") -> str:
    """The metrics of a plan beside what plans of others have, and where it lies outside."""
    from vmat_diffusion.evaluate.complexity import PUBLISHED, ranges_for

    if found is None:
        return "Complexity: not evaluated, the machine has other leaves than the plan"
    known = {r.metric: r.text for r in ranges_for(site)}
    rows = [
        [PUBLISHED[name].title, "–" if v is None else f"{v:.3g}", PUBLISHED[name].unit, known.get(name, "")]
        for name, v in found.record().items()
    ]
    return "\n".join([table(["complexity", "value", "unit", "plans of others"], rows, left=4), *outside])


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, left: int) -> str:
    """Aligned columns, the first `left` of them to the left, the others to the right.

    On a terminal texts are folded to its width. Elsewhere, in a pipe or a file, lines are as long as needed:
    no value is cut.
    """
    from io import StringIO

    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[one_line(str(cell)) for cell in row] for row in (header, *rows)]
    needed = sum(max(len(row[k]) for row in cells) + 2 for k in range(len(header)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else needed
    grid = Table(box=Box(_DASHES, ascii=True), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for k, name in enumerate(cells[0]):
        words = [word for row in cells for word in row[k].split()] or [""]
        grid.add_column(
            Text(name),
            justify="left" if k < left else "right",
            overflow="fold",
            no_wrap=max(len(row[k]) for row in cells) <= _NEVER_FOLDED,
            min_width=min(max(map(len, words)), _LONGEST_WORD),  # numbers are single words
        )
    for row in cells[1:]:
        grid.add_row(*map(Text, row))
    console = Console(file=StringIO(), width=max(width, 20), color_system=None, legacy_windows=False)
    console.print(grid)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip("\n").split("\n"))


def rejected_text(rejections: Sequence[Rejection]) -> str:
    """What a data set left out, the first of them with reason and remedy."""
    rows = [[r.case, r.reason, r.remedy] for r in rejections[:_REJECTIONS_SHOWN]]
    more = len(rejections) - len(rows)
    return (
        f"{len(rejections)} left out, all of them in rejected.csv\n"
        + table(["case", "reason", "remedy"], rows, left=3)
        + (f"\nand {more} more" if more else "")
    )


def short(value: object) -> str:
    """A value as JSON, long lists cut."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:50]} ... ({len(value)} values)"  # type: ignore[arg-type]


def show(text: str) -> None:
    """Print data on stdout at once."""
    print(legible(text), flush=True)
