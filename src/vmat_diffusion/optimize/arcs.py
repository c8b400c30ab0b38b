"""Beam geometry before any aperture: isocentre, arcs, collimators and jaws that enclose the targets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import Point, beam_axes, project, signed_deg
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import turns_through

# Jaws stand this far outside the projected targets: the penumbra, and room for the leaves' ends.
_MARGIN_MM = 7.0
# A shorter arc between two sectors to avoid gives the search too few directions.
LEAST_ARC_DEG = 20.0
# Mirrored collimators, the first that fits the leaf span; at 0 the leakage between leaves would add up.
_COLLIMATORS_DEG = (30.0, 25.0, 20.0, 15.0, 10.0, 5.0)
# Crossed collimators stand this far off 0 and 90, for the same reason.
_TILT_DEG = 5.0
# Couch angles that are accepted, to either side.
_COUCH_MOST_DEG = 90.0
# Less of the leaf span is used than there is, so that rounding for a file does not break it.
_SPAN_ROOM_MM = 1.0
# Partial arcs, clockwise, by the side of the targets: from the back to 30 degrees beyond the front.
_PARTIAL_DEG = {90.0: (330.0, 178.0), 270.0: (182.0, 30.0)}
# Targets nearer than this to the middle of the body are on no side.
MIDLINE_MM = 10.0

# X1, X2, Y1, Y2 at the isocentre plane.
Jaws = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class ArcFrame:
    """One arc before it has apertures: unwrapped gantry angle of each control point, and its box.

    `jaws_mm` is X1, X2, Y1, Y2 at the isocentre plane: the most that jaws open during the arc.
    """

    gantry_deg: NDArray[np.float64]
    collimator_deg: float
    jaws_mm: Jaws
    couch_deg: float = 0.0

    def thinned(self, every: int) -> NDArray[np.intp]:
        """Indices of every n-th control point, the last one included."""
        index = np.arange(0, len(self.gantry_deg), every)
        return index if index[-1] == len(self.gantry_deg) - 1 else np.append(index, len(self.gantry_deg) - 1)


def isocenter_of(case: Case, targets: tuple[str, ...]) -> Point:
    """Middle of the box around all targets, rounded to a millimetre."""
    points = target_points(case, targets)
    x, y, z = np.round((points.min(axis=0) + points.max(axis=0)) / 2)
    return float(x), float(y), float(z)


def target_points(case: Case, targets: tuple[str, ...], most: int = 20000) -> NDArray[np.float64]:
    """Voxel centres of all targets, thinned evenly; the outermost along each axis are kept."""
    points = case.grid.points_mm(np.flatnonzero(case.union(targets)))
    ends = np.concatenate([points.argmin(axis=0), points.argmax(axis=0)])
    step = max(len(points) // most, 1)
    return np.concatenate([points[::step], points[ends]])


def aside_mm(case: Case, targets: tuple[str, ...]) -> tuple[float, float]:
    """How far the targets' centroid lies from the body's towards gantry 90, and half the body's width there.

    In mm, in the slices of the targets, from side to side of the couch; negative towards gantry 270.
    """
    slices = np.flatnonzero(case.union(targets).any(axis=(1, 2)))
    body = case.body.mask[slices[0] : slices[-1] + 1]
    columns = case.grid.axes_mm[0][np.nonzero(body)[2]]
    off = target_points(case, targets)[:, 0].mean() - columns.mean()
    side = float(beam_axes(90.0, patient_position=case.patient_position).to_source[0])
    return float(off) * side, float(np.ptp(columns)) / 2


def partial_span(case: Case, targets: tuple[str, ...]) -> tuple[float, float]:
    """Start and stop of arcs on the side of the body where the targets are, which spare the other side.

    Raises PlanError where the targets lie in the middle.
    """
    off_mm, _ = aside_mm(case, targets)
    if abs(off_mm) < MIDLINE_MM:
        raise PlanError(
            f"the targets lie {abs(off_mm):.0f} mm beside the middle of {case.body.name}, within "
            f"{MIDLINE_MM:g} mm: a partial arc has no side to be on; ask for full arcs or give start and "
            "stop"
        )
    return _PARTIAL_DEG[90.0 if off_mm > 0 else 270.0]


def leaf_width_mm(
    case: Case,
    targets: tuple[str, ...],
    isocenter_mm: Point,
    machine: Machine,
    *,
    couches_deg: tuple[float, ...] = (0.0,),
    collimators_deg: tuple[float, ...] | None = None,
) -> tuple[float, float]:
    """How wide fields around the targets are across the leaves, and how much the leaves span, in mm.

    From all gantry angles, at the collimator angle at which fields are narrowest: one of those that arcs are
    given by default, or of those given. Raises PlanError for targets beyond the machine's largest field.
    """
    points, turn = target_points(case, targets, 4000), np.arange(0.0, 360.0, 10.0)
    views = [_View(isocenter_mm, machine, case.patient_position, couch) for couch in set(couches_deg)]

    def width(angle: float) -> float:
        boxes = [view.box(points, turn, angle) for view in views]
        return max(x2 - x1 for x1, x2, _, _ in boxes)

    return min(map(width, collimators_deg or _COLLIMATORS_DEG)), machine.limits.leaf_span_mm - _SPAN_ROOM_MM


def arc_frames(
    case: Case,
    targets: tuple[str, ...],
    isocenter_mm: Point,
    machine: Machine,
    *,
    arcs: int,
    start_deg: float,
    stop_deg: float,
    spacing_deg: float,
    collimators_deg: tuple[float, ...] | None,
    couches_deg: tuple[float, ...] | None = None,
    avoid_deg: tuple[tuple[float, float], ...] = (),
) -> tuple[ArcFrame, ...]:
    """Frames of alternating direction between two gantry angles, clockwise from start to stop first.

    Control points are `spacing_deg` apart, or farther where the machine takes no more of them.
    Collimators default to pairs at right angles where the leaf span allows for these targets, else to
    mirrored pairs as far from 0 as it allows. A target wider than the span is shared: odd arcs take its left
    part, even arcs its right. `couches_deg` are the couch angles, 0 unless given; collisions of gantry and
    couch are not checked. Each pair of `avoid_deg` is a sector, clockwise from its first angle to its second,
    without beam: arcs end before it and others begin after it.
    """
    if not 1 <= arcs <= 6:
        raise PlanError(f"{arcs} arcs asked for; 1 to 6 are possible")
    refuse_machine(machine)
    rotation = (stop_deg - start_deg) % 360.0 or 360.0
    _refuse_span(machine, start_deg, stop_deg, rotation)
    # Wider apart where the machine takes fewer control points a beam.
    count = min(max(round(rotation / spacing_deg), 4), machine.limits.control_points_max - 1)
    clockwise = start_deg + rotation * np.arange(count + 1) / count
    parts = _arcs_outside(clockwise, avoid_deg)
    free = np.concatenate(parts)
    points = target_points(case, targets)
    span = machine.limits.leaf_span_mm - _SPAN_ROOM_MM
    couches_deg = couches_deg or (0.0,) * arcs
    if len(couches_deg) != arcs:
        raise PlanError(f"{len(couches_deg)} couch angles for {arcs} arcs; give one for each")
    for couch in couches_deg:
        if abs(signed_deg(couch)) > _COUCH_MOST_DEG:
            raise PlanError(
                f"a couch at {couch:g} deg is outside +-{_COUCH_MOST_DEG:g} deg; give an angle within, "
                "or other arcs"
            )
    views = tuple(_View(isocenter_mm, machine, case.patient_position, couch) for couch in couches_deg)
    if collimators_deg is None:
        collimators_deg = _collimators(points, views, clockwise, span)
    if len(collimators_deg) != arcs:
        raise PlanError(f"{len(collimators_deg)} collimator angles for {arcs} arcs; give one for each")
    frames = []
    for number, (collimator, view) in enumerate(zip(collimators_deg, views, strict=True)):
        box = view.box(points, free, collimator)
        jaws = _within_span(box, machine, span, number=number, arcs=arcs)
        for part in parts if number % 2 == 0 else [p[::-1] for p in reversed(parts)]:
            frames.append(ArcFrame(part.copy(), float(collimator) % 360.0, jaws, view.couch_deg % 360.0))
    return tuple(frames)


def all_around(
    case: Case,
    targets: tuple[str, ...],
    isocenter_mm: Point,
    machine: Machine,
    *,
    directions: int,
    collimator_deg: float,
) -> ArcFrame:
    """A full turn with a coplanar couch whose control points bound so many directions.

    It is for fluence that no leaves deliver: neither the leaf span nor the gantry's stop binds it, and
    targets beyond the largest field are seen as far as that reaches.
    """
    gantry = np.linspace(0.0, 360.0, directions + 1)
    view = _View(isocenter_mm, machine, case.patient_position, 0.0)
    jaws = view.box(target_points(case, targets), gantry, collimator_deg, whole=False)
    return ArcFrame(gantry, collimator_deg, jaws)


def _refuse_span(machine: Machine, start_deg: float, stop_deg: float, rotation_deg: float) -> None:
    """Raise PlanError for an arc that ends at 180 degrees or turns through the gantry's stop."""
    for end in (start_deg, stop_deg):
        if abs(end % 360.0 - 180.0) < 0.05:
            raise PlanError(
                f"an arc cannot start or stop at {end:g} deg, whose side is ambiguous; take 181 or 179"
            )
    stop = machine.limits.gantry_stop_deg
    if stop is not None and turns_through(np.array([start_deg, start_deg + rotation_deg]), stop):
        raise PlanError(
            f"an arc from {start_deg:g} clockwise to {stop_deg:g} deg turns through {stop:g} deg, where "
            f"machine {machine.name} has its stop; exchange start and stop or split the arc"
        )


