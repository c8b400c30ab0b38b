"""`simulate`: a data set of plans of the project's own optimiser, with varied goals and arcs.

One job per plan. Each plan becomes a training case on its patient's grid with dose, control points and
goals. An interrupted run goes on (`jobs.case_states`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmat_diffusion import __version__
from vmat_diffusion.anatomy import SITES, synthetic_case
from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.dataset.cases import SCHEMA, TrainingCase, constraints_of, load_case
from vmat_diffusion.dataset.clinical_case import vocabulary
from vmat_diffusion.dataset.index import read_index
from vmat_diffusion.dataset.prepare import dose_inside, on_spacing
from vmat_diffusion.dataset.splits import Split, split_ids
from vmat_diffusion.dataset.tables import REJECTED, Rejection
from vmat_diffusion.dataset.variation import Variation, apply_variation, draw_variation, fitting_sheets
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.goals import (
    GoalSheet,
    evaluate,
    goal_sheet_names,
    load_goals,
    require_known_conditions,
)
from vmat_diffusion.geometry import Point
from vmat_diffusion.jobs.batch import Cluster
from vmat_diffusion.jobs.case_states import (
    begin_dataset,
    make_cases,
    read_states,
    rejections_of,
    write_tables,
)
from vmat_diffusion.machine import Machine, load_machine, machine_names, machine_text
from vmat_diffusion.plan import violations
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.report.coding import machine_code
from vmat_diffusion.workflow.output import require_apart
from vmat_diffusion.workflow.settings import Simulation

if TYPE_CHECKING:
    from vmat_diffusion.optimize import Optimized


# The body may leave the scan's field of view over this share of a side: a shoulder or an arm attenuates few
# beams.
_CUT_SHARE = 0.1
# D95% and D2% relative to the prescription, looser than in any clinic: a dose beyond them is of a search
# that ended too early.
_LEAST_COVERAGE, _MOST_HEAT = 0.8, 1.25


@dataclass(frozen=True)
class SimulationRun:
    """The result of `simulate`: `plans` are the records by id, those of earlier runs included."""

    out: Path
    plans: Mapping[str, Mapping[str, Any]]
    rejections: tuple[Rejection, ...]
    made: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The object that `simulate --json` prints."""
        return {
            "out": str(self.out),
            "plans": [{"id": name, **record} for name, record in self.plans.items()],
            "made": self.made,
            "rejected": [asdict(r) for r in self.rejections],
            "seconds": round(self.seconds, 1),
        }


