"""Complexity metrics against a second implementation: the papers' formulae, straight from the plan files.

Nothing of the package computes here but the numbers that are compared: pydicom reads the file, and every
metric is written down as its paper has it, row by row.

McNiven, Med Phys 37:505 (2010), equations 1 and 2: leaf sequence and aperture area variability. Masi, Med
Phys 40:071718 (2013): MCS of arcs, over pairs of control points, and leaf travel. Younge, Med Phys 39:7160
(2012): edge metric with C1 = 0, C2 = 1. Crowe, Australas Phys Eng Sci Med 37:475 (2014): small aperture
score.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pydicom
import pytest
from synthetic_plans import as_study, two_arcs

from vmat_diffusion.case import Prescription
from vmat_diffusion.dicom import read_plan, write_unjudged_plan
from vmat_diffusion.evaluate.complexity import complexity, complexity_of
from vmat_diffusion.machine import load_machine
from vmat_diffusion.phantom import phantom

PLANS = {
    "eclipse_truebeam_tg119_cshape_2arc": "generic_hd120",
    "eclipse_ethos_duallayer_2arc": "generic_halcyon",
    "monaco_versahd_multiturn": "generic_agility",
    "pinnacle_versahd_2arc": "generic_agility",
    "brainlab_versahd": "generic_agility",
}
# A pair with less between its leaves is closed; the same as in the package, as a convention.
CLOSED_MM = 1.0
NO_JAW_MM = 1e4


@dataclass(frozen=True)
class Row:
    """What a leaf row leaves open: left, right, height in mm, and the gap of its leaves without the jaws."""

    left: float
    right: float
    height: float
    gap: float

    @property
    def open(self) -> bool:
        return self.right - self.left > CLOSED_MM and self.height > 0


@dataclass(frozen=True)
class Beam:
    """Rows of each control point, from the feet up; MU of each segment, gantry angles and all leaves."""

    rows: list[list[Row]]
    mu: list[float]
    gantry: list[float]
    leaves: list[dict[tuple[str, int, int], float]]
    inside: list[set[tuple[str, int]]]

    @property
    def total_mu(self) -> float:
        return sum(self.mu)


def read_beams(file: Path) -> tuple[list[Beam], float | None]:
    """The beams with MU, and the highest prescribed dose of a fraction in Gy."""
    data = pydicom.dcmread(file)
    group = data.FractionGroupSequence[0]
    mu = {
        int(item.ReferencedBeamNumber): float(item.BeamMeterset)
        for item in group.ReferencedBeamSequence
        if item.get("BeamMeterset")
    }
    doses = [
        float(item.TargetPrescriptionDose)
        for item in data.get("DoseReferenceSequence", [])
        if item.get("TargetPrescriptionDose")
    ]
    gy = max(doses) / int(group.NumberOfFractionsPlanned) if doses else None
    beams = [
        _beam(beam, mu[int(beam.BeamNumber)]) for beam in data.BeamSequence if int(beam.BeamNumber) in mu
    ]
    return beams, gy


def _beam(beam: pydicom.Dataset, meterset: float) -> Beam:
    edges = {
        str(device.RTBeamLimitingDeviceType): [float(x) for x in device.LeafPositionBoundaries]
        for device in beam.BeamLimitingDeviceSequence
        if str(device.RTBeamLimitingDeviceType).startswith("MLC")
    }
    cuts = sorted({x for boundaries in edges.values() for x in boundaries})
    positions: dict[str, list[float]] = {}
    angle, turning = 0.0, ""
    points, weights, gantry, leaves, inside = [], [], [], [], []
    for point in beam.ControlPointSequence:
        for device in point.get("BeamLimitingDevicePositionSequence", []):
            positions[str(device.RTBeamLimitingDeviceType)] = [float(x) for x in device.LeafJawPositions]
        if "GantryAngle" in point:
            new = float(point.GantryAngle)
            step = (new - angle) % 360.0
            if turning == "CC" and step > 0:
                step -= 360.0
            angle = new if not gantry else angle + step
        gantry.append(angle)
        turning = str(point.get("GantryRotationDirection", turning))
        weights.append(float(point.CumulativeMetersetWeight))
        jaws = {
            axis: next(
                (positions[n] for n in (f"ASYM{axis}", axis) if n in positions), [-NO_JAW_MM, NO_JAW_MM]
            )
            for axis in "XY"
        }
        points.append(list(_rows(cuts, edges, positions, jaws["X"], jaws["Y"])))
        leaves.append(
            {
                (device, bank, k): positions[device][bank * (len(boundaries) - 1) + k]
                for device, boundaries in edges.items()
                for bank in (0, 1)
                for k in range(len(boundaries) - 1)
            }
        )
        inside.append(
            {
                (device, k)
                for device, boundaries in edges.items()
                for k in range(len(boundaries) - 1)
                if boundaries[k + 1] > jaws["Y"][0] and boundaries[k] < jaws["Y"][1]
            }
        )
    share = meterset / weights[-1]
    mu = [share * (b - a) for a, b in itertools.pairwise(weights)]
    return Beam(points, mu, gantry, leaves, inside)


def _rows(
    cuts: list[float],
    edges: dict[str, list[float]],
    positions: dict[str, list[float]],
    x_jaws: list[float],
    y_jaws: list[float],
) -> Iterator[Row]:
    """The rows between two neighbouring boundaries of any layer, open where all layers and jaws are."""
    for low, high in itertools.pairwise(cuts):
        left, right = -NO_JAW_MM, NO_JAW_MM
        for device, boundaries in edges.items():
            pairs = len(boundaries) - 1
            for k in range(pairs):
                if boundaries[k] <= low and high <= boundaries[k + 1]:
                    left = max(left, positions[device][k])
                    right = min(right, positions[device][pairs + k])
        height = min(high, y_jaws[1]) - max(low, y_jaws[0])
        yield Row(max(left, x_jaws[0]), min(right, x_jaws[1]), max(height, 0.0), right - left)


def lsv(rows: list[Row]) -> float:
    """McNiven, equation 1, with the mean over the pairs of neighbours."""
    used = [row for row in rows if row.open]
    if not used:
        return 0.0
    product = 1.0
    for bank in ([row.left for row in used], [row.right for row in used]):
        largest = max(bank) - min(bank)
        if largest > 0:
            terms = [largest - abs(a - b) for a, b in itertools.pairwise(bank)]
            product *= sum(terms) / (len(terms) * largest)
    return product


def aav(beam: Beam, k: int) -> float:
    """McNiven, equation 2: the openings of a control point over the widest of the beam, row by row."""
    widest = 0.0
    for r in range(len(beam.rows[0])):
        seen = [rows[r] for rows in beam.rows if rows[r].open]
        if seen:
            widest += max(row.right for row in seen) - min(row.left for row in seen)
    return sum(row.right - row.left for row in beam.rows[k] if row.open) / widest if widest else 0.0


def mcs(beam: Beam) -> float:
    """Masi's MCS of an arc: products of means over both ends of a segment, weighted by its MU."""
    lsvs, aavs = [lsv(rows) for rows in beam.rows], [aav(beam, k) for k in range(len(beam.rows))]
    segments = zip(lsvs, lsvs[1:], aavs, aavs[1:], beam.mu, strict=False)
    return sum((l0 + l1) / 2 * (a0 + a1) / 2 * mu for l0, l1, a0, a1, mu in segments) / beam.total_mu


