"""The benchmark of quality against MU as tables: medians and the worst at each limit, points, the plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmat_diffusion.benchmark.plan_comparison import MEAN, criteria_met
from vmat_diffusion.benchmark.plans_tables import markdown_table
from vmat_diffusion.benchmark.trade_plan import PlanAtLimit, limit_text
from vmat_diffusion.files import write_json, written_whole
from vmat_diffusion.lettering import csv_cell
from vmat_diffusion.report.trade_curve import Curve, CurvePoint, Panel, Spread, write_trade_curves

SUMMARY_JSON, POINTS_CSV, TABLES_MD, CURVE_PNG = "trade.json", "trade.csv", "trade.md", "trade.png"
FILES = (SUMMARY_JSON, POINTS_CSV, TABLES_MD, CURVE_PNG)
Values = Callable[[PlanAtLimit], Sequence[float]]


@dataclass(frozen=True)
class Measure:
    """A measure of plans: its title, decimals, whether the most or the least is the worst, its values."""

    title: str
    digits: int
    worst: Callable[[Sequence[float]], float]
    of: Values


def _metric(name: str) -> Values:
    def of(plan: PlanAtLimit) -> Sequence[float]:
        value = plan.delivery[name]
        return () if value is None else (value,)

    return of


def _present(value: float | None) -> Sequence[float]:
    return () if value is None else (value,)


def _criteria_percent(plan: PlanAtLimit) -> Sequence[float]:
    criteria = plan.dose.criteria
    return (100.0 * criteria_met(criteria) / len(criteria),) if criteria else ()


# What every plan has, whatever it is compared with.
_OF_DELIVERY: Mapping[str, Measure] = {
    "mu_per_gy": Measure("MU/Gy", 0, max, _metric("mu_per_gy")),
    "mu": Measure("MU of a fraction", 0, max, lambda plan: (plan.mu,)),
    "mcs": Measure("MCS", 3, min, _metric("mcs")),
    "leaf_motion_mm_deg": Measure("leaf motion, mm/deg", 2, max, _metric("leaf_motion_mm_deg")),
    "smallest_gap_mm": Measure("smallest open gap, mm", 1, min, _metric("smallest_gap_mm")),
    "edge_per_mm": Measure("edge metric, 1/mm", 3, max, _metric("edge_per_mm")),
    "beam_on_s": Measure("beam on, s", 0, max, _metric("beam_on_s")),
    "violations": Measure("violations", 0, max, lambda plan: (plan.violations,)),
    "search_s": Measure("search, s", 0, max, lambda plan: (plan.search_s,)),
    "out_of_time": Measure(
        "ended by the time limit (1: yes)", 0, max, lambda plan: (plan.outcome == "OUT_OF_TIME",)
    ),
    "gamma_percent": Measure("gamma 3 %/2 mm, %", 1, min, lambda plan: _present(plan.gamma_percent)),
}
_OF_COMPARISON: Mapping[str, Measure] = {
    "organ_mean_change_percent": Measure(
        "organ means against clinical, %", 1, max, lambda plan: plan.organ_changes_percent()
    ),
    "criteria_percent": Measure("criteria met, %", 0, min, _criteria_percent),
    "conformity": Measure("conformity (Paddick)", 3, min, lambda plan: (plan.conformity,)),
    "clinical_conformity": Measure(
        "conformity, clinical", 3, min, lambda plan: _present(plan.clinical_conformity)
    ),
}
_OF_TARGETS = {"D95": min, "D99": min, "D1": max}


def _figures(plans: Sequence[PlanAtLimit]) -> dict[str, Measure]:
    """The figures of plans with a clinical dose, those of every target level among them."""
    targets: dict[str, float] = {}
    for plan in plans:
        targets |= plan.levels_gy
    own: dict[str, Measure] = {}
    for target in sorted(targets, key=lambda name: -targets[name]):
        for metric, worst in _OF_TARGETS.items():
            own[f"{target} {metric}"] = Measure(
                f"{target} {metric}, Gy",
                2,
                worst,
                lambda plan, t=target, m=metric: (  # type: ignore[misc]
                    (plan.dose.points[t][m],) if t in plan.dose.points else ()
                ),
            )
            own[f"{target} {metric} difference"] = Measure(
                f"{target} {metric} against clinical, Gy",
                2,
                worst,
                lambda plan, t=target, m=metric: plan.differences_gy(t, m),  # type: ignore[misc]
            )
    return {**_OF_COMPARISON, **own, **_OF_DELIVERY}


def of_limits(plans: Sequence[PlanAtLimit]) -> list[dict[str, Any]]:
    """The figures of plans with a clinical dose at each limit, the strictest first.

    Each figure has its `median` over plans (of organs: over organs and plans), the `worst`, and how many
    `values` there are.
    """
    figures, out = _figures(plans), []
    for limit in _limits(plans):
        own = [plan for plan in plans if plan.limit_mu_per_gy == limit]
        found = {key: _statistics(figure, own) for key, figure in figures.items()}
        kept = {key: stats for key, stats in found.items() if stats is not None}
        out.append({"limit": limit_text(limit), "patients": len(own), "figures": kept})
    return out


def _statistics(figure: Measure, plans: Sequence[PlanAtLimit]) -> dict[str, Any] | None:
    values = [float(value) for plan in plans for value in figure.of(plan)]
    if not values:
        return None
    return {
        "title": figure.title,
        "digits": figure.digits,
        "median": float(np.median(values)),
        "worst": float(figure.worst(values)),
        "values": len(values),
    }


def _limits(plans: Sequence[PlanAtLimit]) -> list[float | None]:
    """The limits, the strictest first, None as the last one."""
    found = {plan.limit_mu_per_gy for plan in plans}
    return [*sorted(limit for limit in found if limit is not None), *([None] if None in found else [])]


def of_tg119(plans: Sequence[PlanAtLimit]) -> list[dict[str, Any]]:
    """Each plan of TG-119: its goals, what it costs, its conformity and its targets' DVH points."""
    return [
        {
            "case": plan.case,
            "limit": limit_text(plan.limit_mu_per_gy),
            "reached": plan.reached,
            "goals": {
                statement: {"value": round(goal.value, 3), "met": goal.met}
                for statement, goal in plan.planned.criteria.items()
            },
            "mu_per_2_gy": round(2.0 * plan.mu_per_gy, 1),
            "conformity": round(plan.conformity, 3),
            "targets": {name: dict(plan.planned.points[name]) for name in plan.levels_gy},
            **{
                key: None if not (found := figure.of(plan)) else round(float(found[0]), 4)
                for key, figure in _OF_DELIVERY.items()
            },
        }
        for plan in plans
    ]


