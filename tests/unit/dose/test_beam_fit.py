"""The fit of a beam to scans: reading, the formula that it shares with the engine, recovery, TOML."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from water import dose_along, field, line, tank

from vmat_diffusion.dose import beam_fit
from vmat_diffusion.dose.beam_fit import BeamFit, Scan, beam_toml, fit_beam, kernel_field, read_scans
from vmat_diffusion.errors import MachineError
from vmat_diffusion.machine import BeamModel, load_machine, parse_machine

MACHINE = load_machine("generic_6mv")
SHIPPED = Path(__file__).parents[3] / "src" / "vmat_diffusion" / "machines" / "generic_6mv.toml"
FACTORS = """X06,0,95,100,10,10,Gy/MU,
4,5,10,20,
4,0.9,0.9,0.9,0.9
5,0.9,0.92,0.9,0.9
10,0.9,0.9,1.0,0.9
20,0.9,0.9,0.9,1.05
"""


def fit_of(beam: BeamModel) -> BeamFit:
    return BeamFit(
        sigma_mm=np.array(beam.kernel_sigma_mm),
        weight=np.array(beam.kernel_weight),
        horn=np.array(beam.horn),
        softening_per_mm2=beam.softening_per_mm2,
        rms_percent=0.0,
    )


def points(side: float, x: np.ndarray, depth: float, kind: int = 1) -> Scan:
    full = [np.full(len(x), v) for v in (side, 1000.0)]
    return Scan(*full, x, np.zeros(len(x)), np.full(len(x), depth), np.ones(len(x)), np.full(len(x), kind))


def test_the_fit_s_formula_is_the_engine_s() -> None:
    """Dose per 100 MU on a profile: closed formula of the fit, voxels and nodes of the engine."""
    x = np.arange(-70.0, 71.0)
    water = tank(depth_mm=160.0, half_mm=120.0)
    for side, depth in ((40, 15.0), (100, 100.0)):
        plan = field(MACHINE, (-side / 2, side / 2, -side / 2, side / 2))
        engine = dose_along(MACHINE, plan, water, line((-70.0, depth, 0.0), 0, 141))
        formula = fit_of(MACHINE.require_beam()).dose(points(side, x, depth))
        assert np.abs(engine - formula).max() < 0.006 * formula.max()
        assert engine[70] == pytest.approx(formula[70], rel=5e-4)


def test_a_gaussian_s_square_field_is_one_in_the_middle_and_a_quarter_at_the_corner() -> None:
    scan = replace(points(100.0, np.array([0.0, 50.0, 50.0]), 0.0), y_mm=np.array([0.0, 0.0, 50.0]))
    assert np.allclose(kernel_field(scan, np.array([3.0]))[:, 0], [1.0, 0.5, 0.25], atol=1e-6)


def scans_csv(folder: Path, *, compressed: bool = True) -> tuple[Path, Path]:
    """A depth dose that falls by 0.5 % per mm and a triangular profile, for 10 x 10 and 5 x 5 cm."""
    rows = ["curve,field_mm,ssd_mm,type,axis,depth_mm,x_mm,y_mm,z_depth_mm,dose_rel"]
    for side in (50, 100):
        name = f"{side:03d}*{side:03d}"
        for depth in range(0, 351, 5):
            rows.append(f"PDD,{name},1000,OPD,Z,,0,0,{depth},{100 * np.exp(-0.005 * depth)}")
        for x in range(-100, 101, 4):
            rows.append(f"PRF,{name},1000,OPP,X,50,{x},0,50,{100 - abs(x)}")
        for r in range(-60, 61, 5):
            rows.append(f"DIA,{name},1000,OPP,XY,50,{r},{r},50,{100 - abs(r)}")
    file, factors = folder / ("s.csv.gz" if compressed else "s.csv"), folder / "of.txt"
    text = "\n".join(rows)
    file.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    factors.write_text(FACTORS)
    return file, factors


@pytest.mark.parametrize("compressed", [True, False])
def test_scans_become_absolute_doses(tmp_path: Path, compressed: bool) -> None:
    """The reference point is 1; other fields carry their output factor at 50 mm; profiles their axis dose."""
    scan = read_scans(*scans_csv(tmp_path, compressed=compressed))
    axis = (scan.side_mm == 100) & (scan.kind == 0)
    assert np.interp(15.0, scan.depth_mm[axis], scan.dose[axis]) == pytest.approx(1.0, rel=1e-3)
    at_50 = np.exp(-0.005 * 50) / np.exp(-0.005 * 15)
    small = (scan.side_mm == 50) & (scan.kind == 1)
    assert np.interp(0.0, scan.x_mm[small], scan.dose[small]) == pytest.approx(0.92 * at_50, rel=1e-3)
    assert np.interp(40.0, scan.x_mm[small], scan.dose[small]) == pytest.approx(0.6 * 0.92 * at_50, rel=1e-3)
    diagonal = (scan.side_mm == 100) & (scan.kind == 2)
    assert np.allclose(scan.x_mm[diagonal], scan.y_mm[diagonal])
    assert np.interp(30.0, scan.x_mm[diagonal], scan.dose[diagonal]) == pytest.approx(0.7 * at_50, rel=2e-3)


def test_scans_without_the_reference_field_are_refused(tmp_path: Path) -> None:
    file, factors = scans_csv(tmp_path, compressed=False)
    rows = file.read_text().splitlines()
    for left_out in ("PDD,100*100", "PDD,050*050"):
        file.write_text("\n".join(r for r in rows if not r.startswith(left_out)))
        with pytest.raises(MachineError, match=f"the {left_out[4:7].lstrip('0')}.* field"):
            read_scans(file, factors)


def test_a_beam_written_as_toml_is_read_back() -> None:
    head = SHIPPED.read_text(encoding="utf-8")
    text = head[: head.index("[beam]")] + beam_toml(MACHINE.require_beam(), "test")
    beam, found = MACHINE.require_beam(), parse_machine(text, "copy").require_beam()
    assert found.energy == beam.energy and found.reference_point == beam.reference_point
    for name in ("kernel_sigma_mm", "depth_mm", "kernel_weight", "horn_radius_mm", "horn"):
        assert np.allclose(getattr(found, name), getattr(beam, name), rtol=1e-4), name


@pytest.mark.slow
def test_a_known_beam_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans computed from a known beam with 0.2 % noise: dose within 0.5 % at other points."""
    truth = fit_of(MACHINE.require_beam())
    parts = []
    for side in (40, 100, 200):
        depth = np.concatenate([np.arange(0, 30, 2.0), np.arange(30, 300, 10.0)])
        zero = np.zeros_like(depth)
        parts.append(np.stack([zero + side, zero + 1000, zero, zero, depth, zero, zero], axis=1))
        for d in (15.0, 50.0, 100.0, 200.0):
            x = np.arange(-150.0, 151.0, 3.0)
            zero = np.zeros_like(x)
            parts.append(np.stack([zero + side, zero + 1000, x, zero, zero + d, zero, zero + 1], axis=1))
    scan = Scan(*np.concatenate(parts).T)
    noise = np.random.default_rng(0).normal(0, 0.002, len(scan.dose))
    monkeypatch.setattr(beam_fit, "minimize", lambda cost, start, **_: type("Found", (), {"x": start})())
    start = tuple(float(s) for s in truth.sigma_mm)
    found = fit_beam(replace(scan, dose=truth.dose(scan) * (1 + noise)), start, rounds=3)
    for side in (60.0, 150.0):
        for depth in (30.0, 150.0):
            other = points(side, np.arange(-30.0, 31.0, 5.0), depth)
            assert np.abs(found.dose(other) / truth.dose(other) - 1).max() < 0.01
    assert found.rms_percent < 0.5
