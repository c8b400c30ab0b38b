"""The whole road in ten lines: a case, its goals and a machine in, a checked plan out.

    python examples/plan_a_phantom.py [FOLDER]

Plans the prostate of TG-119, coarsely and with a short search, in about a minute. For a patient, read a
folder of DICOM files in place of the phantom and leave out the coarse settings and limits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import vmat_diffusion as vd


def main(folder: Path) -> vd.Verdict:
    """Plan the phantom into `folder`; returns what the gate says of the plan."""
    vd.write_case(folder / "patient", vd.phantom("tg119_prostate"))

    case = vd.read_case(folder / "patient")
    machine = vd.load_machine("generic_6mv")
    # The normalisation gets a reserve over the goal on coverage for the noise of the coarse check below.
    goals = vd.normalized_at(vd.load_goals("tg119_prostate"), 77.0)
    task = vd.Task.fitted(case, goals, machine)
    case, sheet = task.case, task.sheet

    # Arcs, leaves, MU, dose rate and gantry speed, all within the machine's limits. A clinical plan takes
    # the defaults: a dose grid of 3 mm, two arcs, effort 1.
    coarse = vd.OptimizerSettings(grid_mm=7.0, arcs=1, effort=0.2, seed=1)
    result = vd.optimize(case, sheet, machine, settings=coarse)

    # The dose by the fast engine, and by an independent one. The gate asks for 3 mm and 2.5 % noise; no file
    # or setting goes beyond these looser limits, and the verdict names them.
    limits = vd.GateSettings(grid_mm=4.0, uncertainty_percent=3.0)
    grid = case.grid.around(*result.dose.grid.bounds_mm, (4.0, 4.0, 4.0))
    dose = vd.PencilBeam(machine)(result.plan, case, grid)
    check = vd.MonteCarlo(machine, uncertainty=0.029)(result.plan, case, grid)

    for goal in vd.evaluate(sheet, case, dose):
        print(f"{goal.goal!s:24} {goal.value:6.2f} {goal.goal.unit:3} {goal.status}")
    verdict = vd.judge(case, sheet, result.plan, machine, dose=dose, check=check, settings=limits)
    print(verdict.outcome.value)
    for open_check in (*verdict.failed, *verdict.undecided):
        print(f"not passed: {open_check.name}: {open_check.why}")

    # RTPLAN and RTDOSE, always UNAPPROVED. Without a passed verdict on this very plan nothing is written.
    identity = vd.Identity()
    if verdict.passed:
        plan_file = vd.write_plan(folder / "RP.dcm", result.plan, case, machine, verdict)
        vd.write_dose(folder / "RD.dcm", dose, case, plan_file=plan_file)
        identity = vd.Identity(str(vd.read_plan(plan_file).provenance["sop_instance_uid"]))

    # What a physicist reads before signing.
    vd.write_report(
        folder / "report.html",
        vd.Reported(
            case=case,
            plan=result.plan,
            machine=machine,
            dose=dose,
            results=vd.evaluate(sheet, case, dose),
            violations=vd.violations(result.plan, machine),
            provenance=dict(dose.provenance),
            verdict=verdict,
            check=check,
            identity=identity,
        ),
    )
    return verdict


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "phantom_plan")
    out.mkdir(parents=True, exist_ok=True)
    main(out)
