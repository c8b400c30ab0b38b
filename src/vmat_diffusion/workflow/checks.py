"""`check`, `dvh` and `machine show`: deliverability of a plan file, figures of a dose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.errors import CaseError, PlanError
from vmat_diffusion.evaluate.goals import goal_record
from vmat_diffusion.files import why_no_file
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.origin import case_origin, compare, dose_origin
from vmat_diffusion.plan import Plan, beam_differences, delivery_s, violations
from vmat_diffusion.qa.files import plan_remarks
from vmat_diffusion.workflow.output import require_apart
from vmat_diffusion.workflow.run import arc_delivery_s
from vmat_diffusion.workflow.run_files import write_trajectories

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.complexity import Complexity
    from vmat_diffusion.evaluate.goals import GoalResult

# Dose in Gy to these relative volumes is listed for every structure.
_DOSE_AT_PERCENT = (98, 95, 50, 2)


@dataclass(frozen=True, eq=False)
class CheckedPlan:
    """An RTPLAN held against a machine; without violations it can be delivered.

    `warnings` is what a person must know of the file beside that: its state, what it leaves unsaid, beams
    that deliver nothing.
    `complexity` is None where the machine has other leaves than the plan.
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
            "violations": list(self.violations),
            "warnings": list(self.warnings),
        }


def check_plan(file: Path, machine_name: str, *, trajectories: Path | None = None) -> CheckedPlan:
    """Read any RTPLAN and list what keeps the machine from delivering it.

    Into the folder `trajectories` go the expected positions of a plan without violations. Raises PlanError
    for a file that is no RTPLAN or that cannot be represented, and where such positions lie there already.
    """
    from vmat_diffusion.dicom import read_plan
    from vmat_diffusion.evaluate.complexity import complexity

    machine = load_machine(machine_name)
    if not file.is_file():
        raise PlanError(f"plan file {file} {why_no_file(file)}; give an RTPLAN")
    if trajectories is not None:
        require_apart(trajectories, file)
    plan = read_plan(file, machine)
    found = (*beam_differences(plan, machine), *violations(plan, machine))
    same = all(arc.leaves_mm.shape[2] == machine.mlc.pairs for arc in plan.arcs)
    if trajectories is not None and not found:
        trajectories.mkdir(parents=True, exist_ok=True)
        write_trajectories(trajectories, plan, machine)
    return CheckedPlan(
        plan,
        machine,
        found,
        None if found else delivery_s(plan, machine),
        complexity(plan, machine) if same else None,
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
class StructureDose:
    """One structure's volume and doses on one dose distribution."""

    structure: str
    role: str
    volume_cc: float
    min_gy: float
    mean_gy: float
    max_gy: float
    at_percent_gy: tuple[float, ...]
    outside_percent: float

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

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record per structure, all with the same keys."""
        return (s.record() for s in self.structures)

    def summary(self) -> dict[str, Any]:
        """The object that `dvh --json` prints."""
        return {
            "structures": list(self.rows()),
            "goals": [goal_record(r) for r in self.results],
            "remarks": list(self.remarks),
        }


def dose_statistics(
    case_folder: Path,
    dose_file: Path,
    *,
    goals: str | None = None,
    mapping: Path | None = None,
    force: bool = False,
) -> DoseStatistics:
    """Volumes and doses of every contoured structure for any RTDOSE, and a sheet's goals.

    Raises CaseError or GoalError where a file cannot be used or a target is missing, and CaseError for the
    dose of another patient or frame of reference unless `force` lets it be.
    """
    from vmat_diffusion.dicom import read_case, read_dose
    from vmat_diffusion.evaluate.dvh import outside_percent, structure_dvh
    from vmat_diffusion.evaluate.goals import add_unions, evaluate, fit_to_case, load_goals

    sheet = load_goals(goals) if goals else None
    if not dose_file.is_file():
        raise CaseError(f"dose file {dose_file} {why_no_file(dose_file)}; give an RTDOSE")
    # A target that leaves the body is no reason not to look at its dose.
    case = read_case(case_folder, mapping=mapping, allow_outside_body=True)
    dose = read_dose(dose_file)
    if not float(dose.gy.max()) > 0:
        raise CaseError(f"{dose_file.name} is zero everywhere; export the dose of the calculated plan")
    remarks = compare(case_origin(case), dose_origin(dose)).require(force=force)
    if sheet:
        sheet = fit_to_case(sheet, case)
        case = add_unions(sheet, case)
    rows = []
    for structure in case.structures.values():
        if not structure.mask.any():
            continue
        curve = structure_dvh(dose, structure, case.grid)
        rows.append(
            StructureDose(
                structure.name,
                structure.role,
                structure.voxels * case.grid.voxel_cc,
                float(curve.min_gy),
                float(curve.mean_gy),
                float(curve.max_gy),
                tuple(float(curve.dose_at_percent_gy(p)) for p in _DOSE_AT_PERCENT),
                float(outside_percent(dose, structure, case.grid)),
            )
        )
    return DoseStatistics(tuple(rows), evaluate(sheet, case, dose) if sheet else (), remarks)


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
