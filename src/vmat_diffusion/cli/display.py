"""What the commands show: data on stdout, progress and the chatter of libraries on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmat_diffusion.dataset.tables import Rejection
    from vmat_diffusion.evaluate.goals import GoalResult
    from vmat_diffusion.progress import Progress
    from vmat_diffusion.qa import Verdict
    from vmat_diffusion.workflow import PlanRun

_REJECTIONS_SHOWN = 20


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Sends what libraries print to stderr, so that stdout holds the data alone."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr; where stderr is no terminal, one line per stage."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        started: set[str] = set()

        def lines(stage: str, fraction: float, note: str) -> None:
            if stage not in started:
                started.add(stage)
                print(stage, "...", file=sys.stderr, flush=True)

        yield lines
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def move(stage: str, fraction: float, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=1.0, note="")
            bar.update(tasks[stage], completed=fraction, note=note)
            if fraction >= 1:
                bar.stop_task(tasks[stage])

        yield move


def run_text(run: PlanRun) -> str:
    """A planning run: its goals, delivery, verdict, times and files."""
    levels = ", ".join(f"{target} {gy:g} Gy" for target, gy in run.task.sheet.prescription.target_gy.items())
    seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in run.seconds.items())
    parts = [
        f"{run.task.sheet.title}: {levels} in {run.plan.fractions} fractions, "
        f"normalised to {run.task.sheet.normalization}",
        goals_text(run.results),
        *_candidates(run),
        f"{run.plan.total_mu:.1f} MU in {len(run.plan.arcs)} arcs, {run.delivery_s:.0f} s beam on; "
        f"optimiser: {run.outcome.lower().replace('_', ' ')}",
        *(["\n".join(run.conflicts)] if run.conflicts else []),
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
        limit = "" if check.limit is None else f"{check.limit:g}"
        mark = check.word.upper() if check.warns or not check.passed else check.word
        rows.append([check.name, mark, value, limit, check.unit])
    text = table(["check", "result", "value", "limit", "unit"], rows, left=2)
    why = [f"{check.name}: {check.why}" for check in verdict.checks if check.warns or not check.passed]
    head = "PASSED" if verdict.passed else f"NOT PASSED: {len(verdict.failed)} checks failed"
    return "\n".join([head, text, *why])


def goals_text(results: Sequence[GoalResult]) -> str:
    """The goals as a table, and which could not be evaluated."""
    rows = []
    for r in (r for r in results if r.value is not None):
        acceptable = "" if r.goal.variation is None else f"{r.goal.variation:g}"
        status = "FAIL" if r.status == "fail" else r.status
        value = f"{r.value:.2f} {r.goal.unit}".rstrip()
        rows.append([r.goal.priority, r.goal.structure, r.goal.statement, acceptable, value, status, r.note])
    header = ["priority", "structure", "goal", "acceptable", "value", "status", "note"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    text = table(header, rows, left=7)
    absent: dict[str, list[str]] = {}
    for r in (r for r in results if r.value is None):
        absent.setdefault(r.note, []).append(r.goal.structure)
    for why, names in absent.items():
        text += f"\n\nNot evaluated, {why}: {', '.join(dict.fromkeys(names))}"
    return text


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, left: int) -> str:
    """Aligned columns, the first `left` of them to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    cells.insert(1, ["-" * w for w in widths])
    return "\n".join(
        "  ".join(
            c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


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
    print(text, flush=True)
