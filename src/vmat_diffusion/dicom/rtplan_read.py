"""RTPLAN to a Plan: MU per segment, inherited attributes filled in, angles unwrapped.

Whatever was left out on the way is named in `provenance["steps"]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import about, has, integer, items, number, numbers, quiet, text
from vmat_diffusion.dicom.folder import open_one
from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import PATIENT_POSITIONS, Point, signed_deg
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan

# Where a plan has no jaws on an axis, the field is open to this distance.
OPEN_JAW_MM = 200.0
_JAWS = {"X": 0, "ASYMX": 0, "Y": 2, "ASYMY": 2}
_LEAVES = ("MLCX", "MLCX1", "MLCX2")
_FORBIDDEN = {
    "NumberOfWedges": "wedges",
    "NumberOfCompensators": "compensators",
    "NumberOfBlocks": "blocks",
    "NumberOfBoli": "boli",
}
# Angles that differ by less are one angle: systems write 7.1e-10 for 0.
_ANGLE_DEG = 0.01


@dataclass(frozen=True, eq=False)
class _Beam:
    """One beam as read, with what must be the same for all beams of a plan."""

    arc: Arc
    isocenter_mm: Point
    energy_mv: float
    fluence_mode: str
    machine: str
    setup: int
    rate_mu_min: float | None
    boundaries_mm: tuple[tuple[str, tuple[float, ...]], ...]


@quiet()
def read_plan(file: str | Path, machine: Machine | None = None) -> Plan:
    """The plan in an RTPLAN file.

    With `machine` the plan takes its name, and the leaf boundaries must be the machine's. Raises
    PlanError for what is no RTPLAN and for whatever a Plan cannot represent, by name.
    """
    path = Path(file)
    with about(path.name, PlanError):
        found = open_one(path, "RTPLAN")
        return plan_from(found.dataset, machine)


def plan_from(dataset: Dataset, machine: Machine | None = None) -> Plan:
    """The plan that an RTPLAN data set describes.

    With `machine`, its leaf boundaries must be those of the plan where the number of pairs is the
    same, and the plan takes its name; a different number of pairs is left to `violations`.
    Raises PlanError, naming the beam, for whatever a Plan cannot represent.
    """
    if has(dataset, "ApplicationSetupSequence") or has(dataset, "IonBeamSequence"):
        raise PlanError("the plan is not one of external photon beams; choose a photon plan")
    group = _fraction_group(dataset)
    fractions = integer(group, "NumberOfFractionsPlanned")
    if fractions < 1:
        raise PlanError(f"NumberOfFractionsPlanned (300A,0078) is {fractions}; at least 1 is needed")
    meterset = {
        integer(item, "ReferencedBeamNumber"): number(item, "BeamMeterset", -1.0)
        for item in items(group, "ReferencedBeamSequence")
    }
    steps: list[str] = []
    beams: list[_Beam] = []
    for item in items(dataset, "BeamSequence"):
        beam = integer(item, "BeamNumber")
        mu = meterset.get(beam, -1.0)
        with about(f"beam {beam}", PlanError):
            if reason := _left_out(item, mu, beam in meterset):
                steps.append(f"leave-out-beam: beam {beam} {reason}")
            else:
                beams.append(_read_beam(item, mu))
    if not beams:
        raise PlanError("the plan has no treatment beam with monitor units; export a calculated plan")
    _must_agree(beams, machine)
    rates = [b.rate_mu_min for b in beams if b.rate_mu_min]
    setups = {integer(s, "PatientSetupNumber"): s for s in items(dataset, "PatientSetupSequence")}
    provenance = {
        "source": "RTPLAN",
        "sop_instance_uid": text(dataset, "SOPInstanceUID"),
        "frame_of_reference_uid": text(dataset, "FrameOfReferenceUID"),
        "structure_set_uid": structure_set_uid(dataset),
        "software": f"{text(dataset, 'Manufacturer')} {text(dataset, 'ManufacturerModelName')}".strip(),
        "machine_in_plan": beams[0].machine,
        "energy_mv": beams[0].energy_mv,
        "fluence_mode": beams[0].fluence_mode,
        "leaf_boundaries_mm": dict(beams[0].boundaries_mm),
        "steps": tuple(steps),
    }
    return Plan(
        arcs=tuple(b.arc for b in beams),
        isocenter_mm=beams[0].isocenter_mm,
        fractions=fractions,
        machine=machine.name if machine else beams[0].machine,
        label=text(dataset, "RTPlanLabel", "RTPLAN"),
        patient_position=_patient_position(beams, setups),
        dose_rate_mu_min=max(rates) if rates else None,
        provenance=provenance,
    )


def structure_set_uid(dataset: Dataset) -> str:
    """SOP instance UID of the structure set that a plan refers to; "" where it refers to none."""
    references = items(dataset, "ReferencedStructureSetSequence")
    return text(references[0], "ReferencedSOPInstanceUID") if references else ""


def prescribed_gy(dataset: Dataset) -> Mapping[int, float]:
    """Prescribed dose of the course by ROI number, as far as the plan names volumes.

    Raises PlanError for two prescriptions of one region.
    """
    found: dict[int, float] = {}
    for item in items(dataset, "DoseReferenceSequence"):
        if text(item, "DoseReferenceType") != "TARGET" or not has(item, "ReferencedROINumber"):
            continue
        if (gy := number(item, "TargetPrescriptionDose", 0.0)) > 0:
            roi = integer(item, "ReferencedROINumber")
            if abs(found.setdefault(roi, gy) - gy) > 0.005:
                raise PlanError(
                    f"the plan prescribes {found[roi]:g} Gy and {gy:g} Gy to ROI {roi}; keep one of them"
                )
    return found


def _fraction_group(dataset: Dataset) -> Dataset:
    groups = items(dataset, "FractionGroupSequence")
    if len(groups) != 1:
        raise PlanError(
            f"the plan has {len(groups)} fraction groups, exactly one "
            "can be read; export each group as a plan"
        )
    return groups[0]


def _left_out(item: Dataset, mu: float, referenced: bool) -> str:
    """Why a beam delivers nothing, or "" for one that does."""
    delivery = text(item, "TreatmentDeliveryType", "TREATMENT")
    if not referenced:
        return f"({delivery}) is in no fraction group"
    if mu == 0:
        return f"({delivery}) has 0 MU"
    if mu > 0:
        return ""
    if delivery in ("SETUP", "OPEN_PORTFILM", "TRMT_PORTFILM"):
        return f"({delivery}) has no MU"
    raise PlanError("BeamMeterset (300A,0086) is missing or negative; export a calculated plan")


def _read_beam(item: Dataset, mu: float) -> _Beam:
    if (radiation := text(item, "RadiationType", "PHOTON")) != "PHOTON":
        raise PlanError(f"RadiationType (300A,00C6) is {radiation}, PHOTON is needed; remove the beam")
    for keyword, what in _FORBIDDEN.items():
        if integer(item, keyword, 0) > 0:
            raise PlanError(f"{what} cannot be represented; plan the beam without them")
    if has(item, "ApplicatorSequence"):
        raise PlanError("an applicator (cone) cannot be represented; plan the beam without it")
    if (unit := text(item, "PrimaryDosimeterUnit", "MU")) != "MU":
        raise PlanError(f"PrimaryDosimeterUnit (300A,00B3) is {unit}, MU is needed; export the plan in MU")
    points = items(item, "ControlPointSequence")
    if len(points) < 2:
        raise PlanError(f"{len(points)} control points; at least 2 are needed")
    leaves, boundaries = _leaves(item, points)
    modes = items(item, "PrimaryFluenceModeSequence")
    mode = (text(modes[0], "FluenceModeID") or text(modes[0], "FluenceMode")) if modes else "STANDARD"
    rates = [number(p, "DoseRateSet") for p in points if has(p, "DoseRateSet")]
    arc = Arc(
        gantry_deg=_gantry(points),
        collimator_deg=_constant(points, "BeamLimitingDeviceAngle", "collimator angle"),
        couch_deg=_constant(points, "PatientSupportAngle", "couch angle"),
        leaves_mm=leaves,
        jaws_mm=_jaws(points),
        mu=_segments(item, points, mu),
        name=text(item, "BeamName"),
        number=integer(item, "BeamNumber"),
    )
    _constant(points, "TableTopEccentricAngle", "table eccentric angle", only=0.0)
    _constant(points, "TableTopPitchAngle", "table pitch angle", only=0.0)
    _constant(points, "TableTopRollAngle", "table roll angle", only=0.0)
    _constant(points, "GantryPitchAngle", "gantry pitch angle", only=0.0)
    return _Beam(
        arc=arc,
        isocenter_mm=_isocenter(points),
        energy_mv=_energy(points),
        fluence_mode=mode.upper(),
        machine=text(item, "TreatmentMachineName") or "unknown",
        setup=integer(item, "ReferencedPatientSetupNumber", -1),
        rate_mu_min=max(rates) if rates else None,
        boundaries_mm=boundaries,
    )


def _segments(item: Dataset, points: Sequence[Dataset], mu: float) -> NDArray[np.float64]:
    """MU of each segment from cumulative weights, whatever their final value is."""
    final = number(item, "FinalCumulativeMetersetWeight")
    if final <= 0:
        raise PlanError(f"FinalCumulativeMetersetWeight (300A,010E) is {final:g}; it must be positive")
    weights = np.array(_inherited(points, "CumulativeMetersetWeight"))
    if abs(weights[0]) > 1e-6 * final or abs(weights[-1] - final) > 1e-3 * final:
        raise PlanError(
            f"cumulative weights run from {weights[0]:g} to {weights[-1]:g}, "
            f"not from 0 to {final:g}; export it again"
        )
    return mu * np.diff(weights) / (weights[-1] - weights[0])


def _inherited(points: Sequence[Dataset], keyword: str, default: float | None = None) -> list[float]:
    """One number at every control point; where it is absent the one before holds."""
    out: list[float] = []
    for k, point in enumerate(points):
        with about(f"control point {k}", PlanError):
            out.append(number(point, keyword, out[-1] if out else default))
    return out


def _constant(points: Sequence[Dataset], keyword: str, what: str, only: float | None = None) -> float:
    """An angle in degrees that must not change within the beam."""
    values = np.array(_inherited(points, keyword, 0.0))
    turn = signed_deg(values - values[0])
    if np.max(np.abs(turn)) > _ANGLE_DEG:
        raise PlanError(
            f"the {what} turns by {np.max(np.abs(turn)):.2f} degrees within the beam; it must be fixed"
        )
    if only is not None and abs(signed_deg(values[0] - only)) > _ANGLE_DEG:
        raise PlanError(f"the {what} is {values[0]:g} degrees, only {only:g} can be represented")
    return float(values[0])


def _gantry(points: Sequence[Dataset]) -> NDArray[np.float64]:
    """Unwrapped gantry angles: each step turns the way GantryRotationDirection says, CW upwards."""
    angles = _inherited(points, "GantryAngle")
    out = [angles[0]]
    way = "NONE"
    for k, point in enumerate(points[:-1]):
        way = text(point, "GantryRotationDirection", way)
        step = signed_deg(angles[k + 1] - angles[k])
        if way not in ("CW", "CC", "NONE"):
            raise PlanError(
                f"control point {k}: GantryRotationDirection (300A,011F) is {way!r}, not CW, CC or NONE"
            )
        if way == "NONE" and abs(step) > _ANGLE_DEG:
            raise PlanError(
                f"control point {k}: the gantry turns by {step:.2f} degrees with GantryRotationDirection "
                "(300A,011F) NONE; export the plan with the direction"
            )
        sign = {"CW": 1.0, "CC": -1.0, "NONE": 0.0}[way]
        if sign and abs(step) > _ANGLE_DEG:
            step = sign * ((sign * step) % 360.0)
        elif sign and len(points) == 2:
            step = sign * 360.0  # two control points at one angle with a direction: one full turn
        out.append(out[-1] + step)
    return np.array(out)


def _isocenter(points: Sequence[Dataset]) -> Point:
    found = [numbers(p, "IsocenterPosition", 3) for p in points if has(p, "IsocenterPosition")]
    if not found:
        raise PlanError("IsocenterPosition (300A,012C) is missing; export the plan again")
    if np.max(np.abs(np.array(found) - found[0])) > 0.01:
        raise PlanError("the isocentre moves within the beam; only a fixed one can be represented")
    return found[0][0], found[0][1], found[0][2]


def _energy(points: Sequence[Dataset]) -> float:
    energies = set(_inherited(points, "NominalBeamEnergy", 0.0))
    if len(energies) != 1:
        raise PlanError("the energy changes within the beam; split it into beams of one energy")
    return energies.pop()


def _devices(point: Dataset, k: int) -> dict[str, tuple[float, ...]]:
    with about(f"control point {k}", PlanError):
        return {
            text(item, "RTBeamLimitingDeviceType"): numbers(item, "LeafJawPositions")
            for item in items(point, "BeamLimitingDevicePositionSequence")
        }


def _jaws(points: Sequence[Dataset]) -> NDArray[np.float64]:
    """Jaw positions `(n, 4)`; an axis without jaws is open."""
    current = np.array([-OPEN_JAW_MM, OPEN_JAW_MM] * 2)
    out = np.empty((len(points), 4))
    for k, point in enumerate(points):
        for device, positions in _devices(point, k).items():
            if device in _JAWS:
                if len(positions) != 2:
                    raise PlanError(
                        f"control point {k}: {device} has {len(positions)} positions, 2 are needed"
                    )
                current[_JAWS[device] : _JAWS[device] + 2] = positions
        out[k] = current
    return out


def _leaves(
    item: Dataset, points: Sequence[Dataset]
) -> tuple[NDArray[np.float64], tuple[tuple[str, tuple[float, ...]], ...]]:
    """Leaf positions `(n, 2, pairs)` of all layers one after the other, and the layers' boundaries."""
    layers: list[tuple[str, tuple[float, ...]]] = []
    for device in items(item, "BeamLimitingDeviceSequence"):
        name = text(device, "RTBeamLimitingDeviceType")
        if name in _JAWS:
            continue
        if name not in _LEAVES:
            raise PlanError(f"beam-limiting device {name or 'without type'} cannot be represented")
        edges = numbers(device, "LeafPositionBoundaries")
        pairs = integer(device, "NumberOfLeafJawPairs")
        if len(edges) != pairs + 1 or pairs < 1 or np.any(np.diff(edges) <= 0):
            raise PlanError(
                f"{name}: LeafPositionBoundaries (300A,00BE) must hold {pairs + 1} ascending values"
            )
        layers.append((name, edges))
    layers.sort()
    if not layers:
        raise PlanError(
            "the beam has no multileaf collimator; only beams shaped by leaves can be represented"
        )
    if len({name for name, _ in layers}) != len(layers):
        raise PlanError(f"device {layers[0][0]} is listed twice; export the plan again")
    sizes = [len(edges) - 1 for _, edges in layers]
    out = np.empty((len(points), 2, sum(sizes)))
    current: dict[str, tuple[float, ...]] = {}
    for k, point in enumerate(points):
        current |= _devices(point, k)
        first = 0
        for (name, _), pairs in zip(layers, sizes, strict=True):
            positions = current.get(name, ())
            if len(positions) != 2 * pairs:
                raise PlanError(
                    f"control point {k}: {name} has {len(positions)} leaf positions, {2 * pairs} are needed"
                )
            out[k, :, first : first + pairs] = np.reshape(positions, (2, pairs))
            first += pairs
    return out, tuple(layers)


