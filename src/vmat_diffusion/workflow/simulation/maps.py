"""`simulate --maps`: fluence maps of the planner with what the generator sees of the case, one file a plan.

Only the first stage of planning: no leaves are searched for. One process, one plan after the other. A run
that was ended goes on where it stopped, as a file appears whole or not at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmat_diffusion import __version__
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.delivery_goals import asked_delivery, default_delivery
from vmat_diffusion.files import written_whole
from vmat_diffusion.generate.examples import FluenceExample, example_of
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow.settings import Simulation
from vmat_diffusion.workflow.simulation.plans import PatientSource, draw_plan_variation, require_plannable

if TYPE_CHECKING:
    from vmat_diffusion.optimize.preparation import PlanningTask

# Share of the planner's points, and evaluations of the objective: a map is one of hundreds.
_SHARE, _EVALUATIONS = 0.15, 240
# The network sees one sector and its neighbours, so that more arcs than this teach it little.
_MOST_ARCS = 2
# Voxels of the rays: the maps do not see finer ones.
_GRID_MM = 4.0
# So many plans have no limit of MU.
_WITHOUT_LIMIT = 0.25
SUFFIX = ".maps.npz"


def simulate_maps(
    patients: Sequence[PatientSource],
    out: Path,
    settings: Simulation,
    *,
    maps_per_case: int = 1,
    minutes: float | None = None,
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Write the maps of every patient into `out`, the first of all patients first; returns the files.

    What is there already is kept. No plan is begun after so many `minutes`. A patient that cannot be planned
    is named in the progress and left out.
    """
    machine = load_machine(settings.machine)
    machine.require_beam()
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(patient, number) for number in range(1, maps_per_case + 1) for patient in patients]
    files, begun = [], time.perf_counter()
    for done, (patient, number) in enumerate(jobs):
        if minutes is not None and time.perf_counter() - begun > 60 * minutes:
            break
        name = f"{patient.id}_m{number:02d}"
        file = out / f"{name}{SUFFIX}"
        if not file.exists():
            started = time.perf_counter()
            try:
                example = made_example(patient, name, settings, machine)
            except InputError as fault:
                progress("maps", done / len(jobs), f"{name} left out: {fault}")
                continue
            took = time.perf_counter() - started
            progress("maps", done / len(jobs), f"{name}: {len(example.given.arc)} sectors, {took:.0f} s")
            with written_whole(file) as part, part.open("wb") as stream:
                example.save(stream)
        files.append(file)
    return tuple(files)


def made_example(patient: PatientSource, name: str, settings: Simulation, machine: Machine) -> FluenceExample:
    """The maps of one patient under goals and arcs drawn from the seed and the name alone."""
    task, record = maps_task(patient, name, settings, machine)
    return example_of(task, record, share=_SHARE, evaluations=_EVALUATIONS)


def maps_task(
    patient: PatientSource, name: str, settings: Simulation, machine: Machine
) -> tuple[PlanningTask, dict[str, Any]]:
    """What is planned under a name, with goals, arcs and limits as drawn, and the record of the plan."""
    from vmat_diffusion.dataset.variation import apply_variation
    from vmat_diffusion.optimize.delivery import with_delivery
    from vmat_diffusion.optimize.preparation import PlanningTask
    from vmat_diffusion.optimize.result import Settings as Asked

    base = patient.read(settings.spacing_mm)
    require_plannable(base, without_ct=True)
    variation = draw_plan_variation(base.case, name, settings.seed, machine, conditions=settings.conditions)
    arcs, angles = min(variation.arcs, _MOST_ARCS), variation.collimator_deg
    variation = replace(variation, arcs=arcs, collimator_deg=None if angles is None else angles[:arcs])
    case, sheet = apply_variation(variation, replace(base.case, reference_dose=None))
    defaults = default_delivery(sheet.site, stereotactic=sheet.stereotactic)
    without = np.random.default_rng(variation.seed).random() < _WITHOUT_LIMIT
    delivery, _ = asked_delivery(sheet.delivery, defaults, {"MU": None} if without else {})
    sheet = replace(sheet, delivery=delivery)
    asked = Asked(
        arcs=variation.arcs,
        arc_start_deg=variation.arc_start_deg,
        arc_stop_deg=variation.arc_stop_deg,
        collimator_deg=variation.collimator_deg,
        grid_mm=_GRID_MM,
        seed=variation.seed,
        max_minutes=None,
    )
    task = PlanningTask(
        case=case,
        sheet=sheet,
        machine=machine,
        settings=with_delivery(asked, sheet, machine),
    )
    record: dict[str, Any] = {
        "id": name,
        "patient": patient.patient,
        "site": case.site,
        "goals": sheet.name,
        "variation": asdict(variation),
        "machine": machine.name,
        "version": __version__,
    }
    return task, record


def example_files(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of a folder of maps with their records, by name."""
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        with np.load(file, allow_pickle=False) as arrays:
            yield file, json.loads(str(arrays["record"]))
