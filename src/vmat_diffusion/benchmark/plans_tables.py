"""The plans benchmark as files: patients as CSV, the summary as JSON and Markdown, box plots."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmat_diffusion.benchmark.plan_comparison import (
    COVERAGE,
    criteria_met,
    differences_gy,
    organ_change,
)
from vmat_diffusion.benchmark.plans_patient import PlannedPatient
from vmat_diffusion.benchmark.statistics import interval_text
from vmat_diffusion.dataset.tables import Rejection
from vmat_diffusion.files import write_json, written_whole
from vmat_diffusion.lettering import csv_cell
from vmat_diffusion.report.comparison import write_plan_boxes

PATIENTS_CSV, SUMMARY_JSON, SUMMARY_MD, BOXES_PNG = "plans.csv", "plans.json", "plans.md", "plans.png"


def write_results(
    out: Path,
    summary: Mapping[str, Any],
    patients: Sequence[PlannedPatient],
    failed: Sequence[Rejection],
    left_out: Sequence[Rejection],
) -> None:
    """Write the four files into `out`, the plots only if there is a plan."""
    with written_whole(out / SUMMARY_JSON) as part:
        write_json(part, summary)
    with written_whole(out / PATIENTS_CSV) as part:
        _write_csv(part, patients, failed, left_out)
    with written_whole(out / SUMMARY_MD) as part:
        part.write_text(markdown(summary, patients), encoding="utf-8")
    (out / BOXES_PNG).unlink(missing_ok=True)
    if patients:
        write_plan_boxes(out / BOXES_PNG, differences_gy([p.comparison for p in patients]))


def _patient_row(patient: PlannedPatient) -> dict[str, Any]:
    """A patient's plan in a line; the change of the organs' means is their median, at matched coverage."""
    found = patient.comparison
    change = organ_change([found])
    return {
        "patient": patient.id,
        "gate": "passed" if patient.passed else "not passed: " + ", ".join(patient.failed_checks),
        "violations": patient.violations,
        "minutes": patient.minutes,
        "MU": patient.mu,
        f"{found.target} {COVERAGE} vs clinical %": round(found.d95_percent, 2),
        "factor": round(found.factor, 4),
        "organ means %": None if change is None else round(change.value, 1),
        "criteria": len(found.clinical.criteria),
        "met": criteria_met(found.matched.criteria),
        "met as planned": criteria_met(found.planned.criteria),
        "met clinically": criteria_met(found.clinical.criteria),
    }


def patient_rows(patients: Sequence[PlannedPatient]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the patients."""
    rows = [_patient_row(p) for p in patients]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, [["" if row.get(n) is None else str(row[n]) for n in names] for row in rows]


def _write_csv(
    path: Path, patients: Sequence[PlannedPatient], failed: Sequence[Rejection], left_out: Sequence[Rejection]
) -> None:
    rows = [_csv_row(p) for p in patients]
    for status, those in (("failed", failed), ("left out", left_out)):
        rows += [{"patient": r.case, "status": status, "reason": f"{r.reason}; {r.remedy}"} for r in those]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, names)
        table.writeheader()
        table.writerows([{name: csv_cell(cell) for name, cell in row.items()} for row in rows])


def _csv_row(patient: PlannedPatient) -> dict[str, Any]:
    """Everything about a patient; each DVH point of the plan, at matched coverage, and clinical."""
    found = patient.comparison
    row: dict[str, Any] = {
        "patient": patient.id,
        "status": "planned",
        "reason": "",
        "gate": "passed" if patient.passed else "not passed",
        "failed_checks": ", ".join(patient.failed_checks),
        "outcome": patient.outcome,
        "violations": patient.violations,
        "minutes": patient.minutes,
        "mu": patient.mu,
        "delivery_s": patient.delivery_s,
        "matched_on": f"{found.target} {COVERAGE}",
        "d95_percent": round(found.d95_percent, 3),
        "factor": round(found.factor, 5),
        "criteria": len(found.clinical.criteria),
    }
    doses = {"planned": found.planned, "matched": found.matched, "clinical": found.clinical}
    row |= {f"met_{which}": criteria_met(dose.criteria) for which, dose in doses.items()}
    for name, metrics in found.clinical.points.items():
        for metric in metrics:
            row |= {
                f"{name} {metric} {which} Gy": round(dose.points[name][metric], 3)
                for which, dose in doses.items()
            }
    return row


