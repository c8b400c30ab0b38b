"""The commands that measure predictions and plans on public data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vmat_diffusion.benchmark.settings import (
    COUNT,
    FIRST,
    BenchmarkSettings,
    GapSettings,
    OpenkbpFolder,
    Tg119Settings,
    TradeSettings,
)
from vmat_diffusion.cli.display import rejected_text, show, table, work_shown
from vmat_diffusion.cli.fields import TO_FILE, TO_FOLDER, Overwrite, Working
from vmat_diffusion.cli.options import keywords, part
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.settings import Search

if TYPE_CHECKING:
    from vmat_diffusion.benchmark.gap import Gap, GapResult
    from vmat_diffusion.benchmark.openkbp.run import BenchmarkResult
    from vmat_diffusion.benchmark.plans import PlansResult
    from vmat_diffusion.benchmark.tg119 import CaseResult, Tg119Result
    from vmat_diffusion.benchmark.trade import TradeResult


@settings
class OpenkbpOptions(BenchmarkSettings, Working):
    """What `benchmark openkbp` takes."""

    csv_out: Annotated[
        Path | None,
        Field(description="Write each dose to this folder as the challenge's pt_N.csv."),
        Option(metavar="DIR"),
    ] = None
    out: Annotated[Path | None, Field(description="Where to write: a file for the JSON object."), TO_FILE] = (
        None
    )
    overwrite: Overwrite = False


def benchmark_openkbp(options: OpenkbpOptions) -> None:
    """Predict OpenKBP patients and compute the challenge's scores; run again to go on after a stop."""
    from vmat_diffusion.benchmark.openkbp.run import benchmark_openkbp as run

    asked = BenchmarkSettings(**part(BenchmarkSettings, options))
    with work_shown(options) as progress:
        done = run(
            asked,
            csv_out=options.csv_out,
            out=options.out,
            overwrite=options.overwrite,
            progress=progress,
        )
    show(json.dumps(done.summary()) if options.json else _openkbp_text(done))


def _openkbp_text(done: BenchmarkResult) -> str:
    found = done.summary()
    parts = [
        f"{found['patients']} patients of split {done.settings.split}, {found['scored']} with a reference "
        f"dose; {found['seconds']:.0f} s"
    ]
    if found["scored"]:
        parts += [
            "Gy, means over patients with 95 % bootstrap intervals; gamma 3 %/3 mm in percent\n"
            + _headlines(found),
            *_gains(found["gain_over_regression"]),
            f"Mean absolute differences by structure, Gy: {done.best}\n"
            + _structures(found["structures"][done.best]),
            f"Subgroups: {done.best}\n" + _groups(found["subgroups"]),
        ]
    if found["calibration"]:
        parts += _calibration(found["calibration"])
    if found["steering"]:
        parts.append("Change of means and of D95, Gy\n" + _steering(found["steering"]))
    if done.left_out:
        parts.append(rejected_text(done.left_out))
    return "\n\n".join(parts)


def _headlines(found: dict[str, Any]) -> str:
    rows = []
    for key, label in (("scores", "all"), ("scores_with_ct", "with CT")):
        for way, scores in found[key].items():
            rows.append([way, label, *_cells(scores)])
    return table(["way", "patients", "n", "dose score", "DVH score", "MAE", "gamma"], rows, left=2)


def _gains(gains: dict[str, Any]) -> list[str]:
    if not gains:
        return []
    rows = [[way, *(_interval(lower[name]) for name in ("dose", "dvh"))] for way, lower in gains.items()]
    return ["Lower than the regression by, Gy\n" + table(["way", "dose score", "DVH score"], rows, left=1)]


def _groups(groups: dict[str, Any]) -> str:
    rows = [[name, *_cells(scores)] for name, scores in groups.items()]
    return table(["patients", "n", "dose score", "DVH score", "MAE", "gamma"], rows, left=1)


def _cells(scores: dict[str, Any]) -> list[object]:
    values = [_interval(scores[name]) if name in scores else "" for name in ("dose", "dvh", "mae", "gamma")]
    return [scores["dose"]["patients"], *values]


def _structures(rows: dict[str, Any]) -> str:
    metrics = ["mae", "bias", "D99", "D95", "D1", "D0.1cc", "mean"]
    cells = [
        [name, row["mae"]["patients"], *(f"{row[m]['value']:.2f}" if m in row else "" for m in metrics)]
        for name, row in rows.items()
    ]
    return table(["structure", "n", "voxels", *metrics[1:]], cells, left=1)


