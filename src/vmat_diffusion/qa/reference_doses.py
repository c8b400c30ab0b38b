"""Comparison with reference doses: a folder of cases, each with phantom, beam and a trusted dose.

A case folder holds `case.json` and `dose.npz` (dose and sigma in Gy cm2 per photon fluence, density,
medium, voxel edges in mm), and an RTPLAN where the beam is not static; the spectrum lies one level
up. The caller hands in a reader of RTPLANs and a gamma, which are no part of a dose engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from vmat_diffusion.case import Dose
from vmat_diffusion.dose.collimator import plan_layers
from vmat_diffusion.dose.delivery import exposures
from vmat_diffusion.dose.monte_carlo.engine import Phantom, simulate
from vmat_diffusion.dose.monte_carlo.source import photon_source, plan_openings
from vmat_diffusion.dose.pencil_beam import point_dose
from vmat_diffusion.dose.tissue import MEDIA, Density
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import parse_json, read_json
from vmat_diffusion.geometry import Grid, Point, beam_axes
from vmat_diffusion.machine import BeamModel, Machine, load_machine
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.progress import Progress, under_name

BUILD_UP_MM = 15.0
_AXIS_HALF_WIDTH_MM = 6.0
_MEDIUM_NAMES = {"vacuum": "air", "lung (ICRU composition)": "lung"}

ReadPlan = Callable[[Path], Plan]
PassRate = Callable[[Dose, Dose, float, float], float]
_EVEN_MM = 2.5


@dataclass(frozen=True, eq=False)
class ReferenceCase:
    """One case: what to compute, and the reference dose with its sigma `[z, y, x]`.

    The plan's MU times `fluence_per_mu` are photons per cm2 at the isocentre plane; `gantry_deg` is that of a
    single static beam.
    """

    name: str
    phantom: Phantom
    machine: Machine
    plan: Plan
    fluence_per_mu: float
    gantry_deg: float | None
    dose: NDArray[np.float32]
    sigma: NDArray[np.float32]


# Dose and sigma `[z, y, x]` in the unit of the reference. Reference cases have uneven voxels, which no `Grid`
# holds, so that what computes them is no `DoseEngine`; both functions below end in the engine's own code.
Doses = tuple[NDArray[np.float32], NDArray[np.float32]]
DoseOfCase = Callable[[ReferenceCase, Progress | None], Doses]


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
) -> DoseOfCase:
    """The Monte Carlo engine as `reference_check` takes it."""

    def engine(case: ReferenceCase, progress: Progress | None = None) -> Doses:
        exposed = exposures(case.plan, case.machine, max_step_deg=0.5, max_travel_mm=5.0)
        openings = plan_openings(exposed, case.machine, case.plan.patient_position)
        source = photon_source(
            openings, case.machine.require_beam(), case.plan.isocenter_mm, case.machine.sad_mm
        )
        run = simulate(
            case.phantom, source, uncertainty=uncertainty, max_seconds=max_seconds, seed=seed,
            progress=progress,
        )  # fmt: skip
        scale = np.float32(case.fluence_per_mu)
        return run.gy * scale, run.sigma_gy * scale

    return engine


def pencil_beam_engine(step_mm: float = 1.5) -> DoseOfCase:
    """The pencil beam as `reference_check` takes it; its sigma is zero."""

    def engine(case: ReferenceCase, progress: Progress | None = None) -> Doses:
        phantom = case.phantom
        middle = [(e[1:] + e[:-1]) / 2 for e in (phantom.x_mm, phantom.y_mm, phantom.z_mm)]
        inside = np.flatnonzero(phantom.density_g_cm3.ravel() > 0)
        z, y, x = np.unravel_index(inside, phantom.density_g_cm3.shape)
        at_voxels = point_dose(
            case.machine,
            exposures(case.plan, case.machine),
            even_density(phantom),
            np.stack([middle[0][x], middle[1][y], middle[2][z]], axis=1),
            case.plan.isocenter_mm,
            medium=phantom.medium.ravel()[inside],
            patient_position=case.plan.patient_position,
            step_mm=step_mm,
            progress=progress,
        )
        gy = np.zeros(phantom.density_g_cm3.shape, np.float32)
        gy.ravel()[inside] = at_voxels * np.float32(case.fluence_per_mu)
        return gy, np.zeros_like(gy)

    return engine


def even_density(phantom: Phantom) -> Density:
    """Density on an even grid over a phantom; mass is kept where voxels are cut or joined."""
    values = phantom.density_g_cm3
    origin, spacing = [], []
    for axis, edges in ((2, phantom.x_mm), (1, phantom.y_mm), (0, phantom.z_mm)):
        wide = np.diff(edges)
        even = np.ptp(wide) < 1e-3
        step = float(wide.mean()) if even else max(float(wide.min()), _EVEN_MM)
        count = len(wide) if even else int(np.ceil((edges[-1] - edges[0]) / step - 1e-6))
        fine = edges[0] + step * np.arange(count + 1)
        overlap = np.minimum(fine[1:, None], edges[1:]) - np.maximum(fine[:-1, None], edges[:-1])
        values = np.moveaxis(np.tensordot(np.maximum(overlap, 0) / step, values, (1, axis)), 0, axis)
        origin.append(float(fine[0] + step / 2))
        spacing.append(step)
    grid = Grid(values.shape, tuple(spacing), tuple(origin))  # type: ignore[arg-type]
    return Density(grid, np.ascontiguousarray(values, np.float32))


def reference_check(
    folder: Path,
    dose_of: DoseOfCase,
    *,
    read_plan: ReadPlan | None = None,
    gamma: PassRate | None = None,
    progress: Progress | None = None,
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
        if read_plan is None and "plan" in (read_json(path / "case.json") or ()):  # type: ignore[operator]
            continue
        case = read_reference_case(path, read_plan)
        started = time.perf_counter()
        under_case = None if progress is None else under_name(progress, case.name)
        gy, sigma = dose_of(case, under_case)
        results.append(compare(case, gy, sigma, time.perf_counter() - started, gamma))
    return results


def read_reference_case(path: Path, read_plan: ReadPlan | None = None) -> ReferenceCase:
    """One case folder. Raises InputError for files that hold no case, and for an unknown medium or source."""
    try:
        return _read_reference_case(path, read_plan)
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile) as fault:
        raise InputError(
            f"case {path.name} is no readable reference case ({type(fault).__name__}: {fault}); restore its "
            "case.json, dose.npz and spectrum"
        ) from None


def _read_reference_case(path: Path, read_plan: ReadPlan | None) -> ReferenceCase:
    text = parse_json((path / "case.json").read_text(encoding="utf-8"))
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
    isocenter: Point = tuple(float(v) for v in text["isocenter_mm"])  # type: ignore[assignment]
    machine = replace(load_machine("point_source"), beam=_beam(path, text["source"]))
    gantry = None
    if "plan" in text:
        if read_plan is None:
            raise InputError(f"case {path.name} has a plan, but nothing to read it with was given")
        plan = read_plan(path / text["plan"])
        machine = replace(machine, mlc=replace(machine.mlc, layers=plan_layers(plan) or machine.mlc.layers))
        per_mu = 1.0 / plan.total_mu
        plan = replace(plan, isocenter_mm=isocenter)
    else:
        plan, per_mu = _of_beams(text["beams"], isocenter, machine), 1.0
        if len(text["beams"]) == 1:
            gantry = float(text["beams"][0]["gantry_deg"])
    phantom = Phantom(arrays["x_mm"], arrays["y_mm"], arrays["z_mm"], density, media)
    return ReferenceCase(
        path.name, phantom, machine, plan, per_mu, gantry, arrays["dose"], arrays["sigma"]
    )  # fmt: skip


def _beam(path: Path, entry: Mapping[str, object]) -> BeamModel:
    """The beam of `point_source` with the case's own spectrum and angular distribution."""
    name = str(entry["spectrum"])
    file = next((f for f in (path / name, path.parent / name) if f.is_file()), None)
    if file is None:
        raise InputError(f"case {path.name}: spectrum {name} is neither in the case nor one level up")
    table = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)
    return replace(
        load_machine("point_source").require_beam(),
        angular=str(entry["angular"]),
        sad_mm=float(str(entry.get("sad_mm", 1000.0))),
        spectrum_low_mev=0.0,
        spectrum_upper_mev=tuple(float(v) for v in table[:, 0]),
        spectrum_number=tuple(float(v) for v in table[:, 1]),
    )


def _of_beams(beams: list[dict], isocenter_mm: Point, machine: Machine) -> Plan:
    """Static rectangles, each as a field that the jaws make; MU are the beam's weight, its fluence."""
    arcs: list[Arc] = []
    for beam in beams:
        for number, box in enumerate(beam["open_mm"], len(arcs) + 1):
            leaves = np.zeros((2, 2, machine.mlc.pairs))
            leaves[:, 0], leaves[:, 1] = box[0] - 100.0, box[1] + 100.0
            arcs.append(
                Arc(
                    gantry_deg=np.full(2, float(beam["gantry_deg"])),
                    collimator_deg=float(beam["collimator_deg"]),
                    couch_deg=float(beam["couch_deg"]),
                    leaves_mm=leaves,
                    jaws_mm=np.tile(np.array(box, float), (2, 1)),
                    mu=np.array([float(beam["weight"])]),
                    number=number,
                )
            )
    return Plan(tuple(arcs), isocenter_mm, 1, machine.name)


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
        near = np.abs(middle - case.plan.isocenter_mm[k]) < _AXIS_HALF_WIDTH_MM
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
