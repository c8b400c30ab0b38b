"""What the network learns from: a planning problem as it sees it, with the maps that the planner found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import InputError
from vmat_diffusion.generate.encode import FEATURES, FluenceInput
from vmat_diffusion.generate.sample import FluenceTask
from vmat_diffusion.optimize.fluence_map import optimize_fluence
from vmat_diffusion.optimize.preparation import PlanningTask, prepare


@dataclass(frozen=True, eq=False)
class FluenceExample:
    """One planning problem with its maps.

    `relative[sectors, rows, columns]` is fluence in units of the uniform one that gives targets their
    prescription in the mean, 0 outside open bixels. `record` is plain data: whose plan it is, and how it was
    made.
    """

    given: FluenceInput
    relative: NDArray[np.float32]
    record: Mapping[str, Any]

    def save(self, stream: IO[bytes]) -> None:
        """Write it as npz, in half precision."""
        np.savez_compressed(
            stream,
            features=self.given.features.astype(np.float16),
            names=np.array(FEATURES),
            open_bixels=self.given.open_bixels,
            arc=self.given.arc,
            gantry_deg=self.given.gantry_deg,
            relative=self.relative.astype(np.float16),
            record=np.array(json.dumps(dict(self.record))),
        )


def load_example(file: Path) -> FluenceExample:
    """What `save` wrote. Raises InputError for a file with other features than today's."""
    with np.load(file, allow_pickle=False) as arrays:
        if tuple(arrays["names"].tolist()) != FEATURES:
            raise InputError(f"{file.name} has other features than this version; make the maps again")
        given = FluenceInput(
            arrays["features"].astype(np.float32),
            arrays["open_bixels"],
            arrays["arc"],
            arrays["gantry_deg"],
        )
        return FluenceExample(given, arrays["relative"].astype(np.float32), json.loads(str(arrays["record"])))


def example_of(
    task: PlanningTask, record: Mapping[str, Any], *, share: float, evaluations: int
) -> FluenceExample:
    """The maps that L-BFGS-B finds for a task in so many evaluations, on a share of the planner's points."""
    asked = FluenceTask.of(prepare(task, maps_share=share))
    maps, objective = optimize_fluence(asked.problem, iterations=evaluations, progress=task.progress)
    relative = (maps.mu / asked.problem.uniform_mu).astype(np.float32)
    value = asked.cost(relative, objective)
    return FluenceExample(asked.given, relative, {**record, "evaluations": evaluations, "objective": value})
