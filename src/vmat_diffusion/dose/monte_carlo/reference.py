"""Comparison with reference doses: a folder of cases, each with phantom, beam and a trusted dose.

A case folder holds `case.json` and `dose.npz` (dose and sigma in Gy cm2 per photon fluence, density,
medium, voxel edges in mm), and an RTPLAN where the beam is not static; the spectrum lies one level
up. What reads RTPLANs and what computes gamma is handed in, for neither belongs to a dose engine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from vmat_diffusion.case import Dose
from vmat_diffusion.dose.fluence import exposures
from vmat_diffusion.dose.monte_carlo.engine import Estimate, Phantom, simulate
from vmat_diffusion.dose.monte_carlo.materials import MEDIA
from vmat_diffusion.dose.monte_carlo.source import Openings, frames, plan_openings, sampled
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Grid, Point, beam_axes
from vmat_diffusion.machine import Layer, Machine, PhotonSource, load_machine
from vmat_diffusion.plan import Plan

BUILD_UP_MM = 15.0
_AXIS_HALF_WIDTH_MM = 6.0
_MEDIUM_NAMES = {"vacuum": "air", "lung (ICRU composition)": "lung"}

ReadPlan = Callable[[Path], Plan]
PassRate = Callable[[Dose, Dose, float, float], float]


@dataclass(frozen=True, eq=False)
class ReferenceCase:
    """One case: what to compute, and the reference dose with its sigma `[z, y, x]`."""

    name: str
    phantom: Phantom
    openings: Openings
    source: PhotonSource
    sad_mm: float
    isocenter_mm: Point
    gantry_deg: float | None
    dose: NDArray[np.float32]
    sigma: NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceResult:
    """Agreement of one case; differences in percent of the reference maximum, gamma in percent.

    `mean_diff_pct` and `max_diff_pct` are taken inside the 10 % isodose; `cax_diff_pct` is the largest
    on the central axis beyond build-up, and `noise_pct` what one sigma of both doses makes of that.
    """

    name: str
    mean_diff_pct: float
    max_diff_pct: float
    cax_diff_pct: float | None
    gamma_3_3: float | None
    gamma_2_2: float | None
    seconds: float
    noise_pct: float


def monte_carlo_engine(
    uncertainty: float = 0.01, max_seconds: float | None = None, seed: int = 0
) -> Callable[[ReferenceCase], Estimate]:
    """The Monte Carlo engine as `reference_check` takes it."""

    def engine(case: ReferenceCase) -> Estimate:
        source = sampled(case.openings, case.source, case.isocenter_mm, case.sad_mm)
        return simulate(case.phantom, source, uncertainty=uncertainty, max_seconds=max_seconds, seed=seed)

    return engine


def reference_check(
    folder: Path,
    engine: Callable[[ReferenceCase], Estimate],
    *,
    read_plan: ReadPlan | None = None,
    gamma: PassRate | None = None,
) -> list[ReferenceResult]:
    """Compute every case in a folder and compare.

    `read_plan(file)` reads an RTPLAN; without it, cases with a plan are left out. `gamma(reference,
    evaluated, dose_percent, distance_mm)` returns the pass rate in percent, global, 10 % threshold.
    Raises InputError where the folder holds no case.
    """
    folders = sorted(p.parent for p in Path(folder).glob("*/case.json"))
    if not folders:
        raise InputError(f"{folder} holds no case; one folder per case with case.json and dose.npz is needed")
    results = []
    for path in folders:
        if "plan" in json.loads((path / "case.json").read_text(encoding="utf-8")) and read_plan is None:
            continue
        case = read_reference_case(path, read_plan)
        started = time.perf_counter()
        estimate = engine(case)
        results.append(compare(case, estimate.gy, estimate.sigma_gy, time.perf_counter() - started, gamma))
    return results


def read_reference_case(path: Path, read_plan: ReadPlan | None = None) -> ReferenceCase:
    """One case folder. Raises InputError for a medium or a source that is not known."""
    text = json.loads((path / "case.json").read_text(encoding="utf-8"))
    with np.load(path / "dose.npz") as data:
        arrays = {name: data[name] for name in data.files}
    density, media = arrays["density_g_cm3"].astype(float), np.zeros(arrays["medium"].shape, np.uint8)
    for index, entry in text["media"].items():
        name = _MEDIUM_NAMES.get(entry["name"], entry["name"])
        if name not in MEDIA:
            raise InputError(
                f"case {path.name}: medium {entry['name']!r} is not known; known: {', '.join(MEDIA)}"
            )
        here = arrays["medium"] == int(index)
        media[here] = MEDIA.index(name)
        if entry["name"] == "vacuum":
            density[here] = 0.0
    density[~np.isin(arrays["medium"], [int(k) for k in text["media"]])] = 0.0
    source = _source(path, text["source"])
    x, y, z = (float(v) for v in text["isocenter_mm"])
    sad = float(text["source"].get("sad_mm", 1000.0))
    if "plan" in text:
        if read_plan is None:
            raise InputError(f"case {path.name} has a plan, but nothing to read it with was given")
        openings, gantry = _of_plan(read_plan(path / text["plan"])), None
    else:
        openings = _of_beams(text["beams"])
        gantry = float(text["beams"][0]["gantry_deg"]) if len(text["beams"]) == 1 else None
    phantom = Phantom(arrays["x_mm"], arrays["y_mm"], arrays["z_mm"], density, media)
    return ReferenceCase(
        path.name,
        phantom,
        openings,
        source,
        sad,
        (x, y, z),
        gantry,
        arrays["dose"],
        arrays["sigma"],
    )


def _source(path: Path, entry: Mapping[str, object]) -> PhotonSource:
    """The `point_source` with the case's own spectrum and angular distribution."""
    name = str(entry["spectrum"])
    file = next((f for f in (path / name, path.parent / name) if f.is_file()), None)
    if file is None:
        raise InputError(f"case {path.name}: spectrum {name} is neither in the case nor one level up")
    table = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)
    return replace(
        load_machine("point_source").require_source(),
        angular=str(entry["angular"]),
        spectrum_low_mev=0.0,
        spectrum_upper_mev=tuple(float(v) for v in table[:, 0]),
        spectrum_number=tuple(float(v) for v in table[:, 1]),
    )


