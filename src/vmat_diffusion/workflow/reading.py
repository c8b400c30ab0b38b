"""How DICOM files become a case and a plan: the options of all commands that read them, and the reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vmat_diffusion.errors import CaseError, PlanError
from vmat_diffusion.files import why_no_file, why_no_folder
from vmat_diffusion.options import Option, Origins, settings

if TYPE_CHECKING:
    from vmat_diffusion.case import Case
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.machine import Machine
    from vmat_diffusion.plan import Plan

MappingFile = Annotated[
    str | None,
    Field(
        description="Structure names: a JSON file such as `mapping copy` prints; it adds to the shipped "
        "table."
    ),
    Option(metavar="FILE", profile=True),
]
CtTableFile = Annotated[
    str | None,
    Field(description="CT numbers to density: a CSV file with the columns hu,density_g_cm3."),
    Option(metavar="FILE", profile=True),
]
PatientPosition = Annotated[
    Literal["HFS", "HFP", "FFS", "FFP"] | None,
    Field(description="Patient position where the CT does not state it."),
]
AllowOutsideBody = Annotated[bool, Field(description="Accept targets that reach outside the body contour.")]
IgnoreDensityOverrides = Annotated[
    bool,
    Field(
        description="Compute with the CT's densities although the structure set prescribes others; the "
        "output says so."
    ),
]


@settings
class Reading:
    """How a folder of DICOM files becomes a case; `mapping` is a path, None for the shipped table alone."""

    mapping: MappingFile = None
    patient_position: PatientPosition = None
    origins: Annotated[Origins | None, Option(internal=True)] = field(default=None, compare=False)


@settings
class DoseReading(Reading):
    """How a case is read whose dose is computed; `ct_table` is a path, None for the shipped table."""

    ct_table: CtTableFile = None
    ignore_density_overrides: IgnoreDensityOverrides = False


@settings
class TargetReading(DoseReading):
    """How a case is read whose targets are to get a dose."""

    allow_outside_body: AllowOutsideBody = False


def require_case_folder(folder: Path) -> None:
    """Raise CaseError where a case's folder is a file or absent."""
    if not folder.is_dir():
        raise CaseError(f"case folder {folder} {why_no_folder(folder)}; give a folder of DICOM files")


def read_contoured(folder: Path, how: Reading, *, site: str = "", allow_outside_body: bool = True) -> Case:
    """The case in a DICOM folder. What is planned already is looked at even if a target leaves the body.

    Raises CaseError where the folder cannot be used.
    """
    require_case_folder(folder)
    from vmat_diffusion.dicom import read_case

    return read_case(
        folder,
        mapping=how.mapping,
        site=site,
        patient_position=how.patient_position,
        allow_outside_body=allow_outside_body,
    )


def read_for_dose(folder: Path, how: DoseReading, *, site: str = "", allow_outside_body: bool = True) -> Case:
    """The case in a DICOM folder with its table of densities; a wrong table is refused first.

    Raises CaseError for a structure set that prescribes other densities, unless these are to be ignored.
    """
    from vmat_diffusion.case import load_ct_table

    table = load_ct_table(how.ct_table)
    case = read_contoured(folder, how, site=site, allow_outside_body=allow_outside_body)
    from vmat_diffusion.dicom import refuse_density_overrides

    if not how.ignore_density_overrides:
        refuse_density_overrides(case)
    return replace(case, ct_table=table)


def read_with_goals(
    folder: Path, goals: str, how: TargetReading, conditions: Sequence[str] = ()
) -> tuple[Case, GoalSheet]:
    """The case in a DICOM folder and a goal sheet, fitted to each other; wrong names are refused first.

    Goals with one of the `conditions` count. Raises InputError where the folder, the sheet or the table
    cannot be used.
    """
    from vmat_diffusion.evaluate.goals import load_goals, with_conditions

    sheet = with_conditions(load_goals(goals), conditions)
    case = read_for_dose(folder, how, site=sheet.site, allow_outside_body=how.allow_outside_body)
    from vmat_diffusion.evaluate.task import fit_to_each_other

    return fit_to_each_other(case, sheet)


def require_file(file: Path, kind: str) -> Path:
    """The path of an RTPLAN or RTDOSE; raises PlanError or CaseError where it is no file."""
    if not file.is_file():
        error = PlanError if kind == "RTPLAN" else CaseError
        raise error(f"{kind} file {file} {why_no_file(file)}; give an {kind}")
    return file


def plan_and_machine(plan_file: Path, base: Machine) -> tuple[Plan, Machine]:
    """A plan from any system, and the beam of `base` behind the plan's own collimator.

    Raises PlanError where the file does not exist or cannot be read, or the machine cannot represent it.
    """
    require_file(plan_file, "RTPLAN")
    from vmat_diffusion.dicom import read_plan
    from vmat_diffusion.dose.collimator import machine_for

    plan = read_plan(plan_file)
    machine = machine_for(plan, base)
    return replace(plan, machine=machine.name), machine
