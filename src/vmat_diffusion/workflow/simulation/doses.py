"""`simulate --doses`: doses of free fluence, many for each anatomy, as training cases.

One job per dose. Some successive doses of a patient share goal sheet, prescription and beams; what those
alone decide is computed once by each worker, and each further dose is one search.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmat_diffusion import __version__
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dataset.cases import TrainingCase, constraints_of
from vmat_diffusion.dataset.tables import REJECTED
from vmat_diffusion.dataset.variation import fitting_sheets
from vmat_diffusion.dataset.wishes import (
    BEAMS,
    OWN,
    Setting,
    Wish,
    apply_setting,
    apply_wish,
    draw_setting,
    draw_wish,
    organs_of,
    wished_organs,
)
from vmat_diffusion.errors import InputError, PlanError
from vmat_diffusion.evaluate.dvh import Dvh, structure_dvh
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate
from vmat_diffusion.evaluate.metrics import histogram_value
from vmat_diffusion.geometry import Mask
from vmat_diffusion.jobs.batch import Cluster
from vmat_diffusion.jobs.case_states import (
    begin_dataset,
    make_cases,
    read_states,
    rejections_of,
    write_tables,
)
from vmat_diffusion.machine import load_machine
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.report.coding import machine_code
from vmat_diffusion.workflow.output import require_apart
from vmat_diffusion.workflow.settings import Simulation
from vmat_diffusion.workflow.simulation.plans import (
    PatientSource,
    SimulationRun,
    require_conditions,
    require_plannable,
    require_usable,
    simulation_record,
)

if TYPE_CHECKING:
    from vmat_diffusion.optimize.free_fields import FieldSetup

# So many successive doses of a patient share prescription and beams.
DOSES_PER_SETTING = 4
# Hot spots of plans: D2% of a prescribed target relative to the highest dose.
_MOST_HEAT = 1.15


def simulate_doses(
    patients: tuple[PatientSource, ...],
    out: Path,
    settings: Simulation,
    *,
    doses_per_case: int,
    cluster: Cluster | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> SimulationRun:
    """Optimise the fluence of each patient for `doses_per_case` wishes and write the data set `out`.

    `resume` makes the doses that are missing; it may add patients and doses, with the same settings. The
    first doses of all patients are made first. Raises InputError where the folder, the machine or the
    settings cannot be used.
    """
    from vmat_diffusion.report.case_picture import case_picture

    started = time.perf_counter()
    if not 1 <= doses_per_case <= 99:
        raise InputError(f"--plans-per-case {doses_per_case} is outside 1 to 99; choose one within")
    if settings.search_minutes is not None:
        raise InputError("--search-minutes is for plans; leave it out with --doses, or give an --effort")
    load_machine(settings.machine).require_beam()
    require_conditions(settings)
    out = out.absolute()  # workers of a cluster may start elsewhere
    require_apart(out, *{patient.file.parent for patient in patients if patient.file is not None})
    record = simulation_record(settings, doses=True)
    begin_dataset(out, record, None, resume=resume)
    numbers = range(1, doses_per_case + 1)
    jobs = {
        dose_id(patient, number): (patient.key, (patient, number, settings))
        for first in numbers[::DOSES_PER_SETTING]
        for patient in patients
        for number in numbers[first - 1 : first - 1 + DOSES_PER_SETTING]
    }
    try:
        made = make_cases(
            simulate_dose,
            jobs,
            out,
            draw=case_picture,
            cluster=cluster or Cluster(memory_gb=4.0),
            stage="dose",
            progress=progress,
        )
    finally:  # thousands of doses are made over days: what is there when a run is ended is a data set
        states = read_states(out)
        done = [state for state in states if state["state"] == "done"]
        rejections = tuple(rejections_of(states))
        write_tables(out, record, None, done, rejections)
    if not done:
        raise PlanError(f"none of {len(jobs)} doses could be made; read {out / REJECTED} for the reasons")
    doses = {s["id"]: {**s.get("figures", {}), "minutes": round(s.get("seconds", 0) / 60, 2)} for s in done}
    return SimulationRun(out, doses, rejections, made, time.perf_counter() - started)


def dose_id(patient: PatientSource, number: int) -> str:
    """The id of a patient's n-th dose, counted from 1."""
    return f"{patient.id}_d{number:02d}"


@dataclass(frozen=True, eq=False)
class Shared:
    """What some doses of a patient share.

    `case` has the prescription and helper structures of the setting, `sheet` all goals that a wish may ask
    for. `possible` is where there may be dose.
    """

    base: TrainingCase
    case: Case
    sheet: GoalSheet
    setting: Setting
    fields: FieldSetup
    possible: Mask

    @cached_property
    def without_gy(self) -> Mapping[tuple[str, str], float]:
        """What organs get in the dose without wishes, by organ and metric, at the sampled points."""
        objective = self.fields.objective
        relative = self.fields.relative_dose(self.fields.start)
        gy = relative * objective.factor_to_normalization(relative) * objective.reference_gy
        out: dict[tuple[str, str], float] = {}
        for organ in organs_of(self.base.case):
            if (region := objective.regions.get(organ)) is None:
                continue
            values = gy[region.points]
            dvh = Dvh.of(values, region.volume_cc / len(values))
            out |= {(organ, str(metric)): histogram_value(metric, dvh) or 0.0 for metric in OWN}
        return out