def area(rows: list[Row]) -> float:
    return sum((row.right - row.left) * row.height for row in rows if row.open)


def sides(rows: list[Row]) -> float:
    """Length of the sides of leaves, and of Y jaws, that bound the opening: Younge's y.

    On the border of two rows it is what one leaves open and the other not.
    """
    opened = [(row.left, row.right) if row.open else (0.0, 0.0) for row in rows]
    opened = [(0.0, 0.0), *opened, (0.0, 0.0)]
    total = 0.0
    for (a, b), (c, d) in itertools.pairwise(opened):
        total += (b - a) + (d - c) - 2 * max(0.0, min(b, d) - max(a, c))
    return total


def edge(rows: list[Row]) -> float:
    return sides(rows) / area(rows) if area(rows) > 0 else 0.0


def small(rows: list[Row], most_mm: float) -> float:
    """Crowe's score of one aperture: the share of open pairs that are no wider."""
    used = [row.right - row.left for row in rows if row.open]
    return sum(gap <= most_mm for gap in used) / len(used) if used else 0.0


def weights(beam: Beam) -> list[float]:
    """Half the MU on either side of each control point, over those of the beam."""
    sides_mu = zip([0.0, *beam.mu], [*beam.mu, 0.0], strict=True)
    return [(before + after) / 2 / beam.total_mu for before, after in sides_mu]


def mean_over_points(beam: Beam, values: list[float]) -> float:
    return sum(w * v for w, v in zip(weights(beam), values, strict=True))


def leaf_travel(beam: Beam) -> float:
    """Masi's LT: the travel of a leaf in the beam, mean over the leaves of pairs that open in the field."""
    used = {
        (device, k)
        for leaves, inside in zip(beam.leaves, beam.inside, strict=True)
        for device, k in inside
        if leaves[device, 1, k] - leaves[device, 0, k] > CLOSED_MM
    }
    travels = [
        sum(
            abs(b[device, bank, k] - a[device, bank, k])
            for a, b in zip(beam.leaves, beam.leaves[1:], strict=False)
        )
        for device, k in used
        for bank in (0, 1)
    ]
    return fmean(travels)


