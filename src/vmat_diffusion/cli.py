"""The command line: arguments in, data on stdout, everything else on stderr.

Exit codes: 0 done; 1 a check failed; 2 the input cannot be used; 3 a defect of the program.
Heavy imports live inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmat_diffusion import __version__
from vmat_diffusion.errors import InputError

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalResult
    from vmat_diffusion.qa import Verdict
    from vmat_diffusion.workflow import PlanRun, Progress

app = typer.Typer(
    name="vmat-diffusion",
    help="From a contoured CT and clinical goals to a deliverable, checked VMAT plan. "
    "For research; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
machine_app = typer.Typer(help="The linacs that plans can be made for.", no_args_is_help=True)
goals_app = typer.Typer(help="The goal sheets shipped with the package.", no_args_is_help=True)
app.add_typer(machine_app, name="machine")
app.add_typer(goals_app, name="goals")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
MachineName = Annotated[str, typer.Option("--machine", help="A shipped machine's name or a TOML file.")]
MappingFile = Annotated[
    Path | None, typer.Option("--mapping", help="Structure names: your own oar_mapping.json.")
]
PatientPosition = Annotated[
    str | None, typer.Option(help="HFS, HFP, FFS or FFP, where the CT does not state it.")
]
AllowOutsideBody = Annotated[
    bool, typer.Option("--allow-outside-body", help="Accept targets that reach out of the body.")
]
Uncertainty = Annotated[
    float, typer.Option(help="Monte Carlo ends at this mean sigma above half of the maximum (0.02 = 2 %).")
]
CheckMinutes = Annotated[
    float | None, typer.Option("--check-minutes", help="Monte Carlo ends after this time at the latest.")
]
GateFile = Annotated[Path | None, typer.Option("--gate", help="Limits of the gate: your own gate.toml.")]
GridMm = Annotated[float, typer.Option("--grid-mm", help="Spacing of the dose grid, mm.")]
Seed = Annotated[int, typer.Option(help="Same seed, same dose.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
_DEBUG = "VMAT_DEBUG"


def main() -> None:
    """Run the command line and turn what goes wrong into a sentence and an exit code."""
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 2)
    except Exception as error:
        _fail(
            f"{type(error).__name__}: {error}. This is a defect of vmat-diffusion {__version__}: "
            "please report it with the output of the same command after `vmat-diffusion --debug`",
            3,
        )


def _fail(sentence: str, code: int) -> None:
    if os.environ.get(_DEBUG):
        traceback.print_exc()
    print(f"Error: {sentence}", file=sys.stderr)
    sys.exit(code)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of errors (also VMAT_DEBUG=1).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ[_DEBUG] = "1"


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Any folder of DICOM files.")],
    mapping: MappingFile = None,
    patient_position: PatientPosition = None,
    allow_outside_body: AllowOutsideBody = False,
    as_json: AsJson = False,
) -> None:
    """Show what a folder holds, and what would be refused and why."""
    from vmat_diffusion.dicom.inspection import inspect as inspect_folder

    if not folder.exists():
        raise InputError(f"{folder} does not exist; give a folder of DICOM files")
    with _stdout_kept():
        found = inspect_folder(
            folder,
            mapping=mapping,
            patient_position=patient_position,
            allow_outside_body=allow_outside_body,
        )
    _print(json.dumps(asdict(found)) if as_json else "\n".join(found.lines()))


@app.command()
def phantom(
    name: Annotated[str, typer.Argument(help="tg119_cshape, tg119_prostate, thorax, ...")],
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
) -> None:
    """Write a built-in case as a DICOM CT with its structure set."""
    from vmat_diffusion.dicom.write import write_case
    from vmat_diffusion.phantom import phantom as build

    _print("\n".join(str(file) for file in write_case(out, build(name))))


@app.command()
def plan(
    case: Annotated[Path, typer.Argument(metavar="CASE", help="Folder with CT and structure set.")],
    goals: Annotated[str, typer.Option("--goals", help="A shipped sheet's name or a TOML file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    machine: MachineName = "generic_6mv",
    prior: Annotated[str, typer.Option(help="What drives the plan: the clinical goals alone.")] = "goals",
    arcs: Annotated[int, typer.Option(help="Number of arcs.")] = 2,
    arc_start: Annotated[
        float | None, typer.Option(help="Gantry angle of the first arc's start, deg.")
    ] = None,
    arc_stop: Annotated[float | None, typer.Option(help="Gantry angle of the first arc's stop, deg.")] = None,
    collimator: Annotated[
        list[float] | None, typer.Option(help="Collimator angle, deg; once for all arcs or once per arc.")
    ] = None,
    grid_mm: Annotated[float, typer.Option(help="Spacing of the dose grid, mm.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Same seed, same plan, on one device.")] = 0,
    device: Annotated[str, typer.Option(help="auto or cpu: no GPU engine as yet.")] = "auto",
    max_minutes: Annotated[float, typer.Option(help="Stop optimising after this time.")] = 5.0,
    check: Annotated[
        str, typer.Option(help="none, or monte-carlo: no RP.dcm without passing the gate.")
    ] = "none",
    uncertainty: Uncertainty = 0.02,
    check_minutes: CheckMinutes = None,
    gate: GateFile = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run's files.")] = False,
    mapping: MappingFile = None,
    patient_position: PatientPosition = None,
    allow_outside_body: AllowOutsideBody = False,
    as_json: AsJson = False,
) -> None:
    """Plan a case: writes RP.dcm, RD.dcm, report.html, run.json, control_points.csv and fluence.npz.

    With --check monte-carlo the plan is recomputed independently and judged; a plan that does not pass
    gets no RP.dcm. The exit code is 1 if the plan could not be delivered or did not pass. Ctrl-C while
    optimising keeps the best plan so far.
    """
    from vmat_diffusion.workflow import plan_case, plan_settings

    settings = plan_settings(
        goals=goals,
        machine=machine,
        prior=prior,
        arcs=arcs,
        arc_start_deg=arc_start,
        arc_stop_deg=arc_stop,
        collimator_deg=tuple(collimator) if collimator else None,
        grid_mm=grid_mm,
        seed=seed,
        device=device,
        max_minutes=max_minutes,
        check=check,
        uncertainty=uncertainty,
        check_minutes=check_minutes,
        gate=str(gate) if gate else None,
        mapping=str(mapping) if mapping else None,
        patient_position=patient_position,
        allow_outside_body=allow_outside_body,
    )
    with _stdout_kept(), _progress_bar() as progress:
        run = plan_case(case, out, settings, overwrite=overwrite, progress=progress)
    _print(json.dumps(run.summary()) if as_json else _run_text(run))
    raise typer.Exit(0 if run.passed else 1)


@app.command()
def check(
    plan_file: Annotated[Path, typer.Argument(metavar="RP.dcm", help="Any RTPLAN.")],
    machine: MachineName = "generic_6mv",
    as_json: AsJson = False,
) -> None:
    """Say whether a machine can deliver an RTPLAN; exit code 1 if it cannot."""
    from vmat_diffusion.workflow import check_plan

    with _stdout_kept():
        checked = check_plan(plan_file, machine)
    if as_json:
        _print(json.dumps(checked.summary()))
    else:
        _print("\n".join([str(checked), *checked.violations]))
    raise typer.Exit(1 if checked.violations else 0)


@app.command()
def dvh(
    case: Annotated[Path, typer.Option("--case", help="Folder with CT and structure set.")],
    dose: Annotated[Path, typer.Option("--dose", help="RTDOSE file.")],
    goals: Annotated[str | None, typer.Option("--goals", help="Judge these goals too.")] = None,
    mapping: MappingFile = None,
    as_json: AsJson = False,
) -> None:
    """Dose and volume of every structure, and the goals of a sheet, for any RTDOSE."""
    from vmat_diffusion.workflow import dose_statistics

    with _stdout_kept():
        statistics = dose_statistics(case, dose, goals=goals, mapping=mapping)
    if as_json:
        _print(json.dumps(statistics.summary()))
        return
    records = list(statistics.rows())
    rows = [[f"{v:.2f}" if isinstance(v, float) else v for v in record.values()] for record in records]
    _print(_table(list(records[0]) if records else ["structure", "role"], rows, left=2))
    if statistics.results:
        _print("\n" + _goals_text(statistics.results))


@app.command()
def gamma(
    reference: Annotated[Path, typer.Argument(metavar="REF.dcm", help="RTDOSE at whose voxels is compared.")],
    evaluated: Annotated[Path, typer.Argument(metavar="EVAL.dcm", help="RTDOSE that is searched.")],
    dose_percent: Annotated[float, typer.Option(help="Dose criterion, percent.")] = 3.0,
    distance_mm: Annotated[float, typer.Option(help="Distance criterion, mm.")] = 3.0,
    local: Annotated[bool, typer.Option("--local", help="Percent of the local dose.")] = False,
    threshold_percent: Annotated[float, typer.Option(help="Leave out lower reference doses.")] = 10.0,
    max_gamma: Annotated[float, typer.Option(help="Search up to this gamma.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Gamma index between two RTDOSE files, in three dimensions; their grids may differ."""
    from vmat_diffusion.workflow import compare_doses

    with _stdout_kept():
        found = compare_doses(
            reference,
            evaluated,
            dose_percent=dose_percent,
            distance_mm=distance_mm,
            local=local,
            threshold_percent=threshold_percent,
            max_gamma=max_gamma,
        )
    if as_json:
        _print(json.dumps(found.summary()))
        return
    left_out = f"; {found.outside} more have no evaluated dose near" if found.outside else ""
    _print(
        f"{found.pass_percent:.2f} % of {found.points} voxels pass, mean gamma {found.mean:.3f} "
        f"({found.criteria}, 100 % = {found.maximum_gy:.2f} Gy{left_out})"
    )


