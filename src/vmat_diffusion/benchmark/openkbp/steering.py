"""Asking a prediction for less dose to an organ, in each of the ways in which it can be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vmat_diffusion.benchmark.settings import SteeringRequest
from vmat_diffusion.benchmark.statistics import Interval, pooled_mean
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.diffusion.encode import DoseGoals, Encoded, with_goals
from vmat_diffusion.diffusion.model import DoseModel
from vmat_diffusion.diffusion.predict import Sampling, predict_encoded
from vmat_diffusion.diffusion.steer import DoseLimit, goal_guidance
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.openkbp import dvh_points
from vmat_diffusion.geometry import Mask

# Weight of classifier-free guidance: the answer to the goals goes this much further from that without.
GUIDANCE = 3.0
# How much of what is missing each step of the sampler makes good.
PULL = 0.5


@dataclass(frozen=True)
class SteeringResult:
    """One patient steered in one way: the change of the mean dose of `organ` that was asked, and all changes.

    Changes are against the prediction without goals, in Gy: means of organs, D95 of targets. `free_gy` is
    the organ's mean in that prediction.
    """

    way: str
    organ: str
    asked_gy: float
    free_gy: float
    mean_gy: Mapping[str, float]
    d95_gy: Mapping[str, float]


@dataclass(frozen=True)
class SteeringRow:
    """Means over the patients that were asked for the same in the same way, in Gy.

    `achieved_gy` is the change of the organ's own mean, `other_organs_gy` that of all other organs, each
    counting alike.
    """

    organ: str
    asked_gy: float
    way: str
    achieved_gy: Interval
    other_organs_gy: Interval | None
    d95_gy: Mapping[str, Interval]


def check_organs(asked: Sequence[SteeringRequest], model: DoseModel) -> None:
    """Raises InputError for an organ the model cannot be asked about."""
    for one in asked:
        if one.organ not in model.encoding.organs:
            raise InputError(
                f"steer: the model knows no goals for {one.organ}; known are "
                + ", ".join(model.encoding.organs)
            )


def can_steer(case: Case, free: Dose, asked: SteeringRequest, model: DoseModel) -> bool:
    """Whether the model knows the organ, the case has it and its mean in the prediction can move so far."""
    if asked.organ not in model.encoding.organs or asked.organ not in case.structures:
        return False
    mean = float(free.gy[case.structures[asked.organ].mask].mean())
    return mean + asked.change_gy > 0


def steer(
    case: Case,
    encoded: Encoded,
    asked: SteeringRequest,
    model: DoseModel,
    *,
    free: Dose,
    sampling: Sampling,
) -> list[SteeringResult]:
    """Predict the case again, once in each way, and compare with the dose `free` of the same sampling.

    Told: the mean that is wanted stands in the vector of goals. Guided: the same with guidance. Pulled, for
    samples: nothing is told, but at every step the organ is pulled towards that mean.
    """
    wanted = float(free.gy[case.structures[asked.organ].mask].mean()) + asked.change_gy
    tells = with_goals(encoded, DoseGoals(mean_gy={asked.organ: wanted}), model.encoding)
    ways = {
        "told": predict_encoded(tells, model, sampling),
        f"told, guidance {GUIDANCE:g}": predict_encoded(tells, model, replace(sampling, guidance=GUIDANCE)),
    }
    if sampling.samples:
        limit = _mean_limit(case, encoded, asked, wanted)
        guidance = goal_guidance([limit], PULL, model.description.process.smooth_voxels)
        ways["pulled"] = predict_encoded(encoded, model, sampling, goal_guidance=guidance)
    structures = {
        s.name: (s.role == "target", s.mask)
        for s in case.structures.values()
        if s.role in ("target", "organ") and s.voxels
    }
    return [
        steering_result(way, asked, free=free.gy, found=prediction.mean.gy, structures=structures)
        for way, prediction in ways.items()
    ]


def steering_result(
    way: str,
    asked: SteeringRequest,
    *,
    free: NDArray,
    found: NDArray,
    structures: Mapping[str, tuple[bool, Mask]],
) -> SteeringResult:
    """What has changed from the dose `free` to the dose `found`, in Gy and on one grid."""
    means, targets = {}, {}
    for name, (target, mask) in structures.items():
        if target:
            d95 = [dvh_points(gy[mask], target=True, voxel_cc=1.0)["D95"] for gy in (free, found)]
            targets[name] = d95[1] - d95[0]
        else:
            means[name] = float(np.mean(found[mask], dtype=float) - np.mean(free[mask], dtype=float))
    own = float(np.mean(free[structures[asked.organ][1]], dtype=float))
    return SteeringResult(way, asked.organ, asked.change_gy, own, means, targets)


def _mean_limit(case: Case, encoded: Encoded, asked: SteeringRequest, wanted_gy: float) -> DoseLimit:
    """The wanted mean of an organ, of which what lies in no target is pulled."""
    mask = case.structures[asked.organ].mask
    flat = np.flatnonzero(mask[encoded.box])
    in_target = np.logical_or.reduce([t.mask[encoded.box] for t in case.targets]).ravel()[flat]
    return DoseLimit(
        name=asked.organ,
        flat=torch.from_numpy(flat),
        movable=torch.from_numpy(~in_target),
        voxels=int(np.count_nonzero(mask)),
        limit_gy=wanted_gy,
        at_least=asked.change_gy > 0,
        count=None,
    )


def steering_table(results: Sequence[SteeringResult]) -> list[SteeringRow]:
    """What was achieved, by organ, what was asked and way."""
    kinds = dict.fromkeys((r.organ, r.asked_gy, r.way) for r in results)
    rows = []
    for organ, asked, way in kinds:
        these = [r for r in results if (r.organ, r.asked_gy, r.way) == (organ, asked, way)]
        targets = sorted({t for r in these for t in r.d95_gy}, reverse=True)
        rows.append(
            SteeringRow(
                organ,
                asked,
                way,
                achieved_gy=pooled_mean([r.mean_gy[organ] for r in these]),
                other_organs_gy=_others(these),
                d95_gy={t: pooled_mean([r.d95_gy[t] for r in these if t in r.d95_gy]) for t in targets},
            )
        )
    return rows


def _others(results: Sequence[SteeringResult]) -> Interval | None:
    changes = [[gy for name, gy in r.mean_gy.items() if name != r.organ] for r in results]
    some = [c for c in changes if c]
    return pooled_mean([sum(c) for c in some], [len(c) for c in some]) if some else None