def _must_agree(beams: Sequence[_Beam], machine: Machine | None) -> None:
    """Refuse plans whose beams differ in what a Plan holds once."""
    first = beams[0]
    for beam in beams[1:]:
        for what, same in (
            ("isocentre", np.allclose(beam.isocenter_mm, first.isocenter_mm, atol=0.01)),
            ("energy", beam.energy_mv == first.energy_mv),
            ("fluence mode", beam.fluence_mode == first.fluence_mode),
            ("machine", beam.machine == first.machine),
            ("multileaf collimator", beam.boundaries_mm == first.boundaries_mm),
        ):
            if not same:
                raise PlanError(
                    f"beams {first.arc.number} and {beam.arc.number} differ in "
                    f"their {what}; export them as two plans"
                )
    numbers_ = [b.arc.number for b in beams]
    if len(set(numbers_)) != len(numbers_):
        raise PlanError("two beams have the same number; export the plan again")
    if machine is None or machine.mlc.pairs != first.arc.leaves_mm.shape[2]:
        return
    own = [la.boundaries_mm for la in sorted(machine.mlc.layers, key=lambda la: la.device)]
    theirs = [edges for _, edges in first.boundaries_mm]
    if [len(e) for e in own] != [len(e) for e in theirs] or not all(
        np.allclose(a, b, atol=0.1) for a, b in zip(own, theirs, strict=True)
    ):
        raise PlanError(
            "the leaf boundaries of the plan are not those of machine "
            f"{machine.name}; choose the machine that the "
            "plan was made for"
        )


def _patient_position(beams: Sequence[_Beam], setups: Mapping[int, Dataset]) -> str:
    found = {text(setups[b.setup], "PatientPosition") for b in beams if b.setup in setups}
    if not found:
        found = {text(s, "PatientPosition") for s in setups.values()}
    found -= {""}
    if len(found) != 1:
        raise PlanError(
            f"the beams have {len(found)} patient positions "
            f"({', '.join(sorted(found))}), exactly one is needed"
        )
    position = found.pop()
    if position not in PATIENT_POSITIONS:
        raise PlanError(f"patient position {position!r} is not one of {', '.join(PATIENT_POSITIONS)}")
    return position
