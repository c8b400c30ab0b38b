"""Expected position of every axis at every moment of an arc, as in a linac's trajectory log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.plan.arc import Arc
from vmat_diffusion.plan.timing import Timing

# The sampling interval of the trajectory logs of common C-arm linacs.
SAMPLE_S = 0.02


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Expected positions of one arc at m moments.

    `control_point[m]` counts from 0 and is whole at the control points themselves; `gantry_deg[m]` is
    unwrapped as in `Arc`, `mu[m]` cumulative; `jaws_mm[m, 4]`, `leaves_mm[m, 2, pairs]`.
    """

    time_s: NDArray[np.float64]
    control_point: NDArray[np.float64]
    gantry_deg: NDArray[np.float64]
    mu: NDArray[np.float64]
    jaws_mm: NDArray[np.float64]
    leaves_mm: NDArray[np.float64]


def trajectory(arc: Arc, pace: Timing, sample_s: float = SAMPLE_S) -> Trajectory:
    """Positions every `sample_s` from the start of the beam, and at every control point exactly.

    Between two control points everything moves linearly in time; the dose is computed so, too.
    """
    reached = np.concatenate([[0.0], np.cumsum(pace.time_s)])
    moments = np.union1d(np.arange(0.0, reached[-1], sample_s), reached)
    last = len(reached) - 1
    first = np.clip(np.searchsorted(reached, moments, side="right") - 1, 0, last)
    after = np.minimum(first + 1, last)
    length = reached[after] - reached[first]
    # Zero at a control point, so that its positions come out as they are.
    part = np.divide(moments - reached[first], length, out=np.zeros_like(moments), where=length > 0)

    def at(values: NDArray) -> NDArray[np.float64]:
        share = part.reshape((-1,) + (1,) * (values.ndim - 1))
        return values[first] + share * (values[after] - values[first])

    return Trajectory(
        time_s=moments,
        control_point=first + part,
        gantry_deg=at(arc.gantry_deg),
        mu=at(np.concatenate([[0.0], np.cumsum(arc.mu)])),
        jaws_mm=at(arc.jaws_mm),
        leaves_mm=at(arc.leaves_mm),
    )