def simulate(
    patients: tuple[PatientSource, ...],
    out: Path,
    settings: Simulation,
    *,
    plans_per_case: int,
    cluster: Cluster | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> SimulationRun:
    """Plan each patient `plans_per_case` times and write the data set `out`.

    `resume` makes the plans that are missing; it may add patients and plans, with the same settings. Raises
    InputError where the folder, the machine or the settings cannot be used.
    """
    from vmat_diffusion.report.case_picture import case_picture

    started = time.perf_counter()
    if not 1 <= plans_per_case <= 99:
        raise InputError(f"--plans-per-case {plans_per_case} is outside 1 to 99; choose one within")
    if settings.beams != "drawn":
        raise InputError(f"--beams {settings.beams} is for doses without leaves; add --doses or leave it out")
    load_machine(settings.machine).require_beam()
    require_conditions(settings)
    out = out.absolute()  # workers of a cluster may start elsewhere
    require_apart(out, *{patient.file.parent for patient in patients if patient.file is not None})
    record = simulation_record(settings)
    begin_dataset(out, record, None, resume=resume)
    jobs = {
        plan_id(patient, number): (patient.key, (patient, number, settings))
        for patient in patients
        for number in range(1, plans_per_case + 1)
    }
    pool = cluster or Cluster(memory_gb=4.0)
    made = make_cases(
        simulate_plan, jobs, out, draw=case_picture, cluster=pool, stage="plan", progress=progress
    )
    states = read_states(out)
    done = [state for state in states if state["state"] == "done"]
    rejections = tuple(rejections_of(states))
    write_tables(out, record, None, done, rejections)
    if not done:
        raise PlanError(f"none of {len(jobs)} plans could be made; read {out / REJECTED} for the reasons")
    plans = {s["id"]: {**s.get("figures", {}), "minutes": round(s.get("seconds", 0) / 60, 2)} for s in done}
    return SimulationRun(out, plans, rejections, made, time.perf_counter() - started)


@dataclass(frozen=True)
class PatientSource:
    """A patient to be planned.

    `file` is a training case, None for a synthetic patient of `site` and `seed`. `patient` is the
    pseudonym by which data sets are split; `key` changes with the source of the patient.
    """

    id: str
    site: str
    patient: str
    key: str
    file: Path | None = field(default=None, repr=False)  # logs of workers show arguments
    seed: int = 0

    def read(self, spacing_mm: Point) -> TrainingCase:
        """The patient on the grid of the file, or a synthetic one on `spacing_mm` (x, y, z)."""
        if self.file is not None:
            return load_case(self.file)
        made = on_spacing(synthetic_case(self.site, self.seed), spacing_mm)
        origin = {"source": "synthetic", "site": self.site, "seed": self.seed}
        return replace(made, names=vocabulary(load_table(None)), provenance=origin)


def require_conditions(settings: Simulation) -> None:
    """Raise InputError for a condition that no shipped goal sheet knows."""
    require_known_conditions(settings.conditions, map(load_goals, goal_sheet_names()))


def patients_of(
    folder: Path, sites: Sequence[str] = (), split: Split | None = None
) -> tuple[PatientSource, ...]:
    """The cases of a data set, of some sites or all, of one split or all.

    Raises InputError where the folder is no data set or holds no such case.
    """
    records = [r for r in read_index(folder) if not sites or r["site"] in sites]
    if split is not None:
        members = set(split_ids(folder, split))
        records = [r for r in records if r["id"] in members]
    if not records:
        of = f" of the sites {', '.join(sites)}" if sites else ""
        of += f" of the split {split}" if split else ""
        raise InputError(f"{folder} holds no case{of}; name a data set made by preprocess or import")
    return tuple(
        PatientSource(r["id"], r["site"], r["patient"], r["sha256"], folder.absolute() / r["file"])
        for r in records
    )


def synthetic_patients(count: int, *, seed: int, sites: Sequence[str] = ()) -> tuple[PatientSource, ...]:
    """Synthetic patients with consecutive seeds, the sites in turn.

    Raises InputError for a count below 1 or a site without synthetic patients.
    """
    if not 1 <= count <= 1_000_000:
        raise InputError(f"--synthetic {count} is outside 1 to 1000000; choose one within")
    sites = tuple(sites) or SITES
    if unknown := [s for s in sites if s not in SITES]:
        raise InputError(
            f"there are no synthetic patients for --sites {unknown[0]}; choose among {', '.join(SITES)}"
        )
    out = []
    for k in range(count):
        site, own = sites[k % len(sites)], seed + k
        name = f"{site}_{own}"
        out.append(PatientSource(name, site, f"synthetic_{name}", f"{__version__} {name}", seed=own))
    return tuple(out)


def plan_id(patient: PatientSource, number: int) -> str:
    """The id of a patient's n-th plan, counted from 1."""
    return f"{patient.id}_p{number:02d}"


def simulation_record(settings: Simulation, *, doses: bool = False) -> dict[str, Any]:
    """The settings as `dataset.json` keeps them: a machine by its contents, a shipped one by name too.

    `doses` says that they are of `simulate --doses`.
    """
    digest = hashlib.sha256(machine_text(settings.machine).encode()).hexdigest()[:16]
    shipped = settings.machine in machine_names()
    return {
        **asdict(settings),
        "doses": doses,
        "beams": settings.beams if doses else None,
        "conditions": list(settings.conditions),
        "machine": f"{settings.machine if shipped else 'file'} {digest}",
        "spacing_mm": list(settings.spacing_mm),
        "schema": SCHEMA,
        "version": __version__,
    }


def simulate_plan(patient: PatientSource, number: int, settings: Simulation) -> TrainingCase:
    """One job: draw a variation for a patient and plan it.

    The draw depends on the seed, the patient's id and the number alone. Raises InputError for a patient
    that cannot be planned, and for a plan that the machine could not deliver.
    """
    name, machine = plan_id(patient, number), load_machine(settings.machine)
    base = patient.read(settings.spacing_mm)
    require_plannable(base)
    training = plan_variation(
        base,
        draw_plan_variation(base.case, name, settings.seed, machine, conditions=settings.conditions),
        machine,
        settings,
    )
    return replace(
        training,
        case=replace(training.case, id=name),
        provenance={**training.provenance, "patient": patient.patient},
    )


def draw_plan_variation(
    case: Case, name: str, seed: int, machine: Machine, *, conditions: Sequence[str] = ()
) -> Variation:
    """The variation of one plan by its id and the seed, whatever other plans there are.

    Raises GoalError where no goals fit the case.
    """
    digest = hashlib.sha256(name.encode()).digest()
    rng = np.random.default_rng([seed, *np.frombuffer(digest[:16], "<u4").tolist()])
    return draw_variation(rng, fitting_sheets(case, conditions), case, machine)


def require_plannable(training: TrainingCase, *, without_ct: bool = False) -> None:
    """Raise CaseError for a case with a body that the volume cuts beside the targets, or without CT.

    `without_ct` admits those: their body is water.
    """
    case = training.case
    if not training.has_ct and not without_ct:
        raise CaseError("the case has no CT, so no dose can be computed; leave it out or fetch its CT")
    slices = np.logical_or.reduce([s.mask.any(axis=(1, 2)) for s in case.targets])
    body = case.body.mask[slices]
    cut = max(float(face.mean()) for face in (body[:, 0], body[:, -1], body[:, :, 0], body[:, :, -1]))
    if cut > _CUT_SHARE:
        raise CaseError(
            f"the volume cuts the body beside the targets over {100 * cut:.0f} % of a side, so that beams "
            "would miss what they pass; prepare the case with a larger --shape"
        )


def plan_variation(
    base: TrainingCase, variation: Variation, machine: Machine, settings: Simulation
) -> TrainingCase:
    """The patient with the plan of a variation, its dose and its goals.

    Raises PlanError where the machine could not deliver the plan or the search left no usable dose.
    """
    from vmat_diffusion.dataset.clinical_case import without_helpers
    from vmat_diffusion.dicom import as_written
    from vmat_diffusion.dicom.names import load_table
    from vmat_diffusion.optimize import Outcome, Settings, optimize
    from vmat_diffusion.optimize.delivery import with_delivery

    case, sheet = apply_variation(variation, replace(base.case, reference_dose=None))
    asked = Settings(
        arcs=variation.arcs,
        arc_start_deg=variation.arc_start_deg,
        arc_stop_deg=variation.arc_stop_deg,
        collimator_deg=variation.collimator_deg,
        grid_mm=settings.grid_mm,
        seed=variation.seed,
        max_minutes=settings.search_minutes,
        effort=settings.effort,
    )
    asked = with_delivery(asked, sheet, machine)
    made = optimize(case, sheet, machine, settings=asked, finalize=as_written)
    if made.outcome is Outcome.INTERRUPTED:
        raise KeyboardInterrupt  # the best plan so far would depend on the time of the interrupt
    if wrong := violations(made.plan, machine):
        raise PlanError(f"{len(wrong)} violations of the machine's limits, the first: {wrong[0]}")
    code = machine_code(settings.machine)
    dose, possible = dose_inside(made.dose, case.grid, case.body.mask)
    dosed = replace(case, reference_dose=dose)
    require_usable(sheet.prescription, dosed, dose)
    return TrainingCase(
        case=without_helpers(dosed, load_table()),
        possible_dose=possible,
        plan=replace(made.plan, machine=code),
        constraints=constraints_of(sheet, dosed),
        names=base.names,
        padding=base.padding,
        provenance={
            "source": "simulated",
            "program": f"vmat-diffusion {__version__}",
            "technique": "VMAT",
            "machine": code,
            "goals": sheet.name,
            "normalization": str(sheet.normalization),
            "variation": asdict(variation),
            "optimiser": {**asdict(asked), "outcome": made.outcome.name, "iterations": len(made.history)},
            "figures": {**_figures(sheet, dosed, dose, made), "violations": len(wrong)},
            "gate": "not asked",
            "dose": {
                **made.dose.provenance,
                **({"machine": code} if "machine" in made.dose.provenance else {}),
            },
            "steps": [*base.provenance.get("steps", ()), *case.source.steps],
            "base": dict(base.provenance),
        },
    )


def require_usable(
    prescription: Prescription, case: Case, dose: Dose, *, most_heat: float = _MOST_HEAT
) -> None:
    """Raise PlanError for a dose far from the prescription, as of a search that ended too early.

    `most_heat` bounds D2 % of each target relative to the highest prescription.
    """
    most = most_heat * max(prescription.target_gy.values())
    for name, gy in prescription.target_gy.items():
        dvh = structure_dvh(dose, case.structures[name], case.grid)
        cold, hot, least = dvh.dose_at_percent_gy(95), dvh.dose_at_percent_gy(2), _LEAST_COVERAGE * gy
        fault = f"D95% is {cold:.1f} Gy, the limit is {least:.1f} Gy" if cold < least else ""
        fault = fault or (f"D2% is {hot:.1f} Gy, the limit is {most:.1f} Gy" if hot > most else "")
        if fault:
            raise PlanError(
                f"the plan is of no use: {name} {fault}; give the search a higher --effort or more "
                "--max-minutes"
            )


def _figures(sheet: GoalSheet, case: Case, dose: Dose, made: Optimized) -> dict[str, Any]:
    """The figures of a plan in the table of all plans."""
    results = evaluate(sheet, case, dose)
    return {
        "site": case.site,
        "goals": sheet.name,
        "arcs": len(made.plan.arcs),
        "outcome": made.outcome.name,
        "mu": round(made.plan.total_mu, 1),
        "control_points": sum(len(arc.gantry_deg) for arc in made.plan.arcs),
        "goals_met": sum(r.status == "pass" or r.excused for r in results),
        "goals_judged": sum(r.value is not None for r in results),
    }
