"""One beam of an RTPLAN: MU per segment, inherited attributes filled in, angles unwrapped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import about, has, integer, items, name_of, number, numbers, text
from vmat_diffusion.dicom.delivery_attributes import refuse_change_of_static_beam, refuse_unrepresented
from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import Point, signed_deg
from vmat_diffusion.plan import Arc

# Where a plan has no jaws on an axis, the field is open to this distance.
OPEN_JAW_MM = 200.0
_JAWS = {"X": 0, "ASYMX": 0, "Y": 2, "ASYMY": 2}
_LEAVES = ("MLCX", "MLCX1", "MLCX2")
# Angles that differ by less are one angle: systems write 7.1e-10 for 0.
_ANGLE_DEG = 0.01
# No gantry of these machines turns so far in one beam: two full turns of one direction need a slip ring.
_ROTATION_MAX_DEG = 1080.0


@dataclass(frozen=True, eq=False)
class PlannedBeam:
    """One beam as read, with what must be the same for all beams of a plan.

    `energy_mv` is 0 and `sad_mm` None where the file does not say. `jaws` are the types of device that it
    lists. `remarks` is what a person must know.
    """

    arc: Arc
    isocenter_mm: Point
    energy_mv: float
    fluence_mode: str
    machine: str
    sad_mm: float | None
    setup: int
    rate_mu_min: float | None
    boundaries_mm: tuple[tuple[str, tuple[float, ...]], ...]
    jaws: tuple[str, ...]
    remarks: tuple[str, ...]


def read_beam(item: Dataset, mu: float) -> PlannedBeam:
    """A beam of the sequence with its MU. Raises PlanError for whatever an Arc cannot represent."""
    refuse_unrepresented(item)
    points = items(item, "ControlPointSequence")
    if len(points) < 2:
        raise PlanError(f"{len(points)} control points; at least 2 are needed")
    remarks = [*_silences(item, points), *_counts(item, points)]
    leaves, boundaries = _leaves(item, points)
    modes = items(item, "PrimaryFluenceModeSequence")
    mode = (text(modes[0], "FluenceModeID") or text(modes[0], "FluenceMode")) if modes else "STANDARD"
    segments, remark = _segments(item, points, mu)
    arc = Arc(
        gantry_deg=_gantry(points, text(item, "BeamType")),
        collimator_deg=_constant(points, "BeamLimitingDeviceAngle", "collimator angle"),
        couch_deg=_constant(points, "PatientSupportAngle", "couch angle"),
        leaves_mm=leaves,
        jaws_mm=_jaws(item, points),
        mu=segments,
        name=text(item, "BeamName"),
        number=integer(item, "BeamNumber"),
    )
    moves = {
        "the gantry turns": np.diff(arc.gantry_deg),
        "a leaf moves": np.abs(np.diff(arc.leaves_mm, axis=0)).max(axis=(1, 2)),
        "a jaw moves": np.abs(np.diff(arc.jaws_mm, axis=0)).max(axis=1),
    }
    refuse_change_of_static_beam(text(item, "BeamType"), moves, arc.mu)
    rates = sorted({number(p, "DoseRateSet") for p in points if has(p, "DoseRateSet")})
    if len(rates) > 1:
        remarks.append(f"DoseRateSet (300A,0115) runs from {rates[0]:g} to {rates[-1]:g} MU/min")
    return PlannedBeam(
        arc=arc,
        isocenter_mm=_isocenter(points),
        energy_mv=_energy(points),
        fluence_mode=mode.upper(),
        machine=text(item, "TreatmentMachineName") or "unknown",
        sad_mm=number(item, "SourceAxisDistance") if has(item, "SourceAxisDistance") else None,
        setup=integer(item, "ReferencedPatientSetupNumber", -1),
        rate_mu_min=rates[-1] if rates else None,
        boundaries_mm=boundaries,
        jaws=tuple(name for name in _declared(item) if name in _JAWS),
        remarks=(*remarks, *((remark,) if remark else ())),
    )


def _silences(item: Dataset, points: Sequence[Dataset]) -> list[str]:
    """What the file does not say and this program assumes."""
    assumed = {
        "RadiationType": "PHOTON",
        "TreatmentDeliveryType": "TREATMENT",
        "PrimaryDosimeterUnit": "MU",
        "SourceAxisDistance": "the machine's",
    }
    out = [f"{name_of(k)} is missing, {word} is assumed" for k, word in assumed.items() if not has(item, k)]
    if not any(has(point, "DoseRateSet") for point in points):
        out.append(f"{name_of('DoseRateSet')} is missing, the machine's highest is assumed")
    return out


def _counts(item: Dataset, points: Sequence[Dataset]) -> list[str]:
    """Remarks on the numbering of control points. Raises PlanError where their order is not sure."""
    out = []
    stated = integer(item, "NumberOfControlPoints", -1)
    if stated != len(points):
        said = "missing" if stated < 0 else f"{stated}"
        out.append(f"{name_of('NumberOfControlPoints')} is {said}, there are {len(points)}")
    indices = [integer(point, "ControlPointIndex", -1) for point in points]
    if all(index < 0 for index in indices):
        out.append(f"{name_of('ControlPointIndex')} is missing, the order of the file is taken")
    elif any(b - a != 1 for a, b in pairwise(indices)):
        k = next(k for k in range(1, len(indices)) if indices[k] - indices[k - 1] != 1)
        raise PlanError(
            f"{name_of('ControlPointIndex')} is {indices[k]} after {indices[k - 1]}, it must ascend by 1; "
            "export the plan again"
        )
    elif indices[0] != 0:
        out.append(f"{name_of('ControlPointIndex')} starts at {indices[0]}, not at 0")
    return out


def _segments(item: Dataset, points: Sequence[Dataset], mu: float) -> tuple[NDArray[np.float64], str]:
    """MU of each segment from cumulative weights, whatever their final value is, and a remark on that."""
    final = number(item, "FinalCumulativeMetersetWeight")
    if final <= 0:
        raise PlanError(f"FinalCumulativeMetersetWeight (300A,010E) is {final:g}; it must be positive")
    weights = np.array(_inherited(points, "CumulativeMetersetWeight"))
    if abs(weights[0]) > 1e-6 * final or abs(weights[-1] - final) > 1e-3 * final:
        raise PlanError(
            f"cumulative weights run from {weights[0]:g} to {weights[-1]:g}, "
            f"not from 0 to {final:g}; export it again"
        )
    remark = ""
    if abs(weights[-1] - final) > 1e-6 * final:
        remark = (
            f"cumulative weights end at {weights[-1]:g}, FinalCumulativeMetersetWeight (300A,010E) is "
            f"{final:g}; the MU are spread over the weights that are there"
        )
    return mu * np.diff(weights) / (weights[-1] - weights[0]), remark


def _inherited(points: Sequence[Dataset], keyword: str, default: float | None = None) -> list[float]:
    """One number at every control point; where it is absent the one before holds."""
    out: list[float] = []
    for k, point in enumerate(points):
        with about(f"control point {k}", PlanError):
            out.append(number(point, keyword, out[-1] if out else default))
    return out


def _constant(points: Sequence[Dataset], keyword: str, what: str) -> float:
    """An angle in degrees that must not change within the beam."""
    values = np.array(_inherited(points, keyword, 0.0))
    turn = signed_deg(values - values[0])
    if np.max(np.abs(turn)) > _ANGLE_DEG:
        raise PlanError(
            f"the {what} turns by {np.max(np.abs(turn)):.2f} degrees within the beam; it must be fixed"
        )
    return float(values[0])


def _gantry(points: Sequence[Dataset], kind: str) -> NDArray[np.float64]:
    """Unwrapped gantry angles: each step turns the way GantryRotationDirection says, CW upwards.

    Two control points at one angle with a direction are a full turn, but not in a beam whose `kind` is
    STATIC, all of whose attributes stay. Raises PlanError for a rotation that no gantry makes.
    """
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
        elif sign and len(points) == 2 and kind == "DYNAMIC":
            step = sign * 360.0
        elif sign and len(points) == 2 and kind != "STATIC":
            raise PlanError(
                "both control points are at one gantry angle with GantryRotationDirection (300A,011F) "
                f"{way}, and BeamType (300A,00C4) is neither STATIC nor DYNAMIC; export the plan again"
            )
        out.append(out[-1] + step)
    unwrapped = np.array(out)
    rotation = float(np.abs(np.diff(unwrapped)).sum())
    if rotation > _ROTATION_MAX_DEG:
        raise PlanError(
            f"GantryRotationDirection (300A,011F) makes the gantry turn by {rotation:.0f} degrees in all, "
            f"the limit is {_ROTATION_MAX_DEG:g}; export the plan with the direction in which the angles go"
        )
    return unwrapped


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


def _devices(point: Dataset, k: int, declared: Collection[str]) -> dict[str, tuple[float, ...]]:
    """Positions by device at a control point. Raises PlanError for a device that is not one of the beam's."""
    found: dict[str, tuple[float, ...]] = {}
    with about(f"control point {k}", PlanError):
        for item in items(point, "BeamLimitingDevicePositionSequence"):
            name = text(item, "RTBeamLimitingDeviceType")
            if name not in declared or name in found:
                why = "twice" if name in found else "and not in BeamLimitingDeviceSequence (300A,00B6)"
                raise PlanError(
                    f"{name or 'a device without type'} has positions {why}; export the plan again"
                )
            found[name] = numbers(item, "LeafJawPositions")
    return found


