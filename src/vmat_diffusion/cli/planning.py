"""The commands that go from a case to a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from vmat_diffusion.cli.display import (
    goals_text,
    run_text,
    show,
    stdout_kept,
    table,
    verdict_text,
    work_shown,
)
from vmat_diffusion.cli.fields import TO_FILE, TO_FOLDER, CaseFolder, Facts, OutFolder, Overwrite, Working
from vmat_diffusion.cli.options import part
from vmat_diffusion.errors import InputError
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.planning.request import plan_settings, sheet_defaults
from vmat_diffusion.workflow.settings import (
    CheckMinutes,
    GenerateSettings,
    PlanSettings,
    PredictSettings,
    Shareable,
)

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.ranking import GoalScore
    from vmat_diffusion.workflow.generation.run import GenerateRun
    from vmat_diffusion.workflow.predict import PredictRun
    from vmat_diffusion.workflow.trade_off import TradeOff


@settings
class PhantomOptions(Facts):
    """What `phantom` takes."""

    name: Annotated[
        str,
        Field(description="Name: tg119_cshape, thorax and others, or a site: prostate, head_neck, lung."),
        Option(positional=True, metavar="NAME"),
    ]
    out: Annotated[Path, Field(description="Where to write: a new or empty folder."), TO_FOLDER]
    seed: Annotated[
        int | None,
        Field(description="Random seed: which synthetic patient of a site; by default 0."),
    ] = None


def phantom(options: PhantomOptions) -> None:
    """Write a built-in case or a synthetic patient as a DICOM CT with its structure set."""
    from vmat_diffusion.anatomy import SITES, synthetic_case
    from vmat_diffusion.dicom import write_case
    from vmat_diffusion.phantom import PHANTOMS, squared
    from vmat_diffusion.phantom import phantom as build

    name, seed = options.name, options.seed
    if name in SITES:
        case = synthetic_case(name, seed or 0)
    elif name not in PHANTOMS:
        raise InputError(
            f"{name!r} is no phantom ({', '.join(PHANTOMS)}) and no site of synthetic patients "
            f"({', '.join(SITES)}); give one of these names"
        )
    elif seed is not None:
        raise InputError(
            f"--seed is for synthetic patients ({', '.join(SITES)}), not for {name}, which is always "
            "the same; leave it out"
        )
    else:
        case = build(name)
    files = [str(file) for file in write_case(options.out, squared(case))]
    show(json.dumps({"case": case.id, "files": files}) if options.json else "\n".join(files))


@settings
class PlanOptions(PlanSettings, Working):
    """What `plan` takes."""

    case: CaseFolder
    out: OutFolder
    overwrite: Overwrite = False

    further_defaults = staticmethod(sheet_defaults)


def plan(options: PlanOptions) -> None:
    """Plan a case: writes RP.dcm, RD.dcm, report.html and .pdf, run.json, tables and arrays.

    Every plan is recomputed by Monte Carlo and judged; one that does not pass gets no RP.dcm, and the
    exit code is 1. Ctrl-C while optimising keeps the best plan so far; while checking it leaves the check
    open for check-again.
    """
    from vmat_diffusion.workflow import plan_case

    asked = plan_settings(**part(PlanSettings, options))
    with work_shown(options) as progress:
        run = plan_case(options.case, options.out, asked, overwrite=options.overwrite, progress=progress)
    show(json.dumps(run.summary()) if options.json else run_text(run))
    raise typer.Exit(0 if run.passed else 1)


@settings
class CheckAgainOptions(Working):
    """What `check-again` takes."""

    run: Annotated[
        Path,
        Field(description="Folder of a planning run whose check was inconclusive or interrupted."),
        Option(positional=True, metavar="DIR"),
    ]
    case_folder: Annotated[
        Path | None,
        Field(description="Where the folder of the case lies now; by default where it was."),
        Option(metavar="DIR"),
    ] = None
    check_minutes: CheckMinutes = None


def check_again(options: CheckAgainOptions) -> None:
    """Go on with a check that was inconclusive, where it stopped; exit code 1 if the plan does not pass.

    Report, record and, with a passed verdict, RP.dcm and RD.dcm in the folder of the run are written anew.
    """
    from vmat_diffusion.workflow.planning.check_again import check_again as go_on

    with work_shown(options) as progress:
        run = go_on(
            options.run,
            case_folder=options.case_folder,
            check_minutes=options.check_minutes,
            progress=progress,
        )
    if options.json:
        summary = run.summary()
        show(json.dumps({key: summary[key] for key in ("verdict", "robustness", "seconds", "files")}))
    else:
        show("\n".join([verdict_text(run.verdict), "", *map(str, run.files)]))
    raise typer.Exit(0 if run.passed else 1)


@settings
class DemoOptions(Working):
    """What `demo` takes."""

    out: OutFolder = Path("demo_out")
    shareable: Shareable = False


def demo(options: DemoOptions) -> None:
    """Plan the TG-119 C-shape phantom from scratch: goals table, files and a picture."""
    from vmat_diffusion.workflow import run_demo

    with work_shown(options) as progress:
        run, picture = run_demo(options.out, shareable=options.shareable, progress=progress)
    if options.json:
        show(json.dumps({**run.summary(), "picture": str(picture)}))
    else:
        show(f"{run_text(run)}\n{picture}")
    raise typer.Exit(0 if run.passed else 1)


@settings
class GenerateOptions(GenerateSettings, Working):
    """What `generate` takes."""

    case: CaseFolder
    out: OutFolder
    overwrite: Overwrite = False


def generate(options: GenerateOptions) -> None:
    """Draw plans as samples, rank them by the goals, judge the best and write it as `plan` does.

    Research: the samples are plans without a search for leaves unless --leaf-steps says so. Every plan is
    deliverable; the best is recomputed by Monte Carlo, and without a passed verdict there is no RP.dcm and
    the exit code is 1.
    """
    from vmat_diffusion.workflow.generation.run import generate_case

    asked = GenerateSettings(**part(GenerateSettings, options))
    with work_shown(options) as progress:
        done = generate_case(options.case, options.out, asked, overwrite=options.overwrite, progress=progress)
    show(json.dumps(done.summary()) if options.json else _generated_text(done))
    raise typer.Exit(0 if done.run.passed else 1)


def _generated_text(done: GenerateRun) -> str:
    """The best plan as `plan` shows it, then all samples by rank."""
    rows = []
    for sample in done.made.samples:
        score = sample.score
        rows.append(
            [
                sample.number + 1,
                *score.missed,
                f"{score.excess_percent:.1f}",
                f"{score.used_percent:.1f}",
                f"{sample.plan.total_mu:.0f}",
                len(sample.violations),
                f"{sample.seconds:.1f}",
            ]
        )
    head = ["sample", "must", "should", "wish", "excess %", "limits used %", "MU", "violations", "s"]
    parts = [run_text(done.run), "Samples, best first\n" + table(head, rows, left=1)]
    if len(rows) > 1:
        parts.append(f"Doses of the samples differ by {done.made.diversity_gy:.2f} Gy (standard deviation)")
    parts += [f"Unusual for the generator: {sentence}" for sentence in done.made.warnings]
    return "\n\n".join(parts)


@settings
class PredictOptions(PredictSettings, Working):
    """What `predict` takes."""

    case: Annotated[
        Path,
        Field(description="Case: a folder with a CT and a structure set, or a training case's npz."),
        Option(positional=True, metavar="CASE"),
    ]
    out: OutFolder
    overwrite: Overwrite = False


def predict(options: PredictOptions) -> None:
    """Predict the dose of a case: mean, spread and samples, and the sample that meets the goals best."""
    from vmat_diffusion.workflow.predict import predict_case

    asked = PredictSettings(**part(PredictSettings, options))
    with work_shown(options) as progress:
        run = predict_case(options.case, options.out, asked, overwrite=options.overwrite, progress=progress)
    show(json.dumps(run.summary()) if options.json else _predicted_text(run))


def _predicted_text(run: PredictRun) -> str:
    """Goals on the mean, the samples' scores, the choice, and what the model does not know."""
    done = run.prediction
    asked = [f"{organ} mean {gy:.1f} Gy" for organ, gy in done.conditioning.mean_gy.items()]
    asked += [f"{organ} D0.1cc {gy:.1f} Gy" for organ, gy in done.conditioning.hot_gy.items()]
    parts = [
        f"Goals on the {'mean' if done.samples else 'predicted'} dose\n"
        + goals_text(done.results[0], run.sheet),
        "The model is conditioned on: "
        f"{', '.join(asked) or 'nothing, its free prediction exceeds no limit it knows'}",
    ]
    if done.samples:
        scores: dict[object, GoalScore] = {"regression": done.regression_score}
        scores |= enumerate(done.scores[1:])
        rows = [[k, *s.missed, f"{s.excess_percent:.1f}", f"{s.used_percent:.1f}"] for k, s in scores.items()]
        parts.append(table(["sample", "must", "should", "wish", "excess %", "limits used %"], rows, left=1))
    parts.append(done.reason)
    parts += [f"Unusual for the model: {sentence}" for sentence in done.warnings]
    parts += [f"Warning: {sentence}" for sentence in run.summary()["remarks"]]
    parts.append("Seconds: " + ", ".join(f"{name} {s:.1f}" for name, s in run.seconds.items()))
    parts.append("\n".join(str(file) for file in run.files))
    return "\n\n".join(parts)