def _of_beams(beams: list[dict]) -> Openings:
    """Static rectangles; every beam's weight is its fluence."""
    boxes, fluence, frame = [], [], []
    for k, beam in enumerate(beams):
        for x1, x2, y1, y2 in beam["open_mm"]:
            boxes.append([x1, x2, x1, x2, y1, y2])
            fluence.append(float(beam["weight"]))
            frame.append(k)
    gantry, collimator, couch = (
        np.array([float(b[k]) for b in beams]) for k in ("gantry_deg", "collimator_deg", "couch_deg")
    )
    axes = frames(gantry, collimator, couch, "HFS")
    return Openings(np.array(boxes, float), np.array(fluence), np.array(frame), axes)


def _of_plan(plan: Plan) -> Openings:
    """A plan's openings at their nominal edges, per unit of the whole meterset."""
    machine = _ideal_machine(plan)
    openings = plan_openings(
        exposures(plan, machine, max_step_deg=0.5, max_travel_mm=5.0), machine, plan.patient_position
    )
    return replace(openings, fluence=openings.fluence / plan.total_mu)


def _ideal_machine(plan: Plan) -> Machine:
    """`point_source` with the leaf boundaries of the plan."""
    machine = load_machine("point_source")
    boundaries = plan.provenance.get("leaf_boundaries_mm")
    if not isinstance(boundaries, Mapping) or not boundaries:
        return machine
    layers = tuple(Layer(str(k), tuple(float(v) for v in b)) for k, b in boundaries.items())
    return replace(machine, mlc=replace(machine.mlc, layers=layers))


