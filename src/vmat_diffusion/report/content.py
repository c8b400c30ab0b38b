"""What the report says, once: `page` shows it as HTML, `pdf` as PDF."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from typing import Any

import numpy as np

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.evaluate.delivery_results import evaluate_delivery
from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Machine
from vmat_diffusion.origin import without_uids
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa import Verdict
from vmat_diffusion.report import charts
from vmat_diffusion.report.document import (
    Block,
    Boxes,
    Cell,
    Column,
    Document,
    Heading,
    Picture,
    Section,
    Signature,
    Table,
    Text,
)
from vmat_diffusion.report.looks import ShownDose, shown_dose
from vmat_diffusion.report.parts.beams import arc_blocks, beams_table, complexity_blocks
from vmat_diffusion.report.parts.checklist import checklist
from vmat_diffusion.report.parts.checks import check_blocks, deliverable_box, gate_box
from vmat_diffusion.report.parts.goals import (
    delivery_table,
    goals_box,
    goals_table,
    goals_without_value,
    sheet_remarks,
    sources_table,
    yardstick_table,
)
from vmat_diffusion.report.parts.summary import (
    NO_PLAN_FILE,
    Identity,
    exceptions,
    identity_facts,
    plan_facts,
    prescription_table,
)
from vmat_diffusion.report.planes import isodose_keys, planes_figure, structure_keys, window_hu, zoomed_figure

_ROLES = ("Planner", "Medical physicist", "Radiation oncologist")
_PLANES = (("Axial", 2), ("Coronal", 1), ("Sagittal", 0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reported:
    """What a report is of.

    `prescription` is the case's own where it is not given; its highest dose is the 100 % of the isodoses.
    `sheet` is the goal sheet of the `results`. `history` is the objective at each iteration, `seconds` the
    time of each stage. `provenance` may nest. `verdict` is the gate's, and `check` the independent dose that
    it rests on. `candidates` are the records of the plans among which this one was chosen, `yardstick` that
    of
    the goals on ideal fluence. `identity` holds the UIDs of the plan's files, and the patient where asked
    for.
    """

    case: Case
    plan: Plan
    machine: Machine
    dose: Dose
    results: Sequence[GoalResult]
    violations: Sequence[str]
    provenance: Mapping[str, Any]
    sheet: GoalSheet | None = None
    history: Sequence[float] | None = None
    seconds: Mapping[str, float] | None = None
    prescription: Prescription | None = None
    verdict: Verdict | None = None
    check: Dose | None = None
    candidates: Sequence[Mapping[str, Any]] = ()
    yardstick: Mapping[str, Any] | None = None
    identity: Identity = field(default_factory=Identity)

    @property
    def levels(self) -> Prescription | None:
        """The prescription that holds."""
        return self.prescription or self.case.prescription


def report_document(of: Reported) -> Document:
    """The whole report."""
    shown = shown_dose(of.case, of.dose, of.results, of.levels)
    site = of.sheet.site if of.sheet else of.case.site
    sections = [
        _summary(of, shown),
        _goals(of, shown),
        _histograms(of, shown),
        _planes(of, shown),
        _beams(of, shown),
        *(_checks(of, shown)),
        Section("complexity", "Complexity", tuple(complexity_blocks(of.plan, of.machine, of.levels, site))),
        *(_search(of, shown)),
        _review(of),
        _provenance(of),
    ]
    uid = of.identity.plan_uid
    return Document(
        tab=f"Plan report: {of.case.id}, {of.plan.label}",
        title="Plan report",
        subtitle=f"{of.case.id}, {of.plan.label}, {of.machine.name}",
        banner=("For research. Not for clinical use.", "UNAPPROVED"),
        head=f"{of.case.id}, {of.plan.label}",
        foot=f"Plan UID {uid}" if uid else f"Plan UID: {NO_PLAN_FILE}",
        sections=tuple(sections),
        closing="Research software, not a medical device. This plan is UNAPPROVED and must not be used "
        "to treat a "
        "patient. Doses come from the engine named above and have not been measured.",
    )


def _summary(of: Reported, shown: ShownDose) -> Section:
    """Page 1: banners, verdicts, whose plan and which, the prescription, how it was made, the goals."""
    boxes = [deliverable_box(of.violations, of.machine.name), goals_box(of.results)]
    if of.verdict:
        boxes.append(gate_box(of.verdict))
    return Section(
        "summary",
        "",
        (
            *exceptions(of.verdict, of.provenance),
            identity_facts(of.case, of.plan, of.identity),
            prescription_table(of.plan, of.levels),
            Boxes(tuple(boxes)),
            *(Text(sentence, "fault") for sentence in of.violations),
            plan_facts(of.case, of.plan, of.machine, of.dose, of.provenance),
        ),
    )


def _goals(of: Reported, shown: ShownDose) -> Section:
    blocks: list[Block | Heading] = [goals_table(of.results, shown.structures)]
    delivery = evaluate_delivery(of.sheet, of.plan, of.machine) if of.sheet else ()
    if delivery:
        blocks.append(delivery_table(delivery))
    blocks += [Text(f"{line}.", "faint") for line in sheet_remarks(of.sheet, of.results)]
    blocks += [
        Text(f"Not evaluated, {why}: {'; '.join(names)}.", "faint")
        for why, names in goals_without_value(of.results).items()
    ]
    if of.results:
        blocks.append(sources_table(of.results))
    return Section("goals", "Goals", tuple(blocks))


def _histograms(of: Reported, shown: ShownDose) -> Section:
    picture = Picture(
        lambda: charts.dvh_figure(shown.structures, of.levels),
        "Cumulative, on the voxels of the CT. Targets are thick; dotted lines mark the prescribed doses.",
        "Cumulative dose-volume histogram of targets and organs; its numbers are in the table below.",
    )
    renamed = any(s.structure.alias not in ("", s.name) for s in shown.structures)
    columns = ["Volume [cc]", "D98 %", "D95 %", "D50 %", "D2 %", "Mean", "D0.03 cc", "Max"]
    rows = []
    for s in shown.structures:
        dvh = s.dvh
        doses = (
            *(dvh.dose_at_percent_gy(p) for p in (98, 95, 50, 2)),
            dvh.mean_gy,
            dvh.dose_at_cc_gy(0.03),
            dvh.max_gy,
        )
        alias = s.structure.alias if s.structure.alias != s.name else ""
        rows.append(
            (
                Cell(s.name, swatch=s.colour),
                *((alias,) if renamed else ()),
                f"{dvh.volume_cc:.2f}" if dvh.volume_cc < 100 else f"{dvh.volume_cc:.0f}",
                *(f"{gy:.2f}" for gy in doses),
            )
        )
    table = Table.of(
        "Doses in Gy for the whole course. D98 % is the least dose in the hottest 98 % of the volume, "
        "and so on.",
        ("Structure", *(("Name in the file",) if renamed else ()), *(Column(c, True) for c in columns)),
        rows,
    )
    return Section("dvh", "Dose-volume histogram", (picture, table), new_page=True)


def _planes(of: Reported, shown: ShownDose) -> Section:
    dose = shown.dose
    hottest = np.unravel_index(int(np.argmax(dose.gy)), dose.gy.shape)
    x, y, z = dose.grid.axes_mm
    maximum: Point = (float(x[hottest[2]]), float(y[hottest[1]]), float(z[hottest[0]]))
    gy = float(dose.gy.max())
    low, high = window_hu(of.case)
    keys = (*isodose_keys(shown.reference_gy), *structure_keys(shown.structures))
    where = ", ".join(f"{v:.1f}" for v in maximum)
    blocks: list[Block | Heading] = [
        Text(
            f"CT window {low:.0f} to {high:.0f} HU. R, L, A, P, H, F are the patient’s right, left, "
            f"front, back, "
            f"head and feet. Isodoses in percent of {shown.reference_gy:g} Gy.",
            "faint",
        )
    ]
    blocks.append(
        Picture(
            partial(planes_figure, shown, of.plan.isocenter_mm),
            "Through the isocentre (white cross), as far as there is dose worth showing.",
            "Axial, coronal and sagittal planes through the isocentre with isodoses and contours.",
            photo=True,
        )
    )
    points = (
        ("isocentre", of.plan.isocenter_mm, "+", "Through the isocentre (white cross)"),
        (
            "highest dose",
            maximum,
            "x",
            f"Through the highest dose (white x), {gy:.2f} Gy ({100 * gy / shown.reference_gy:.1f} %) "
            f"at ({where}) mm",
        ),
    )
    for name, point, mark, caption in points:
        blocks += [
            Picture(
                partial(zoomed_figure, shown, point, axis, mark=mark),
                f"{caption}: {plane.lower()}, zoomed to the targets.",
                f"{plane} plane through the {name} with isodoses and contours, zoomed to the targets.",
                keys=keys,
                photo=True,
                wide=False,
            )
            for plane, axis in _PLANES
        ]
    return Section("planes", "Dose in three planes", tuple(blocks))


def _beams(of: Reported, shown: ShownDose) -> Section:
    arcs = [block for arc in of.plan.arcs for block in arc_blocks(arc, of.plan, of.machine, shown)]
    return Section("beams", "Beams", (beams_table(of.plan, of.machine), *arcs), new_page=True)


def _checks(of: Reported, shown: ShownDose) -> Iterator[Section]:
    if of.verdict:
        blocks = check_blocks(of.verdict, shown, of.check, of.levels, of.plan.isocenter_mm)
        yield Section("gate", "Independent check", tuple(blocks), new_page=True)


def _search(of: Reported, shown: ShownDose) -> Iterator[Section]:
    """How far from ideal, candidates and the course of the search, as far as there are such."""
    if of.yardstick:
        yield Section("ideal", "How far from ideal", (yardstick_table(of.yardstick, shown.structures),))
    if of.candidates:
        yield Section("candidates", "Candidates", (_candidates(of.candidates),))
    if history := of.history:
        picture = Picture(
            lambda: charts.history_figure(history), "", "Objective of the optimisation at each iteration."
        )
        yield Section("history", "Optimisation", (picture,))


def _candidates(candidates: Sequence[Mapping[str, Any]]) -> Table:
    return Table.of(
        "Plans towards several predicted doses; the one with the fewest missed goals is reported here, must "
        "before should before wish, then by the sum of what the limits are missed by, then by how much "
        "of the "
        "upper limits is used up on average.",
        (
            "Plan",
            *(Column(f"{word} missed", True) for word in ("Must", "Should", "Wish")),
            Column("Excess [%]", True),
            Column("Limits used [%]", True),
            "Search",
        ),
        [
            (
                f"{c['candidate']}{' (chosen)' if c['chosen'] else ''}",
                *(str(c[f"missed_{word}"]) for word in ("must", "should", "wish")),
                f"{c['excess_percent']:.1f}",
                f"{c['used_percent']:.1f}",
                c["outcome"],
            )
            for c in candidates
        ],
    )


def _review(of: Reported) -> Section:
    """The checklist, and where to sign."""
    reasons = [] if of.identity.plan_uid else [NO_PLAN_FILE]
    if of.verdict and not of.verdict.passed:
        reasons.append("the gate was not passed")
    refused = f"Not to be signed: {' and '.join(reasons)}." if reasons else ""
    return Section(
        "review",
        "Review and signature",
        (
            checklist(
                of.case,
                of.plan,
                of.dose,
                identity=of.identity,
                prescription=of.levels,
                verdict=of.verdict,
                goals=goals_box(of.results),
                delivery=deliverable_box(of.violations, of.machine.name),
            ),
            Signature(_ROLES, of.identity.plan_uid, refused),
        ),
        new_page=True,
    )


def _provenance(of: Reported) -> Section:
    """Where the plan came from: enough to make it again, every value in print."""
    made = {
        "plan": of.plan.provenance,
        "dose": of.dose.provenance,
        "machine limits": asdict(of.machine.limits),
    }
    tree = {**of.provenance, **{k: dict(v) for k, v in made.items() if v and k not in of.provenance}}
    source = of.case.source
    pairs = [
        ("Study", _coded(source.study_uid)),
        ("Frame of reference", _coded(source.frame_of_reference_uid)),
        ("CT series", _coded(source.series_uid)),
        ("CT images", str(len(source.image_uids)) if source.image_uids else ""),
        ("Structure set", _coded(source.structure_set_uid)),
        ("Steps on the case", without_uids("; ".join(source.steps))),
        ("Computing time", ", ".join(f"{stage} {s:.1f} s" for stage, s in (of.seconds or {}).items())),
    ]
    blocks: list[Block | Heading] = [Text("Where the plan came from: enough to make it again.", "faint")]
    rows = [pair for pair in pairs if pair[1]] + [(k, _plain(v)) for k, v in tree.items() if not _nests(v)]
    if rows:
        blocks.append(Table.of("", (), rows))
    for key, value in tree.items():
        if _nests(value) and (leaves := list(_leaves("", value))):
            blocks += [Heading(key), Table.of("", (), leaves)]
    return Section("provenance", "Provenance", tuple(blocks), new_page=True)


def _coded(uid: str) -> str:
    return f"code {without_uids(uid)}" if uid else ""


def _nests(value: Any) -> bool:
    return isinstance(value, Mapping) or (is_dataclass(value) and not isinstance(value, type))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """The values of a tree, each with its path; what holds no names is one value."""
    if _nests(value):
        for key, inner in (value if isinstance(value, Mapping) else asdict(value)).items():
            yield from _leaves(f"{path}.{key}" if path else str(key), inner)
    else:
        yield without_uids(path), _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | int | float | bool):
        return without_uids(str(value))
    return without_uids(json.dumps(value, default=_jsonable, ensure_ascii=False))


def _jsonable(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return dict(value) if isinstance(value, Mapping) else str(value)
