"""A clinical folder becomes a training case: required content, site, prescription and goals.

Nothing in the result names a patient: regions with unknown names are left out, steps are keywords, UIDs are
hashes, and sentences name files and regions by number.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from vmat_diffusion import __version__
from vmat_diffusion.case import Case, Prescription
from vmat_diffusion.dataset.cases import TrainingCase, constraints_of
from vmat_diffusion.dataset.prepare import extent_of, on_spacing
from vmat_diffusion.dataset.raw_cases import RawCase, listing
from vmat_diffusion.dicom.attributes import quiet
from vmat_diffusion.dicom.case_read import case_from, patient_pseudonym, plan_of
from vmat_diffusion.dicom.folder import Folder, open_folder
from vmat_diffusion.dicom.inspection import technique
from vmat_diffusion.dicom.names import NameTable, load_table
from vmat_diffusion.dicom.structures import region_names
from vmat_diffusion.errors import (
    CaseError,
    GoalError,
    InputError,
    LimitError,
    UnreadableError,
    limit_of,
)
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.goal_fitting import how_made, structures_named
from vmat_diffusion.evaluate.goals import (
    GoalSheet,
    add_structures,
    fit_to_case,
    goal_sheet_names,
    load_goals,
    with_known_conditions,
)
from vmat_diffusion.files import content_hash, shipped_or_code
from vmat_diffusion.geometry import Grid, Point
from vmat_diffusion.origin import uid_code
from vmat_diffusion.plan import Plan

_LEVEL = re.compile(r".*_(\d+(?:\.\d+)?)")
# Mean dose of a target over the level in its name; beyond, the dose is of another course or of a part of it.
_LEVEL_AGREES = (0.8, 1.25)
# So many organs that several sites share (cord, oesophagus) identify a site; fewer do not.
_ORGANS_OF_A_SITE = 3
# Structures that no goal names but that tell the site as well.
_TELLING = {"prostate": ("Prostate", "SeminalVes")}
# Words that name no patient; a file named by these and short numbers may stand in a sentence.
_PLAIN_WORDS = {"ct", "rs", "rd", "rp", "ss", "rtss", "rtstruct", "rtdose", "rtplan"}
_PLAIN_WORDS |= {"dose", "plan", "image", "img", "slice", "file", "dcm"}


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
    sheet, how = _sheet(case, site, settings, fractions)
    steps += how
    prescription, how = _prescription(case, sheet, fractions)
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


@cache
def _shipped_sheets() -> tuple[GoalSheet, ...]:
    return tuple(load_goals(name) for name in goal_sheet_names())


def _organs(sheet: GoalSheet) -> set[str]:
    """What the sheet has goals for, with the parts of structures that it makes, but no prescribed target."""
    named = {*structures_named(sheet), *(g.structure for g in sheet.goals)}
    return named - set(sheet.prescription.target_gy)


def _site(case: Case, stated: str) -> tuple[str, list[str]]:
    """The site and the step taken: the stated site, or the site whose shipped goals fit the structures best.

    The first criterion is the number of organs that no other site's goals name, the second whether goals
    fit the targets' doses and at least three organs, the third the number of organs. After a tie the site
    is unknown.
    """
    if stated:
        return stated, []
    organs: dict[str, set[str]] = {site: set(names) for site, names in _TELLING.items()}
    for sheet in _shipped_sheets():
        if sheet.site != "phantom":
            organs.setdefault(sheet.site, set()).update(_organs(sheet))
    contoured = {s.name for s in case.structures.values() if s.role == "organ"}
    score = {}
    for site, names in organs.items():
        here = names & contoured
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
    """Whether the names of all targets of the sheet state their dose."""
    return all(_LEVEL.fullmatch(name) for name in sheet.prescription.target_gy)


def _fitted(sheet: GoalSheet, case: Case) -> GoalSheet | None:
    """The sheet for the targets of the case; None if it does not fit or contradicts the plan."""
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
    """The fractions of the prescription, else as the user states, else of the plan; None if unknown."""
    prescribed = case.prescription.fractions if case.prescription else None
    return prescribed or raw.fractions or (plan.fractions if plan else None)


def _sheet(
    case: Case, site: str, settings: Preparation, fractions: int | None
) -> tuple[GoalSheet | None, list[str]]:
    """The goals of a case, and the step taken to find them.

    Limits hold for one fractionation: only shipped goals with the case's number of fractions fit, and
    stereotactic goals only where that number is known; of two sheets of one prescription that fit equally
    well neither. Goals that the user names are kept, and the step says so if their fractionation differs.
    """
    if goals := settings.goals:
        named = fit_to_case(load_goals(goals), case, settings.conditions)
        other = fractions not in (None, named.prescription.fractions)
        name = shipped_or_code(goals, goal_sheet_names())
        steps = [f"goals-of-other-fractions: {name}"] if other else []
        return named, [*steps, *_conditions(named)]
    fitting = []
    for shipped in _shipped_sheets():
        sheet = with_known_conditions(shipped, settings.conditions)
        known = fractions is not None or not sheet.stereotactic
        if not known or fractions not in (None, sheet.prescription.fractions):
            continue
        if sheet.site == site and _levels(sheet) and (fitted := _fitted(sheet, case)):
            fitting.append((-len(_organs(sheet) & set(case.structures)), sheet.name, fitted))
    if not fitting or _undecided(fitting) or not _dose_agrees(case, min(fitting)[2].prescription.target_gy):
        return None, ["goals-unknown"]
    _, name, found = min(fitting)
    return found, [f"goals-from-structures: {name}", *_conditions(found)]


def _conditions(sheet: GoalSheet) -> list[str]:
    """The step that names the conditions of a sheet that hold for the patient."""
    return [f"goals-with: {', '.join(sheet.conditions_on)}"] if sheet.conditions_on else []


def _undecided(fitting: list[tuple[int, str, GoalSheet]]) -> bool:
    """Whether two sheets of one prescription, such as those of either breast, fit equally well."""
    best, *others = sorted(fitting, key=lambda found: found[:2])
    return any(other[0] == best[0] and other[2].prescription == best[2].prescription for other in others)


def _prescription(
    case: Case, sheet: GoalSheet | None, fractions: int | None
) -> tuple[Prescription | None, list[str]]:
    """The prescription of the plan, else of the goals, else of the targets' names; and the step taken.

    The number of fractions comes from the goals only if nothing else states it.
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
    """Whether the target of the highest level gets about that dose; a dose of a boost alone does not."""
    dose, highest = case.reference_dose, max(levels, key=lambda name: levels[name])
    if dose is None or highest not in case.structures:
        return True
    mean = structure_dvh(dose, case.structures[highest], case.grid).mean_gy
    return _LEVEL_AGREES[0] <= mean / levels[highest] <= _LEVEL_AGREES[1]


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