@settings
class TradeOffOptions(Facts):
    """What `trade-off` takes."""

    runs: Annotated[
        tuple[Path, ...],
        Field(description="Folders that `plan` has written for one case."),
        Option(positional=True, metavar="RUN"),
    ]
    out: Annotated[Path, Field(description="Where to write: a PNG file."), TO_FILE] = Path("trade_off.png")
    overwrite: Overwrite = False


def trade_off(options: TradeOffOptions) -> None:
    """Show target coverage against organ doses of several plans of one case, as a table and a plot."""
    from vmat_diffusion.workflow.output import require_apart
    from vmat_diffusion.workflow.trade_off import read_trade_off, write_trade_off

    require_apart(options.out, *options.runs)
    with stdout_kept():
        found = read_trade_off(options.runs)
        file = write_trade_off(options.out, found, overwrite=options.overwrite)
    if options.json:
        show(json.dumps({**found.summary(), "file": str(file)}))
    else:
        show(f"{_trade_off_text(found)}\n\n{file}")


def _trade_off_text(found: TradeOff) -> str:
    plans = found.plans
    rows = [
        ["gate", *("passed" if not p.failed_checks else "NOT PASSED" for p in plans)],
        ["target coverage, % of goal", *(_number(p.coverage_percent) for p in plans)],
        *([g.label, *(_number(p.values[g.label]) for p in plans)] for g in found.goals),
        ["MU", *(f"{p.mu:.1f}" for p in plans)],
        ["beam on, s", *(f"{p.delivery_s:.0f}" for p in plans)],
    ]
    shown = [row for row in rows if any(row[1:])]
    return "\n\n".join([table(["", *(p.name for p in plans)], shown, left=1), *found.remarks])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
