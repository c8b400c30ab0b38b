"""The gate in the report: its verdict, its checks with values and limits, and the robustness to the linac."""

from __future__ import annotations

from collections.abc import Sequence

from vmat_diffusion.case import Dose, Prescription
from vmat_diffusion.geometry import Point
from vmat_diffusion.qa import Check, Robustness, Verdict, denoised
from vmat_diffusion.report.comparison import both_dvh_figure, gamma_figure
from vmat_diffusion.report.document import Block, Box, Cell, Column, Heading, Picture, Standing, Table, Text
from vmat_diffusion.report.looks import ShownDose
from vmat_diffusion.report.parts.goals import pretty

_STATUS: dict[str, Standing] = {"green": "pass", "amber": "acceptable", "red": "fail", "": ""}
_WORDS = {"green": "within", "amber": "look", "red": "above limit", "": "reported"}


def deliverable_box(violations: Sequence[str], machine: str) -> Box:
    """Whether the machine can deliver the plan."""
    count = len(violations)
    if not count:
        return Box("✓ Deliverable: 0 violations", f"of the limits of {machine}", True)
    heading = f"✗ Not deliverable: {count} violation{'s' if count != 1 else ''}"
    return Box(heading, f"of the limits of {machine}", False)


def gate_box(verdict: Verdict) -> Box:
    """Whether the plan went through the gate, with what a person must read."""
    failed, undecided = len(verdict.failed), verdict.undecided
    if verdict.passed:
        heading = f"✓ Gate passed: {sum(c.limit is not None for c in verdict.checks)} checks"
    elif failed:
        heading = f"✗ Gate not passed: {failed} check{'s' if failed != 1 else ''} failed"
    else:
        heading = f"? Gate inconclusive: {len(undecided)} check{'s' if len(undecided) != 1 else ''} undecided"
    text = (
        "independent dose, files and limits agree with the plan"
        if verdict.passed
        else "the reasons are in the table of checks"
    )
    notes = [Cell("undecided", "fail", note=c.why) for c in undecided]
    notes += [
        Cell("warning", "acceptable", note=c.why)
        for c in verdict.checks
        if c.warns and c.why != verdict.looser
    ]
    return Box(heading, text, verdict.passed, tuple(notes))


def check_blocks(
    verdict: Verdict,
    shown: ShownDose,
    check: Dose | None,
    prescription: Prescription | None,
    isocenter_mm: Point,
) -> list[Block | Heading]:
    """The checks as a table, the robustness, and the figures of the second dose."""
    engine = str(check.provenance.get("engine", "independent engine")) if check else ""
    about = f"; the independent dose is that of the {engine} engine" if engine else ""
    rows = [
        (
            c.name,
            Cell(c.word, "acceptable" if c.warns else "pass" if c.passed else "fail"),
            Cell(_value(c), bold=True),
            "–" if c.limit is None else f"{c.limit:g}",
            c.unit,
            Cell(pretty(c.why), faint=True),
        )
        for c in verdict.checks
    ]
    columns = ("Check", "Result", Column("Value", True), Column("Limit", True), "Unit", "Why")
    blocks: list[Block | Heading] = [
        Table.of(f"What must hold before a plan may be written{about}.", columns, rows)
    ]
    if verdict.robustness:
        blocks += [Heading("Robustness to the linac"), *_robustness(verdict.robustness)]
    gamma = verdict.gamma
    if gamma is not None:
        blocks.append(
            Picture(
                lambda: gamma_figure(shown.case, gamma, isocenter_mm),
                f"Gamma of the planned dose at the voxels of the independent one, {gamma.criteria}, in the "
                "planes nearest to the isocentre. Green passes, orange and red fail; targets are outlined.",
                "Gamma map in axial, coronal and sagittal planes through the isocentre.",
                photo=True,
            )
        )
    if check is not None:
        smooth = denoised(shown.dose, check)
        blocks.append(
            Picture(
                lambda: both_dvh_figure(shown.structures, shown.case, smooth, prescription),
                "Dose-volume histograms of both engines: planned solid, independent dashed. Noise of the "
                "difference is smoothed over 3 mm, since it would widen the histogram.",
                "Dose-volume histograms of the planned and of the independent dose.",
            )
        )
    return blocks


def _value(check: Check) -> str:
    """The value of a check with its standard error, where it has one."""
    if check.value is None:
        return "–"
    return f"{check.value:.2f}" + ("" if check.error is None else f" ± {check.error:.2f}")


def _robustness(found: Robustness) -> list[Block | Heading]:
    """The scenarios as rows; the doses that change are columns, their units in the header."""
    if not found.results:
        return [Text(f"Not computed: {found.reason}.")]
    gap = found.gap_text[:1].upper() + found.gap_text[1:]
    caption = (
        "What small errors of the linac, the same in every beam, do to the dose by the fast engine: "
        "change of "
        "the dose to targets in percent, of the near-maximum of organs in Gy of the whole course. Look "
        "is the "
        "change of a target above which a person looks; above the limit the gate warns or stops."
        + (f" {gap}." if gap else "")
    )
    columns: tuple[Column | str, ...] = (
        "Error",
        "Result",
        *(
            Column(f"{c.structure} {c.metric} [{'%' if c.of_target else 'Gy'}]", True)
            for c in found.results[0].changes
        ),
        Column("Look", True),
        Column("Limit", True),
    )
    rows: list[tuple[Cell | str, ...]] = [
        (
            r.name,
            Cell(_WORDS[r.colour], _STATUS[r.colour], note=pretty("; ".join(r.goals_lost))),
            *(_shown(c.percent if c.of_target else c.gy) for c in r.changes),
            _limit(r.accepted_percent),
            _limit(r.limit_percent),
        )
        for r in found.results
    ]
    sources = dict.fromkeys(f"{r.row}: {r.source}." for r in found.results)
    return [Table.of(caption, columns, rows), *(Text(line, "faint") for line in sources)]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _limit(percent: float | None) -> str:
    return "–" if percent is None else f"±{percent:g} %"
