"""A plan's collimator with another machine's beam: what is taken from where, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from water import field

from vmat_diffusion.dose.collimator import machine_for
from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.plan import Plan

BASE = load_machine("generic_6mv")


def plan_of(machine: Machine, **provenance: object) -> Plan:
    """An open field of a machine, as reading an RTPLAN leaves it."""
    leaves = {layer.device: layer.boundaries_mm for layer in machine.mlc.layers}
    stated = {"leaf_boundaries_mm": leaves, "energy_mv": 6.0, "fluence_mode": "STANDARD", **provenance}
    return replace(field(machine, (-50.0, 50.0, -50.0, 50.0)), provenance=stated)


@pytest.mark.parametrize("name", ["generic_hd120", "generic_agility", "generic_halcyon"])
def test_the_beam_stays_and_the_collimator_is_the_plan_s(name: str) -> None:
    own = load_machine(name)
    machine = machine_for(plan_of(own), BASE)
    assert (machine.mlc, machine.jaws) == (own.mlc, own.jaws)
    assert machine.beam == BASE.beam
    assert machine.limits == replace(own.limits, dose_rate_mu_min=BASE.limits.dose_rate_mu_min)
    assert machine.sources["mlc.transmission"] == own.sources["mlc.transmission"]
    assert machine.sources["beam.horn"] == BASE.sources["beam.horn"]
    assert machine.name == f"generic_6mv behind {name}"


def test_a_machine_with_the_plan_s_leaves_is_taken_as_it_is() -> None:
    assert machine_for(plan_of(BASE), BASE) is BASE
    written_here = replace(plan_of(load_machine("generic_hd120")), provenance={})
    assert machine_for(written_here, BASE) is BASE


def test_ideal_leaves_stay_ideal() -> None:
    ideal, own = load_machine("point_source"), load_machine("generic_agility")
    machine = machine_for(plan_of(own), ideal)
    assert machine.mlc == replace(ideal.mlc, layers=own.mlc.layers)
    assert machine.beam == ideal.beam


def test_a_60_pair_plan_behind_another_60_pair_beam_takes_the_real_leaves() -> None:
    """generic_6mv and the ideal point source have the same boundaries; the real one is meant."""
    other = replace(load_machine("generic_hd120"), beam=BASE.beam)
    assert machine_for(plan_of(BASE), other).mlc == BASE.mlc


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({"energy_mv": 10.0}, "the plan is for 10.0 MV STANDARD, the beam of machine generic_6mv is 6 MV"),
        ({"fluence_mode": "FFF"}, "6.0 MV FFF"),
        ({"leaf_boundaries_mm": {"MLCX": (-50, 0, 50)}}, r"collimator of the plan \(2 leaf pairs from -50"),
    ],
)
def test_what_does_not_belong_together_is_refused(provenance: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        machine_for(plan_of(BASE, **provenance), BASE)


def test_an_unflattened_beam_takes_an_unflattened_plan() -> None:
    fff = replace(BASE, beam=replace(BASE.require_beam(), fluence_mode="NON_STANDARD"))
    assert machine_for(plan_of(BASE, fluence_mode="FFF"), fff) is fff
