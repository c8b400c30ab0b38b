"""`check`, `goals check`, `dvh`, `machine show`: what can be said of a plan file, a goal sheet, a dose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.evaluate.complexity import complexity_of, outside_ranges
from vmat_diffusion.evaluate.goals import goal_record, group_record, group_results, sheet_record
from vmat_diffusion.files import why_no_file
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.origin import case_origin, compare, dose_origin
from vmat_diffusion.plan import Plan, arc_delivery_s, beam_differences, delivery_s, violations
from vmat_diffusion.qa.files import plan_remarks
from vmat_diffusion.workflow.output import require_apart
from vmat_diffusion.workflow.planning.run_files import write_trajectories
from vmat_diffusion.workflow.reading import Reading, read_contoured

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.complexity import Complexity
    from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
    from vmat_diffusion.optimize.sheet_findings import Finding

# Dose in Gy to these relative volumes is listed for every structure.
_DOSE_AT_PERCENT = (98, 95, 50, 2)


@dataclass(frozen=True, eq=False)
class CheckedPlan:
    """An RTPLAN held against a machine; without violations it can be delivered.

    `warnings` is what a person must know of the file beside that: its state, what it leaves unsaid, beams
    that deliver nothing.
    `complexity` is None where the machine has other leaves than the plan; its MU per Gy refer to the highest
    dose that the plan file prescribes.
    """

    plan: Plan
    machine: Machine
    violations: tuple[str, ...]
    delivery_s: float | None
    complexity: Complexity | None = None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        points = sum(len(arc.gantry_deg) for arc in self.plan.arcs)
        verdict = f"{len(self.violations)} violations" if self.violations else "no violations"
        seconds = "" if self.delivery_s is None else f", {self.delivery_s:.0f} s beam on"
        return (
            f"{len(self.plan.arcs)} beams, {points} control points, {self.plan.total_mu:.1f} MU{seconds}; "
            f"machine {self.machine.name}: {verdict}"
        )

    @property
    def outside_published(self) -> tuple[str, ...]:
        """Where the plan is more complex than published plans, a sentence each."""
        return outside_ranges(self.complexity) if self.complexity else ()

    def summary(self) -> dict[str, Any]:
        """The object that `check --json` prints."""
        return {
            "machine": self.machine.name,
            "beams": len(self.plan.arcs),
            "control_points": sum(len(arc.gantry_deg) for arc in self.plan.arcs),
            "mu": round(self.plan.total_mu, 2),
            "delivery_s": None if self.delivery_s is None else round(self.delivery_s, 2),
            "arc_delivery_s": None if self.violations else arc_delivery_s(self.plan, self.machine),
            "complexity": self.complexity.record() if self.complexity else None,
            "outside_published": list(self.outside_published),
            "violations": list(self.violations),
            "warnings": list(self.warnings),
        }


def check_plan(file: Path, machine_name: str, *, trajectories: Path | None = None) -> CheckedPlan:
    """Read any RTPLAN and list what keeps the machine from delivering it.

    Into the folder `trajectories` go the expected positions of a plan without violations. Raises PlanError
    for a file that is no RTPLAN or that cannot be represented, and where such positions lie there already.
    """
    from vmat_diffusion.dicom import read_plan

    machine = load_machine(machine_name)
    if not file.is_file():
        raise PlanError(f"plan file {file} {why_no_file(file)}; give an RTPLAN")
    if trajectories is not None:
        require_apart(trajectories, file)
    plan = read_plan(file, machine)
    found = (*beam_differences(plan, machine), *violations(plan, machine))
    if trajectories is not None and not found:
        trajectories.mkdir(parents=True, exist_ok=True)
        write_trajectories(trajectories, plan, machine)
    return CheckedPlan(
        plan,
        machine,
        found,
        None if found else delivery_s(plan, machine),
        complexity_of(plan, machine, None),
        (*plan_remarks(plan, machine), *_unsaid(plan)),
    )


def _unsaid(plan: Plan) -> list[str]:
    """What the plan file does not say of whose it is, so that nothing can be compared with it."""
    keys = {
        "patient_code": "PatientID (0010,0020)",
        "frame_of_reference_uid": "FrameOfReferenceUID (0020,0052)",
        "structure_set_uid": "ReferencedStructureSetSequence (300C,0060)",
    }
    return [
        f"{name} is missing, so it cannot be told whether a CT or dose belongs to the plan"
        for key, name in keys.items()
        if not plan.provenance.get(key)
    ]


@dataclass(frozen=True)
class Eqd2Asked:
    """That doses are wanted in fractions of 2 Gy too: for which alpha/beta, of how many fractions."""

    alpha_beta_gy: float
    fractions: int


@dataclass(frozen=True)
class StructureDose:
    """One structure's volume and doses on one dose distribution.

    `eqd2_gy` are minimum, mean, maximum and the doses at the listed volumes in fractions of 2 Gy, where they
    were asked for: of every voxel's dose, so that the mean is that of the voxels' EQD2.
    """

    structure: str
    role: str
    volume_cc: float
    min_gy: float
    mean_gy: float
    max_gy: float
    at_percent_gy: tuple[float, ...]
    outside_percent: float
    eqd2_gy: tuple[float, ...] = ()

    def record(self) -> dict[str, Any]:
        """Plain data with one entry per column."""
        at = zip(_DOSE_AT_PERCENT, self.at_percent_gy, strict=True)
        values = {
            "volume_cc": self.volume_cc,
            "min_gy": self.min_gy,
            "mean_gy": self.mean_gy,
            "max_gy": self.max_gy,
            **{f"d{percent}_gy": gy for percent, gy in at},
            "outside_percent": self.outside_percent,
        }
        names = ["min", "mean", "max", *(f"d{percent}" for percent in _DOSE_AT_PERCENT)]
        values |= {f"eqd2_{name}_gy": gy for name, gy in zip(names, self.eqd2_gy, strict=False)}
        rounded = {name: round(value, 4) for name, value in values.items()}
        return {"structure": self.structure, "role": self.role, **rounded}


@dataclass(frozen=True)
class DoseStatistics:
    """All structures of a case on one dose, and the goals of a sheet if one was given.

    `remarks` says what the files leave unsaid of belonging together, and what was forced.
    """

    structures: tuple[StructureDose, ...]
    results: tuple[GoalResult, ...]
    remarks: tuple[str, ...] = ()
    sheet: GoalSheet | None = None
    eqd2: Eqd2Asked | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record per structure, all with the same keys."""
        return (s.record() for s in self.structures)

    def summary(self) -> dict[str, Any]:
        """The object that `dvh --json` prints."""
        return {
            "structures": list(self.rows()),
            "eqd2": asdict(self.eqd2) if self.eqd2 else None,
            "goals": [goal_record(r) for r in self.results],
            "groups": [group_record(g) for g in group_results(self.results)],
            "sheet": sheet_record(self.sheet) if self.sheet else None,
            "remarks": list(self.remarks),
        }