def _within_span(box: Jaws, machine: Machine, span_mm: float, *, number: int, arcs: int) -> Jaws:
    """The jaws of one arc: the box around the targets, or its left or right part if the leaves span less."""
    x1, x2, y1, y2 = box
    if x2 - x1 > span_mm:
        if arcs == 1 or x2 - x1 > 2 * span_mm - _MARGIN_MM:
            raise PlanError(
                f"the targets are {x2 - x1:.0f} mm wide across the leaves, which span {span_mm:.0f} mm; "
                f"{'give two arcs' if arcs == 1 else 'turn the collimator or treat with two isocentres'}"
            )
        x1, x2 = (x1, x1 + span_mm) if number % 2 == 0 else (x2 - span_mm, x2)
    over = machine.limits.jaw_overtravel_x_mm
    return min(x1, over), max(x2, -over), y1, y2


def _arcs_outside(clockwise: NDArray, avoid_deg: tuple[tuple[float, float], ...]) -> list[NDArray]:
    """The parts of an arc's control points that lie in no sector to avoid."""
    free = np.ones(len(clockwise), bool)
    for first, second in avoid_deg:
        free &= (clockwise - first) % 360.0 > (second - first) % 360.0
    index = np.flatnonzero(free)
    parts = [clockwise[run] for run in np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)]
    if not index.size or any(part[-1] - part[0] < LEAST_ARC_DEG for part in parts):
        sectors = ", ".join(f"{first:g} to {second:g}" for first, second in avoid_deg)
        raise PlanError(
            f"the sectors to avoid, {sectors} deg, leave an arc of less than {LEAST_ARC_DEG:g} deg; "
            "avoid less or move the arc's start and stop"
        )
    return parts


