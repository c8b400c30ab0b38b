"""The commands that measure how good the dose model is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmat_diffusion.cli.display import progress_bar, rejected_text, show, stdout_kept, table
from vmat_diffusion.cli.options import (
    AsJson,
    CheckMinutes,
    GateFile,
    GridMm,
    MachineName,
    Overwrite,
    Seed,
    Uncertainty,
)
from vmat_diffusion.errors import InputError

if TYPE_CHECKING:
    from vmat_diffusion.benchmark.openkbp import BenchmarkResult
    from vmat_diffusion.benchmark.plans import PlansResult
    from vmat_diffusion.benchmark.plans_patient import Level
    from vmat_diffusion.benchmark.tg119 import CaseResult, Tg119Result
    from vmat_diffusion.dataset.splits import Split


def benchmark_openkbp(
    data: Annotated[
        Path, typer.Option("--data", help="Folder with pt_N.npz files or pt_N folders, in folders by split.")
    ],
    split: Annotated[str, typer.Option(metavar="train|validation|test")] = "validation",
    weights: Annotated[str, typer.Option(help="'shipped' or a file of `train`.")] = "shipped",
    samples: Annotated[int, typer.Option(help="Samples of each dose; 0 for the regression alone.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 8,
    seed: Seed = 0,
    patients: Annotated[
        str | None, typer.Option(help="Only these of the split, such as 201-210,215.")
    ] = None,
    fit_spread: Annotated[
        str, typer.Option("--fit-spread", help="Fit the samples' spread on these, judge it on the others.")
    ] = "",
    steer: Annotated[
        list[str] | None,
        typer.Option(metavar="ORGAN:GY", help="Ask for this change of a mean: Parotid_L:-5. Repeatable."),
    ] = None,
    steer_cases: Annotated[int, typer.Option("--steer-cases", help="Of so many patients.")] = 10,
    baseline: Annotated[
        str | None, typer.Option(metavar="boosting", help="Score trees on single voxels as well.")
    ] = None,
    train_data: Annotated[
        Path | None, typer.Option("--train-data", help="Folder with the split train, if not in --data.")
    ] = None,
    gamma: Annotated[bool, typer.Option("--gamma/--no-gamma", help="3 %/3 mm, some seconds each.")] = True,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    csv_out: Annotated[
        Path | None, typer.Option("--csv-out", help="Write each dose as the challenge's pt_N.csv here.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the JSON object to this file.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Predict OpenKBP patients and compute the challenge's scores; run again to go on after a stop."""
    from vmat_diffusion.benchmark.openkbp import BenchmarkSettings
    from vmat_diffusion.benchmark.openkbp import benchmark_openkbp as run
    from vmat_diffusion.benchmark.steering import parse_steer

    settings = BenchmarkSettings(
        data=data,
        split=_split(split),
        weights=weights,
        samples=samples,
        steps=steps,
        seed=seed,
        steer=tuple(parse_steer(text) for text in steer or ()),
        steer_cases=steer_cases,
        boosting=_is_boosting(baseline),
        train_data=train_data,
        gamma=gamma,
        patients=None if patients is None else _numbers(patients),
        fit_spread=_numbers(fit_spread) if fit_spread else (),
        device=device,
    )
    with stdout_kept(), progress_bar() as progress:
        done = run(settings, csv_out=csv_out, out=out, overwrite=overwrite, progress=progress)
    show(json.dumps(done.summary()) if as_json else _text(done))


def _split(name: str) -> Split:
    from vmat_diffusion.dataset.splits import SPLITS
    from vmat_diffusion.errors import InputError

    if name not in SPLITS:
        raise InputError(f"split {name!r} is not known; known are {', '.join(SPLITS)}")
    return name


