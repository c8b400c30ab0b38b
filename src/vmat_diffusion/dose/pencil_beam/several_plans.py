"""Doses of several plans at chosen points, for what a small error of the linac does to a plan.

Plans that differ in leaves, jaws, MU or collimator angle share the ray trace of each beam direction, and
equal apertures their fluence: the trace costs most where points are few. Method and limits: `docs/gate.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray

from vmat_diffusion.dose.delivery import Exposures, exposures, jaw_box
from vmat_diffusion.dose.pencil_beam.beam_tables import padded, tables
from vmat_diffusion.dose.pencil_beam.engine import by_neighbourhood
from vmat_diffusion.dose.pencil_beam.fluence import (
    FluenceModel,
    JawParts,
    convolved_fluence,
    fluence_model,
    jaw_parts,
)
from vmat_diffusion.dose.pencil_beam.loops import deliver_each
from vmat_diffusion.dose.pencil_beam.rays import DepthField, trace_directions
from vmat_diffusion.dose.tissue import Density, medium_at
from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.progress import Progress

# An isocentre that moves carries the source along, by a thousandth of a radian for each mm seen from 1 m: the
# ray to a point then meets tissue 0.1 mm aside at a depth of 10 cm. Up to this the depth is taken as it was.
_SAME_DEPTH_MM = 3.0


def doses_of_plans(
    machine: Machine,
    plans: Sequence[Plan],
    density: Density,
    points_mm: NDArray,
    *,
    step_mm: float = 1.5,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Dose in Gy of the whole course at points `[n, 3]` from each plan: shape (plans, n).

    The plans are one plan and what becomes of it: of one patient position, with isocentres within 3 mm of the
    first one's, or PlanError is raised. Radiological depths are those of the first isocentre, all else is
    exact. `density` holds all tissue that attenuates.
    """
    first = plans[0]
    away = max(float(np.abs(np.subtract(plan.isocenter_mm, first.isocenter_mm)).max()) for plan in plans)
    if away > _SAME_DEPTH_MM or any(plan.patient_position != first.patient_position for plan in plans):
        raise PlanError(
            f"the plans lie {away:g} mm or a patient position apart; up to {_SAME_DEPTH_MM:g} mm share the "
            "depths of points: compute each plan by itself"
        )
    every, owner = _joined([exposures(plan, machine) for plan in plans])
    beam = machine.require_beam()
    model = fluence_model(machine, jaw_box(every), step_mm)
    table = tables(beam, model.reach_mm)
    order = by_neighbourhood(np.asarray(points_mm, np.float32))
    where = np.asarray(points_mm)[order]
    factor = table.medium[medium_at(density, where)]
    centres, of_centre = np.unique([plan.isocenter_mm for plan in plans], axis=0, return_inverse=True)
    relative = [(where - centre).astype(np.float32) for centre in centres]
    centre_of, scale = of_centre.ravel()[owner], every.mu * np.array([p.fractions for p in plans])[owner]
    out = np.zeros((len(plans), len(where)), np.float32)
    for members, axes, rays in trace_directions(
        density, every, first.isocenter_mm, table.sad_mm, first.patient_position, progress=progress
    ):
        field, which = _apertures(model, every, members)
        for centre in np.unique(centre_of[members]):
            own = centre_of[members] == centre
            angle = np.deg2rad(every.collimator_deg[members[own]])
            deliver_each(
                relative[centre],
                factor,
                axes,
                _moved(rays, axes, np.subtract(centres[centre], first.isocenter_mm)),
                table,
                (np.cos(angle), np.sin(angle)),
                model.u.lookup,
                model.v.lookup,
                field,
                which[own],
                scale[members[own]],
                owner[members[own]],
                out,
            )
    gy = np.empty_like(out)
    gy[:, order] = out * np.float32(beam.gy_per_mu)
    return gy


def _joined(parts: Sequence[Exposures]) -> tuple[Exposures, NDArray[np.intp]]:
    """The exposures of all plans behind each other, and the number of the plan that each belongs to."""
    columns = (np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Exposures))
    owner = np.repeat(np.arange(len(parts)), [len(part.mu) for part in parts])
    return Exposures(*columns), owner


def _moved(rays: DepthField, axes: NDArray, by_mm: NDArray) -> DepthField:
    """The same depths for points that are given relative to an isocentre `by_mm` further on."""
    return rays._replace(low=rays.low - axes @ by_mm)


def _apertures(
    model: FluenceModel, exposed: Exposures, members: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Fields of the different apertures among `members` for one MU, and which of them each member has."""
    leaves, jaws = exposed.leaves_mm[members][..., model.rows], exposed.jaws_mm[members]
    rows = np.concatenate([leaves.reshape(len(members), -1), jaws.reshape(len(members), -1)], axis=1)
    _, chosen, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    leaves, jaws = leaves[chosen], jaws[chosen]
    _, at, of_jaws = np.unique(jaws.reshape(len(jaws), -1), axis=0, return_index=True, return_inverse=True)
    few, again = jaw_parts(model, _tensor(jaws[at])), torch.as_tensor(of_jaws.ravel())
    parts = JawParts(few.leaked[again], few.shares[again])
    field = convolved_fluence(model, _tensor(leaves), _tensor(jaws), torch.ones(len(chosen)), parts)
    return padded(field.numpy()), which.ravel()


def _tensor(values: NDArray) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
