"""One clinical folder to a training case: what it must hold, its site, prescription and goals.

Nothing in the result names a patient: regions of unknown names are left out, steps are given by their
keywords, UIDs as hashes, and sentences speak of files and regions by number.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from vmat_diffusion import __version__
from vmat_diffusion.case import Case, Prescription
from vmat_diffusion.dataset.cases import TrainingCase, constraints_of, with_names
from vmat_diffusion.dataset.prepare import extent_of, on_spacing
from vmat_diffusion.dataset.raw_cases import RawCase, listing
from vmat_diffusion.dicom.attributes import quiet
from vmat_diffusion.dicom.case_read import case_from, patient_pseudonym, plan_of
from vmat_diffusion.dicom.folder import Folder, open_folder
from vmat_diffusion.dicom.inspection import technique
from vmat_diffusion.dicom.names import NameTable, load_table
from vmat_diffusion.dicom.structures import region_names
from vmat_diffusion.errors import CaseError, GoalError, InputError, UnreadableError
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.goals import (
    GoalSheet,
    add_unions,
    fit_to_case,
    goal_sheet_names,
    load_goals,
)
from vmat_diffusion.files import content_hash
from vmat_diffusion.geometry import Grid, Point
from vmat_diffusion.plan import Plan

_LEVEL = re.compile(r".*_(\d+(?:\.\d+)?)")
# A target's mean dose this far from the level in its name: the dose is of another course or of a part of it.
_LEVEL_AGREES = (0.8, 1.25)
# Fewer organs that several sites share (cord, oesophagus) say nothing of the site.
_ORGANS_OF_A_SITE = 3
# Words that name no patient; a file named by these and short numbers may stand in a sentence.
_PLAIN_WORDS = {"ct", "rs", "rd", "rp", "ss", "rtss", "rtstruct", "rtdose", "rtplan"}
_PLAIN_WORDS |= {"dose", "plan", "image", "img", "slice", "file", "dcm"}


@dataclass(frozen=True)
class Preparation:
    """What is asked of each case. `require` names organs without which the strict filter refuses it.

    `relax` admits cases without dose, without plan, with a plan that is not VMAT, and without organs.
    `site` and `goals` hold for all cases; "" leaves them to each case's structures.
    """

    spacing_mm: Point = (1.0, 1.0, 3.0)
    relax: bool = False
    mapping: Path | None = None
    site: str = ""
    goals: str = ""
    require: tuple[str, ...] = ()
    patient_position: str | None = None
    allow_outside_body: bool = False
    store_sdf: bool = False

    def __post_init__(self) -> None:
        if not all(0.2 <= s <= 20 for s in self.spacing_mm):
            raise InputError(f"--spacing-mm {self.spacing_mm} must be three numbers from 0.2 to 20 (x, y, z)")


def clinical_case(raw: RawCase, settings: Preparation) -> TrainingCase:
    """The whole body of a case on the spacing asked for. Raises InputError, naming no one.

    UnreadableError and MemoryError say nothing of the case itself: another try may go well.
    """
    with quiet(), _nameless(raw.folder, load_table(settings.mapping)):
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
    site, how = _site(case, settings.site or raw.site)
    steps += how
    fractions = _fractions(raw, case, plan)
    sheet, how = _sheet(case, site, settings.goals, fractions)
    steps += how
    prescription, how = _prescription(case, sheet, fractions)
    steps += how
    if sheet is not None:
        before = set(case.structures)
        case = add_unions(sheet, case)
        steps += [f"make-union: {name}" for name in case.structures if name not in before]
    goals = constraints_of(sheet, case) if sheet else ()
    case = replace(case, id=raw.id, site=site, prescription=prescription)
    training = on_spacing(case, settings.spacing_mm, None if plan is None else _nameless_plan(plan))
    resampled = training.case.source.steps[len(case.source.steps) :]
    provenance = _provenance(raw, folder, case, plan, [*steps, *(s.partition(":")[0] for s in resampled)])
    extent = extent_of(training)
    provenance |= {
        "goals": sheet.name if sheet else "",
        "extent_mm": list(extent.wanted_mm),
        "targets_extent_mm": list(extent.targets_mm),
    }
    return with_names(replace(training, constraints=goals, provenance=provenance), vocabulary(table))


def vocabulary(table: NameTable) -> tuple[str, ...]:
    """The names that every case of a data set has presence flags for: the mapping's, without dose levels."""
    names = {m.name for m in table.exact.values() if m.role in ("organ", "target", "body")}
    return tuple(sorted(name for name in names if "{" not in name))