def compare(
    case: ReferenceCase, gy: NDArray, sigma_gy: NDArray, seconds: float, gamma: PassRate | None = None
) -> ReferenceResult:
    """Differences and gamma of a dose against a case's reference."""
    top = float(np.sort(case.dose, axis=None)[-20:].mean())
    inside = (case.dose > 0.1 * top) & (case.phantom.density_g_cm3 > 0)
    difference = 100 * (gy - case.dose) / top
    both = 100 * np.hypot(sigma_gy, case.sigma) / top
    depth, axis, axis_sigma = central_axis(case, difference, both)
    beyond = depth > BUILD_UP_MM
    cax = float(np.abs(axis[beyond]).max()) if beyond.any() else None
    noise = float(axis_sigma[beyond].mean()) if beyond.any() else float(both[inside].mean())
    rates: list[float | None] = [None, None]
    if gamma is not None:
        reference, evaluated = (_even(case, d, s) for d, s in ((case.dose, case.sigma), (gy, sigma_gy)))
        rates = [float(gamma(reference, evaluated, 3.0, 3.0)), float(gamma(reference, evaluated, 2.0, 2.0))]
    return ReferenceResult(
        case.name, float(difference[inside].mean()), float(np.abs(difference[inside]).max()), cax,
        rates[0], rates[1], seconds, noise,
    )  # fmt: skip


def central_axis(case: ReferenceCase, values: NDArray, sigma: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Depth in mm along the beam axis, the mean of values over a square around it, and its sigma.

    The square is 12 mm wide; only for a single beam along a grid axis. Empty where there is none.
    """
    edges = (case.phantom.x_mm, case.phantom.y_mm, case.phantom.z_mm)
    if case.gantry_deg is None:
        return np.empty(0), np.empty(0), np.empty(0)
    direction = -beam_axes(case.gantry_deg).to_source
    along = int(np.argmax(np.abs(direction)))
    if abs(direction[along]) < 1 - 1e-6:
        return np.empty(0), np.empty(0), np.empty(0)
    weight = np.ones(values.shape)
    for k in range(3):
        if k == along:
            continue
        middle = (edges[k][1:] + edges[k][:-1]) / 2
        near = np.abs(middle - case.isocenter_mm[k]) < _AXIS_HALF_WIDTH_MM
        shape = [1, 1, 1]
        shape[2 - k] = -1
        weight = weight * (np.diff(edges[k]) * near).reshape(shape)
    other = tuple(a for a in range(3) if a != 2 - along)
    share = weight / weight.sum(axis=other, keepdims=True)
    middle = (edges[along][1:] + edges[along][:-1]) / 2
    depth = middle - edges[along][0] if direction[along] > 0 else edges[along][-1] - middle
    return depth, (values * share).sum(axis=other), np.sqrt(((sigma * share) ** 2).sum(axis=other))


def _even(case: ReferenceCase, dose: NDArray, sigma: NDArray) -> Dose:
    """A dose on an even grid of the smallest voxel size, interpolated where the voxels are uneven."""
    edges = (case.phantom.x_mm, case.phantom.y_mm, case.phantom.z_mm)
    middle = [(e[1:] + e[:-1]) / 2 for e in edges]
    if all(np.ptp(np.diff(e)) < 1e-3 for e in edges):
        steps = tuple(float(np.diff(e).mean()) for e in edges)
        return Dose(Grid(dose.shape, steps, tuple(float(m[0]) for m in middle)), dose, std_gy=sigma)  # type: ignore[arg-type]
    step = [max(2.0, float(np.diff(e).min())) for e in edges]
    counts = [int(np.floor((m[-1] - m[0]) / s + 1e-6)) + 1 for m, s in zip(middle, step, strict=True)]
    grid = Grid(tuple(counts[::-1]), tuple(step), tuple(float(m[0]) for m in middle))  # type: ignore[arg-type]
    x, y, z = grid.axes_mm
    at = np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1)
    out = []
    for values in (dose, sigma):
        interpolate = RegularGridInterpolator(middle[::-1], values, bounds_error=False, fill_value=None)
        out.append(interpolate(at).astype(np.float32))
    return Dose(grid, out[0], std_gy=out[1])
