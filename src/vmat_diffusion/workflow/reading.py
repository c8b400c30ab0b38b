"""What is planned or predicted: the case with a sheet's prescription, and the sheet for its targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmat_diffusion.case import Case, load_ct_table
from vmat_diffusion.errors import CaseError

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet


@dataclass(frozen=True)
class Reading:
    """How a folder of DICOM files is read; `mapping` and `ct_table` are paths, None for what is shipped."""

    mapping: str | None = None
    ct_table: str | None = None
    patient_position: str | None = None
    allow_outside_body: bool = False


def read_with_goals(folder: Path, goals: str, how: Reading) -> tuple[Case, GoalSheet]:
    """The case in a DICOM folder and a goal sheet, fitted to each other; wrong names are refused first.

    Raises InputError where the folder, the sheet or the table cannot be used.
    """
    from vmat_diffusion.evaluate.goals import load_goals

    sheet = load_goals(goals)
    table = load_ct_table(how.ct_table)
    if not folder.is_dir():
        raise CaseError(f"case folder {folder} does not exist; give a folder of DICOM files")
    from vmat_diffusion.dicom.read import read_case

    case = read_case(
        folder,
        mapping=how.mapping,
        site=sheet.site,
        patient_position=how.patient_position,
        allow_outside_body=how.allow_outside_body,
    )
    return fitted(replace(case, ct_table=table), sheet)


def fitted(case: Case, sheet: GoalSheet) -> tuple[Case, GoalSheet]:
    """The case with the sheet's prescription and unions, and the sheet for the targets that it has."""
    from vmat_diffusion.evaluate.goals import add_unions, fit_to_case

    sheet = fit_to_case(sheet, case)
    return add_unions(sheet, replace(case, prescription=sheet.prescription)), sheet