def markdown(summary: Mapping[str, Any], patients: Sequence[PlannedPatient]) -> str:
    """The summary as Markdown tables, with failed and left-out patients."""
    parts = ["# OpenKBP patients planned, against their clinical doses", *sentences(summary)]
    if patients:
        parts += ["## Patients", markdown_table(*patient_rows(patients))]
        parts += ["## DVH points, coverage matched", markdown_table(*metric_rows(summary))]
        parts += ["## Criteria, number of patients who meet them", markdown_table(*criteria_rows(summary))]
    for title, key in (("Failed", "failed"), ("Left out", "left_out")):
        if summary[key]:
            rows = [[r["case"], f"{r['reason']}; {r['remedy']}"] for r in summary[key]]
            parts += [f"## {title}", markdown_table(["patient", "reason"], rows)]
    return "\n\n".join(parts) + "\n"


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """The summary's head figures in words."""
    found = [
        f"{summary['planned']} of {summary['asked']} patients planned, {len(summary['failed'])} failed, "
        f"{len(summary['left_out'])} left out; split {summary['settings']['split']}, "
        f"prior {summary['settings']['plan']['prior']}, at most "
        f"{summary['settings']['plan']['search_minutes']:g} minutes of optimisation each."
    ]
    if not summary["planned"]:
        return found
    gate, d95, change = (summary[k] for k in ("gate", "d95_percent", "organ_mean_change_percent"))
    shares = summary["criteria_percent"]
    found += [
        f"Gate passed by {gate['passed']} of {gate['of']} ({gate['percent']:.0f} %); {summary['violations']} "
        f"violations of the machine's limits in all; {summary['mu']['value']:.0f} MU and "
        f"{summary['minutes']['value']:.1f} minutes (medians).",
        f"D95 of the highest-dose PTV as planned against the clinical one: {interval_text(d95)} % (median), "
        f"least {d95['least']:.2f} %, at least -1 % in {d95['within_1_percent']} of {summary['planned']}. "
        "All below is at matched coverage: each plan's dose is multiplied by "
        f"{interval_text(summary['factor'], 4)} (median), so that this D95 is the clinical one.",
        f"Criteria met: {interval_text(shares['matched'], 1)} % at matched coverage, "
        f"{interval_text(shares['planned'], 1)} % as planned, "
        f"{interval_text(shares['clinical'], 1)} % clinically.",
    ]
    if change is not None:
        found.append(
            "Organ mean doses against clinical, median over organs and patients: "
            f"{interval_text(change, 1)} %."
        )
    return found


def metric_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the DVH points."""
    header = ["structure", "metric", "n", "plan Gy", "clinical Gy", "difference Gy", "p", "r"]
    rows = [
        [
            name,
            metric,
            str(pair["difference"]["patients"]),
            f"{pair['a']:.2f}",
            f"{pair['b']:.2f}",
            interval_text(pair["difference"]),
            "" if pair["p"] is None else f"{pair['p']:.2g}",
            "" if pair["effect"] is None else f"{pair['effect']:+.2f}",
        ]
        for name, metrics in summary["metrics"].items()
        for metric, pair in metrics.items()
    ]
    return header, rows


def criteria_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the criteria."""
    header = ["criterion", "n", "plan", "plan as planned", "clinical"]
    rows = [
        [label, *(str(c[which]) for which in ("patients", "matched", "planned", "clinical"))]
        for label, c in summary["criteria"].items()
    ]
    return header, rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Header and rows as a Markdown table; a bar in a cell becomes a slash."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