def _calibration(found: dict[str, Any]) -> list[str]:
    """Coverage and reliability of the samples' spread as tables."""
    coverages = [("as drawn, all patients", found["coverage"])]
    fit = found.get("fit")
    if fit:
        coverages.append((f"as drawn, the {len(fit['judged_on'])} others", fit["coverage_as_drawn"]))
        if fit["coverage_widened"]:
            label = f"times {fit['factor']:.2f}, fitted on {len(fit['fitted_on'])}, the others"
            coverages.append((label, fit["coverage_widened"]))
        if fit["coverage_points_widened"]:
            label = f"times {fit['points_factor']:.2f}, fitted on their DVH points, the others"
            coverages.append((label, fit["coverage_points_widened"]))
    rows = [
        [label, level, *(_interval(shares[what], 100) for what in ("voxels", "dvh"))]
        for label, by_level in coverages
        if by_level is not None
        for level, shares in by_level.items()
    ]
    if not rows:
        return ["No voxel is predicted above 5 Gy: the spread of the samples cannot be judged."]
    parts = [
        "Percent within the band of the samples\n"
        + table(["spread", "band", "voxels above 5 Gy", "DVH points"], rows, left=2)
    ]
    if fit and fit["factor"] is None:
        parts.append("No factor from 0.25 to 8 on the spread makes the 90 % band hold 90 % of the voxels.")
    bins = [
        [f"{b['from']:g} to {b['to']:g}" if b["to"] else f"above {b['from']:g}", b["voxels"]]
        + [f"{b[name]:.2f}" for name in ("std", "mae", "rms")]
        for b in found["reliability"]
    ]
    header = ["standard deviation", "voxels", "its mean", "mean error", "rms error"]
    return [*parts, "Reliability of the spread, Gy\n" + table(header, bins, left=1)]


def _steering(rows: list[dict[str, Any]]) -> str:
    targets = sorted({target for row in rows for target in row["d95_gy"]}, reverse=True)
    cells = [
        [row["organ"], row["way"], row["achieved_gy"]["patients"], f"{row['asked_gy']:g}"]
        + [_interval(row["achieved_gy"])]
        + [_interval(row["other_organs_gy"]) if row["other_organs_gy"] else ""]
        + [_interval(row["d95_gy"][target]) if target in row["d95_gy"] else "" for target in targets]
        for row in rows
    ]
    header = ["organ", "way", "n", "asked", "achieved", "other organs", *(f"D95 {t}" for t in targets)]
    return table(header, cells, left=2)


def _interval(found: dict[str, Any], unit: float = 1.0) -> str:
    from vmat_diffusion.benchmark.statistics import interval_text

    return interval_text(found, unit=unit)


@settings
class Tg119Options(Tg119Settings, Working):
    """What `benchmark tg119` takes."""

    out: Annotated[
        Path | None,
        Field(description="Where to write: a folder for the plans, where a stopped run goes on."),
        TO_FOLDER,
    ] = None
    overwrite: Overwrite = False


def benchmark_tg119(options: Tg119Options) -> None:
    """Plan the TG-119 cases and score them beside the report; run again with --out to go on after a stop."""
    from vmat_diffusion.benchmark.tg119 import benchmark_tg119 as run

    asked = Tg119Settings(**part(Tg119Settings, options))
    with work_shown(options) as progress:
        done = run(asked, out=options.out, overwrite=options.overwrite, progress=progress)
    show(json.dumps(done.summary()) if options.json else _tg119_text(done))


def _tg119_text(done: Tg119Result) -> str:
    count, passed = len(done.cases), sum(case.passed for case in done.cases)
    by_mean = sum(case.passed_by_published_mean for case in done.cases)
    ends = [f"{passed} of {count} cases passed: every goal reached, gate passed"]
    if by_mean > passed:
        ends.append(
            f"{by_mean} of {count} where the published mean is enough for a goal that the report's "
            "institutions missed on average"
        )
    if not all(goal.published.verified for case in done.cases for goal in case.goals):
        ends.append("Published means marked * are recalled: they were not compared with the report.")
    return "\n\n".join([*map(_tg119_case, done.cases), "\n".join(ends)])


def _tg119_case(found: CaseResult) -> str:
    rows = [
        [
            goal.goal.structure,
            goal.goal.statement,
            "" if goal.value_gy is None else f"{goal.value_gy:.2f}",
            "yes" if goal.reaches_goal else "NO",
            f"{goal.published.mean_gy:.2f} +- {goal.published.sd_gy:.2f}"
            + ("" if goal.published.verified else " *"),
            "yes" if goal.reaches_published_mean else "no",
        ]
        for goal in found.goals
    ]
    failed = ", ".join(check["name"] for check in found.run["verdict"]["checks"] if not check["passed"])
    if found.passed:
        word = "PASSED"
    else:
        word = "PASSED BY THE PUBLISHED MEAN" if found.passed_by_published_mean else "NOT PASSED"
    head = (
        f"{found.case.name}: {word}; {found.minutes:.1f} minutes, "
        f"{found.run['mu']:.0f} MU, gate {'passed' if found.gated else f'NOT PASSED: {failed}'}"
    )
    header = ["structure", "goal", "Gy", "goal reached", "published mean", "mean reached"]
    return head + "\n" + table(header, rows, left=2)


@settings
class PlansOptions(Search, Working):
    """What `benchmark plans` takes."""

    data: OpenkbpFolder
    count: Annotated[int, Field(description=COUNT), Option(old=("--cases",))]
    first: Annotated[int, Field(description=FIRST)] = 1
    out: Annotated[
        Path | None,
        Field(description="Where to write: a folder for plans, tables and plots; by default none."),
        TO_FOLDER,
    ] = None
    level: Annotated[
        Literal["clinical", "sheet"],
        Field(description="Dose level: the clinical coverage where it is above the sheet's, or the sheet's."),
    ] = "clinical"
    overwrite: Overwrite = False


