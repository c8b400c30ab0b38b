"""A run folder to look at, made in a moment: a shaped dose, its noisy twin, two arcs, a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.dicom import read_case, write_case, write_dose
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import load_machine
from vmat_diffusion.origin import uid_code
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.workflow.planning.run_files import (
    CHECK_DOSE,
    DOSE_FILE,
    FLUENCE,
    RECORD,
    write_check_dose,
    write_fluence,
)

CHECKS = (
    ("gamma 3 %/3 mm", "pass", 99.1, 95.0, "%", "3 %/3 mm global; 100 % = 60.00 Gy"),
    ("dose of any region", "warning", 3.1, 4.0, "% of 100 %", "mean over 4 cm around x, y, z = 4, -6, 8 mm"),
    ("mean dose of PTV", "fail", 2.6, 2.0, "%", "61.6 Gy by the independent engine, 60.0 Gy planned"),
)


def shaped_case(
    shape: tuple[int, int, int] = (12, 40, 48), spacing_mm: tuple[float, ...] = (3.0, 3.0, 5.0)
) -> Case:
    """An oval head of water with bone, a target around a cord, and a target with a hole in it."""
    x, y, z = spacing_mm
    nz, ny, nx = shape
    grid = Grid(shape, (x, y, z), (-x * (nx - 1) / 2, -y * (ny - 1) / 2, -z * (nz - 1) / 2))
    ax, ay, az = grid.axes_mm
    half = (ax[-1], ay[-1], az[-1])
    u, v, w = ax / half[0], ay[:, None] / half[1], az[:, None, None] / half[2]

    def oval(
        cu: float, cv: float, ru: float, rv: float, cw: float = 0.0, rw: float = 9.0
    ) -> NDArray[np.bool_]:
        return ((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2 + ((w - cw) / rw) ** 2 <= 1

    masks = {
        "BODY": oval(0, 0, 0.8, 0.85),
        "PTV_60": oval(0, -0.1, 0.42, 0.4, 0.0, 0.7) & ~oval(0, 0.1, 0.16, 0.18),
        "SpinalCord": oval(0, 0.14, 0.09, 0.1),
        "Parotid_L": oval(0.55, -0.2, 0.12, 0.2, 0.2, 0.4),
        "Parotid_R": oval(-0.55, -0.2, 0.12, 0.2, 0.2, 0.4),
    }
    rng = np.random.default_rng(3)
    hu = np.where(masks["BODY"], rng.normal(20, 12, shape), -1000.0)
    hu[oval(0, 0.14, 0.2, 0.22) & ~oval(0, 0.14, 0.12, 0.14)] += 650
    hu[oval(0, -0.45, 0.12, 0.12)] = -990
    roles = {"BODY": "body", "PTV_60": "target"}
    structures = {n: Structure(n, roles.get(n, "organ"), m, n) for n, m in masks.items()}  # type: ignore[arg-type]
    return Case("shaped", "head_neck", grid, np.rint(hu), structures, Prescription(30, {"PTV_60": 60.0}))


def shaped_dose(case: Case, spacing_mm: float = 4.0, factor: float = 1.0) -> Dose:
    """60 Gy around the target, falling off, on a grid of its own that is shifted against the CT's."""
    low, high = case.grid.bounds_mm
    size = [max(2, int((b - a) / spacing_mm) - 1) for a, b in zip(low, high, strict=True)]
    grid = Grid((size[2], size[1], size[0]), (spacing_mm,) * 3, tuple(v + 0.7 * spacing_mm for v in low))  # type: ignore[arg-type]
    x, y, z = grid.axes_mm
    half = [h for h in high]
    r = np.sqrt(
        (x / half[0] / 0.5) ** 2
        + ((y[:, None] / half[1] + 0.1) / 0.48) ** 2
        + (z[:, None, None] / half[2] / 0.8) ** 2
    )
    gy = 62.0 / (1 + np.exp(6 * (r - 1.05))) + 1.5 * np.sin(x / 9) * np.cos(y[:, None] / 7) * np.exp(-r)
    return Dose(grid, (factor * np.maximum(gy, 0)).astype(np.float32), provenance={"engine": "made"})


