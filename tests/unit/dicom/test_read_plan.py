"""RTPLAN files to plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import beam, rt_plan, save
from pydicom.dataset import Dataset

from vmat_diffusion.dicom import inspect, read_plan
from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Plan


def plan_of(tmp_path: Path, dataset: Dataset) -> Plan:
    return read_plan(save(dataset, tmp_path / "rp.dcm"))


def test_arc_with_inherited_attributes(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, rt_plan())
    (arc,) = plan.arcs
    np.testing.assert_allclose(arc.gantry_deg, [180, 240, 300, 360, 420, 480, 539])
    np.testing.assert_allclose(arc.jaws_mm, np.tile([-20, 30, -15, 25], (7, 1)))
    assert arc.leaves_mm.shape == (7, 2, 4)
    np.testing.assert_allclose(arc.leaves_mm[:, 0, 0], -5 - np.arange(7))
    np.testing.assert_allclose(arc.leaves_mm[:, 1, 3], 6 + np.arange(7))
    np.testing.assert_allclose(arc.mu, 50)
    assert arc.collimator_deg == 15 and arc.couch_deg == 0
    assert plan.isocenter_mm == (0, 0, 6.25) and plan.fractions == 30 and plan.patient_position == "HFS"
    assert plan.machine == "linac" and plan.dose_rate_mu_min == 600 and plan.label == "plan"


def test_weights_are_relative_to_the_final_one(tmp_path: Path) -> None:
    """Some systems end at 100 or at the MU themselves; the meterset says what they are worth."""
    plan = plan_of(tmp_path, rt_plan([beam(final=87.5)], {1: 210.0}))
    np.testing.assert_allclose(plan.arcs[0].mu, 35)


@pytest.mark.parametrize(
    ("angles", "direction", "unwrapped"),
    [
        ((181, 270, 0, 90, 179), "CW", (181, 270, 360, 450, 539)),
        ((179, 90, 0, 270, 181), "CC", (179, 90, 0, -90, -179)),
        ((180, 300, 60, 180, 300, 60, 180), "CW", (180, 300, 420, 540, 660, 780, 900)),
        ((180, 0, 180, 0, 180), "CC", (180, 0, -180, -360, -540)),
        ((30, 30), "NONE", (30, 30)),
        ((180, 180), "CW", (180, 540)),
        ((0, 100, 359.9999), "CW", (0, 100, 359.9999)),
        ((90, 90, 90), "NONE", (90, 90, 90)),
    ],
)
def test_gantry_angles_follow_the_direction(
    tmp_path: Path, angles: tuple[float, ...], direction: str, unwrapped: tuple[float, ...]
) -> None:
    plan = plan_of(tmp_path, rt_plan([beam(gantry_deg=angles, direction=direction)]))
    np.testing.assert_allclose(plan.arcs[0].gantry_deg, unwrapped)


def test_direction_that_changes_within_a_beam(tmp_path: Path) -> None:
    item = beam(gantry_deg=(180, 270, 0, 270, 180))
    for k, way in enumerate(("CW", "CW", "CC", "CC", "NONE")):
        item.ControlPointSequence[k].GantryRotationDirection = way
    np.testing.assert_allclose(
        plan_of(tmp_path, rt_plan([item])).arcs[0].gantry_deg, [180, 270, 360, 270, 180]
    )


def test_setup_beams_are_left_out_by_number_not_by_order(tmp_path: Path) -> None:
    setup = beam(7, gantry_deg=(0, 0), direction="NONE")
    setup.TreatmentDeliveryType = "SETUP"
    spare = beam(9, gantry_deg=(0, 0), direction="NONE")
    plan = plan_of(tmp_path, rt_plan([setup, beam(2), spare, beam(4)], {4: 111.0, 7: None, 9: 0.0, 2: 222.0}))
    assert [(a.number, round(a.total_mu)) for a in plan.arcs] == [(2, 222), (4, 111)]
    assert plan.provenance["steps"] == (
        "leave-out-beam: beam 7 (SETUP) has no MU",
        "leave-out-beam: beam 9 (TREATMENT) has 0 MU",
    )


def test_two_layers_of_leaves_one_after_the_other(tmp_path: Path) -> None:
    item = beam()
    low, high = item.BeamLimitingDeviceSequence[2], Dataset()
    low.RTBeamLimitingDeviceType = "MLCX2"
    high.RTBeamLimitingDeviceType, high.NumberOfLeafJawPairs = "MLCX1", 3
    high.LeafPositionBoundaries = [-15.0, -5.0, 5.0, 15.0]
    item.BeamLimitingDeviceSequence.append(high)
    for point in item.ControlPointSequence:
        point.BeamLimitingDevicePositionSequence[-1].RTBeamLimitingDeviceType = "MLCX2"
        device = Dataset()
        device.RTBeamLimitingDeviceType, device.LeafJawPositions = "MLCX1", [-1.0, -2, -3, 1, 2, 3]
        point.BeamLimitingDevicePositionSequence.append(device)
    plan = plan_of(tmp_path, rt_plan([item]))
    np.testing.assert_allclose(
        plan.arcs[0].leaves_mm[0], [[-1, -2, -3, -5, -5, -5, -5], [1, 2, 3, 6, 6, 6, 6]]
    )
    assert [len(edges) - 1 for edges in plan.provenance["leaf_boundaries_mm"].values()] == [3, 4]


def test_axis_without_jaws_is_open(tmp_path: Path) -> None:
    item = beam()
    del item.BeamLimitingDeviceSequence[0]
    del item.ControlPointSequence[0].BeamLimitingDevicePositionSequence[0]
    np.testing.assert_allclose(plan_of(tmp_path, rt_plan([item])).arcs[0].jaws_mm[3], [-200, 200, -15, 25])


Change = Callable[[Dataset], None]


def _beam(keyword: str, value: object) -> Change:
    return lambda plan: setattr(plan.BeamSequence[0], keyword, value)


def _point(k: int, keyword: str, value: object) -> Change:
    return lambda plan: setattr(plan.BeamSequence[0].ControlPointSequence[k], keyword, value)


def _second_group(plan: Dataset) -> None:
    plan.FractionGroupSequence.append(plan.FractionGroupSequence[0])


def _no_leaves(plan: Dataset) -> None:
    del plan.BeamSequence[0].BeamLimitingDeviceSequence[2]


def _y_leaves(plan: Dataset) -> None:
    plan.BeamSequence[0].BeamLimitingDeviceSequence[2].RTBeamLimitingDeviceType = "MLCY"


def _no_meterset(plan: Dataset) -> None:
    del plan.FractionGroupSequence[0].ReferencedBeamSequence[0].BeamMeterset


def _decubitus(plan: Dataset) -> None:
    plan.PatientSetupSequence[0].PatientPosition = "HFDL"


def _few_leaves(plan: Dataset) -> None:
    plan.BeamSequence[0].ControlPointSequence[3].BeamLimitingDevicePositionSequence[0].LeafJawPositions = [
        1.0,
        2.0,
    ]


def _no_fractions(plan: Dataset) -> None:
    plan.FractionGroupSequence[0].NumberOfFractionsPlanned = None


def _other_isocentre(plan: Dataset) -> None:
    other = beam(2)
    other.ControlPointSequence[0].IsocenterPosition = [0, 0, 50]
    plan.BeamSequence.append(other)
    item = Dataset()
    item.ReferencedBeamNumber, item.BeamMeterset = 2, 100
    plan.FractionGroupSequence[0].ReferencedBeamSequence.append(item)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_beam("RadiationType", "ELECTRON"), "beam 1: RadiationType .* is ELECTRON"),
        (
            _beam("NumberOfWedges", 1),
            "beam 1: NumberOfWedges .* is 1, 0 is needed: wedges cannot be represented",
        ),
        (_beam("NumberOfBlocks", 2), "blocks cannot be represented"),
        (_beam("NumberOfCompensators", 1), "compensators cannot be represented"),
        (_beam("NumberOfBoli", 1), "boli cannot be represented"),
        (_beam("PrimaryDosimeterUnit", "MINUTE"), "MINUTE, MU is needed"),
        (_beam("FinalCumulativeMetersetWeight", 0), "must be positive"),
        (_beam("ControlPointSequence", []), "0 control points"),
        (_point(3, "PatientSupportAngle", 10), "couch angle turns by 10.00 degrees"),
        (_point(3, "BeamLimitingDeviceAngle", 20), "collimator angle turns by 5.00 degrees"),
        (_point(0, "TableTopPitchAngle", 2), "control point 0: TableTopPitchAngle .* is 2, 0 is needed"),
        (_point(3, "IsocenterPosition", [0, 0, 9]), "isocentre moves within the beam"),
        (_point(0, "IsocenterPosition", None), "IsocenterPosition .* is missing"),
        (_point(3, "NominalBeamEnergy", 10), "energy changes within the beam"),
        (_point(2, "GantryRotationDirection", "NONE"), "control point 2: the gantry turns by 60.00 degrees"),
        (_point(6, "CumulativeMetersetWeight", 0.7), "cumulative weights run from 0 to 0.7, not from 0 to 1"),
        (_second_group, "2 fraction groups"),
        (_no_leaves, "no multileaf collimator"),
        (_y_leaves, "MLCY cannot be represented"),
        (_no_meterset, "BeamMeterset .* is missing"),
        (_decubitus, "patient position 'HFDL'"),
        (_few_leaves, "control point 3: MLCX has 2 leaf positions, 8 are needed"),
        (_no_fractions, "NumberOfFractionsPlanned .* is missing"),
        (_other_isocentre, "beams 1 and 2 differ in their isocentre"),
    ],
)
def test_what_a_plan_cannot_hold_is_refused_by_name(tmp_path: Path, change: Change, says: str) -> None:
    dataset = rt_plan()
    change(dataset)
    with pytest.raises(PlanError, match=says):
        plan_of(tmp_path, dataset)
    assert any(row.startswith("rp.dcm: ") for row in inspect(tmp_path).refused)


def test_a_static_beam_stays_whatever_its_direction_says(tmp_path: Path) -> None:
    """PS3.3, C.8.8.14.1: no attribute of a STATIC beam changes, so that it makes no full turn."""
    item = beam(gantry_deg=(90, 90), direction="CW")
    item.BeamType = "STATIC"
    same = item.ControlPointSequence[0].BeamLimitingDevicePositionSequence[-1].LeafJawPositions
    item.ControlPointSequence[1].BeamLimitingDevicePositionSequence[-1].LeafJawPositions = list(same)
    plan = plan_of(tmp_path, rt_plan([item]))
    assert not plan.arcs[0].rotates and plan.arcs[0].gantry_deg[0] == 90
    item.BeamType = ""
    with pytest.raises(PlanError, match=r"BeamType .* is neither STATIC nor DYNAMIC"):
        plan_of(tmp_path, rt_plan([item]))


def test_a_static_beam_that_moves_is_refused(tmp_path: Path) -> None:
    item = beam()
    item.BeamType = "STATIC"
    with pytest.raises(PlanError, match=r"BeamType .* is STATIC, and the gantry turns by 60"):
        plan_of(tmp_path, rt_plan([item]))


def test_a_beam_without_meterset_beside_others_delivers_nothing(tmp_path: Path) -> None:
    """Real exports have portal and cone-beam beams of type TREATMENT so."""
    plan = plan_of(tmp_path, rt_plan([beam(), beam(2)], {1: 100.0, 2: None}))
    assert [arc.number for arc in plan.arcs] == [1]
    assert plan.provenance["steps"] == ("leave-out-beam: beam 2 (TREATMENT) has no MU",)
    assert "beam 2 (TREATMENT) has no MU and delivers nothing" in plan.provenance["remarks"]


def test_a_beam_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="refers to beam 7, which is not in the plan"):
        plan_of(tmp_path, rt_plan([beam()], {1: 100.0, 7: 50.0}))


def test_counts_that_are_wrong_are_said(tmp_path: Path) -> None:
    item = beam()
    item.NumberOfControlPoints = 9
    item.SourceAxisDistance = 1000
    item.ControlPointSequence[-1].CumulativeMetersetWeight = 0.9995
    dataset = rt_plan([item])
    dataset.FractionGroupSequence[0].NumberOfBeams = 3
    dataset.PlanIntent, dataset.ApprovalStatus = "VERIFICATION", "REJECTED"
    remarks = plan_of(tmp_path, dataset).provenance["remarks"]
    for words in (
        "NumberOfControlPoints (300A,0110) is 9, there are 7",
        "cumulative weights end at 0.9995",
        "NumberOfBeams (300A,0080) is 3, 1 beams",
        "PlanIntent (300A,000A) is VERIFICATION",
        "ApprovalStatus (300E,0002) is REJECTED",
    ):
        assert any(words in remark for remark in remarks), words


@pytest.mark.parametrize("seed", range(6))
def test_mu_exchanged_between_beams_are_said_where_their_doses_are_stated(tmp_path: Path, seed: int) -> None:
    """Doses in proportion to the MU, as of three of five planning systems, or doses of their own."""
    rng = np.random.default_rng(seed)
    count = 2 + seed % 3
    mu = {k: round(float(rng.uniform(100, 150)) * 1.1**k, 3) for k in range(1, count + 1)}
    order = np.roll(list(mu), 1)  # every beam gets the MU of another

    def said(given: dict[int, float], doses: dict[int, str]) -> list[str]:
        dataset = rt_plan([beam(k) for k in mu], given)
        for item in dataset.FractionGroupSequence[0].ReferencedBeamSequence:
            item.BeamDose = doses[int(item.ReferencedBeamNumber)]
        remarks = plan_of(tmp_path, dataset).provenance["remarks"]
        assert isinstance(remarks, tuple)
        return [remark for remark in remarks if "exchanged" in remark]

    stated = {k: f"{v / 300:.10f}" for k, v in mu.items()}
    exchanged = {k: mu[int(other)] for k, other in zip(mu, order, strict=True)}
    assert not said(mu, stated) and not said({k: 1.05 * v for k, v in mu.items()}, stated)
    (found,) = said(exchanged, stated)
    assert "BeamDose (300A,0084)" in found and f"beam 1 {float(stated[1]):.4g} Gy" in found
    own = {k: f"{v / 300 * (1 + 0.04 * k):.10f}" for k, v in mu.items()}
    assert not said(mu, own) and not said(exchanged, own)


def reference(keyword: str, *relations: str) -> list[Dataset]:
    """Items of a sequence that refers to other objects."""
    out = []
    for k, relation in enumerate(relations):
        item = Dataset()
        item.ReferencedSOPInstanceUID = f"1.2.9.{k}"
        if keyword == "ReferencedRTPlanSequence":
            item.RTPlanRelationship = relation
        out.append(item)
    return out


@pytest.mark.parametrize(
    ("keyword", "relations", "words"),
    [
        ("ReferencedRTPlanSequence", ("PRIOR",), ()),
        ("ReferencedRTPlanSequence", ("VERIFIED_PLAN",), ("VERIFIED_PLAN: this plan verifies",)),
        ("ReferencedRTPlanSequence", ("CONCURRENT", "PRIOR"), ("CONCURRENT: that plan is delivered",)),
        ("ReferencedStructureSetSequence", ("", ""), ("2 structure sets, the first is taken",)),
    ],
)
def test_references_to_other_objects_are_said(
    tmp_path: Path, keyword: str, relations: tuple[str, ...], words: tuple[str, ...]
) -> None:
    sound = plan_of(tmp_path, rt_plan()).provenance["remarks"]
    dataset = rt_plan()
    setattr(dataset, keyword, reference(keyword, *relations))
    remarks = plan_of(tmp_path, dataset).provenance["remarks"]
    assert isinstance(sound, tuple) and isinstance(remarks, tuple)
    more = set(remarks) - set(sound)
    assert len(more) == len(words) and all(any(w in remark for remark in more) for w in words)


@pytest.mark.parametrize("indices", [(6, 5, 4, 3, 2, 1, 0), (0, 1, 2, 3, 5, 6, 7), (0, 1, 1, 2, 3, 4, 5)])
def test_control_points_out_of_order_are_refused(tmp_path: Path, indices: tuple[int, ...]) -> None:
    item = beam()
    for point, index in zip(item.ControlPointSequence, indices, strict=True):
        point.ControlPointIndex = index
    with pytest.raises(PlanError, match=r"ControlPointIndex .* it must ascend by 1"):
        plan_of(tmp_path, rt_plan([item]))


def test_a_direction_against_the_angles_is_refused_at_once(tmp_path: Path) -> None:
    item = beam(gantry_deg=tuple(range(181, 359, 2)), direction="CC")
    with pytest.raises(PlanError, match="makes the gantry turn by 31504 degrees in all"):
        plan_of(tmp_path, rt_plan([item]))


def test_positions_of_a_device_that_the_beam_does_not_have_are_refused(tmp_path: Path) -> None:
    item = beam()
    device = Dataset()
    device.RTBeamLimitingDeviceType, device.LeafJawPositions = "MLCY", [-1.0, 1.0]
    item.ControlPointSequence[2].BeamLimitingDevicePositionSequence.append(device)
    with pytest.raises(PlanError, match="control point 2: MLCY has positions and not in"):
        plan_of(tmp_path, rt_plan([item]))


def test_machine_must_have_the_plans_leaves(tmp_path: Path) -> None:
    machine = load_machine("generic_6mv")
    item = beam(pairs=60)
    item.BeamLimitingDeviceSequence[2].LeafPositionBoundaries = list(machine.mlc.layers[0].boundaries_mm)
    path = save(rt_plan([item]), tmp_path / "rp")
    assert read_plan(path, machine).machine == "generic_6mv"
    item.BeamLimitingDeviceSequence[2].LeafPositionBoundaries = [5.0 * k - 150 for k in range(61)]
    with pytest.raises(PlanError, match="leaf boundaries of the plan are not those of machine generic_6mv"):
        read_plan(save(rt_plan([item]), tmp_path / "rp"), machine)
    # Another number of pairs is for `violations` to say, with all else that is wrong.
    assert read_plan(save(rt_plan(), tmp_path / "rp"), machine).arcs[0].leaves_mm.shape[2] == 4
