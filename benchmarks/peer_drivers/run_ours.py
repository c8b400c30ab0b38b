"""Influence matrix, forward dose and gradient of this project; run by peers.py.

run_ours.py matrix PHANTOM.npz FIGURES.json
run_ours.py dose REPEATS PLAN.dcm CASE.npz DOSE.npy FIGURES.json
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from clock import report, timed

from vmat_diffusion import __version__
from vmat_diffusion.case import Case, Structure
from vmat_diffusion.dicom import read_plan
from vmat_diffusion.dose.delivery import Exposures, exposures, jaw_box
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.dose.pencil_beam.fluence import convolved_fluence, fluence_model
from vmat_diffusion.dose.pencil_beam.influence_matrix import InfluenceMatrix, influence_matrix
from vmat_diffusion.dose.pencil_beam.sampled import SampledDose, sampled_doses
from vmat_diffusion.dose.tissue import density_of
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.plan import Plan

MATRIX_MACHINE, BEAM, COLLIMATOR = "generic_6mv", "generic_6mv", "generic_hd120"
STEP_MM = 1.5  # of the fluence, as PencilBeam has it
PART_GB = 6.0  # of the sampled map held at a time
BYTES = 28  # of the sampled map for each point and exposure: two indices and five weights


def grid_of(shape: np.ndarray, spacing_mm: np.ndarray, origin_mm: np.ndarray) -> Grid:
    return Grid(tuple(map(int, shape)), tuple(map(float, spacing_mm)), tuple(map(float, origin_mm)))


def phantom_case(body: np.ndarray, spacing_mm: np.ndarray, origin_mm: np.ndarray, hu: np.ndarray) -> Case:
    """The phantom as a case."""
    grid = grid_of(body.shape, spacing_mm, origin_mm)
    return Case("phantom", "phantom", grid, hu, {"BODY": Structure("BODY", "body", body)})


def matrix(phantom: str, figures: str) -> None:
    """D and its transpose: all body voxels of the peer's dose grid, a box that holds all its beamlets."""
    with np.load(phantom) as at:
        case = phantom_case(at["body"], at["spacing_mm"], at["origin_mm"], at["hu"])
        grid = grid_of(at["dose_shape"], at["dose_spacing_mm"], at["dose_origin_mm"])
        (x1, y1), (x2, y2) = at["low_mm"], at["high_mm"]
        isocenter, gantry = tuple(map(float, at["isocenter_mm"])), at["gantry_deg"]
    points = grid.points_mm(np.flatnonzero(density_of(case, grid).g_cm3 > 0))
    machine = load_machine(MATRIX_MACHINE)
    box = (float(x1), float(x2), float(y1), float(y2))

    def build(angles: np.ndarray) -> InfluenceMatrix:
        n, zero = len(angles), np.zeros(len(angles))
        rows = len(machine.row_edges_mm()) - 1
        exposed = Exposures(
            angles, zero, zero, np.zeros((n, 2, 2, rows)), np.tile(box, (n, 2, 1)), np.ones(n)
        )
        density = density_of(case, grid)
        return influence_matrix(machine, density, points, exposed, box, isocenter_mm=isocenter, max_gb=100.0)

    warm, _ = timed(lambda: build(gantry[:1]))
    seconds, built = timed(lambda: build(gantry))
    report(
        figures,
        {
            "version": __version__,
            "beams": len(gantry),
            "seconds": seconds,
            "first_s": warm["wall_s"],
            "beamlets": built.matrix.shape[1],
            "voxels": built.matrix.shape[0],
            "voxels_reached": int(np.count_nonzero(np.diff(built.matrix.indptr))),
            "entries": built.matrix.nnz,
            "gb": built.gigabytes,
        },
    )


def dose(repeats: int, plan_file: str, case_file: str, dose_file: str, figures: str) -> None:
    """The whole engine call, and the gradient of the summed squared dose over all voxels of the body."""
    machine = replace(load_machine(COLLIMATOR), beam=load_machine(BEAM).require_beam())
    plan = read_plan(plan_file, machine)
    with np.load(case_file) as at:
        body = at["density"] > 0.5
        origin = np.asarray(plan.isocenter_mm) - at["isocenter_zyx_mm"][::-1]
        hu = np.where(body, 0, -1000).astype(np.int16)
        case = phantom_case(body, at["spacing_zyx_mm"][::-1], origin, hu)
    engine = PencilBeam(machine, STEP_MM)
    first, _ = timed(lambda: engine(plan, case, case.grid))
    once, found = timed(lambda: engine(plan, case, case.grid), repeats)
    np.save(dose_file, found.gy)

    report(
        figures,
        {
            "version": __version__,
            "torch": torch.__version__,
            "first_s": first["wall_s"],
            "forward": once,
            **gradients(repeats, machine, plan, case, found.gy),
        },
    )


def gradients(repeats: int, machine: Machine, plan: Plan, case: Case, gy: np.ndarray) -> dict[str, Any]:
    """Tabulation and gradient over all voxels of the body, in parts that fit into memory."""
    exposed = exposures(plan, machine)
    model = fluence_model(machine, jaw_box(exposed), STEP_MM)
    variables = [
        torch.tensor(values, dtype=torch.float32, requires_grad=True)
        for values in (exposed.leaves_mm[..., model.rows], exposed.jaws_mm, exposed.mu)
    ]
    inside = np.flatnonzero(case.body.mask)
    count = math.ceil(len(inside) * len(exposed.mu) * BYTES / (PART_GB * 1e9))
    density = density_of(case, case.grid)

    def tabulate(part: np.ndarray) -> SampledDose:
        points = case.grid.points_mm(part)
        return sampled_doses(machine, density, points, exposed, [model], isocenter_mm=plan.isocenter_mm)[0]

    def gradient(sampled: SampledDose) -> np.ndarray:
        for tensor in variables:
            tensor.grad = None
        at_points = sampled.dose(convolved_fluence(model, *variables))
        at_points.square().sum().backward()
        return at_points.detach().numpy()

    tabulation = dict.fromkeys(("wall_s", "cpu_s"), 0.0)
    both, differs = dict(tabulation), 0.0
    to_gy = machine.require_beam().gy_per_mu * plan.fractions
    gradient(tabulate(inside[:64]))  # compiles
    for part in np.array_split(inside, count):
        sampled = None  # gives the memory of the part before back
        spent, sampled = timed(partial(tabulate, part))
        tabulation = {key: tabulation[key] + spent[key] for key in spent}
        spent, at_points = timed(partial(gradient, sampled), repeats)
        both = {key: both[key] + spent[key] for key in spent}
        differs = max(differs, float(np.abs(at_points * to_gy - gy.ravel()[part]).max()))
    return {
        "exposures": len(exposed.mu),
        "body_voxels": len(inside),
        "parts": count,
        "tabulation": tabulation,
        "gradient": both,
        "sampled_differs_percent": 100 * differs / float(gy.max()),
    }


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "matrix":
        matrix(*rest)
    else:
        dose(int(rest[0]), *rest[1:])