def _is_boosting(baseline: str | None) -> bool:
    from vmat_diffusion.errors import InputError

    if baseline not in (None, "boosting"):
        raise InputError(f"baseline {baseline!r} is not known; known is boosting")
    return baseline is not None


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers and ranges between commas, each number once and in ascending order."""
    from vmat_diffusion.dataset.splits import NUMBERS
    from vmat_diffusion.errors import InputError

    largest = max(of_split[-1] for of_split in NUMBERS.values())
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last <= largest:
            raise InputError(
                f"patients {text!r}: {part!r} is no number and no range of the challenge's 1 to {largest}; "
                "write 201-210,215"
            )
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def _text(done: BenchmarkResult) -> str:
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


def benchmark_plans(
    data: Annotated[
        Path, typer.Option("--data", help="Folder with pt_N.npz files or pt_N folders, in folders by split.")
    ],
    cases: Annotated[int, typer.Option("--cases", help="Plan so many validation patients.")],
    first: Annotated[int, typer.Option(help="The lowest patient number.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for plans, tables and plots.")] = None,
    prior: Annotated[str, typer.Option(metavar="goals|diffusion", help="As of `plan`.")] = "goals",
    weights: Annotated[str, typer.Option(help="Of the prior diffusion.")] = "shipped",
    level: Annotated[
        str,
        typer.Option(
            metavar="clinical|sheet",
            help="At the clinical coverage where that is above the goal sheet's, or at the sheet's.",
        ),
    ] = "clinical",
    machine: MachineName = "generic_6mv",
    arcs: Annotated[int, typer.Option(help="Number of arcs.")] = 2,
    max_minutes: Annotated[float, typer.Option(help="Of optimisation for each plan.")] = 5.0,
    uncertainty: Uncertainty = 0.02,
    check_minutes: CheckMinutes = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Plan OpenKBP patients and compare with their clinical doses; run again to go on after a stop."""
    from vmat_diffusion.benchmark.plans import PlansSettings
    from vmat_diffusion.benchmark.plans import benchmark_plans as run
    from vmat_diffusion.dataset.openkbp import GOALS
    from vmat_diffusion.workflow import plan_settings

    plan = plan_settings(
        goals=GOALS,
        machine=machine,
        prior=prior,
        weights=weights,
        arcs=arcs,
        seed=seed,
        max_minutes=max_minutes,
        uncertainty=uncertainty,
        check_minutes=check_minutes,
    )
    settings = PlansSettings(data=data, cases=cases, first=first, plan=plan, level=_level(level))
    with stdout_kept(), progress_bar() as progress:
        done = run(settings, out=out, overwrite=overwrite, progress=progress)
    show(json.dumps(done.summary()) if as_json else _benchmark_plans_text(done))


def _level(name: str) -> Level:
    """A level by its name; InputError for any other."""
    from vmat_diffusion.benchmark.plans_patient import LEVELS

    if name not in LEVELS:
        raise InputError(f"--level {name!r} is not known; choose {' or '.join(LEVELS)}")
    return name


def _benchmark_plans_text(done: PlansResult) -> str:
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


def benchmark_tg119(
    cases: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="multitarget, prostate, headneck, cshape_easy, cshape_hard."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep the plans here, and go on here after a stop.")
    ] = None,
    max_minutes: Annotated[float, typer.Option(help="Stop optimising each case after this time.")] = 5.0,
    machine: MachineName = "generic_6mv",
    grid_mm: GridMm = 3.0,
    seed: Annotated[int, typer.Option(help="Same seed, same plans, on one device.")] = 0,
    uncertainty: Uncertainty = 0.02,
    check_minutes: CheckMinutes = None,
    gate: GateFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Plan the TG-119 cases and score them beside the report; run again with --out to go on after a stop."""
    from vmat_diffusion.benchmark.tg119 import Tg119Settings
    from vmat_diffusion.benchmark.tg119 import benchmark_tg119 as run
    from vmat_diffusion.benchmark.tg119_cases import CASES

    settings = Tg119Settings(
        cases=tuple(cases or CASES),
        machine=machine,
        max_minutes=max_minutes,
        grid_mm=grid_mm,
        seed=seed,
        uncertainty=uncertainty,
        check_minutes=check_minutes,
        gate=str(gate) if gate else None,
    )
    with stdout_kept(), progress_bar() as progress:
        done = run(settings, out=out, overwrite=overwrite, progress=progress)
    show(json.dumps(done.summary()) if as_json else _benchmark_tg119_text(done))


def _benchmark_tg119_text(done: Tg119Result) -> str:
    passed = sum(case.passed for case in done.cases)
    return "\n\n".join([*map(_case, done.cases), f"{passed} of {len(done.cases)} cases passed"])


def _case(found: CaseResult) -> str:
    rows = [
        [
            goal.goal.structure,
            goal.goal.statement,
            "" if goal.value_gy is None else f"{goal.value_gy:.2f}",
            f"{goal.published.mean_gy:.2f} +- {goal.published.sd_gy:.2f}",
            f"{goal.needed_gy:g}",
            "yes" if goal.reached else "NO",
        ]
        for goal in found.goals
    ]
    failed = ", ".join(check["name"] for check in found.run["verdict"]["checks"] if not check["passed"])
    head = (
        f"{found.case.name}: {'PASSED' if found.passed else 'NOT PASSED'}; {found.minutes:.1f} minutes, "
        f"{found.run['mu']:.0f} MU, gate {'passed' if found.gated else f'NOT PASSED: {failed}'}"
    )
    return head + "\n" + table(["structure", "goal", "Gy", "published", "needed", "reached"], rows, left=2)
