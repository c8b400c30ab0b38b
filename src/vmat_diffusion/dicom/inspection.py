"""What a folder holds, what each thing would become, and what would be refused and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmat_diffusion.case import Case
from vmat_diffusion.dicom.attributes import about, quiet
from vmat_diffusion.dicom.case_read import case_from
from vmat_diffusion.dicom.ct import open_series, series_files
from vmat_diffusion.dicom.folder import Folder, Found, open_folder
from vmat_diffusion.dicom.lattice import placement_of
from vmat_diffusion.dicom.names import NameTable, load_table
from vmat_diffusion.dicom.rtdose_read import course_dose, plan_uid, summation
from vmat_diffusion.dicom.rtplan_read import plan_from
from vmat_diffusion.dicom.structure_set.structures import read_rois
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.origin import case_origin, compare, plan_origin
from vmat_diffusion.plan import Plan


@dataclass(frozen=True)
class StructureFound:
    """One region: name as written, canonical name and role, and the nearest known names if unknown.

    `name` is "" for an unknown region; `volume_cc` is None where no mask could be made.
    """

    alias: str
    name: str
    role: str
    contours: int
    volume_cc: float | None
    nearest: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The findings: one line for each series, dose and plan, the structures, and the refusals.

    `case_id` is "" where the folder makes no case; the reason is then among `refused`. `steps` are
    the repairs and conversions that reading takes.
    """

    series: tuple[str, ...]
    structures: tuple[StructureFound, ...]
    doses: tuple[str, ...]
    plans: tuple[str, ...]
    others: tuple[str, ...]
    case_id: str
    steps: tuple[str, ...]
    refused: tuple[str, ...]

    def lines(self) -> list[str]:
        """The findings as plain text."""
        out: list[str] = []
        for title, rows in (("CT series", self.series), ("Doses", self.doses), ("Plans", self.plans)):
            out += [title, *(f"  {row}" for row in rows)] if rows else []
        if self.structures:
            width = max(len(s.alias) for s in self.structures)
            out.append("Structures")
            out += [f"  {s.alias:<{width}}  {_meaning(s)}" for s in self.structures]
        for title, rows in (("Other files", self.others), ("Steps on reading", self.steps)):
            out += [title, *(f"  {row}" for row in rows)] if rows else []
        out.append(f"Case: {self.case_id}" if self.case_id else "Case: none")
        out += ["Refused", *(f"  {row}" for row in self.refused)] if self.refused else []
        return out


def _meaning(found: StructureFound) -> str:
    volume = "" if found.volume_cc is None else f"{found.volume_cc:9.1f} cm3  "
    if found.name:
        return f"{volume}-> {found.name} ({found.role})"
    if not found.contours:
        return f"{volume}no contour"
    near = f"; nearest: {', '.join(found.nearest)}" if found.nearest else ""
    return f"{volume}not known{near}"


@quiet()
def inspect(
    folder: str | Path,
    *,
    mapping: str | Path | Mapping[str, Any] | None = None,
    patient_position: str | None = None,
    allow_outside_body: bool = False,
) -> Inspection:
    """Look at a folder as `read_case`, `read_plan` and `read_dose` would, and report instead of raising.

    Raises CaseError only where the folder does not exist or holds no DICOM file, or `mapping` is wrong.
    """
    table = load_table(mapping)
    found = open_folder(folder)
    if not found.files and not found.refused:
        raise CaseError(
            f"folder {found.root.name} holds no DICOM file among {found.others} files; give the folder with "
            "the DICOM files"
        )
    refused = list(found.refused)
    case: Case | None = None
    try:
        case = case_from(
            found, table, patient_position=patient_position, allow_outside_body=allow_outside_body
        )
    except InputError as fault:
        refused.append(f"case: {fault}")
    else:
        if found.refused:
            refused.append("case: a file that says it is DICOM cannot be read; remove or export it again")
            case = None
    return Inspection(
        series=tuple(_rows(series_files(found).items(), _series_row, refused)),
        structures=_structures(found, table, case, refused),
        doses=tuple(
            _rows(_dose_groups(found, refused), lambda files: _dose_row(found, files, case), refused)
        ),
        plans=tuple(_rows(found.of("RTPLAN"), lambda plan: _plan_row(plan, case), refused)),
        others=_others(found),
        case_id=case.id if case else "",
        steps=case.source.steps if case else (),
        refused=tuple(dict.fromkeys(refused)),
    )


def _rows(things: Any, row: Any, refused: list[str]) -> list[str]:
    """`row(thing)` for each thing; those that raise go to the refusals instead."""
    out = []
    for thing in things:
        try:
            out.append(row(thing))
        except InputError as fault:
            refused.append(str(fault))
    return out


def _series_row(entry: tuple[str, Sequence[Found]]) -> str:
    uid, files = entry
    tail = f"...{uid[-12:]}"
    with about(f"CT series {tail} ({len(files)} files)"):
        series = open_series(files)
        grid = placement_of(series.lattice).grid
    nz, ny, nx = grid.shape
    x, y, z = grid.spacing_mm
    position = series.patient_position or "no patient position"
    return f"{tail}: {nx} x {ny} x {nz} voxels of {x:g} x {y:g} x {z:g} mm, {position}"


