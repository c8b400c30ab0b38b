"""The beams in the report: their table, the course of each, the beam's eye view, and how complex they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from vmat_diffusion.case import Prescription
from vmat_diffusion.evaluate.complexity import PUBLISHED, SOURCES, complexity_of, ranges_for
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan, timing
from vmat_diffusion.report.charts import control_points_figure
from vmat_diffusion.report.document import Block, Cell, Column, Heading, Key, Picture, Table, Text
from vmat_diffusion.report.looks import Look, ShownDose
from vmat_diffusion.report.parts.beams_eye import APERTURE, JAW, LEAF, chosen_points, film_strip

# Leaf and jaw numbers in the beam table are rounded to what the linac console shows.
_MM = "{:.1f}"


def beams_table(plan: Plan, machine: Machine) -> Table:
    """A row for each beam."""
    return Table.of(
        "Angles after IEC 61217. Jaws at the isocentre plane; a range means that the jaw moves. MU per "
        "fraction. "
        "All beams have the one isocentre of the plan.",
        (
            *("No.", "Name", "Energy", "Gantry", "Direction", "Collimator", "Couch"),
            *("X1 / X2 [mm]", "Y1 / Y2 [mm]"),
            *(Column(title, True) for title in ("Control points", "MU", "Beam on")),
        ),
        [_beam(arc, plan, machine) for arc in plan.arcs],
    )


def _beam(arc: Arc, plan: Plan, machine: Machine) -> tuple[str, ...]:
    start, stop = arc.gantry_deg[0] % 360, arc.gantry_deg[-1] % 360
    turn = float(arc.gantry_deg[-1] - arc.gantry_deg[0])
    direction = (
        f"{'clockwise' if turn > 0 else 'counter-clockwise'}, {abs(turn):.0f}°" if arc.rotates else "static"
    )
    pace = timing(arc, machine.limits, plan.dose_rate_mu_min)
    low, high = arc.jaws_mm.min(axis=0), arc.jaws_mm.max(axis=0)
    jaws = [
        _MM.format(lo) if hi - lo < 0.05 else f"{_MM.format(lo)} to {_MM.format(hi)}"
        for lo, hi in zip(low, high, strict=True)
    ]
    return (
        str(arc.number),
        arc.name or "–",
        f"{machine.beam.energy} {machine.beam.fluence_mode}".strip() if machine.beam else "–",
        f"{start:.1f}° → {stop:.1f}°" if arc.rotates else f"{start:.1f}°",
        direction,
        f"{arc.collimator_deg:.1f}°",
        f"{arc.couch_deg:.1f}°",
        f"{jaws[0]} / {jaws[1]}",
        f"{jaws[2]} / {jaws[3]}",
        str(len(arc.gantry_deg)),
        f"{arc.total_mu:.1f}",
        f"{pace.total_s:.0f} s",
    )


def arc_blocks(arc: Arc, plan: Plan, machine: Machine, shown: ShownDose) -> list[Block | Heading]:
    """The beam's eye view of one beam as a film strip, and its course along the segments."""
    name = f"Beam {arc.number}" + (f" ({arc.name})" if arc.name else "")
    targets = [s for s in shown.structures if s.is_target]
    number = len(chosen_points(arc))
    return [
        Heading(name),
        Picture(
            partial(film_strip, arc, plan, machine, shown.case, targets),
            f"Beam’s eye view of {name} at {number} of {len(arc.gantry_deg)} control points, seen from the "
            "source, at the isocentre plane: collimator X to the right, Y upwards; one scale for all. MU are "
            "those of the segment that begins there.",
            f"{name}: leaves, jaws and projected targets at {number} control points.",
            keys=_bev_keys(targets),
        ),
        Picture(
            partial(control_points_figure, arc, plan, machine),
            "Per segment, at the fastest pace that the machine’s limits allow. Mean leaf travel counts the "
            "pairs that are open.",
            f"{name}: monitor units, dose rate, gantry speed and leaf motion along the segments, with the "
            "machine’s limits.",
        ),
    ]


def _bev_keys(targets: Sequence[Look]) -> tuple[Key, ...]:
    fixed = (Key("aperture", APERTURE, "area"), Key("leaves", LEAF, "area"), Key("jaws", JAW))
    return (*fixed, *(Key(f"{t.name}, projected", t.ink, "broken" if t.repeat else "line") for t in targets))


def complexity_blocks(
    plan: Plan, machine: Machine, prescription: Prescription | None, site: str
) -> list[Block | Heading]:
    """The metrics of the plan as rows, beside what others reported; marked where it is more complex."""
    found = complexity_of(plan, machine, prescription)
    known = {r.metric: r for r in ranges_for(site)}
    rows = []
    for name, value in found.record().items() if found else ():
        outside = value is not None and name in known and known[name].outside(value)
        sources = (PUBLISHED[name].values, known[name].source_text if name in known else "")
        rows.append(
            (
                PUBLISHED[name].title,
                Cell("–" if value is None else f"{value:.3g}", bold=True),
                PUBLISHED[name].unit,
                known[name].text if name in known else "–",
                Cell("outside", "acceptable") if outside else Cell(""),
                Cell("; ".join(part for part in sources if part) or "–", faint=True),
            )
        )
    caption = (
        "How much the plan asks of the linac and of the dose engine; apertures weighted by MU. Published "
        "values are of other plans, linacs and planning systems: a comparison, not a limit. Marked is "
        "what is "
        "more complex than those plans."
    )
    columns = ("Metric", Column("Plan", True), "Unit", "Plans of others", "", "Published for VMAT")
    return [Table.of(caption, columns, rows), Text("; ".join(SOURCES) + ".", "faint")]
