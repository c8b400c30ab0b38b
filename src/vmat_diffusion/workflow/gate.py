"""What stands between an optimised plan and RP.dcm: its files read back, recomputed and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.errors import InputError
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan, violations
from vmat_diffusion.workflow.engines import Engine

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.qa import Check, GateSettings, Verdict

PLAN_FILE, DOSE_FILE = "RP.dcm", "RD.dcm"


def gate_limits(file: Path | str | None, uncertainty: float) -> GateSettings:
    """The gate's limits from a TOML file or by default; `uncertainty` is what Monte Carlo is asked for.

    Raises InputError where the uncertainty is too large for any plan to pass.
    """
    from vmat_diffusion.qa import load_gate

    limits = load_gate(file)
    if 100.0 * uncertainty >= limits.uncertainty_percent:
        raise InputError(
            f"uncertainty {uncertainty:g} is not below the gate's limit of {limits.uncertainty_percent:g} %, "
            "so no plan could pass; ask for a smaller one, such as 0.02"
        )
    return limits


@dataclass(frozen=True, eq=False)
class Judged:
    """The verdict on a plan, and the independent dose it rests on; None where none was computed."""

    verdict: Verdict
    check: Dose | None


def pass_gate(
    folder: Path,
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    plan: Plan,
    dose: Dose,
    *,
    engine: Engine,
    settings: GateSettings,
    more: Sequence[Check] = (),
    progress: Callable[[float, str], None] | None = None,
) -> Judged:
    """Write plan and dose into `folder`, recompute what the files say, and judge it, `more` included.

    The independent engine gets the plan as it is read back, so that a fault in writing shows as well. If
    any check fails, RP.dcm is removed and RD.dcm refers to no plan. A plan that the machine cannot deliver
    is neither written nor recomputed; its dose is written.
    """
    from vmat_diffusion.dicom.read import read_plan
    from vmat_diffusion.dicom.write import write_dose, write_plan
    from vmat_diffusion.qa import PlanFiles, judge

    rp, rd = folder / PLAN_FILE, folder / DOSE_FILE
    check: Dose | None = None
    files: PlanFiles | None = None
    if not violations(plan, machine):
        write_plan(rp, plan, case, machine, prescription=sheet.prescription, overwrite=True)
        write_dose(rd, dose, case, plan_file=rp, overwrite=True)
        files = PlanFiles(rp, rd)
        check = engine(read_plan(rp, machine), case, dose.grid, progress=progress)
    verdict = judge(case, sheet, plan, machine, dose, check, settings=settings, files=files, more=more)
    if not verdict.passed:
        rp.unlink(missing_ok=True)
        write_dose(rd, dose, case, plan_file=None, overwrite=True)
    return Judged(verdict, check)
