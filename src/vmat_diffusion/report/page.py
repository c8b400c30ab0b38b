"""The report as one HTML file without any outside reference."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.evaluate.complexity import PUBLISHED, SOURCES, complexity_of, ranges_for
from vmat_diffusion.evaluate.delivery_results import evaluate_delivery
from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
from vmat_diffusion.files import written_whole
from vmat_diffusion.geometry import Point
from vmat_diffusion.lettering import legible
from vmat_diffusion.machine import Machine
from vmat_diffusion.origin import without_uids
from vmat_diffusion.plan import Arc, Plan, delivery_s, timing
from vmat_diffusion.qa import Check, Verdict, denoised
from vmat_diffusion.report import charts
from vmat_diffusion.report.comparison import both_dvh_figure, gamma_figure
from vmat_diffusion.report.content import Shown, ShownDose, shown_dose
from vmat_diffusion.report.goals_table import (
    delivery_rows,
    goal_tables,
    goals_verdict,
    goals_without_value,
    pretty,
    sheet_remarks,
    yardstick_table,
)
from vmat_diffusion.report.planes import planes_figure, window_hu
from vmat_diffusion.report.robustness_table import robustness_table

# Leaf and jaw numbers in the beam table are rounded to what the linac console shows.
_MM = "{:.1f}"


def write_report(
    path: str | Path,
    *,
    case: Case,
    plan: Plan,
    machine: Machine,
    dose: Dose,
    results: Sequence[GoalResult],
    violations: Sequence[str],
    provenance: Mapping[str, Any],
    sheet: GoalSheet | None = None,
    history: Sequence[float] | None = None,
    seconds: Mapping[str, float] | None = None,
    prescription: Prescription | None = None,
    verdict: Verdict | None = None,
    check: Dose | None = None,
    candidates: Sequence[Mapping[str, Any]] = (),
    yardstick: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a plan and return its path; the file appears whole or not at all.

    `prescription` is the case's own where it is not given; its highest dose is the 100 % of the
    isodoses. `sheet` is the goal sheet of the `results`. `history` is the objective at each iteration,
    `seconds` the time of each stage.
    `provenance` may nest: plain values become a table, the rest is shown as JSON. `verdict` is the
    gate's, and `check` the independent dose that it rests on. `candidates` are the records of the plans
    among which this one was chosen, `yardstick` that of the goals on ideal fluence.
    """
    prescription = prescription or case.prescription
    shown = shown_dose(case, dose, results, prescription)
    page = _template().render(
        case=case,
        plan=plan,
        machine=machine,
        facts=[*_facts(case, plan, machine, dose, prescription), *_arrangement(provenance)],
        violations=list(violations),
        verdict=goals_verdict(results, violations),
        gate=_gate(plan, shown, verdict, check, prescription) if verdict else None,
        goals=goal_tables(results, shown.structures),
        delivery=delivery_rows(evaluate_delivery(sheet, plan, machine)) if sheet else [],
        absent=goals_without_value(results),
        remarks=sheet_remarks(sheet, results),
        figures=_figures(plan, machine, shown, prescription),
        history=_image(charts.svg(charts.history_figure(history)), "svg+xml") if history else "",
        beams=[_beam(arc, plan, machine) for arc in plan.arcs],
        complexity=_complexity(plan, machine, prescription, sheet.site if sheet else case.site),
        complexity_sources=SOURCES,
        statistics=[_statistics(s) for s in shown.structures],
        renamed=any(s.structure.alias not in ("", s.name) for s in shown.structures),
        candidates=candidates,
        yardstick=yardstick_table(yardstick, shown.structures) if yardstick else None,
        seconds=dict(seconds or {}),
        inputs=_inputs(case),
        provenance=_provenance(_resolved(plan, machine, dose, provenance)),
        window=window_hu(case),
    )
    path = Path(path)
    with written_whole(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("vmat_diffusion", "report"),
        autoescape=True,
        finalize=_legible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _legible(value: Any) -> Any:
    return legible(value) if type(value) is str else value


def _image(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _figures(
    plan: Plan, machine: Machine, shown: ShownDose, prescription: Prescription | None
) -> dict[str, Any]:
    dose = shown.dose
    hottest = np.unravel_index(int(np.argmax(dose.gy)), dose.gy.shape)
    x, y, z = dose.grid.axes_mm
    maximum: Point = (float(x[hottest[2]]), float(y[hottest[1]]), float(z[hottest[0]]))

    def planes(point: Point, mark: str) -> str:
        return _image(charts.png(planes_figure(shown, point, mark=mark)), "png")

    return {
        "dvh": _image(charts.svg(charts.dvh_figure(shown.structures, prescription)), "svg+xml"),
        "isocenter": planes(plan.isocenter_mm, "+"),
        "maximum": planes(maximum, "x"),
        "maximum_gy": float(dose.gy.max()),
        "maximum_percent": 100 * float(dose.gy.max()) / shown.reference_gy,
        "maximum_mm": maximum,
        "arcs": [
            (
                _arc_name(arc),
                _image(charts.svg(charts.control_points_figure(arc, plan, machine)), "svg+xml"),
            )
            for arc in plan.arcs
        ],
    }


def _arc_name(arc: Arc) -> str:
    return f"Beam {arc.number}" + (f" ({arc.name})" if arc.name else "")


def _facts(
    case: Case, plan: Plan, machine: Machine, dose: Dose, prescription: Prescription | None
) -> list[tuple[str, str]]:
    levels = (
        ", ".join(f"{name} {gy:g} Gy" for name, gy in prescription.target_gy.items())
        if prescription
        else "not given"
    )
    minutes, rest = divmod(round(delivery_s(plan, machine)), 60)
    spacing = " × ".join(f"{s:g}" for s in dose.grid.spacing_mm)
    x, y, z = plan.isocenter_mm
    return [
        ("Case", case.id),
        ("Site", case.site or "not given"),
        ("Prescription", f"{levels} in {plan.fractions} fractions"),
        ("Plan", plan.label),
        ("Machine", f"{machine.title or machine.name} ({machine.name})"),
        ("Monitor units", f"{plan.total_mu:.1f} MU per fraction"),
        ("Beam-on time", f"{minutes} min {rest:02d} s, without set-up between beams"),
        ("Isocentre (x, y, z)", f"{x:.1f}, {y:.1f}, {z:.1f} mm, DICOM patient coordinates"),
        ("Patient position", plan.patient_position),
        ("Dose grid", f"{spacing} mm, dose to {dose.medium}, whole course"),
        ("Highest dose", f"{float(dose.gy.max()):.2f} Gy"),
    ]


def _arrangement(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which arcs were chosen and why, where the program chose."""
    found = provenance.get("arrangement")
    return [("Arcs", str(found["text"]))] if found else []


def _error(check: Check) -> str:
    """The standard error of a check's value; empty where it has none."""
    return "" if check.error is None else f" ± {check.error:.2f}"


def _gate(
    plan: Plan,
    shown: ShownDose,
    verdict: Verdict,
    check: Dose | None,
    prescription: Prescription | None,
) -> dict[str, Any]:
    """The gate's checks as rows, and the figures of the second dose."""
    rows = [
        {
            "name": c.name,
            "status": "acceptable" if c.warns else "pass" if c.passed else "fail",
            "word": c.word,
            "value": "–" if c.value is None else f"{c.value:.2f}{_error(c)}",
            "limit": "–" if c.limit is None else f"{c.limit:g}",
            "unit": c.unit,
            "why": pretty(c.why),
        }
        for c in verdict.checks
    ]
    map_, both = "", ""
    if verdict.gamma is not None:
        figure = gamma_figure(shown.case, verdict.gamma, plan.isocenter_mm)
        map_ = _image(charts.png(figure), "png")
    if check is not None:
        figure = both_dvh_figure(shown.structures, shown.case, denoised(shown.dose, check), prescription)
        both = _image(charts.svg(figure), "svg+xml")
    return {
        "passed": verdict.passed,
        "failed": len(verdict.failed),
        "judged": sum(c.limit is not None for c in verdict.checks),
        "undecided": [c.why for c in verdict.undecided],
        "looser": verdict.looser,
        "warnings": [c.why for c in verdict.checks if c.warns and c.why != verdict.looser],
        "rows": rows,
        "map": map_,
        "criteria": verdict.gamma.criteria if verdict.gamma else "",
        "dvh": both,
        "robustness": robustness_table(verdict.robustness) if verdict.robustness else None,
        "engine": str(check.provenance.get("engine", "independent engine")) if check else "",
    }


def _beam(arc: Arc, plan: Plan, machine: Machine) -> dict[str, str]:
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
    return {
        "number": str(arc.number),
        "name": arc.name or "–",
        "energy": f"{machine.beam.energy} {machine.beam.fluence_mode}".strip() if machine.beam else "–",
        "gantry": f"{start:.1f}° → {stop:.1f}°" if arc.rotates else f"{start:.1f}°",
        "direction": direction,
        "collimator": f"{arc.collimator_deg:.1f}°",
        "couch": f"{arc.couch_deg:.1f}°",
        "x": f"{jaws[0]} / {jaws[1]}",
        "y": f"{jaws[2]} / {jaws[3]}",
        "points": str(len(arc.gantry_deg)),
        "mu": f"{arc.total_mu:.1f}",
        "time": f"{pace.total_s:.0f} s",
    }


def _complexity(
    plan: Plan, machine: Machine, prescription: Prescription | None, site: str
) -> list[dict[str, Any]]:
    """The metrics of the plan as rows, beside what others reported; `outside` where it is more complex."""
    found = complexity_of(plan, machine, prescription)
    if found is None:
        return []
    known = {r.metric: r for r in ranges_for(site)}
    return [
        {
            "title": PUBLISHED[name].title,
            "value": "–" if value is None else f"{value:.3g}",
            "unit": PUBLISHED[name].unit,
            "range": known[name].text if name in known else "–",
            "outside": value is not None and name in known and known[name].outside(value),
            "published": "; ".join(
                part
                for part in (PUBLISHED[name].values, known[name].source_text if name in known else "")
                if part
            )
            or "–",
        }
        for name, value in found.record().items()
    ]


def _statistics(s: Shown) -> dict[str, Any]:
    dvh = s.dvh
    return {
        "name": s.name,
        "colour": s.colour,
        "alias": s.structure.alias if s.structure.alias != s.name else "",
        "volume": f"{dvh.volume_cc:.2f}" if dvh.volume_cc < 100 else f"{dvh.volume_cc:.0f}",
        "doses": [
            f"{gy:.2f}"
            for gy in (
                *(dvh.dose_at_percent_gy(p) for p in (98, 95, 50, 2)),
                dvh.mean_gy,
                dvh.dose_at_cc_gy(0.03),
                dvh.max_gy,
            )
        ],
    }


def _inputs(case: Case) -> list[tuple[str, str]]:
    source = case.source
    pairs = [
        ("Study", _coded(source.study_uid)),
        ("Frame of reference", _coded(source.frame_of_reference_uid)),
        ("CT series", _coded(source.series_uid)),
        ("CT images", str(len(source.image_uids)) if source.image_uids else ""),
        ("Structure set", _coded(source.structure_set_uid)),
        ("Steps on the case", without_uids("; ".join(source.steps))),
    ]
    return [(name, value) for name, value in pairs if value]


def _coded(uid: str) -> str:
    return f"code {without_uids(uid)}" if uid else ""


def _resolved(plan: Plan, machine: Machine, dose: Dose, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known of how plan and dose were made, for those who want to make them again."""
    made = {"plan": plan.provenance, "dose": dose.provenance, "machine limits": asdict(machine.limits)}
    return {
        **provenance,
        **{key: dict(value) for key, value in made.items() if value and key not in provenance},
    }


def _provenance(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values for a table, and everything nested as JSON text by its key."""
    plain, nested = [], []
    for key, value in tree.items():
        if isinstance(value, str | int | float | bool) or value is None:
            plain.append((key, "–" if value is None else without_uids(str(value))))
        else:
            text = json.dumps(value, indent=2, default=_jsonable, ensure_ascii=False)
            nested.append((key, without_uids(text)))
    return {"plain": plain, "nested": nested}


def _jsonable(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
