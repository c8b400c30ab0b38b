"""Which arcs a plan gets where nobody says: their number, full or partial, and the sectors without beam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from vmat_diffusion.case import Case, Prescription
from vmat_diffusion.errors import PlanError
from vmat_diffusion.field_of_view import Sector, cut_sectors
from vmat_diffusion.geometry import Point, beam_axes
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.arcs import (
    LEAST_ARC_DEG,
    MIDLINE_MM,
    aside_mm,
    isocenter_of,
    leaf_width_mm,
    partial_span,
    refuse_machine,
)

Span = Literal["full", "partial"]

FULL_DEG = (182.0, 178.0)
# Two arcs are what head and neck and pelvis are planned with in the studies of docs/optimiser.md.
_ARCS, _MOST_ARCS = 2, 6
# A breast is treated from its own side, so is a target among lungs that lies further out than this share of
# half the body's width: the other lung then gets no entering beam. Ours.
_BREAST, _LUNG, _SIDED_SHARE = "breast", "lung", 0.25
# Above this dose of a fraction the MU of two turns would slow the gantry: three arcs, or four where at this
# many MU per Gy, as stereotactic plans have, the MU take longer than three turns of a minute.
_LARGE_FRACTION_GY, _MU_PER_GY, _TURN_S = 6.0, 250.0, 60.0
# Sectors are avoided where at least so much of the arc is left. Ours: partial arcs have half a circle.
_LEAST_LEFT_DEG = 150.0
# Parts of an arc that are shorter than this are left out with the sector beside them.
_SHORT_DEG = 1.5 * LEAST_ARC_DEG


@dataclass(frozen=True)
class Asked:
    """What a user or a goal sheet says of the arcs; None where it is to be chosen.

    `start_deg` and `stop_deg` are those of the first arc. Where they are given no sector is avoided but
    those of `avoid_deg`.
    """

    arcs: int | None = None
    span: Span | None = None
    start_deg: float | None = None
    stop_deg: float | None = None
    avoid_deg: tuple[tuple[float, float], ...] | None = None
    collimators_deg: tuple[float, ...] | None = None
    couches_deg: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Arrangement:
    """The arcs of a plan and why they are so: `reasons` are clauses, `cautions` sentences for the gate.

    `sectors` are those in which the CT ends although the body goes on, whether they are avoided or not.
    """

    arcs: int
    span: Span
    avoid_deg: tuple[tuple[float, float], ...]
    reasons: tuple[str, ...]
    sectors: tuple[Sector, ...] = ()
    cautions: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{self.arcs} {self.span} arc{'s' if self.arcs > 1 else ''}"
        return f"{head}: {'; '.join((*self.reasons, *self.cautions))}"

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "text": str(self)}


def arrange(
    case: Case,
    prescription: Prescription,
    machine: Machine,
    *,
    site: str = "",
    asked: Asked | None = None,
) -> Arrangement:
    """The arcs for the prescribed targets that the case has; what is `asked` stays as it is.

    `site` is the goal sheet's. Raises PlanError for targets or a machine that no arcs can be planned for.
    """
    asked = asked or Asked()
    refuse_machine(machine)
    targets = tuple(n for n in prescription.target_gy if n in case.structures)
    if not targets:
        raise PlanError("none of the prescribed targets is in the case; map the names first")
    isocenter = isocenter_of(case, targets)
    span, why_span = _span(case, targets, site, asked)
    arcs, why_arcs = _number(case, targets, isocenter, machine, prescription=prescription, asked=asked)
    sectors = cut_sectors(case, targets, isocenter, machine.sad_mm, asked.couches_deg or (0.0,))
    avoid, cautions, whole = _avoided(case, targets, span, sectors, asked)
    if whole:
        span, why_span = "full", f"{why_span}, but the sectors to avoid leave too little of that side"
    return Arrangement(arcs, span, avoid, (why_span, *why_arcs), sectors, cautions)


def _span(case: Case, targets: tuple[str, ...], site: str, asked: Asked) -> tuple[Span, str]:
    """Full turns or partial arcs, and why."""
    if asked.span is not None:
        return asked.span, "full or partial as options or goal sheet say"
    if asked.start_deg is not None:
        return "full", "start and stop as options or goal sheet say"
    off_mm, half_mm = aside_mm(case, targets)
    side = "left" if _is_left(case, off_mm) else "right"
    where = f"the targets lie {abs(off_mm):.0f} mm {side} of the body's middle"
    if site == _BREAST and abs(off_mm) > MIDLINE_MM:
        return "partial", f"{where}, in a breast"
    beside = abs(off_mm) > max(_SIDED_SHARE * half_mm, MIDLINE_MM)
    if beside and (site == _LUNG or _among_lungs(case, targets)):
        return "partial", f"{where}, whose half width is {half_mm:.0f} mm"
    if beside:
        return "full", f"{where}, but in no lung or breast"
    return "full", f"{where}, within {100 * _SIDED_SHARE:.0f} % of its half width of {half_mm:.0f} mm"


def _is_left(case: Case, off_mm: float) -> bool:
    """Whether an offset towards gantry 90 is to the patient's left."""
    at_90 = beam_axes(90.0, patient_position=case.patient_position).to_source[0]
    return off_mm * float(at_90) > 0