@app.command()
def dose(
    plan_file: Annotated[Path, typer.Option("--plan", help="Any RTPLAN.")],
    case: Annotated[Path, typer.Option("--case", help="Folder with CT and structure set.")],
    out: Annotated[Path, typer.Option("--out", help="RTDOSE file to write.")],
    engine: Annotated[str, typer.Option(help="pencil-beam or monte-carlo.")] = "monte-carlo",
    machine: MachineName = "generic_6mv",
    uncertainty: Uncertainty = 0.02,
    max_minutes: Annotated[float | None, typer.Option(help="Monte Carlo ends after this time.")] = None,
    grid_mm: GridMm = 3.0,
    seed: Seed = 0,
    mapping: MappingFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compute the dose of an RTPLAN from any system and write it as RTDOSE."""
    from vmat_diffusion.workflow import compute_dose

    with _stdout_kept(), _progress_bar() as progress:
        found = compute_dose(
            plan_file,
            case,
            out,
            engine=engine,
            machine=machine,
            uncertainty=uncertainty,
            max_minutes=max_minutes,
            grid_mm=grid_mm,
            seed=seed,
            mapping=mapping,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        record = {"file": str(out.resolve()), "max_gy": float(found.gy.max()), **found.provenance}
        _print(json.dumps(record, default=str))
    else:
        _print(f"{out.resolve()}\nhighest dose {found.gy.max():.2f} Gy")


@app.command()
def qa(
    plan_file: Annotated[Path, typer.Option("--plan", help="Any RTPLAN.")],
    case: Annotated[Path, typer.Option("--case", help="Folder with CT and structure set.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    dose_file: Annotated[
        Path | None, typer.Option("--dose", help="The planned RTDOSE; without it the fast engine's.")
    ] = None,
    goals: Annotated[str | None, typer.Option("--goals", help="Ask these goals too.")] = None,
    engine: Annotated[str, typer.Option(help="The second engine.")] = "monte-carlo",
    machine: MachineName = "generic_6mv",
    uncertainty: Uncertainty = 0.02,
    check_minutes: CheckMinutes = None,
    grid_mm: GridMm = 3.0,
    seed: Seed = 0,
    gate: GateFile = None,
    mapping: MappingFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Check a plan from any system a second time; exit code 1 if a check fails."""
    from vmat_diffusion.workflow import second_check

    with _stdout_kept(), _progress_bar() as progress:
        done = second_check(
            plan_file,
            case,
            out,
            dose_file=dose_file,
            machine=machine,
            goals=goals,
            engine=engine,
            uncertainty=uncertainty,
            max_minutes=check_minutes,
            grid_mm=grid_mm,
            seed=seed,
            gate=gate,
            mapping=mapping,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        _print(json.dumps(done.summary()))
    else:
        _print("\n".join([_verdict_text(done.verdict), "", *map(str, done.files)]))
    raise typer.Exit(0 if done.verdict.passed else 1)


@app.command("reference-check")
def reference_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of reference cases.")],
    engine: Annotated[str, typer.Option(help="The engine to check.")] = "monte-carlo",
    uncertainty: Uncertainty = 0.01,
    max_minutes: Annotated[float | None, typer.Option(help="Each case ends after this time.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare an engine with reference doses, case by case."""
    from vmat_diffusion.workflow import check_references

    with _stdout_kept():
        found = check_references(folder, engine=engine, uncertainty=uncertainty, max_minutes=max_minutes)
    if as_json:
        _print(json.dumps(found))
        return
    rows = [["" if v is None else v for v in case.values()] for case in found["cases"]]
    _print(_table(list(found["cases"][0]), rows, left=1))


@machine_app.command("list")
def machine_list() -> None:
    """Names of the shipped machines."""
    from vmat_diffusion.machine import load_machine, machine_names

    _print(_table(["name", "title"], [[n, load_machine(n).title] for n in machine_names()], left=2))


@machine_app.command("show")
def machine_show(
    name: Annotated[str, typer.Argument(help="A shipped machine's name or a TOML file.")],
    as_json: AsJson = False,
) -> None:
    """Every number of a machine with its source."""
    from vmat_diffusion.workflow import machine_table

    title, rows = machine_table(name)
    if as_json:
        records = {key: {"value": value, "source": source} for key, value, source in rows}
        _print(json.dumps({"title": title, **records}))
    else:
        shown = [[key, _short(value), source] for key, value, source in rows]
        _print(f"{title}\n\n" + _table(["key", "value", "source"], shown, left=3))


@goals_app.command("list")
def goals_list() -> None:
    """Names of the shipped goal sheets."""
    from vmat_diffusion.evaluate.goals import goal_sheet_names, load_goals

    sheets = [load_goals(name) for name in goal_sheet_names()]
    _print(
        _table(
            ["name", "fractions", "title"],
            [[s.name, s.prescription.fractions, s.title] for s in sheets],
            left=3,
        )
    )


@goals_app.command("show")
def goals_show(
    name: Annotated[str, typer.Argument(help="A shipped sheet's name or a TOML file.")],
) -> None:
    """The prescription, the normalisation and the goals of a sheet, with their sources."""
    from vmat_diffusion.evaluate.goals import load_goals

    sheet = load_goals(name)
    levels = ", ".join(f"{target} {gy:g} Gy" for target, gy in sheet.prescription.target_gy.items())
    rows = [
        [g.priority, g.structure, g.statement, "" if g.variation is None else f"{g.variation:g}", g.source]
        for g in sheet.goals
    ]
    _print(
        f"{sheet.title}\n{levels} in {sheet.prescription.fractions} fractions\n"
        f"Normalised to {' or else '.join(str(n) for n in sheet.normalizations)}\n\n"
        + _table(["priority", "structure", "goal", "acceptable", "source"], rows, left=5)
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for phantom and results.")] = Path("demo_out"),
) -> None:
    """Plan the TG-119 C-shape phantom from scratch: goals table, files and a picture."""
    from vmat_diffusion.workflow import run_demo

    with _stdout_kept(), _progress_bar() as progress:
        run, picture = run_demo(out, progress=progress)
    _print(f"{_run_text(run)}\n{picture}")
    raise typer.Exit(0 if run.passed else 1)


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """Sends what libraries print to stderr, so that stdout holds the data alone."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def _progress_bar() -> Iterator[Progress]:
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


_UNCHECKED = "Not checked by a second dose engine; `vmat-diffusion qa` or `--check monte-carlo` does that"


def _run_text(run: PlanRun) -> str:
    levels = ", ".join(f"{target} {gy:g} Gy" for target, gy in run.sheet.prescription.target_gy.items())
    seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in run.seconds.items())
    parts = [
        f"{run.sheet.title}: {levels} in {run.plan.fractions} fractions, "
        f"normalised to {run.sheet.normalization}",
        _goals_text(run.results),
        f"{run.plan.total_mu:.1f} MU in {len(run.plan.arcs)} arcs, {run.delivery_s:.0f} s beam on; "
        f"optimiser: {run.outcome.lower().replace('_', ' ')}",
        "Deliverable: no violations"
        if not run.violations
        else f"NOT DELIVERABLE: {len(run.violations)} violations\n" + "\n".join(run.violations),
        ("Optimised again with the engines' difference\n" if run.corrected else "")
        + (_verdict_text(run.verdict) if run.verdict else _UNCHECKED),
        f"Seconds: {seconds}" + (f"; peak memory {run.peak_gb:.1f} GB" if run.peak_gb else ""),
        "\n".join(str(file) for file in run.files),
    ]
    return "\n\n".join(parts)


def _verdict_text(verdict: Verdict) -> str:
    rows = []
    for check in verdict.checks:
        value = "" if check.value is None else f"{check.value:.2f}"
        limit = "" if check.limit is None else f"{check.limit:g}"
        mark = "reported" if check.limit is None and check.passed else "pass" if check.passed else "FAIL"
        rows.append([check.name, mark, value, limit, check.unit])
    text = _table(["check", "result", "value", "limit", "unit"], rows, left=2)
    why = [f"{check.name}: {check.why}" for check in verdict.failed]
    head = "PASSED" if verdict.passed else f"NOT PASSED: {len(why)} checks failed"
    return "\n".join([head, text, *why])


def _goals_text(results: Sequence[GoalResult]) -> str:
    rows = []
    for r in (r for r in results if r.value is not None):
        acceptable = "" if r.goal.variation is None else f"{r.goal.variation:g}"
        status = "FAIL" if r.status == "fail" else r.status
        value = f"{r.value:.2f} {r.goal.unit}".rstrip()
        rows.append([r.goal.priority, r.goal.structure, r.goal.statement, acceptable, value, status, r.note])
    header = ["priority", "structure", "goal", "acceptable", "value", "status", "note"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    text = _table(header, rows, left=7)
    absent: dict[str, list[str]] = {}
    for r in (r for r in results if r.value is None):
        absent.setdefault(r.note, []).append(r.goal.structure)
    for why, names in absent.items():
        text += f"\n\nNot evaluated, {why}: {', '.join(dict.fromkeys(names))}"
    return text


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], *, left: int) -> str:
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


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:50]} ... ({len(value)} values)"  # type: ignore[arg-type]


def _print(text: str) -> None:
    print(text, flush=True)