def arcs(isocenter_mm: tuple[float, float, float] = (0.0, -3.0, 0.0)) -> Plan:
    """Two arcs of leaves that breathe, the second the other way round, with a couch angle of its own."""
    made = []
    for number, (start, stop, couch) in enumerate(((181.0, 271.0, 0.0), (270.0, 180.0, 8.0)), start=1):
        n = 31
        t = np.linspace(0, 1, n)
        leaves = np.zeros((n, 2, 60))
        leaves[:, 0], leaves[:, 1] = -0.3, 0.3
        wide = 22 + 6 * np.sin(6 * t)[:, None] + np.linspace(-5, 5, 12)
        leaves[:, 0, 24:36], leaves[:, 1, 24:36] = -wide, wide[:, ::-1]
        jaws = np.tile([-40.0, 40.0, -30.0, 30.0], (n, 1))
        mu = 6.0 + 4 * np.sin(9 * t[1:])
        made.append(Arc(np.linspace(start, stop, n), 15.0, couch, leaves, jaws, mu, f"A{number}", number))
    return Plan(tuple(made), isocenter_mm, 30, "generic_6mv")


def write_run(folder: Path, case_folder: Path, dose: Dose, check: Dose | None = None, **more: Any) -> Path:
    """The files of a planning run, its plan held back by the gate; `more` goes into the record."""
    case = read_case(case_folder)
    folder.mkdir(parents=True)
    plan, machine = arcs(), load_machine("generic_6mv")
    write_dose(folder / DOSE_FILE, dose, case, plan_file=None)
    if check is not None:
        write_check_dose(folder / CHECK_DOSE, check)
    write_fluence(folder / FLUENCE, plan, machine, {})
    (folder / RECORD).write_text(json.dumps({**record(case, plan), **more}))
    return folder


def record(case: Case, plan: Plan) -> Mapping[str, Any]:
    """What `run.json` holds of a run, as far as the page reads it."""
    goals = [
        {
            "goal": "D95% >= 57 Gy",
            "structure": "PTV_60",
            "value": 56.1,
            "limit": 57.0,
            "unit": "Gy",
            "status": "fail",
        },
        {
            "goal": "max <= 45 Gy",
            "structure": "SpinalCord",
            "value": 41.2,
            "limit": 45.0,
            "unit": "Gy",
            "status": "pass",
        },
    ]
    source = case.source
    return {
        "created": "2026-12-01T10:00:00+00:00",
        "inputs": {
            "patient_position": case.patient_position,
            "uid_hashes": {
                "series": uid_code(source.series_uid),
                "structure_set": uid_code(source.structure_set_uid),
                "frame_of_reference": uid_code(source.frame_of_reference_uid),
            },
        },
        "settings": {"machine": "generic_6mv"},
        "sheet": {"title": "Head, made for tests", "name": None},
        "site": "head_neck",
        "fractions": plan.fractions,
        "prescription_gy": {"PTV_60": 60.0},
        "mu": plan.total_mu,
        "arc_delivery_s": [60.0 for _ in plan.arcs],
        "dose": {"engine": "pencil_beam"},
        "check": {"engine": "monte_carlo"},
        "goals": [
            {**g, "missed": g["status"] == "fail", "excused": False, "group": None, "priority": 1}
            for g in goals
        ],
        "check_goals": [{**g, "value": g["value"] + 0.2} for g in goals],
        "groups": [],
        "delivery_goals": [],
        "complexity": {"mcs": 0.11, "mu_per_gy": 180.0},
        "verdict": {
            "passed": False,
            "outcome": "FAILED",
            "checks": [
                dict(zip(("name", "result", "value", "limit", "unit", "why"), check, strict=True))
                for check in CHECKS
            ],
        },
    }


def noisy(dose: Dose, share: float = 0.01, factor: float = 1.01) -> Dose:
    """The dose by another engine: a little higher, with noise of a known size."""
    std = (share * float(dose.gy.max()) * np.sqrt(dose.gy / dose.gy.max())).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(dose.gy.shape)
    return Dose(dose.grid, np.maximum(factor * dose.gy + std * noise, 0).astype(np.float32), std)


def made_run(root: Path, name: str = "run", case: Case | None = None) -> tuple[Path, Path]:
    """A whole run in `root`: its folder and that of its case, which is made where it is not there."""
    case = case or shaped_case()
    case_folder = root / "case"
    if not case_folder.is_dir():
        write_case(case_folder, case)
    dose = shaped_dose(case, factor=1.0 if name == "run" else 0.96)
    return write_run(root / name, case_folder, dose, noisy(dose)), case_folder
