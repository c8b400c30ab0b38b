"""What plans the generator has learnt from, and whether a new one is like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vmat_diffusion.diffusion.domain import distance_of, known_rows
from vmat_diffusion.generate.encode import FEATURES, FluenceInput
from vmat_diffusion.generate.model import FluenceModel

# Spreads below these do not count: a tenth of the feature's own unit.
_LEAST = 0.1


def plan_figures(given: FluenceInput) -> dict[str, float]:
    """The figures of a plan: the mean of every feature over open bixels, and the size of its fields."""
    inside = given.open_bixels
    means = np.moveaxis(given.features, 1, -1)[inside].mean(axis=0, dtype=np.float64)
    out = dict(zip(FEATURES, map(float, means), strict=True))
    out["field_bixels"] = float(np.log10(max(inside.sum() / len(inside), 1)))
    return out


def plans_known(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Ranges and distances of training plans, plain data; empty for fewer than two plans."""
    if len(rows) < 2:
        return {}
    names = list(rows[0])
    return known_rows(names, np.array([[row[n] for n in names] for row in rows]), np.full(len(names), _LEAST))


def fluence_warnings(given: FluenceInput, model: FluenceModel) -> tuple[str, ...]:
    """Sentences on how a planning problem differs from all that the generator has learnt from."""
    known = model.description.known
    if not known:
        return ("the weights do not say from which plans they were made: their domain is not known",)
    figures = plan_figures(given)
    distance = distance_of(np.array([figures[n] for n in known["features"]]), known)
    if distance <= known["limit"]:
        return ()
    return (
        f"in the beam's-eye view the case is {distance:.1f} away from the {known['cases']} training plans, "
        f"of which 99 % are at most {known['limit']:.1f} from the others",
    )