def leaf_motion(beam: Beam) -> float:
    """Travel per degree of the fastest leaf between the Y jaws, in any segment with MU."""
    fastest = 0.0
    for k, mu in enumerate(beam.mu):
        turn = abs(beam.gantry[k + 1] - beam.gantry[k])
        if mu > 0 and turn > 1e-6:
            for device, pair in beam.inside[k] | beam.inside[k + 1]:
                for bank in (0, 1):
                    key = (device, bank, pair)
                    fastest = max(fastest, abs(beam.leaves[k + 1][key] - beam.leaves[k][key]) / turn)
    return fastest


def gaps(beam: Beam) -> list[tuple[float, float]]:
    """Gap and MU of each pair that is open in the field while there are MU."""
    shares = weights(beam)
    return [
        (row.gap, share * beam.total_mu)
        for rows, share in zip(beam.rows, shares, strict=True)
        for row in rows
        if row.open and share > 0
    ]


def by_the_papers(beams: list[Beam], gy: float | None) -> dict[str, float | None]:
    """All metrics of a plan: means over beams by their MU, travel a mean over beams."""
    total = sum(beam.total_mu for beam in beams)

    def mean(of_beam: list[float]) -> float:
        return sum(beam.total_mu * v for beam, v in zip(beams, of_beam, strict=True)) / total

    def mean_of(value) -> float:  # type: ignore[no-untyped-def]
        return mean([mean_over_points(b, [value(rows) for rows in b.rows]) for b in beams])

    pairs = [pair for beam in beams for pair in gaps(beam)]
    turn = sum(abs(b - a) for beam in beams for a, b in zip(beam.gantry, beam.gantry[1:], strict=False))
    return {
        "mcs": mean([mcs(beam) for beam in beams]),
        "mean_area_cm2": mean_of(area) / 100,
        "edge_per_mm": mean_of(edge),
        "small_5mm": mean_of(lambda rows: small(rows, 5.0)),
        "small_10mm": mean_of(lambda rows: small(rows, 10.0)),
        "smallest_gap_mm": min(gap for gap, _ in pairs),
        "mean_gap_mm": sum(gap * mu for gap, mu in pairs) / sum(mu for _, mu in pairs),
        "leaf_travel_mm": fmean([leaf_travel(beam) for beam in beams]),
        "leaf_travel_mm_deg": sum(leaf_travel(beam) for beam in beams) / turn,
        "leaf_motion_mm_deg": max(leaf_motion(beam) for beam in beams),
        "mu_per_gy": total / gy if gy else None,
    }


def assert_same(file: Path, machine_name: str) -> None:
    machine = load_machine(machine_name)
    found = complexity_of(read_plan(file, machine), machine, None)
    assert found is not None
    for name, value in by_the_papers(*read_beams(file)).items():
        # Positions are decimal strings in the file and float64 here; nothing else may differ.
        assert getattr(found, name) == (None if value is None else pytest.approx(value, rel=1e-6)), name


@pytest.mark.parametrize(("name", "collimator"), PLANS.items())
def test_plans_of_five_systems(shared_data: Path, name: str, collimator: str) -> None:
    assert_same(shared_data / "rtplans" / f"{name}.dcm", collimator)


def test_a_plan_of_ours(tmp_path: Path) -> None:
    """Conformal arcs of the C-shape, made ragged by up to 1.5 mm, with some pairs closed."""
    machine = load_machine("generic_6mv")
    case = as_study(tmp_path, phantom("tg119_cshape"))
    rng = np.random.default_rng(3)
    plan = two_arcs(case, machine)
    arcs = []
    for arc in plan.arcs:
        leaves = arc.leaves_mm + rng.uniform(-1.5, 1.5, arc.leaves_mm.shape)
        middle = leaves.mean(axis=1)
        leaves[:, :, 28:31] = np.stack([middle - 0.3, middle + 0.3], axis=1)[:, :, 28:31]
        arcs.append(replace(arc, leaves_mm=leaves))
    plan = replace(plan, arcs=tuple(arcs))
    prescription = Prescription(plan.fractions, {case.targets[0].name: 2.0 * plan.fractions})
    file = tmp_path / "RP.dcm"
    write_unjudged_plan(file, plan, case, machine, prescription=prescription)
    assert_same(file, "generic_6mv")
    found = complexity(read_plan(file, machine), machine, 2.0)
    assert 0 < found.mcs < 1 and found.smallest_gap_mm is not None and found.smallest_gap_mm > CLOSED_MM
    assert found.mu_per_gy == pytest.approx(plan.total_mu / 2, rel=1e-4)