def _among_lungs(case: Case, targets: tuple[str, ...]) -> bool:
    """Whether half of the targets' slices hold lung, so that sparing the other lung counts."""
    lungs = tuple(n for n in case.structures if n in ("Lungs", "Lung_L", "Lung_R"))
    if not lungs:
        return False
    own = case.union(targets).any(axis=(1, 2))
    with_lung = case.union(lungs).any(axis=(1, 2)) & own
    return int(np.count_nonzero(with_lung)) >= 0.5 * int(np.count_nonzero(own))


def _number(
    case: Case,
    targets: tuple[str, ...],
    isocenter_mm: Point,
    machine: Machine,
    *,
    prescription: Prescription,
    asked: Asked,
) -> tuple[int, tuple[str, ...]]:
    """How many arcs, and why where they are not two."""
    if asked.arcs is not None:
        return asked.arcs, ("so many arcs as options or goal sheet say",)
    arcs, reasons = _ARCS, []
    width, span = leaf_width_mm(
        case,
        targets,
        isocenter_mm,
        machine,
        couches_deg=asked.couches_deg or (0.0,),
        collimators_deg=asked.collimators_deg,
    )
    if width > span:
        arcs *= 2
        reasons.append(
            f"fields are {width:.0f} mm wide across the leaves, which span {span:.0f} mm: two arcs for each "
            "side of the targets"
        )
    gy = max(prescription.target_gy[n] for n in targets) / prescription.fractions
    if gy > _LARGE_FRACTION_GY:
        turns = np.ceil(gy * _MU_PER_GY / (machine.limits.dose_rate_mu_min / 60.0 * _TURN_S))
        arcs = min(max(arcs, int(np.clip(turns, _ARCS + 1, _ARCS + 2))), _MOST_ARCS)
        reasons.append(
            f"{gy:.3g} Gy a fraction are above {_LARGE_FRACTION_GY:g} Gy: their MU take more turns at "
            f"{machine.limits.dose_rate_mu_min:g} MU/min"
        )
    return arcs, tuple(reasons)


def _avoided(
    case: Case, targets: tuple[str, ...], span: Span, sectors: Sequence[Sector], asked: Asked
) -> tuple[tuple[tuple[float, float], ...], tuple[str, ...], bool]:
    """The sectors without beam, what the gate says of them, and whether partial arcs must become full."""
    if asked.avoid_deg is not None or not sectors:
        return asked.avoid_deg or (), (), False
    if asked.start_deg is not None:
        return (), (), False
    ways: list[tuple[Span, tuple[float, float]]] = [(span, FULL_DEG)]
    if span == "partial":
        ways = [(span, partial_span(case, targets))]
        if asked.span is None:
            ways.append(("full", FULL_DEG))
    said = "; ".join(cut_sentence(s) for s in sectors)
    left = 0.0
    for way, (start, stop) in ways:
        avoid, left = _outside(start, stop, sectors)
        if left >= _LEAST_LEFT_DEG:
            none = f"{said}; no beam comes from there" if avoid else ""
            return avoid, (none,) if none else (), way != span
    few = f"{said}; without these angles {left:.0f} degrees would be left, so beams come from there"
    return (), (few,), False


def cut_sentence(sector: Sector) -> str:
    """Where the CT ends and what that does to a beam."""
    return (
        f"the CT ends {sector.distance_mm:.0f} mm from the isocentre at {sector}, where the body goes on: "
        f"{100 * sector.share:.0f} % of the rays to the targets pass what it does not hold"
    )


def _outside(
    start_deg: float, stop_deg: float, sectors: Sequence[Sector]
) -> tuple[tuple[tuple[float, float], ...], float]:
    """The parts of an arc to leave out, clockwise in whole degrees, and how many degrees remain."""
    turn = (stop_deg - start_deg) % 360.0 or 360.0
    angles = start_deg + np.arange(int(turn) + 1)
    free = np.ones(len(angles), bool)
    for sector in sectors:
        reach = min(sector.last_deg - sector.first_deg, 360.0)
        free &= (angles - sector.first_deg) % 360.0 > (reach if reach >= 0 else reach + 360.0)
    for first, last in _runs(free):
        if last - first < _SHORT_DEG:
            free[first : last + 1] = False
    avoid = tuple((float(angles[a] % 360.0), float(angles[b] % 360.0)) for a, b in _runs(~free))
    return avoid, float(sum(last - first for first, last in _runs(free)))


def _runs(marked: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(int)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