@dataclass(frozen=True)
class _View:
    """What the beam's-eye views of the targets from all angles of one arc have in common."""

    isocenter_mm: Point
    machine: Machine
    position: str
    couch_deg: float

    def box(self, points: NDArray, gantry: NDArray, collimator: float, *, whole: bool = True) -> Jaws:
        """Jaws around the projections of all targets over the arc, with a margin, on whole millimetres.

        Raises PlanError for targets beyond the largest field, which are cut there if not `whole`.
        """
        machine = self.machine
        low, high = np.full(2, np.inf), np.full(2, -np.inf)
        for angle in gantry[:: max(len(gantry) // 36, 1)]:
            axes = beam_axes(angle, collimator, self.couch_deg, self.position)
            uv = project(points, axes, self.isocenter_mm, machine.sad_mm)[:, :2]
            low, high = np.minimum(low, uv.min(axis=0)), np.maximum(high, uv.max(axis=0))
        low, high = np.floor(low - _MARGIN_MM), np.ceil(high + _MARGIN_MM)
        jaw = machine.limits.jaw_position_mm
        leaf = min(jaw, machine.limits.leaf_position_mm)
        rows = machine.row_edges_mm()
        least, most = np.array([-leaf, max(-jaw, rows[0])]), np.array([leaf, min(jaw, rows[-1])])
        cut = float(np.maximum(least - low, high - most).max())
        if whole and cut > _MARGIN_MM:
            raise PlanError(
                f"the targets reach {cut - _MARGIN_MM:.0f} mm beyond the largest field of machine "
                f"{machine.name}; plan a part of them or use two isocentres"
            )
        low, high = np.maximum(low, least), np.minimum(high, most)
        return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def refuse_machine(machine: Machine) -> None:
    """Raise PlanError for a machine that the optimiser cannot plan for, before minutes are spent."""
    name = machine.name
    if not {"X", "Y"} <= {jaw.removeprefix("ASYM") for jaw in machine.jaws}:
        raise PlanError(
            f"machine {name} has the jaws {', '.join(machine.jaws) or 'none'}; planning needs X and Y jaws"
        )
    if len(machine.mlc.layers) != 1:
        raise PlanError(f"machine {name} has a stacked collimator; planning for one is not supported yet")
    if not machine.mlc.interdigitation:
        raise PlanError(
            f"the leaves of machine {name} do not interdigitate; planning for such is not supported yet"
        )


def _collimators(
    points: NDArray, views: tuple[_View, ...], gantry: NDArray, span: float
) -> tuple[float, ...]:
    """Crossed pairs where their fields fit the leaf span, else mirrored ones, the largest that fit.

    A row of leaves cannot shield what lies between two open parts of it; the leaves of the other arc, at a
    right angle, can.
    """

    def fits(angle: float) -> bool:
        boxes = (view.box(points, gantry, angle) for view in dict.fromkeys(views))
        return all(x2 - x1 <= span for x1, x2, _, _ in boxes)

    arcs = len(views)
    pairs = math.ceil(arcs / 2)
    crossed = [_TILT_DEG + 45.0 * k / pairs + cross for k in range(pairs) for cross in (0.0, 90.0)][:arcs]
    if arcs > 1 and all(map(fits, crossed)):
        return tuple(crossed)
    chosen = next(filter(fits, _COLLIMATORS_DEG), _COLLIMATORS_DEG[-1])
    spread = [chosen * (pairs - k) / pairs for k in range(pairs)]
    return tuple(angle if side == 0 else 360.0 - angle for angle in spread for side in range(2))[:arcs]
