"""A clinical folder becomes a training case: required content, site, prescription and goals.

Nothing in the result names a patient: regions with unknown names are left out, steps are keywords, UIDs are
hashes, and sentences name files and regions by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmat_diffusion import __version__
from vmat_diffusion.case import Case
from vmat_diffusion.dataset.cases import TrainingCase, constraints_of
from vmat_diffusion.dataset.nameless import nameless
from vmat_diffusion.dataset.prepare import extent_of, on_spacing
from vmat_diffusion.dataset.raw_cases import RawCase
from vmat_diffusion.dataset.site_of_case import fractions_of, prescription_of, sheet_of, site_of
from vmat_diffusion.dicom.attributes import quiet
from vmat_diffusion.dicom.case_read import case_from, patient_pseudonym, plan_of
from vmat_diffusion.dicom.folder import Folder, open_folder
from vmat_diffusion.dicom.inspection import technique
from vmat_diffusion.dicom.names import NameTable, load_table
from vmat_diffusion.errors import (
    CaseError,
    InputError,
    UnreadableError,
)
from vmat_diffusion.evaluate.goal_fitting import how_made
from vmat_diffusion.evaluate.goals import add_structures, goal_sheet_names
from vmat_diffusion.files import content_hash, shipped_or_code
from vmat_diffusion.geometry import Grid, Point
from vmat_diffusion.origin import uid_code
from vmat_diffusion.plan import Plan


@dataclass(frozen=True)
class Preparation:
    """Settings for all cases. The strict filter refuses a case without the organs of `require`.

    `relax` admits cases without dose, without plan, with a plan that is not VMAT, and without organs.
    `site` and `goals` hold for all cases; "" derives them from the structures of each case. `conditions` are
    those of goal sheets that hold for all patients; where sheets are derived, each takes those it knows.
    """

    spacing_mm: Point = (1.0, 1.0, 3.0)
    relax: bool = False
    mapping: Path | None = None
    site: str = ""
    goals: str = ""
    conditions: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    patient_position: str | None = None
    allow_outside_body: bool = False
    store_sdf: bool = False

    def __post_init__(self) -> None:
        if not all(0.2 <= s <= 20 for s in self.spacing_mm):
            raise InputError(f"--spacing-mm {self.spacing_mm} must be three numbers from 0.2 to 20 (x, y, z)")


def clinical_case(raw: RawCase, settings: Preparation) -> TrainingCase:
    """The training case of a folder, with the whole body, on the spacing of the settings.

    Raises InputError whose sentence names no patient. UnreadableError and MemoryError are no property of
    the case: another try may succeed.
    """
    with quiet(), nameless(raw.folder, load_table(settings.mapping)):
        return _clinical_case(raw, settings)


def _clinical_case(raw: RawCase, settings: Preparation) -> TrainingCase:
    table = load_table(settings.mapping)
    folder = open_folder(raw.folder)
    if folder.unreadable:
        raise UnreadableError(folder.unreadable[0])
    if folder.refused:
        raise CaseError(folder.refused[0])
    case = case_from(
        folder,
        table,
        patient_position=settings.patient_position,
        allow_outside_body=settings.allow_outside_body,
        known_only=True,
    )
    _must_have_target(case)
    plan, why = _plan_of(folder, case)
    if not settings.relax:
        _strict(case, plan, why, settings)
    steps = list(dict.fromkeys(step.partition(":")[0] for step in case.source.steps))
    if plan is None and folder.of("RTPLAN") and "leave-out-plan" not in steps:
        steps.append("leave-out-plan")
    site, how = site_of(case, settings.site or raw.site)
    steps += how
    fractions = fractions_of(case, raw.fractions, plan)
    sheet, how = sheet_of(case, site, fractions, goals=settings.goals, conditions=settings.conditions)
    steps += how
    prescription, how = prescription_of(case, sheet, fractions)
    steps += how
    if sheet is not None:
        before = set(case.structures)
        case = add_structures(sheet, case)
        made = [name for name in case.structures if name not in before]
        steps += [f"make-structure: {name}" for name in made]
    goals = constraints_of(sheet, case) if sheet else ()
    case = without_helpers(case, table)
    case = replace(case, id=raw.id, site=site, prescription=prescription)
    training = on_spacing(case, settings.spacing_mm, None if plan is None else _nameless_plan(plan))
    resampled = training.case.source.steps[len(case.source.steps) :]
    provenance = _provenance(raw, folder, case, plan, [*steps, *(s.partition(":")[0] for s in resampled)])
    extent = extent_of(training)
    provenance |= {
        "goals": shipped_or_code(settings.goals or sheet.name, goal_sheet_names()) if sheet else "",
        "extent_mm": list(extent.wanted_mm),
        "targets_extent_mm": list(extent.targets_mm),
    }
    return replace(training, constraints=goals, names=vocabulary(table), provenance=provenance)


def without_helpers(case: Case, table: NameTable) -> Case:
    """The case without structures that only goals need, such as `BODY - PTV_60`: those no table knows.

    What is contoured and what the table names, such as Lungs, stays.
    """
    kept = {
        name: s
        for name, s in case.structures.items()
        if not how_made(name, case) or ((match := table.match(name)) is not None and match.name == name)
    }
    return case if len(kept) == len(case.structures) else replace(case, structures=kept)


def vocabulary(table: NameTable) -> tuple[str, ...]:
    """The names with presence flags in a data set: those of the mapping, without dose levels."""
    names = {m.name for m in table.exact.values() if m.role in ("organ", "target", "body")}
    return tuple(sorted(name for name in names if "{" not in name))


def _must_have_target(case: Case) -> None:
    if not case.targets:
        raise CaseError(
            "no structure is a target by the name mapping; list the names with vmat-diffusion inspect and "
            "add the target's to the mapping"
        )


def _plan_of(folder: Folder, case: Case) -> tuple[Plan | None, str]:
    """The plan, or a sentence why there is none."""
    try:
        return plan_of(folder, case), ""
    except InputError as fault:
        return None, str(fault)


def _strict(case: Case, plan: Plan | None, why: str, settings: Preparation) -> None:
    """Raise CaseError for a case that only the relaxed filter admits."""
    if case.reference_dose is None:
        left_out = [s.partition(": ")[2] for s in case.source.steps if s.startswith("leave-out-dose:")]
        if left_out:
            raise CaseError(f"the dose cannot be used: {left_out[0]}")
        raise CaseError(
            "the folder holds no dose on this CT; export the RTDOSE of the plan or pass --relax-filter"
        )
    if plan is None:
        raise CaseError(f"{why} or pass --relax-filter")
    if (kind := technique(plan)) != "VMAT":
        raise CaseError(f"the plan is {kind}, not VMAT; export a VMAT plan or pass --relax-filter")
    if missing := [name for name in settings.require if name not in case.structures]:
        raise CaseError(
            f"{', '.join(missing)} is not contoured; contour it, map its name or pass --relax-filter"
        )
    if not any(s.role == "organ" for s in case.structures.values()):
        raise CaseError("no organ is contoured; contour one, map its name or pass --relax-filter")


def _nameless_plan(plan: Plan) -> Plan:
    """The plan without its labels and the name of its machine, which say whose it is."""
    arcs = tuple(replace(a, name=f"beam {a.number}") for a in plan.arcs)
    return replace(plan, label=technique(plan), machine="", arcs=arcs)


def _grid(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm), "origin_mm": list(grid.origin_mm)}


def _provenance(
    raw: RawCase, folder: Folder, case: Case, plan: Plan | None, steps: Sequence[str]
) -> dict[str, Any]:
    """Source and steps of the case. UIDs are hashes; steps are keywords."""
    source, dose = case.source, case.reference_dose
    record: dict[str, Any] = {
        "source": "DICOM-RT",
        "program": f"vmat-diffusion {__version__}",
        "inputs_sha256": content_hash(raw.folder),
        "patient": patient_pseudonym(folder),
        "technique": technique(plan) if plan else "unknown",
        "uid_hashes": {
            "study": uid_code(source.study_uid),
            "series": uid_code(source.series_uid),
            "structure_set": uid_code(source.structure_set_uid),
            "frame_of_reference": uid_code(source.frame_of_reference_uid),
            "plan": uid_code(plan.provenance["sop_instance_uid"]) if plan else "",
        },
        "source_grid": _grid(case.grid),
        "steps": list(steps),
    }
    if dose is not None:
        record["dose_grid"] = _grid(dose.grid)
    if plan is not None:
        record["beam"] = {
            key: plan.provenance[key] for key in ("energy_mv", "fluence_mode", "leaf_boundaries_mm")
        }
    return record
