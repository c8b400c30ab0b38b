"""The generator of fluence: its data, and its starts against others in equal evaluations.

    python benchmarks/generator.py maps DATA OUT [--synthetic 100] [--minutes 60]
    vmat-diffusion train-generator OUT -o WEIGHTS
    python benchmarks/generator.py compare DATA MAPS [--cases pt_201 ...] [--weights FILE] [--plans]

DATA is a data set folder as `import openkbp` writes it, MAPS what `maps` has made, patients of
the data and synthetic ones in turn. `compare` makes the maps of each case by
several ways and goes on from each with the planner's own L-BFGS; all are judged by one objective, with the
weights at which the planner's full search ended. `--plans` also searches leaves from three of the starts.
All parts go on where they were ended.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from computer import today
from figures import file_of, load_file, save_file
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vmat_diffusion.evaluate.complexity import complexity
from vmat_diffusion.evaluate.goals import evaluate
from vmat_diffusion.evaluate.ranking import goal_score
from vmat_diffusion.generate.encode import FluenceInput
from vmat_diffusion.generate.examples import FluenceExample
from vmat_diffusion.generate.known import fluence_warnings
from vmat_diffusion.generate.model import FluenceModel, load_fluence_model
from vmat_diffusion.generate.sample import FluenceTask, GeneratedMaps, Reverse, draw_sample, regression
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize import optimize
from vmat_diffusion.optimize.fluence_map import optimize_fluence
from vmat_diffusion.optimize.objectives import Objective
from vmat_diffusion.optimize.preparation import prepare
from vmat_diffusion.plan import violations
from vmat_diffusion.workflow.generation.train import split_examples
from vmat_diffusion.workflow.settings import Simulation
from vmat_diffusion.workflow.simulation.maps import maps_task, simulate_maps
from vmat_diffusion.workflow.simulation.plans import PatientSource, patients_of, synthetic_patients

# The first seed of synthetic patients.
FIRST_SEED = 1000
SPACING_MM = (4.0, 4.0, 4.0)
# Bixels of the library that the look-up holds, and so many nearest ones are averaged.
LIBRARY, NEAREST = 60_000, 8
EVALUATIONS, REFERENCE = (0, 10, 50, 120), 400


def maps(asked: argparse.Namespace) -> None:
    """Make maps until the minutes are over: each patient of the data once, then again."""
    patients = [*patients_of(asked.data)]
    order = np.random.default_rng(0).permutation(len(patients))
    synthetic = iter(synthetic_patients(max(asked.synthetic, 1), seed=FIRST_SEED))
    jobs: list[PatientSource] = []
    for k, index in enumerate(order):
        jobs.append(patients[index])
        if asked.synthetic and k % 3 == 2 and (made := next(synthetic, None)) is not None:
            jobs.append(made)
    settings = Simulation(seed=0, spacing_mm=SPACING_MM)
    simulate_maps(jobs, asked.out, settings, maps_per_case=3, progress=_tell, minutes=asked.minutes)


class Library:
    """The nearest bixels of the training plans by their features: geometry looked up, nothing learnt."""

    def __init__(self, examples: Sequence[FluenceExample], model: FluenceModel) -> None:
        self.scales = np.array(model.description.scales, np.float32)
        rows = [np.moveaxis(e.given.features, 1, -1)[e.given.open_bixels] for e in examples]
        fluence = np.concatenate([e.relative[e.given.open_bixels] for e in examples])
        table = np.concatenate(rows) / self.scales
        chosen = np.random.default_rng(0).permutation(len(table))[:LIBRARY]
        self.fluence, self.tree = fluence[chosen], cKDTree(table[chosen])

    def __call__(self, given: FluenceInput) -> NDArray[np.float64]:
        """Relative fluence of a planning problem."""
        asked = np.moveaxis(given.features, 1, -1)[given.open_bixels] / self.scales
        _, nearest = self.tree.query(asked, k=NEAREST, eps=0.5)
        out = np.zeros(given.open_bixels.shape)
        out[given.open_bixels] = self.fluence[nearest].mean(axis=1)
        return out


def compare(asked: argparse.Namespace) -> None:
    """One row for each case: objective of each start after some evaluations, and its seconds."""
    model = load_fluence_model(asked.weights)
    learnt, _ = split_examples(asked.maps)
    library = Library(learnt, model)
    file = asked.out or file_of("generator")
    found = load_file(file) or {"cases": {}}
    wanted = {p.id: p for p in [*patients_of(asked.data), *synthetic_patients(300, seed=FIRST_SEED)]}
    for name in asked.cases:
        row = found["cases"].setdefault(name, {})
        settings = Simulation(seed=0, spacing_mm=SPACING_MM)
        task, _ = maps_task(wanted[name], f"{name}_m01", settings, load_machine(settings.machine))
        if "starts" not in row:
            row |= starts_of(FluenceTask.of(prepare(task, maps_share=0.35)), model, library, asked.samples)
            print(name, row, flush=True)
        if asked.plans and "plans" not in row:
            row["plans"] = plans_of(task, asked.weights)
            print(name, row["plans"], flush=True)
        save_file(file, {**found, "date": today(), "model": model.name, "card": dict(model.description.card)})


def starts_of(task: FluenceTask, model: FluenceModel, library: Library, samples: int) -> dict[str, Any]:
    """Objective after 0, 10, 50 and 120 further evaluations, relative to the planner's after 400."""
    begun = time.perf_counter()
    best, judge = optimize_fluence(task.problem, iterations=REFERENCE)
    reference = task.cost(best.mu / task.problem.uniform_mu, judge)
    row: dict[str, Any] = {
        "sectors": len(task.given.arc),
        "reference": round(reference, 4),
        "reference_s": round(time.perf_counter() - begun, 1),
        "unusual": list(fluence_warnings(task.given, model)),
        "starts": {},
    }
    ways: dict[str, Callable[[], NDArray]] = {
        "uniform": lambda: task.given.open_bixels * 1.0,
        "planner, 40 evaluations": lambda: (
            optimize_fluence(task.problem, iterations=40)[0].mu / task.problem.uniform_mu
        ),
        "nearest bixels": lambda: library(task.given),
        "regression": lambda: regression(task, model),
        "sample": lambda: _best(task, model, Reverse(4, 0, False), 1, judge),
        f"best of {samples}": lambda: _best(task, model, Reverse(4, 0, False), samples, judge),
        "sample, physics": lambda: _best(task, model, Reverse(4, 10, False), 1, judge),
        "sample, physics and projection": lambda: _best(task, model, Reverse(4, 10, True), 1, judge),
        "regression, physics": lambda: _best(task, model, Reverse(0, 40, False), 1, judge),
        "1 step, physics": lambda: _best(task, model, Reverse(1, 40, False), 1, judge),
        "2 steps, physics": lambda: _best(task, model, Reverse(2, 20, False), 1, judge),
        "8 steps, physics": lambda: _best(task, model, Reverse(8, 5, False), 1, judge),
    }
    for way, make in ways.items():
        begun = time.perf_counter()
        relative = make()
        seconds = time.perf_counter() - begun
        values = [
            task.cost(relative if n == 0 else task.descended(relative, judge, n), judge) / reference
            for n in EVALUATIONS
        ]
        delivered = task.cost(task.delivered(relative), judge) / reference
        row["starts"][way] = {
            "objective": dict(zip(map(str, EVALUATIONS), (round(v, 3) for v in values), strict=True)),
            "delivered": round(delivered, 3),
            "s": round(seconds, 2),
        }
    return row