@contextmanager
def _nameless(root: Path, table: NameTable) -> Iterator[None]:
    """Remove names of files and regions from the sentences of errors: they may contain a patient's name."""
    try:
        yield
    except LimitError:
        raise
    except InputError as fault:
        error = UnreadableError if isinstance(fault, UnreadableError) else CaseError
        raise error(without_names(str(fault), root, table)) from None
    except OSError as fault:
        fault.filename = None  # may be a patient's name
        if limit := limit_of(fault):
            raise LimitError(limit) from None
        raise UnreadableError(
            f"a file cannot be read ({fault.strerror}); check the disk, the permissions and the links"
        ) from None
    except Exception as fault:
        if isinstance(fault, MemoryError) or limit_of(fault):
            raise
        # What a library says of a value may quote it, and the value may be a name.
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        raise RuntimeError(
            f"{type(fault).__name__} at line {frame.lineno} of {Path(frame.filename).name}"
        ) from None


def without_names(sentence: str, root: Path, table: NameTable) -> str:
    """A sentence with `file 3` for the third file by name, and `region 7` for an unknown region."""
    spoken = {
        name: f"file {k}" for k, name in enumerate(listing(root), start=1) if not is_plain_file_name(name)
    }
    for found in open_folder(root).of("RTSTRUCT"):
        spoken |= {
            alias: f"region {number}"
            for number, alias in region_names(found.dataset)
            if table.match(alias) is None
        }
    for name in sorted((n for n in spoken if n in sentence), key=len, reverse=True):
        sentence = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", spoken[name], sentence)
    return sentence


def is_plain_file_name(name: str) -> bool:
    """Whether a file's name consists of words such as CT and dose and of short numbers alone."""
    words = re.findall(r"[^\W\d_]+|\d+", name)
    return all(len(w) < 5 if w.isdigit() else w.lower() in _PLAIN_WORDS for w in words)