def _must_have_target(case: Case) -> None:
    if not case.targets:
        raise CaseError(
            "no structure is a target by the name mapping; list the names with vmat-diffusion inspect and "
            "add the target's to the mapping"
        )


def _plan_of(folder: Folder, case: Case) -> tuple[Plan | None, str]:
    """The plan, or the sentence that says why there is none."""
    try:
        return plan_of(folder, case), ""
    except InputError as fault:
        return None, str(fault)


def _strict(case: Case, plan: Plan | None, why: str, settings: Preparation) -> None:
    """Raise CaseError for what only the relaxed filter admits."""
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


@cache
def _shipped_sheets() -> tuple[GoalSheet, ...]:
    return tuple(load_goals(name) for name in goal_sheet_names())


def _organs(sheet: GoalSheet) -> set[str]:
    return {g.structure for g in sheet.goals} - set(sheet.prescription.target_gy)


def _site(case: Case, told: str) -> tuple[str, list[str]]:
    """The site and the step taken: as told, or by the structures that the shipped goals of each site name.

    First counts how many organs the case has that no other site's goals name, then whether there are
    goals with its targets' doses and three of its organs, then how many organs in all. A tie leaves the
    site unknown.
    """
    if told:
        return told, []
    organs: dict[str, set[str]] = {}
    for sheet in _shipped_sheets():
        if sheet.site != "phantom":
            organs.setdefault(sheet.site, set()).update(_organs(sheet))
    score = {}
    for site, names in organs.items():
        here = names & set(case.structures)
        own = here - set().union(*(n for s, n in organs.items() if s != site))
        fits = any(
            _fitted(sheet, case) for sheet in _shipped_sheets() if sheet.site == site and _levels(sheet)
        )
        score[site] = (len(own), fits and len(here) >= _ORGANS_OF_A_SITE, len(here))
    best = max(score.values())
    found = [site for site, value in score.items() if value == best]
    if len(found) > 1 or not any(best[:2]):
        return "unknown", ["site-unknown"]
    return found[0], ["site-from-structures"]


def _levels(sheet: GoalSheet) -> bool:
    """Whether the sheet's targets state their dose: only then does a name tell the prescription."""
    return all(_LEVEL.fullmatch(name) for name in sheet.prescription.target_gy)


def _fitted(sheet: GoalSheet, case: Case) -> GoalSheet | None:
    """The sheet for the targets of the case; None where it does not fit or contradicts the plan."""
    try:
        fitted = fit_to_case(sheet, case)
    except GoalError:
        return None
    known = case.prescription.target_gy if case.prescription else {}
    for name, gy in fitted.prescription.target_gy.items():
        if abs(known.get(name, gy) - gy) > 0.01 * gy:
            return None
    return fitted


def _fractions(raw: RawCase, case: Case, plan: Plan | None) -> int | None:
    """How many fractions: of the plan's prescription, as told by the user, of the plan; None if unknown."""
    prescribed = case.prescription.fractions if case.prescription else None
    return prescribed or raw.fractions or (plan.fractions if plan else None)


def _sheet(case: Case, site: str, goals: str, fractions: int | None) -> tuple[GoalSheet | None, list[str]]:
    """The goals that hold for a case, and the step taken to find them.

    Limits are those of a fractionation: of the shipped goals only those with the case's number of
    fractions are taken, stereotactic ones only where it is known; goals that the user names are kept, and the
    step says so.
    """
    if goals:
        named = fit_to_case(load_goals(goals), case)
        other = fractions not in (None, named.prescription.fractions)
        return named, [f"goals-of-other-fractions: {named.name}"] if other else []
    fitting = []
    for sheet in _shipped_sheets():
        known = fractions is not None or not sheet.stereotactic
        if not known or fractions not in (None, sheet.prescription.fractions):
            continue
        if sheet.site == site and _levels(sheet) and (fitted := _fitted(sheet, case)):
            fitting.append((-len(_organs(sheet) & set(case.structures)), sheet.name, fitted))
    if not fitting or not _dose_agrees(case, min(fitting)[2].prescription.target_gy):
        return None, ["goals-unknown"]
    return min(fitting)[2], [f"goals-from-structures: {min(fitting)[1]}"]


