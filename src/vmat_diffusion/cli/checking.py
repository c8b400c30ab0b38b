"""The commands that look at cases, plans and doses that anybody made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from vmat_diffusion.cli.display import (
    complexity_text,
    delivery_text,
    goals_text,
    show,
    stdout_kept,
    table,
    verdict_text,
    work_shown,
)
from vmat_diffusion.cli.fields import TO_FOLDER, CaseFolder, Facts, OutFolder, Overwrite, PlanFile, Working
from vmat_diffusion.cli.options import keywords, part
from vmat_diffusion.errors import InputError
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.reading import AllowOutsideBody, Reading
from vmat_diffusion.workflow.settings import (
    CheckMinutes,
    Conditions,
    EngineName,
    Force,
    JudgedGoals,
    MachineName,
    QaSettings,
    TrajectoryKind,
    Uncertainty,
)


@settings
class InspectOptions(Reading, Facts):
    """What `inspect` takes."""

    folder: Annotated[
        Path, Field(description="Any folder of DICOM files."), Option(positional=True, metavar="DIR")
    ]
    allow_outside_body: AllowOutsideBody = False


def inspect(options: InspectOptions) -> None:
    """Show what a folder holds, and what would be refused and why."""
    from vmat_diffusion.dicom.inspection import inspect as inspect_folder

    if not options.folder.exists():
        raise InputError(f"{options.folder} does not exist; give a folder of DICOM files")
    with stdout_kept():
        found = inspect_folder(**keywords(inspect_folder, options))
    show(json.dumps(asdict(found)) if options.json else "\n".join(found.lines()))


@settings
class CheckOptions(Facts):
    """What `check` takes."""

    plan: PlanFile
    machine: MachineName = "generic_6mv"
    trajectory: TrajectoryKind = None
    out: Annotated[
        Path | None, Field(description="Where to write: a folder for the trajectories."), TO_FOLDER
    ] = None


def check(options: CheckOptions) -> None:
    """Say whether a machine can deliver an RTPLAN; exit code 1 if it cannot, warnings alone give 0."""
    from vmat_diffusion.workflow import check_plan

    if (options.trajectory is None) != (options.out is None):
        raise InputError("--trajectory csv and --out FOLDER belong together; give both or neither")
    with stdout_kept():
        checked = check_plan(options.plan, options.machine, trajectories=options.out)
    if options.json:
        show(json.dumps(checked.summary()))
    else:
        warned = [f"Warning: {sentence}" for sentence in checked.warnings]
        complex_ = complexity_text(checked.complexity, checked.outside_published)
        show("\n".join([str(checked), *checked.violations, *warned, "", complex_]))
    raise typer.Exit(1 if checked.violations else 0)


@settings
class DvhOptions(Reading, Facts):
    """What `dvh` takes."""

    case: CaseFolder
    dose: Annotated[
        Path,
        Field(description="RTDOSE file."),
        Option(positional=True, metavar="DOSE", old=("--dose",)),
    ]
    goals: JudgedGoals = None
    conditions: Conditions = ()
    eqd2: Annotated[
        float | None,
        Field(gt=0, description="Also give doses in fractions of 2 Gy, for this alpha/beta, Gy."),
    ] = None
    eqd2_fractions: Annotated[
        int | None, Field(ge=1, description="Fractions of the course: for --eqd2, by default the sheet's.")
    ] = None
    force: Force = False


def dvh(options: DvhOptions) -> None:
    """Dose and volume of every structure, and the goals of a sheet, for any RTDOSE."""
    from vmat_diffusion.workflow import dose_statistics

    with stdout_kept():
        statistics = dose_statistics(
            options.case,
            options.dose,
            Reading(**part(Reading, options)),
            goals=options.goals,
            conditions=options.conditions,
            eqd2=options.eqd2,
            eqd2_fractions=options.eqd2_fractions,
            force=options.force,
        )
    if options.json:
        show(json.dumps(statistics.summary()))
        return
    records = list(statistics.rows())
    if (asked := statistics.eqd2) is not None:
        show(f"EQD2 in {asked.fractions} fractions with an alpha/beta of {asked.alpha_beta_gy:g} Gy\n")
    rows = [[f"{v:.2f}" if isinstance(v, float) else v for v in record.values()] for record in records]
    show(table(list(records[0]) if records else ["structure", "role"], rows, left=2))
    if statistics.results:
        show("\n" + goals_text(statistics.results, statistics.sheet))
    for remark in statistics.remarks:
        show(f"Warning: {remark}")


@settings
class GammaOptions(Facts):
    """What `gamma` takes."""

    reference: Annotated[
        Path,
        Field(description="RTDOSE whose voxels are compared."),
        Option(positional=True, metavar="REF.dcm"),
    ]
    evaluated: Annotated[
        Path,
        Field(description="RTDOSE in which the nearest agreement is searched."),
        Option(positional=True, metavar="EVAL.dcm"),
    ]
    dose_percent: Annotated[float, Field(description="Dose criterion, percent.")] = 3.0
    distance_mm: Annotated[float, Field(description="Distance criterion, mm.")] = 3.0
    local: Annotated[
        bool, Field(description="The dose criterion is a percentage of the local dose, not of the maximum.")
    ] = False
    threshold_percent: Annotated[
        float, Field(description="Voxels with less reference dose are left out, percent of the maximum.")
    ] = 10.0
    max_gamma: Annotated[float, Field(description="The search ends at this gamma.")] = 2.0
    force: Force = False


def gamma(options: GammaOptions) -> None:
    """Gamma index between two RTDOSE files, volumes or single planes; their grids may differ."""
    from vmat_diffusion.workflow import compare_doses

    remarks: list[str] = []
    with stdout_kept():
        found = compare_doses(**keywords(compare_doses, options), announce=remarks.append)
    if options.json:
        show(json.dumps({**found.summary(), "remarks": remarks}))
        return
    left_out = f"; {found.outside} more have no evaluated dose near" if found.outside else ""
    show(
        f"{found.pass_percent:.2f} % of {found.points} voxels pass, mean gamma {found.mean:.3f} "
        f"({found.criteria}, 100 % = {found.maximum_gy:.2f} Gy{left_out})"
    )
    for remark in remarks:
        show(f"Warning: {remark}")


@settings
class QaOptions(QaSettings, Working):
    """What `qa` takes."""

    plan: PlanFile
    case: CaseFolder
    out: OutFolder
    dose: Annotated[
        Path | None,
        Field(description="RTDOSE file: the plan's; without it the fast engine's dose is compared."),
        Option(metavar="RD.dcm"),
    ] = None
    overwrite: Overwrite = False


def qa(options: QaOptions) -> None:
    """Check a plan from any system a second time; exit code 1 if a check fails."""
    from vmat_diffusion.workflow import second_check

    asked = QaSettings(**part(QaSettings, options))
    with work_shown(options) as progress:
        done = second_check(
            options.plan,
            options.case,
            options.out,
            asked,
            dose_file=options.dose,
            overwrite=options.overwrite,
            progress=progress,
        )
    if options.json:
        show(json.dumps(done.summary()))
    else:
        goals = [goals_text(done.verdict.results, done.sheet), ""] if done.sheet else []
        goals += [line for part in delivery_text(done.delivery_results) for line in (part, "")]
        site = done.sheet.site if done.sheet else done.case.site
        goals += [complexity_text(done.complexity, done.outside_published, site), ""]
        show("\n".join([verdict_text(done.verdict), "", *goals, *map(str, done.files)]))
    raise typer.Exit(0 if done.verdict.passed else 1)


@settings
class ReferenceCheckOptions(Working):
    """What `reference-check` takes."""

    folder: Annotated[
        Path, Field(description="Folder of reference cases."), Option(positional=True, metavar="DIR")
    ]
    engine: EngineName = "monte-carlo"
    uncertainty: Uncertainty = 0.01
    check_minutes: Annotated[CheckMinutes, Option(old=("--max-minutes",))] = 5.0


def reference_check(options: ReferenceCheckOptions) -> None:
    """Compare an engine with reference doses, case by case."""
    from vmat_diffusion.workflow import check_references

    with work_shown(options) as progress:
        found = check_references(**keywords(check_references, options), progress=progress)
    if options.json:
        show(json.dumps(found))
        return
    rows = [["" if v is None else v for v in case.values()] for case in found["cases"]]
    show(table(list(found["cases"][0]), rows, left=1))