def _structures(
    folder: Folder, table: NameTable, case: Case | None, refused: list[str]
) -> tuple[StructureFound, ...]:
    out: list[StructureFound] = []
    for found in folder.of("RTSTRUCT"):
        if case and found.uid != case.source.structure_set_uid:
            continue
        try:
            with about(found.label):
                rois = read_rois(found.dataset)
        except InputError as fault:
            refused.append(str(fault))
            continue
        in_case = (
            {number: case.structures[name] for name, number in case.source.roi_numbers.items()}
            if case
            else {}
        )
        for roi in rois:
            match = table.match(roi.alias)
            structure = in_case.get(roi.number)
            if structure is not None and structure.role == "other" and match is None:
                name = ""
            else:
                name = structure.name if structure else match.name if match and not roi.empty else ""
            out.append(
                StructureFound(
                    alias=roi.alias,
                    name=name,
                    role=structure.role if structure else match.role if match else "other",
                    contours=len(roi.contours),
                    volume_cc=structure.voxels * case.grid.voxel_cc if structure and case else None,
                    nearest=() if match else table.nearest(roi.alias),
                )
            )
    return tuple(out)


def _dose_groups(folder: Folder, refused: list[str]) -> list[tuple[Found, ...]]:
    """RTDOSE files that belong together: the beams of one plan, else each file alone."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for found in folder.of("RTDOSE"):
        try:
            beam = summation(found).startswith("BEAM")
            key = (plan_uid(found), summation(found)) if beam else (found.label, "")
            groups.setdefault(key, []).append(found)
        except InputError as fault:
            refused.append(f"{found.label}: {fault}")
    return [tuple(files) for files in groups.values()]


def _dose_row(folder: Folder, files: tuple[Found, ...], case: Case | None) -> str:
    uid = plan_uid(files[0])
    plans = [p for p in folder.of("RTPLAN") if uid and p.uid == uid]
    with about(files[0].label):
        dose = course_dose(files, plans[0] if plans else None)
    nz, ny, nx = dose.grid.shape
    x, y, z = dose.grid.spacing_mm
    kind = dose.provenance["summation"]
    own = case.reference_dose.provenance["sop_instance_uids"] if case and case.reference_dose else ()
    assert isinstance(own, tuple)  # as course_dose writes it
    other = "" if not case or files[0].uid in own else "; not the dose of the case, see the steps"
    return (
        f"{files[0].label}: {kind} dose, {nx} x {ny} x {nz} voxels of {x:g} x {y:g} x {z:g} mm, "
        f"maximum {float(dose.gy.max()):.2f} Gy{other}"
    )


def _plan_row(found: Found, case: Case | None) -> str:
    with about(found.label, PlanError):
        plan = plan_from(found.dataset)
    apart = ""
    if case is not None:
        together = compare(case_origin(case), plan_origin(plan.provenance, plan.patient_position))
        apart = "".join(f"; {sentence}" for sentence in together.contradictions)
    points = sum(len(arc.mu) + 1 for arc in plan.arcs)
    boundaries = plan.provenance["leaf_boundaries_mm"]
    assert isinstance(boundaries, dict)  # as plan_from writes it
    layers = " + ".join(f"{name} {len(edges) - 1} pairs" for name, edges in boundaries.items())
    turned = sum(abs(arc.gantry_deg[1:] - arc.gantry_deg[:-1]).sum() for arc in plan.arcs)
    return (
        f"{found.label}: {technique(plan)}, {len(plan.arcs)} beams, {points} control points, "
        f"{plan.total_mu:.1f} MU, {plan.fractions} fractions, {turned:.0f} degrees of gantry rotation, "
        f"{layers}, {plan.provenance['energy_mv'] or 'unknown'} MV "
        f"{plan.provenance['fluence_mode']}, machine {plan.machine}{apart}"
    )


def technique(plan: Plan) -> str:
    """VMAT, conformal arc, static, step-and-shoot or sliding window: how the plan is delivered."""
    moves = any((abs(arc.leaves_mm[1:] - arc.leaves_mm[:-1]) > 0.01).any() for arc in plan.arcs)
    if any(arc.rotates for arc in plan.arcs):
        return "VMAT" if moves else "conformal arc"
    if not moves:
        return "static"
    # Step-and-shoot changes the shape only while no MU are given.
    lit = any(
        ((abs(arc.leaves_mm[1:] - arc.leaves_mm[:-1]) > 0.01).any(axis=(1, 2)) & (arc.mu > 1e-6)).any()
        for arc in plan.arcs
    )
    return "sliding window" if lit else "step-and-shoot"


def _others(folder: Folder) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for found in folder.files:
        if found.kind not in ("CT", "RTSTRUCT", "RTDOSE", "RTPLAN"):
            counts[found.kind] = counts.get(found.kind, 0) + 1
    rows = [f"{n} x {kind}, not used" for kind, n in sorted(counts.items())]
    return (*rows, f"{folder.others} files that are not DICOM") if folder.others else tuple(rows)