def _prescription(
    case: Case, sheet: GoalSheet | None, fractions: int | None
) -> tuple[Prescription | None, list[str]]:
    """What is prescribed, and the step taken: by the plan, the goals, or the levels in the targets' names.

    The number of fractions is the goals' only where nothing else tells it.
    """
    if case.prescription is not None:
        return case.prescription, []
    if sheet is not None:
        prescription = replace(sheet.prescription, fractions=fractions or sheet.prescription.fractions)
        return prescription, [f"prescription-from-goals: {sheet.name}"]
    levels = {s.name: float(m[1]) for s in case.targets if (m := _LEVEL.fullmatch(s.name))}
    levels = {name: gy for name, gy in levels.items() if name.startswith("PTV")} or levels
    if not levels or fractions is None or not _dose_agrees(case, levels):
        return None, ["prescription-unknown"]
    return Prescription(fractions, levels), ["prescription-from-names"]


def _dose_agrees(case: Case, levels: Mapping[str, float]) -> bool:
    """Whether the highest level's target gets about that dose: a boost alone is another course."""
    dose, highest = case.reference_dose, max(levels, key=lambda name: levels[name])
    if dose is None or highest not in case.structures:
        return True
    mean = structure_dvh(dose, case.structures[highest], case.grid).mean_gy
    return _LEVEL_AGREES[0] <= mean / levels[highest] <= _LEVEL_AGREES[1]


def _nameless_plan(plan: Plan) -> Plan:
    """The plan without its labels, which people fill with names."""
    return replace(
        plan, label=technique(plan), arcs=tuple(replace(a, name=f"beam {a.number}") for a in plan.arcs)
    )


def _hashed(uid: object) -> str:
    return hashlib.sha256(str(uid).encode()).hexdigest()[:16] if uid else ""


def _grid(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm), "origin_mm": list(grid.origin_mm)}


def _provenance(
    raw: RawCase, folder: Folder, case: Case, plan: Plan | None, steps: Sequence[str]
) -> dict[str, Any]:
    """Where the case comes from and what was done. UIDs are hashes; steps are keywords."""
    source, dose = case.source, case.reference_dose
    record: dict[str, Any] = {
        "source": "DICOM-RT",
        "program": f"vmat-diffusion {__version__}",
        "inputs_sha256": content_hash(raw.folder),
        "patient": patient_pseudonym(folder),
        "technique": technique(plan) if plan else "unknown",
        "uid_hashes": {
            "study": _hashed(source.study_uid),
            "series": _hashed(source.series_uid),
            "structure_set": _hashed(source.structure_set_uid),
            "frame_of_reference": _hashed(source.frame_of_reference_uid),
            "plan": _hashed(plan.provenance["sop_instance_uid"]) if plan else "",
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


@contextmanager
def _nameless(root: Path, table: NameTable) -> Iterator[None]:
    """Turn what goes wrong into a sentence without names of files and regions: they may be a patient's."""
    try:
        yield
    except InputError as fault:
        error = UnreadableError if isinstance(fault, UnreadableError) else CaseError
        raise error(without_names(str(fault), root, table)) from None
    except OSError as fault:
        raise UnreadableError(
            f"a file cannot be read ({fault.strerror}); check the disk, the permissions and the links"
        ) from None


def without_names(sentence: str, root: Path, table: NameTable) -> str:
    """A sentence with files as `file 3` in the order of their names and unknown regions as `region 7`."""
    spoken = {name: f"file {k}" for k, name in enumerate(listing(root), start=1) if not _is_plain(name)}
    for found in open_folder(root).of("RTSTRUCT"):
        spoken |= {
            alias: f"region {number}"
            for number, alias in region_names(found.dataset)
            if table.match(alias) is None
        }
    for name in sorted((n for n in spoken if n in sentence), key=len, reverse=True):
        sentence = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", spoken[name], sentence)
    return sentence


def _is_plain(name: str) -> bool:
    words = re.findall(r"[^\W\d_]+|\d+", name)
    return all(len(w) < 5 if w.isdigit() else w.lower() in _PLAIN_WORDS for w in words)
