"""What the network is told of a planning problem, in the beam's-eye view of every sector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.generate.projection import RAY_FEATURES, organ_needs, project_rays, volumes_of
from vmat_diffusion.geometry import beam_axes
from vmat_diffusion.optimize.fluence_map import FluenceProblem, Sectors, columns_over_jaws
from vmat_diffusion.optimize.preparation import Prepared

# What each bixel has besides its ray, in this order. Pulls are the objective's gradients at uniform fluence,
# with the other sign: positive where more fluence helps.
BIXEL_FEATURES = (
    "open",  # 1 for a bixel that may carry fluence
    "row_width",  # in units of 10 mm
    "off_axis",  # distance from the beam axis, 100 mm
    "crossing",  # share of the sector's time in which leaves cross the row
    "pull_of_targets",  # gradient of coverage, hot dose and goals of targets
    "pull_of_tissue",  # of the falloff
    "pull_of_organs",  # of goals and sparing of organs
    "target_dose",  # mean dose of the highest target for each unit of fluence
    "mu_limit",  # MU per Gy, 300; 2 where there is no limit
    "sectors",  # number of sectors, 16
    "sector_width",  # in units of 45 degrees
)
FEATURES = (*RAY_FEATURES, *BIXEL_FEATURES)
_NO_MU_LIMIT, _MU_PER_GY = 2.0, 300.0
_MANY_SECTORS, _SECTOR_DEG = 16.0, 45.0
# Gradients range over decades: their square roots are features, cut at this many root mean squares.
_LARGEST_PULL = 36.0


@dataclass(frozen=True, eq=False)
class FluenceInput:
    """A planning problem as the network sees it.

    `features[sectors, FEATURES, rows, columns]`; `open_bixels[sectors, rows, columns]` may carry fluence;
    `arc[sectors]` counts from 0 and `gantry_deg[sectors]` is the middle of each sector.
    """

    features: NDArray[np.float32]
    open_bixels: NDArray[np.bool_]
    arc: NDArray[np.intp]
    gantry_deg: NDArray[np.float64]


def encode_fluence(prepared: Prepared, sectors: Sectors, problem: FluenceProblem) -> FluenceInput:
    """The input for the maps of some sectors; about a second for a head and neck on one core."""
    task, model = prepared.task, prepared.model
    objective = problem.objective
    needs = organ_needs(task.sheet, objective.reference_gy)
    volumes = volumes_of(task.case, objective.target_levels, needs)
    columns, rows = columns_over_jaws(model), model.row_edges_mm
    row_mm, column_mm = (rows[1:] + rows[:-1]) / 2, (columns[1:] + columns[:-1]) / 2
    gantry = sectors.middles.gantry_deg
    rays = np.stack(
        [
            project_rays(
                volumes,
                beam_axes(angle, frame.collimator_deg, frame.couch_deg, task.case.patient_position),
                prepared.isocenter_mm,
                sad_mm=task.machine.sad_mm,
                row_mm=row_mm,
                column_mm=column_mm,
            )
            for angle, frame in zip(gantry, (sectors.frames[a] for a in sectors.arc), strict=True)
        ]
    )
    shape = problem.open_bixels.shape

    def spread(values: NDArray | float) -> NDArray[np.float32]:
        return np.broadcast_to(np.asarray(values, np.float32), shape)

    limit = task.settings.mu_per_gy
    off_axis = np.hypot(row_mm[:, None], column_mm[None, :])
    bixels = np.stack(
        [
            spread(problem.open_bixels),
            spread(np.diff(rows)[:, None] / 10.0),
            spread(off_axis / 100.0),
            spread(problem.crossing[:, :, None]),
            *_pulls(problem),
            spread(_NO_MU_LIMIT if limit is None else limit / _MU_PER_GY),
            spread(len(gantry) / _MANY_SECTORS),
            spread(np.abs(np.diff(sectors.ends_deg, axis=1))[:, :, None] / _SECTOR_DEG),
        ],
        axis=1,
    )
    return FluenceInput(
        np.concatenate([rays, bixels], axis=1), problem.open_bixels, sectors.arc, np.asarray(gantry)
    )


def _pulls(problem: FluenceProblem) -> tuple[NDArray[np.float32], ...]:
    """Gradients at uniform fluence by targets, tissue and organs, and the dose of the highest target.

    The first three have one scale, so that what lies far from its goals pulls more, and are signed square
    roots; the last is relative to its mean over open bixels.
    """
    objective = problem.objective
    mu = torch.as_tensor(problem.open_bixels).float() * problem.uniform_mu
    mu.requires_grad_(True)
    dose = problem.dose(mu)
    at = dose.detach().requires_grad_(True)
    of_target = {str(t.goal) for t in objective.terms if t.goal.structure in objective.target_gy}
    groups: dict[str, Tensor] = {name: at.new_zeros(()) for name in ("targets", "tissue", "organs")}
    for name, part in objective.parts(at).items():
        if name == "falloff":
            groups["tissue"] = groups["tissue"] + part
        elif name in of_target or name.startswith(("coverage of ", "hot dose in ")):
            groups["targets"] = groups["targets"] + part
        else:
            groups["organs"] = groups["organs"] + part

    def back(value: Tensor) -> NDArray[np.float32]:
        (by_dose,) = torch.autograd.grad(
            value, at, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        (by_mu,) = torch.autograd.grad(dose, mu, by_dose, retain_graph=True)
        return by_mu.numpy() * problem.open_bixels

    def against(value: Tensor) -> NDArray[np.float32]:
        return -back(value) if value.requires_grad else np.zeros(problem.open_bixels.shape, np.float32)

    pulls = [against(groups[name]) for name in ("targets", "tissue", "organs")]
    scale = np.sqrt(np.mean([np.square(p[problem.open_bixels]).mean() for p in pulls])) + 1e-20
    level = back(objective.highest_level(at))
    return (
        *(_signed_root(p / scale) for p in pulls),
        (level / (level[problem.open_bixels].mean() + 1e-20)).astype(np.float32),
    )


def _signed_root(pull: NDArray) -> NDArray[np.float32]:
    """The signed square root of a gradient in units of its scale."""
    return (np.sign(pull) * np.sqrt(np.minimum(np.abs(pull), _LARGEST_PULL))).astype(np.float32)
