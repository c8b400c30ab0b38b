"""What a prediction does when an organ is asked to get less: dose of the organ, of others, of the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.evaluate.bootstrap import Interval, pooled_mean
from vmat_diffusion.evaluate.openkbp import dvh_points
from vmat_diffusion.geometry import Mask


@dataclass(frozen=True)
class Steered:
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


def steered(
    way: str,
    organ: str,
    asked_gy: float,
    free: NDArray,
    found: NDArray,
    structures: Mapping[str, tuple[bool, Mask]],
) -> Steered:
    """What has changed from the dose `free` to the dose `found`, in Gy and on one grid."""
    means, targets = {}, {}
    for name, (target, mask) in structures.items():
        if target:
            d95 = [dvh_points(gy[mask], target=True, voxel_cc=1.0)["D95"] for gy in (free, found)]
            targets[name] = d95[1] - d95[0]
        else:
            means[name] = float(np.mean(found[mask], dtype=float) - np.mean(free[mask], dtype=float))
    own = float(np.mean(free[structures[organ][1]], dtype=float))
    return Steered(way, organ, asked_gy, own, means, targets)


def steering_table(results: Sequence[Steered]) -> list[SteeringRow]:
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


def _others(results: Sequence[Steered]) -> Interval | None:
    changes = [[gy for name, gy in r.mean_gy.items() if name != r.organ] for r in results]
    some = [c for c in changes if c]
    return pooled_mean([sum(c) for c in some], [len(c) for c in some]) if some else None