def shared(patient: PatientSource, part: int, settings: Simulation) -> Shared:
    """The setting of some doses of a patient, drawn from the seed, the patient's id and the part's number.

    Raises InputError for a patient whose dose cannot be computed or that no goals fit.
    """
    from vmat_diffusion.diffusion.grid import near_targets
    from vmat_diffusion.optimize.free_fields import prepare_fields

    base = patient.read(settings.spacing_mm)
    require_plannable(base, without_ct=True)
    bare = replace(base.case, reference_dose=None)
    rng = _rng(f"{patient.id} {part}", settings.seed)
    setting = draw_setting(rng, fitting_sheets(bare, settings.conditions), bare, BEAMS[settings.beams])
    case, sheet = apply_setting(setting, bare)
    fields = prepare_fields(
        case,
        sheet,
        load_machine(settings.machine),
        setting.beams.gantry_deg,
        seed=setting.seed,
        density_mm=settings.grid_mm,
        effort=settings.effort,
    )
    possible = base.possible_dose if base.case.reference_dose is not None else near_targets(case)
    return Shared(base, case, sheet, setting, fields, possible)


# One for each worker: successive doses share it.
_kept = lru_cache(maxsize=1)(shared)


def simulate_dose(patient: PatientSource, number: int, settings: Simulation) -> TrainingCase:
    """One job: draw a wish and optimise the fluence for it.

    The draws depend on the seed, the patient's id and the number alone. Raises InputError for a patient
    whose dose cannot be computed, and for a dose that is unlike a plan's.
    """
    name = dose_id(patient, number)
    ground = _kept(patient, (number - 1) // DOSES_PER_SETTING, settings)
    wish = draw_wish(_rng(name, settings.seed), wished_organs(ground.sheet, ground.case))
    training = dose_of_wish(ground, wish, settings)
    return replace(
        training,
        case=replace(training.case, id=name),
        provenance={**training.provenance, "patient": patient.patient},
    )


def dose_of_wish(ground: Shared, wish: Wish, settings: Simulation) -> TrainingCase:
    """The patient with the dose of a wish, its goals and its fluence.

    Raises PlanError for a dose that is unlike a plan's.
    """
    from vmat_diffusion.dataset.clinical_case import without_helpers
    from vmat_diffusion.dicom.names import load_table
    from vmat_diffusion.optimize.free_fields import Weights, normalized_fields

    sheet, pairs = apply_wish(wish, ground.sheet, ground.without_gy)
    weights = Weights(
        {organ: asked.sparing for organ, asked in wish.organs.items()},
        goals=wish.goals,
        coverage=wish.coverage,
        hot=wish.hot,
        tissue=wish.tissue,
        roughness=wish.roughness,
    )
    x = ground.fields.search(pairs, weights, sheet.normalization)
    fields, gy = normalized_fields(ground.fields, x, ground.possible, sheet)
    dose = Dose(ground.case.grid, gy)
    dosed = replace(ground.case, reference_dose=dose)
    require_usable(sheet.prescription, dosed, dose, most_heat=_MOST_HEAT)
    kind = ground.setting.beams.kind
    return TrainingCase(
        case=without_helpers(dosed, load_table()),
        possible_dose=ground.possible,
        has_ct=ground.base.has_ct,
        fields=fields,
        constraints=constraints_of(sheet, dosed),
        names=ground.base.names,
        padding=ground.base.padding,
        provenance={
            "source": "simulated",
            "program": f"vmat-diffusion {__version__}",
            "technique": "IMRT" if kind == "nine fields" else "VMAT",
            "delivery": "free fluence, no leaves",
            "beams": asdict(ground.setting.beams),
            "machine": machine_code(settings.machine),
            "goals": sheet.name,
            "normalization": str(sheet.normalization),
            "setting": asdict(ground.setting),
            "wish": asdict(wish),
            "figures": _figures(sheet, dosed, dose, kind),
            "gate": "not asked",
            "dose": {"engine": "pencil-beam", "version": __version__},
            "steps": [*ground.base.provenance.get("steps", ()), *ground.case.source.steps],
            "base": dict(ground.base.provenance),
        },
    )


def _rng(name: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], "<u4").tolist()])


def _figures(sheet: GoalSheet, case: Case, dose: Dose, kind: str) -> dict[str, Any]:
    """The figures of a dose in the table of all doses."""
    results = evaluate(sheet, case, dose)
    hottest = structure_dvh(dose, case.structures[sheet.normalization.structure], case.grid)
    return {
        "site": case.site,
        "goals": sheet.name,
        "beams": kind,
        "d2_gy": round(hottest.dose_at_percent_gy(2), 2),
        "goals_met": sum(r.status == "pass" or r.excused for r in results),
        "goals_judged": sum(r.value is not None for r in results),
    }
