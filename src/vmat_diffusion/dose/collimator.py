"""The machine for a plan from any system: a known beam behind the collimator of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import Layer, Machine, load_machine, machine_names
from vmat_diffusion.plan import Plan, beam_differences

_SAME_MM = 0.1


def machine_for(plan: Plan, base: Machine) -> Machine:
    """The beam of `base` behind the plan's own collimator, so that its leaves mean what they meant.

    `base` itself where it has the plan's leaf boundaries, or where the plan does not say them. Otherwise
    the collimator, jaws and limits of the shipped machine with these boundaries, at the dose rate of `base`;
    a base whose leaves are ideal (opaque and sharp) lends the boundaries alone. Raises PlanError for a
    collimator that no machine has, and for a plan of another energy, flattening or source distance than the
    beam's, or one that does not say its energy.
    """
    if differences := beam_differences(plan, base):
        raise PlanError(differences[0])
    layers = plan_layers(plan)
    if layers is None or _same_leaves(base, layers):
        return base
    if base.mlc.ideal:
        return replace(
            base, name=f"{base.name} behind the plan's leaves", mlc=replace(base.mlc, layers=layers)
        )
    for name in machine_names():
        other = load_machine(name)
        if _same_leaves(other, layers) and not other.mlc.ideal:
            return replace(
                other,
                name=f"{base.name} behind {other.name}",
                title=f"{base.title}, with the collimator of: {other.title}",
                limits=replace(
                    other.limits,
                    jaw_tracking=base.limits.jaw_tracking and other.limits.jaw_tracking,
                    dose_rate_mu_min=base.limits.dose_rate_mu_min,
                    dose_rate_change_mu_min_s=base.limits.dose_rate_change_mu_min_s,
                    dose_rate_levels_mu_min=base.limits.dose_rate_levels_mu_min,
                    gantry_speed_step_deg_s=(
                        None if base.limits.dose_rate_levels_mu_min else other.limits.gantry_speed_step_deg_s
                    ),
                ),
                beam=base.beam,
                sources={**base.sources, **_collimator_sources(other)},
            )
    pairs = " + ".join(str(layer.pairs) for layer in layers)
    low, high = layers[0].boundaries_mm[0], layers[0].boundaries_mm[-1]
    raise PlanError(
        f"no machine has the collimator of the plan ({pairs} leaf pairs from {low:g} to {high:g} mm); "
        "write a machine file with its leaves and a beam"
    )


def plan_layers(plan: Plan) -> tuple[Layer, ...] | None:
    """The leaf layers that a plan was made for, in the order of its leaves; None where it does not say."""
    stated = plan.provenance.get("leaf_boundaries_mm")
    if not isinstance(stated, Mapping) or not stated:
        return None
    return tuple(Layer(str(device), tuple(float(e) for e in stated[device])) for device in sorted(stated))


def _same_leaves(machine: Machine, layers: tuple[Layer, ...]) -> bool:
    """Whether the machine has these layers in this order, which is the order of the plan's leaves."""
    stated = machine.mlc.layers
    return [la.pairs for la in stated] == [la.pairs for la in layers] and all(
        np.allclose(a.boundaries_mm, b.boundaries_mm, rtol=0, atol=_SAME_MM)
        for a, b in zip(stated, layers, strict=True)
    )


def _collimator_sources(machine: Machine) -> dict[str, str]:
    return {k: v for k, v in machine.sources.items() if k.startswith(("limits.", "mlc."))}