def limit_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the figures against the clinical doses: a column for each limit, median (worst)."""
    limits = summary["limits"]
    header = ["median (worst)", *(f"{one['limit']} MU/Gy" for one in limits)]
    keys = dict.fromkeys(key for one in limits for key in one["figures"])
    rows = [["plans", *(str(one["patients"]) for one in limits)]]
    for key in keys:
        found = [one["figures"].get(key) for one in limits]
        title = next(stats["title"] for stats in found if stats is not None)
        rows.append([title, *("" if stats is None else _cell(stats) for stats in found)])
    return header, rows


def _cell(stats: Mapping[str, Any]) -> str:
    return f"{stats['median']:.{stats['digits']}f} ({stats['worst']:.{stats['digits']}f})"


def tg119_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the plans of TG-119."""
    shown = [key for key in _OF_DELIVERY if any(row[key] is not None for row in summary["tg119"])]
    titles = [_OF_DELIVERY[key].title for key in shown]
    header = ["case", "limit", "goals met", "goals reached", "MU for 2 Gy", *titles, "conformity"]
    rows = []
    for row in summary["tg119"]:
        met = sum(goal["met"] for goal in row["goals"].values())
        cells = ["" if row[k] is None else f"{row[k]:.{_OF_DELIVERY[k].digits}f}" for k in shown]
        head = [row["case"], row["limit"], f"{met} of {len(row['goals'])}", row["reached"] or ""]
        rows.append([*head, f"{row['mu_per_2_gy']:.0f}", *cells, f"{row['conformity']:.3f}"])
    return header, rows


def tg119_goal_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the goals of TG-119: a column for each limit, with the MU for 2 Gy that it gave."""
    limits = list(dict.fromkeys(row["limit"] for row in summary["tg119"]))
    limits.sort(key=lambda limit: float("inf") if limit == "off" else float(limit))
    found = {(row["case"], row["limit"]): row for row in summary["tg119"]}
    rows = []
    for case in dict.fromkeys(row["case"] for row in summary["tg119"]):
        own = [found.get((case, limit)) for limit in limits]
        rows.append([case, "MU for 2 Gy", *("" if r is None else f"{r['mu_per_2_gy']:.0f}" for r in own)])
        for goal in dict.fromkeys(goal for r in own if r for goal in r["goals"]):
            rows.append([case, goal, *(_goal_cell(r, goal) for r in own)])
    return ["case", "goal", *(f"{limit} MU/Gy" for limit in limits)], rows


def _goal_cell(row: Mapping[str, Any] | None, goal: str) -> str:
    if row is None or goal not in row["goals"]:
        return ""
    found = row["goals"][goal]
    return f"{found['value']:.2f}" + ("" if found["met"] else " missed")


def points(plans: Sequence[PlanAtLimit]) -> list[dict[str, Any]]:
    """Each plan as the plot has it.

    The mean doses of organs are against the clinical ones at matched coverage, in TG-119 against those of
    the case's plan at its loosest limit, in percent, medians over organs. D99 is of the highest target:
    against the clinical one in Gy, and in percent of the prescription.
    """
    loosest: dict[str, PlanAtLimit] = {}
    for limit in _limits(plans):
        loosest |= {plan.case: plan for plan in plans if plan.limit_mu_per_gy == limit}
    rows = []
    for plan in plans:
        changes = plan.organ_changes_percent() or _against(plan, loosest[plan.case])
        difference = plan.differences_gy(plan.target, "D99")
        d99 = plan.dose.points[plan.target]["D99"]
        rows.append(
            {
                "case": plan.case,
                "limit": limit_text(plan.limit_mu_per_gy),
                "mu_per_gy": round(plan.mu_per_gy, 2),
                "organ_mean_change_percent": round(float(np.median(changes)), 3) if changes else None,
                "d99_difference_gy": round(difference[0], 3) if difference else None,
                "d99_percent": round(100 * d99 / plan.levels_gy[plan.target], 3),
                "mcs": plan.delivery["mcs"],
            }
        )
    return rows


def _against(plan: PlanAtLimit, other: PlanAtLimit) -> tuple[float, ...]:
    """By how much the organs' means are above those of another plan of the case, percent."""
    theirs = {name: metrics[MEAN] for name, metrics in other.planned.points.items() if MEAN in metrics}
    return tuple(100 * (plan.planned.points[name][MEAN] / gy - 1) for name, gy in theirs.items() if gy > 0)