def _declared(item: Dataset) -> list[str]:
    """The devices of a beam. Raises PlanError for one that cannot be represented or is there twice."""
    found = [text(d, "RTBeamLimitingDeviceType") for d in items(item, "BeamLimitingDeviceSequence")]
    for name in found:
        if name not in _JAWS and name not in _LEAVES:
            raise PlanError(f"beam-limiting device {name or 'without type'} cannot be represented")
        if found.count(name) > 1:
            raise PlanError(f"device {name} is listed twice; export the plan again")
    for one, other in (("X", "ASYMX"), ("Y", "ASYMY")):
        if one in found and other in found:
            raise PlanError(f"devices {one} and {other} are both listed; one pair of jaws can be represented")
    return found


def _jaws(item: Dataset, points: Sequence[Dataset]) -> NDArray[np.float64]:
    """Jaw positions `(n, 4)`; an axis without jaws is open."""
    declared = _declared(item)
    current = np.array([-OPEN_JAW_MM, OPEN_JAW_MM] * 2)
    out = np.empty((len(points), 4))
    for k, point in enumerate(points):
        devices = _devices(point, k, declared)
        if k == 0 and (absent := [name for name in declared if name in _JAWS and name not in devices]):
            raise PlanError(f"control point 0: {absent[0]} has no positions; export the plan again")
        for device, positions in devices.items():
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
    declared = _declared(item)
    layers: list[tuple[str, tuple[float, ...]]] = []
    for device in items(item, "BeamLimitingDeviceSequence"):
        name = text(device, "RTBeamLimitingDeviceType")
        if name in _JAWS:
            continue
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
    sizes = [len(edges) - 1 for _, edges in layers]
    out = np.empty((len(points), 2, sum(sizes)))
    current: dict[str, tuple[float, ...]] = {}
    for k, point in enumerate(points):
        current |= _devices(point, k, declared)
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
