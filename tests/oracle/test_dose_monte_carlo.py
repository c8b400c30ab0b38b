"""Geometry and shape against EGSnrc doses of clinical apertures in a water cylinder.

The reference has a point source with its own spectrum, no head scatter and no detector, so that level,
depth dose and penumbra differ by design. One factor is fitted, and the narrowest kernel is narrowed to a
point source's (2.0 mm; measured profiles include focal spot and chamber). What remains is geometry.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pymedphys import gamma

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.dicom.read import read_plan
from vmat_diffusion.dose import PencilBeam
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Layer, Machine, load_machine
from vmat_diffusion.plan import Arc, Plan

POINT_SOURCE_SIGMA_MM = 2.0


def load(folder: Path, sigma_mm: float | None) -> tuple[NDArray, Case, Plan, Machine]:
    """Reference dose, the cylinder, the plan, and the generic beam behind the plan's own collimator."""
    if not (folder / "plan.dcm").is_file():
        pytest.skip(f"test data absent: reference_dose/{folder.name}")
    stored = np.load(folder / "dose.npz")
    edges = [stored[k] for k in ("x_mm", "y_mm", "z_mm")]
    spacing = tuple(float(e[1] - e[0]) for e in edges)
    origin = tuple(float(e[0] + e[1]) / 2 for e in edges)
    grid = Grid(stored["dose"].shape, spacing, origin)  # type: ignore[arg-type]
    water = stored["density_g_cm3"] > 0
    hu = np.where(water, 0.0, -1000.0).astype(np.float32)
    case = Case(folder.name, "", grid, hu, {"BODY": Structure("BODY", "body", water)})
    plan = read_plan(folder / "plan.dcm")
    generic = load_machine("generic_6mv")
    boundaries = plan.provenance["leaf_boundaries_mm"]["MLCX"]  # type: ignore[index]
    layers = (Layer("MLCX", tuple(float(b) for b in boundaries)),)
    mlc = replace(generic.mlc, layers=layers, transmission=0.0, gap_offset_mm=0.0)
    beam = generic.require_beam()
    if sigma_mm is not None:
        beam = replace(beam, kernel_sigma_mm=(sigma_mm, *beam.kernel_sigma_mm[1:]))
    return stored["dose"].astype(float), case, plan, replace(generic, mlc=mlc, beam=beam)


def passing_percent(
    reference: NDArray, case: Case, plan: Plan, machine: Machine, percent: float, mm: float
) -> float:
    """Gamma passing rate above 10 % of the maximum after one fitted factor, global normalisation."""
    dose = PencilBeam(machine)(plan, case, case.grid).gy.astype(float)
    high = reference > 0.1 * reference.max()
    dose *= (reference[high] @ dose[high]) / (dose[high] @ dose[high])
    axes = case.grid.axes_mm[::-1]
    found = gamma(
        axes,
        reference,
        axes,
        dose,
        percent,
        mm,
        lower_percent_dose_cutoff=10,
        interp_fraction=5,
        max_gamma=1.05,
    )
    judged = found[~np.isnan(found)]
    assert len(judged) > 1000
    return float(np.mean(judged <= 1) * 100)


def mirrored(arc: Arc) -> Arc:
    """Banks mistaken for one another: X1 read as X2."""
    return replace(arc, leaves_mm=np.sort(-arc.leaves_mm, axis=1))


MISTAKES = {
    "collimator sign": lambda arc: replace(arc, collimator_deg=-arc.collimator_deg),
    "gantry sign": lambda arc: replace(arc, gantry_deg=-arc.gantry_deg),
    "banks": mirrored,
    "leaf order": lambda arc: replace(arc, leaves_mm=arc.leaves_mm[:, :, ::-1]),
    "head to feet": lambda arc: replace(
        arc, gantry_deg=-arc.gantry_deg, collimator_deg=arc.collimator_deg + 180
    ),
}


def test_a_ragged_static_aperture_at_gantry_51_collimator_35(shared_data: Path) -> None:
    """Measured: 99.9 % at 3 %/3 mm, 99.1 % at 2 %/2 mm."""
    loaded = load(shared_data / "reference_dose" / "static_oblique_cylinder", POINT_SOURCE_SIGMA_MM)
    assert passing_percent(*loaded, 3, 3) > 99
    assert passing_percent(*loaded, 2, 2) > 97


def test_the_generic_penumbra_is_wider_than_that_of_a_point_source(shared_data: Path) -> None:
    """With the kernel fitted to scans, ragged 5 mm steps are smeared: 90 % at 3 %/3 mm, not 99.9 %."""
    loaded = load(shared_data / "reference_dose" / "static_oblique_cylinder", None)
    assert 85 < passing_percent(*loaded, 3, 3) < 95


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_each_mistake_in_the_static_field_is_seen(shared_data: Path, mistake: str) -> None:
    reference, case, plan, machine = load(
        shared_data / "reference_dose" / "static_oblique_cylinder", POINT_SOURCE_SIGMA_MM
    )
    wrong = replace(plan, arcs=tuple(MISTAKES[mistake](arc) for arc in plan.arcs))
    assert passing_percent(reference, case, wrong, machine, 3, 3) < 70


@pytest.mark.slow
def test_two_clinical_arcs(shared_data: Path) -> None:
    loaded = load(shared_data / "reference_dose" / "vmat_cshape_cylinder", POINT_SOURCE_SIGMA_MM)
    assert passing_percent(*loaded, 3, 3) > 98
    assert passing_percent(*loaded, 2, 2) > 95


@pytest.mark.slow
@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_each_mistake_in_the_arcs_is_seen(shared_data: Path, mistake: str) -> None:
    reference, case, plan, machine = load(
        shared_data / "reference_dose" / "vmat_cshape_cylinder", POINT_SOURCE_SIGMA_MM
    )
    wrong = replace(plan, arcs=tuple(MISTAKES[mistake](arc) for arc in plan.arcs))
    assert passing_percent(reference, case, wrong, machine, 3, 3) < 75