def dose_statistics(
    case_folder: Path,
    dose_file: Path,
    how: Reading | None = None,
    *,
    goals: str | None = None,
    conditions: Sequence[str] = (),
    eqd2: float | None = None,
    eqd2_fractions: int | None = None,
    force: bool = False,
) -> DoseStatistics:
    """Volumes and doses of every contoured structure for any RTDOSE, and a sheet's goals.

    `conditions` are those of the sheet that hold. With `eqd2`, an alpha/beta in Gy, doses are given in
    fractions of 2 Gy too; the course has `eqd2_fractions`, by default the sheet's.

    Raises CaseError or GoalError where a file cannot be used or a target is missing, and CaseError for the
    dose of another patient or frame of reference unless `force` lets it be.
    """
    from vmat_diffusion.dicom import read_dose
    from vmat_diffusion.evaluate.goals import (
        add_structures,
        evaluate,
        fit_to_case,
        load_goals,
        with_conditions,
    )

    sheet = with_conditions(load_goals(goals), conditions) if goals else None
    asked = _eqd2_asked(eqd2, eqd2_fractions, sheet)
    if not dose_file.is_file():
        raise CaseError(f"dose file {dose_file} {why_no_file(dose_file)}; give an RTDOSE")
    case = read_contoured(case_folder, how or Reading())
    dose = read_dose(dose_file)
    if not float(dose.gy.max()) > 0:
        raise CaseError(f"{dose_file.name} is zero everywhere; export the dose of the calculated plan")
    remarks = compare(case_origin(case), dose_origin(dose)).require(force=force)
    if sheet:
        sheet = fit_to_case(sheet, case)
        case = add_structures(sheet, case)
    rows = [
        _structure_dose(structure, case, dose, asked)
        for structure in case.structures.values()
        if structure.mask.any()
    ]
    results = evaluate(sheet, case, dose) if sheet else ()
    return DoseStatistics(tuple(rows), results, remarks, sheet, asked)