def benchmark_plans(options: PlansOptions) -> None:
    """Plan OpenKBP patients and compare with their clinical doses; run again to go on after a stop."""
    from vmat_diffusion.benchmark.plans import PlansSettings
    from vmat_diffusion.benchmark.plans import benchmark_plans as run
    from vmat_diffusion.dataset.openkbp import GOALS
    from vmat_diffusion.workflow import PlanSettings, plan_settings

    plan = plan_settings(goals=GOALS, yardstick="never", **keywords(PlanSettings, options))
    asked = PlansSettings(
        data=options.data, cases=options.count, first=options.first, plan=plan, level=options.level
    )
    with work_shown(options) as progress:
        done = run(asked, out=options.out, overwrite=options.overwrite, progress=progress)
    show(json.dumps(done.summary()) if options.json else _plans_text(done))


def _plans_text(done: PlansResult) -> str:
    from vmat_diffusion.benchmark.plans_tables import criteria_rows, metric_rows, patient_rows, sentences

    summary = done.summary()
    parts = ["\n".join(sentences(summary))]
    if done.patients:
        parts += [
            table(*patient_rows(done.patients), left=2),
            "DVH points, coverage matched\n" + table(*metric_rows(summary), left=2),
            "Patients who meet a criterion\n" + table(*criteria_rows(summary), left=1),
        ]
    for title, those in (("Failed", done.failed), ("Left out", done.left_out)):
        if those:
            cells = [[r.case, r.reason, r.remedy] for r in those]
            parts.append(f"{title}\n" + table(["patient", "reason", "remedy"], cells, left=3))
    return "\n\n".join(parts)


@settings
class GapOptions(GapSettings, Working):
    """What `benchmark gap` takes."""

    out: Annotated[
        Path | None,
        Field(description="Where to write: a folder for the results, where a stopped run goes on."),
        TO_FOLDER,
    ] = None
    overwrite: Overwrite = False


def benchmark_gap(options: GapOptions) -> None:
    """Plan TG-119 cases and OpenKBP patients, and say what each stage loses against ideal fluence."""
    from vmat_diffusion.benchmark.gap import benchmark_gap as run

    asked = GapSettings(**part(GapSettings, options))
    with work_shown(options) as progress:
        done = run(asked, out=options.out, overwrite=options.overwrite, progress=progress)
    show(json.dumps(done.summary()) if options.json else _gap_text(done))


def _gap_text(done: GapResult) -> str:
    from vmat_diffusion.benchmark.gap import gaps_of

    parts = [
        f"{case.id}: {case.mu:.0f} MU, {case.mu_per_gy:.0f} MU/Gy, "
        f"{case.outcome.lower().replace('_', ' ')}; {case.minutes:.1f} minutes\n{_gap_table(gaps_of(case))}"
        for case in done.cases
    ]
    if len(pooled := done.pooled()) > 1:
        parts.append(f"OpenKBP, means over patients\n{_gap_table(pooled)}")
    if done.failed:
        cells = [[r.case, r.reason, r.remedy] for r in done.failed]
        parts.append("Failed\n" + table(["case", "reason", "remedy"], cells, left=3))
    return "\n\n".join(parts)


def _gap_table(gaps: Sequence[Gap]) -> str:
    """Gy at each stage, the gap, and the share of each loss in percent."""
    rows = []
    for gap in gaps:
        shares = ["" for _ in range(3)] if gap.percent is None else [f"{share:.0f}" for share in gap.percent]
        rows.append([gap.what, *(f"{value:.1f}" for value in gap.values), f"{gap.gap:+.1f}", *shares])
    header = ["Gy", "ideal", "free sectors", "priced maps", "plan", "gap", "sectors %", "price %", "leaves %"]
    return table(header, rows, left=1)


@settings
class TradeOptions(TradeSettings, Working):
    """What `benchmark trade` takes."""

    out: Annotated[
        Path | None,
        Field(description="Where to write: a folder for tables and the plot, where a stopped run goes on."),
        TO_FOLDER,
    ] = None
    overwrite: Overwrite = False


def benchmark_trade(options: TradeOptions) -> None:
    """Search plans at several limits of MU per Gy: quality against MU; run again to go on after a stop."""
    from vmat_diffusion.benchmark.trade import benchmark_trade as run

    asked = TradeSettings(**part(TradeSettings, options))
    with work_shown(options) as progress:
        done = run(asked, out=options.out, overwrite=options.overwrite, progress=progress)
    show(json.dumps(done.summary()) if options.json else _trade_text(done))


def _trade_text(done: TradeResult) -> str:
    from vmat_diffusion.benchmark.trade_tables import sentences, tables

    summary = done.summary()
    parts = ["\n".join(sentences(summary))]
    parts += [f"{title}\n{table(header, rows, left=2)}" for title, header, rows in tables(summary)]
    return "\n\n".join(parts)