def _best(
    task: FluenceTask, model: FluenceModel, reverse: Reverse, samples: int, judge: Objective
) -> NDArray[np.float64]:
    drawn = [draw_sample(task, model, reverse, seed=0, number=k).relative for k in range(samples)]
    return min(drawn, key=lambda relative: task.cost(relative, judge)) if samples > 1 else drawn[0]


def plans_of(task: Any, weights: str) -> dict[str, Any]:
    """Plans of the search, whole and a third as long, from its own maps and from generated ones."""
    out = {}
    for way, effort, maps_of in (
        ("search", 1.0, None),
        ("short search", 0.33, None),
        ("generated, short search", 0.33, GeneratedMaps(weights)),
        ("generated, search", 1.0, GeneratedMaps(weights)),
    ):
        begun = time.perf_counter()
        settings = replace(task.settings, effort=effort, grid_mm=4.0)
        made = optimize(task.case, task.sheet, task.machine, settings=settings, maps_of=maps_of)
        results = evaluate(task.sheet, task.case, made.dose)
        fraction_gy = max(task.sheet.prescription.target_gy.values()) / made.plan.fractions
        out[way] = {
            **goal_score(results).record(),
            "goals": {str(r.goal): None if r.value is None else round(r.value, 2) for r in results},
            "mu_per_gy": round(made.plan.total_mu / fraction_gy, 1),
            "mcs": round(complexity(made.plan, task.machine, fraction_gy).mcs, 3),
            "violations": len(violations(made.plan, task.machine)),
            "outcome": made.outcome.name,
            "s": round(time.perf_counter() - begun, 1),
        }
    return out


def _tell(stage: str, share: float, note: str) -> None:
    print(f"{stage} {100 * share:.1f} % {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("maps")
    one.add_argument("data", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--synthetic", type=int, default=100)
    one.add_argument("--minutes", type=float)
    one.set_defaults(run=maps)
    one = parts.add_parser("compare")
    one.add_argument("data", type=Path)
    one.add_argument("maps", type=Path)
    one.add_argument("--cases", nargs="+", default=["pt_201", "pt_202", "pt_203", "prostate_1009"])
    one.add_argument("--weights", default="shipped")
    one.add_argument("--samples", type=int, default=8)
    one.add_argument("--plans", action="store_true")
    one.add_argument("--out", type=Path)
    one.set_defaults(run=compare)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.run(asked)


if __name__ == "__main__":
    main()