def _eqd2_asked(eqd2: float | None, fractions: int | None, sheet: GoalSheet | None) -> Eqd2Asked | None:
    """What was asked of doses in fractions of 2 Gy. Raises InputError where the fractions are not known."""
    if eqd2 is None:
        if fractions is not None:
            raise InputError("--eqd2-fractions has no effect without --eqd2; give an alpha/beta in Gy too")
        return None
    if fractions is None and sheet is None:
        raise InputError("--eqd2 needs the number of fractions; give --eqd2-fractions or --goals")
    return Eqd2Asked(eqd2, fractions or (sheet.prescription.fractions if sheet else 1))


def _structure_dose(structure: Structure, case: Case, dose: Dose, asked: Eqd2Asked | None) -> StructureDose:
    from vmat_diffusion.evaluate.dvh import Dvh, outside_percent, structure_dvh
    from vmat_diffusion.evaluate.fractionation import eqd2_gy

    def figures(curve: Dvh) -> tuple[float, ...]:
        at = (curve.dose_at_percent_gy(p) for p in _DOSE_AT_PERCENT)
        return (curve.min_gy, curve.mean_gy, curve.max_gy, *at)

    curve = structure_dvh(dose, structure, case.grid)
    low, mean, high, *at = map(float, figures(curve))
    eqd2: tuple[float, ...] = ()
    if asked is not None:
        converted = eqd2_gy(curve.gy, asked.alpha_beta_gy, asked.fractions)
        eqd2 = figures(Dvh(converted, curve.voxel_cc))
    return StructureDose(
        structure.name,
        structure.role,
        structure.voxels * case.grid.voxel_cc,
        low,
        mean,
        high,
        tuple(at),
        float(outside_percent(dose, structure, case.grid)),
        eqd2,
    )


def machine_table(name: str) -> tuple[str, list[tuple[str, Any, str]]]:
    """A machine's title and everything known of it as (key, value, source); words have no source."""
    machine = load_machine(name)
    fields = ("jaws", "limits", "mlc", "beam")
    tree = {field: _plain(getattr(machine, field)) for field in fields}
    return machine.title, [(key, value, machine.sources.get(key, "")) for key, value in _leaves(tree, "")]


def _plain(node: Any) -> Any:
    return asdict(node) if is_dataclass(node) and not isinstance(node, type) else node


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value with its key path, such as `mlc.layers[0].boundaries_mm`."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list | tuple) and node and isinstance(node[0], dict):
        for k, value in enumerate(node):
            yield from _leaves(value, f"{path}[{k}]")
    elif node is not None:
        yield path, node


def check_sheet(
    sheet: str,
    case: Path | None = None,
    how: Reading | None = None,
    *,
    conditions: tuple[str, ...] = (),
) -> tuple[GoalSheet, tuple[Finding, ...]]:
    """A goal sheet and what is wrong with it; with a case's folder what that case cannot reach as well.

    Goals with one of the `conditions` count for the case; without a case every condition is looked at.
    Raises GoalError for a sheet that cannot be read or a case without its targets, CaseError for a folder
    that cannot be read.
    """
    from vmat_diffusion.dicom.names import load_table
    from vmat_diffusion.evaluate.goals import load_goals, with_conditions
    from vmat_diffusion.evaluate.task import fit_to_each_other
    from vmat_diffusion.optimize.sheet_findings import sheet_findings

    loaded, table = with_conditions(load_goals(sheet), conditions), load_table(how.mapping if how else None)
    if case is None:
        return loaded, sheet_findings(loaded, table=table)
    # What a sheet asks for can be looked at before the contours are settled.
    patient = read_contoured(case, how or Reading(), site=loaded.site)
    patient, fitted = fit_to_each_other(patient, loaded)
    return fitted, sheet_findings(fitted, patient, table)