def curves(plans: Sequence[PlanAtLimit]) -> list[Curve]:
    """The curves of the plot: one of all patients at each limit, one of each case of TG-119."""
    rows = points(plans)
    names = [("OpenKBP" if plan.comparison else plan.case) for plan in plans]
    out = []
    for name in dict.fromkeys(names):
        own = [row for row, of in zip(rows, names, strict=True) if of == name]
        d99 = "d99_difference_gy" if name == "OpenKBP" else "d99_percent"
        columns = ("mu_per_gy", "organ_mean_change_percent", d99, "mcs")
        found = []
        for limit in dict.fromkeys(row["limit"] for row in own):
            at = [row for row in own if row["limit"] == limit]
            mu, *values = (_spread([row[c] for row in at if row[c] is not None]) for c in columns)
            if mu is not None:
                found.append(CurvePoint(limit, mu, tuple(values)))
        out.append(Curve(name, tuple(found), clinical=name == "OpenKBP"))
    return out


def _spread(values: Sequence[float]) -> Spread | None:
    """Quartiles; None without values."""
    if not values:
        return None
    low, middle, high = (float(v) for v in np.percentile(values, (25, 50, 75)))
    return low, middle, high


def write_results(out: Path, summary: Mapping[str, Any], plans: Sequence[PlanAtLimit]) -> None:
    """Write `FILES` into `out`; the plot and its numbers only if there is a plan."""
    rows = points(plans)
    with written_whole(out / SUMMARY_JSON) as part:
        write_json(part, {**summary, "points": rows})
    with written_whole(out / TABLES_MD) as part:
        part.write_text(markdown(summary), encoding="utf-8")
    for name in (POINTS_CSV, CURVE_PNG):
        (out / name).unlink(missing_ok=True)
    if not rows:
        return
    with written_whole(out / POINTS_CSV) as part, part.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows([{name: csv_cell(cell) for name, cell in row.items()} for row in rows])
    write_trade_curves(out / CURVE_PNG, PANELS, curves(plans))


PANELS = (
    Panel("Organ means", "% against clinical", "% against the loosest limit"),
    Panel("D99 of the highest level", "Gy against clinical", "% of the prescription"),
    Panel("MCS", "", ""),
)


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """The summary's head in words."""
    defaults = ", ".join(
        f"{name} {limit_text(limit)}" for name, limit in summary["default_mu_per_gy"].items()
    )
    return [
        f"{summary['planned']} plans, {len(summary['failed'])} failed, {len(summary['left_out'])} patients "
        f"left out; limits of the sheets themselves, MU/Gy: {defaults}."
    ]


def tables(summary: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables with titles: those for which there are plans, and what failed."""
    out = []
    if summary["limits"]:
        title = "OpenKBP patients, coverage matched to the clinical dose"
        out.append((title, *limit_rows(summary)))
    if summary["tg119"]:
        out += [
            ("TG-119", *tg119_rows(summary)),
            ("TG-119, goals by limit; missed: not reached", *tg119_goal_rows(summary)),
        ]
    for title, key in (("Failed", "failed"), ("Left out", "left_out")):
        if summary[key]:
            rows = [[r["case"], f"{r['reason']}; {r['remedy']}"] for r in summary[key]]
            out.append((title, ["plan or patient", "reason"], rows))
    return out


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown tables."""
    parts = ["# Quality against MU", *sentences(summary)]
    for title, header, rows in tables(summary):
        parts += [f"## {title}", markdown_table(header, rows)]
    return "\n\n".join(parts) + "\n"
