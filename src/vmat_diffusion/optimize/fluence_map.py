"""Fluence maps: the ideal fluence of each arc sector, a convex problem before any leaf is considered."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize
from torch import Tensor

from vmat_diffusion.dose.pencil_beam.field_dose import interval_shares
from vmat_diffusion.dose.pencil_beam.fluence import FluenceModel, row_shares
from vmat_diffusion.dose.pencil_beam.sampled import SampledDose
from vmat_diffusion.geometry import BeamAxes, Point, beam_axes, project
from vmat_diffusion.machine import Limits
from vmat_diffusion.optimize.arcs import ArcFrame
from vmat_diffusion.optimize.deliverable_set import Apertures, ControlPoints, DeliveryRates
from vmat_diffusion.optimize.mu_price import MuPrice
from vmat_diffusion.optimize.objectives import Objective
from vmat_diffusion.optimize.sequence import Sector, sweep_arc
from vmat_diffusion.progress import Progress, silent

# Width of a bixel along the leaves' travel.
_COLUMN_MM = 5.0
# On the mean rise of fluence along the leaves, in units of a uniform field: small beside any missed goal.
_RISE_PENALTY = 1e-3
# Width of the smooth maximum over the rows of a map, as a share of the row that rises most.
_SMOOTH_MAXIMUM = 0.05
# The weights of the goals change between rounds, in each of which L-BFGS-B begins anew.
_ROUNDS = 6
# No bixel gives more than this many times what a uniform field would: sweeps have little time for peaks.
HIGHEST_FOR_SWEEPS = 3.0
# Bixels up to this distance outside the projected targets are used, as jaws and penumbra are.
_FIELD_MARGIN_MM = 7.0
# Cells of the raster on which the projection is drawn, and the frame of empty ones around it.
_CELL_MM, _BORDER_MM = 2.5, 20


@dataclass(frozen=True, eq=False)
class FluenceMaps:
    """Fluence in MU of each map: `mu[maps, leaf rows, columns]`, columns between `column_edges_mm`."""

    mu: NDArray[np.float64]
    column_edges_mm: NDArray[np.float64]


def columns_over_jaws(model: FluenceModel) -> NDArray[np.float64]:
    """Edges in mm of 5 mm columns that cover the jaws."""
    margin = 2 * model.u.step_mm
    inner = model.u.position_mm[np.abs(np.diff(model.u.position_mm, append=np.inf)) < model.u.step_mm * 1.01]
    low, high = inner[0] + margin, inner[-1] + model.u.step_mm - margin
    return low + _COLUMN_MM * np.arange(int(np.ceil((high - low) / _COLUMN_MM - 1e-6)) + 1)


def bixels_over_targets(
    targets_mm: NDArray,
    axes: BeamAxes,
    *,
    isocenter_mm: Point,
    sad_mm: float,
    row_edges_mm: NDArray,
    column_edges_mm: NDArray,
) -> NDArray[np.bool_]:
    """Which bixels lie within 7 mm of the targets as the source sees them, shape (leaf rows, columns).

    `targets_mm[n, 3]` are points of the targets in patient coordinates.
    """
    uv = project(targets_mm, axes, isocenter_mm, sad_mm)
    v0, u0 = row_edges_mm[0] - _BORDER_MM, column_edges_mm[0] - _BORDER_MM
    ends = (row_edges_mm[-1] + _BORDER_MM - v0, column_edges_mm[-1] + _BORDER_MM - u0)
    shape = (int(ends[0] / _CELL_MM) + 1, int(ends[1] / _CELL_MM) + 1)
    index = np.stack([(uv[:, 1] - v0) / _CELL_MM, (uv[:, 0] - u0) / _CELL_MM]).astype(int)
    ok = (index >= 0).all(axis=0) & (index[0] < shape[0]) & (index[1] < shape[1])
    raster = np.zeros(shape, bool)
    raster[index[0, ok], index[1, ok]] = True
    raster = ndimage.binary_closing(raster, iterations=2)
    near = ndimage.distance_transform_edt(~raster, sampling=_CELL_MM) <= _FIELD_MARGIN_MM
    vv = ((row_edges_mm[1:] + row_edges_mm[:-1]) / 2 - v0) / _CELL_MM
    uu = ((column_edges_mm[1:] + column_edges_mm[:-1]) / 2 - u0) / _CELL_MM
    return near[np.ix_(np.round(vv).astype(int), np.round(uu).astype(int))]


@dataclass(frozen=True, eq=False)
class FluenceProblem:
    """What the fluence maps minimise.

    `y_jaws_mm[maps, 2]`; `open_bixels[maps, leaf rows, columns]` says which bixels exist;
    `relative_per_mu` converts MU times `gy_per_mu` to relative dose. `crossing[maps, leaf rows]` is the share
    of a sector's time in which leaves cross the row, and cannot modulate. Fluence
    that is `free` has no price, no penalty on its rise and no highest bixel: no leaves deliver it.
    """

    objective: Objective
    sampled: SampledDose
    model: FluenceModel
    y_jaws_mm: NDArray
    open_bixels: NDArray
    relative_per_mu: float
    mu_price: MuPrice
    crossing: NDArray
    free: bool = False

    @property
    def highest(self) -> float | None:
        """The most that a bixel may give, in units of `uniform_mu`; None for no limit."""
        return None if self.free else HIGHEST_FOR_SWEEPS

    @cached_property
    def _shares(self) -> tuple[Tensor, Tensor]:
        y1, y2 = (torch.as_tensor(self.y_jaws_mm[:, side]).float() for side in (0, 1))
        edges = columns_over_jaws(self.model)
        columns = interval_shares(self.model.u.position_mm, edges, self.model.sigma_mm)
        return row_shares(self.model, y1, y2), columns

    def dose(self, mu: Tensor) -> Tensor:
        """Relative dose at the objective's points of maps `mu[maps, leaf rows, columns]`."""
        return self.sampled.dose(_convolved(mu, *self._shares)) * self.relative_per_mu

    @cached_property
    def uniform_mu(self) -> float:
        """MU of every open bixel with which the targets get their prescription in the mean."""
        with torch.no_grad():
            dose = self.dose(torch.as_tensor(self.open_bixels).float())
            regions = [self.objective.regions[t] for t in self.objective.target_gy]
            level = torch.cat([dose[region.points] for region in regions]).mean()
        return 1.0 / float(level.clamp_min(1e-9))

    def maps(self, x: NDArray) -> Tensor:
        """The maps in MU, from the fluence of the open bixels in units of `uniform_mu`."""
        full = np.zeros(self.open_bixels.size, np.float32)
        full[np.flatnonzero(self.open_bixels.ravel())] = x
        return torch.from_numpy(full.reshape(self.open_bixels.shape) * np.float32(self.uniform_mu))

    def _mu_of_sweeps(self, step: Tensor) -> Tensor:
        """MU that sweeping leaves need, smooth: the row of each map that rises most decides.

        `step[maps, leaf rows, columns]` is the rise from column to column in units of `uniform_mu`.
        """
        per_row = step.clamp_min(0).sum(2) / torch.as_tensor(1 - self.crossing).float()
        blur = _SMOOTH_MAXIMUM * per_row.detach().max().clamp_min(1e-6)
        return blur * torch.logsumexp(per_row / blur, dim=1).sum() * self.uniform_mu

    def cost(self, x: NDArray, objective: Objective) -> tuple[float, NDArray]:
        """Objective and penalty on the rise of fluence, which sweeping leaves pay for in MU; the gradient."""
        mu = self.maps(x).requires_grad_(True)
        dose = self.dose(mu)
        value = objective(dose)
        if not self.free:
            value = value + self._price(mu, dose, objective)
        value.backward()
        assert mu.grad is not None
        gradient = mu.grad.numpy().ravel()[np.flatnonzero(self.open_bixels.ravel())]
        return value.item(), gradient.astype(np.float64) * self.uniform_mu

    def _price(self, mu: Tensor, dose: Tensor, objective: Objective) -> Tensor:
        """What sweeping leaves pay for maps: the rise of fluence, and MU, with a limit or without one."""
        step = torch.diff(mu, dim=2, prepend=mu[..., :1] * 0) / self.uniform_mu
        # The magnitude of the step, rounded off at 0.
        rise = (step.square() + 0.01).sqrt() - 0.1
        price = _RISE_PENALTY * rise.sum() / len(self.open_bixels)
        return price + self.mu_price(self._mu_of_sweeps(step), objective.highest_level(dose))


def optimize_fluence(
    problem: FluenceProblem,
    *,
    iterations: int = 160,
    stage: str = "fluence maps",
    progress: Progress = silent,
) -> tuple[FluenceMaps, Objective]:
    """Fluence maps that minimise the objective, and the objective as it was adapted on the way.

    L-BFGS-B with fluence at least 0.
    """
    objective = problem.objective
    evaluations = itertools.count(1)

    def cost(x: NDArray, objective: Objective) -> tuple[float, NDArray]:
        value, gradient = problem.cost(x, objective)
        done = next(evaluations)
        if done % 10 == 0:
            progress(stage, min(done / iterations, 1.0), f"{stage}, objective {value:.4f}")
        return value, gradient

    x = np.ones(np.count_nonzero(problem.open_bixels))
    for _ in range(_ROUNDS):
        x = minimize(
            cost, x, args=(objective,), jac=True, method="L-BFGS-B", bounds=[(0, problem.highest)] * len(x),
            options={"maxfun": iterations // _ROUNDS, "maxiter": iterations, "maxcor": 12},
        ).x  # fmt: skip
        with torch.no_grad():
            objective, _ = objective.adapt(problem.dose(problem.maps(x)).numpy())
    return FluenceMaps(problem.maps(x).double().numpy(), columns_over_jaws(problem.model)), objective


def _convolved(mu: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Convolved fluence of maps: (maps, v, u, kernels)."""
    across = torch.einsum("src,kcu->skru", mu, columns)
    return torch.matmul(rows, across).permute(0, 2, 3, 1).contiguous()


# Leaves can cross 170 mm in the time of such a sector, which is wider than most targets.
SECTOR_DEG = 45.0


@dataclass(frozen=True, eq=False)
class Sectors:
    """All sectors of all arcs, in the order of the fluence maps."""

    frames: tuple[ArcFrame, ...]
    each: tuple[Sector, ...]

    @property
    def arc(self) -> NDArray[np.intp]:
        """The arc of each sector, from 0."""
        return np.array([s.arc for s in self.each])

    @property
    def ends_deg(self) -> NDArray[np.float64]:
        """Unwrapped gantry angle `[sectors, 2]` at the start and the stop of each."""
        return np.array([self.frames[s.arc].gantry_deg[[s.first, s.last]] for s in self.each])

    @property
    def jaws_mm(self) -> NDArray[np.float64]:
        """X1, X2, Y1, Y2 of each sector."""
        return np.array([self.frames[s.arc].jaws_mm for s in self.each])

    @property
    def middles(self) -> ControlPoints:
        """The middle of every sector as a control point of its own."""
        arc, middle = self.arc, self.ends_deg.mean(axis=1)
        index = np.arange(len(arc))
        width = np.ones(len(arc))
        return ControlPoints(self.frames, middle, self.jaws_mm, (), index, index, middle, width, arc)


def cut_into_sectors(frames: tuple[ArcFrame, ...]) -> Sectors:
    """Sectors of about 45 degrees that begin and end at control points."""
    each: list[Sector] = []
    for number, frame in enumerate(frames):
        count = len(frame.gantry_deg) - 1
        parts = max(round(abs(frame.gantry_deg[-1] - frame.gantry_deg[0]) / SECTOR_DEG), 1)
        # Every other arc is cut in between, so that the maps of both come from twice as many angles.
        between = np.concatenate([[0.0], np.arange(parts) + 0.5, [parts]])
        cuts = between if number % 2 else np.arange(parts + 1.0)
        borders = np.round(cuts * count / parts).astype(int)
        each += [Sector(number, int(a), int(b)) for a, b in itertools.pairwise(borders)]
    return Sectors(frames, tuple(each))


def open_bixels(
    sectors: Sectors,
    targets_mm: NDArray,
    model: FluenceModel,
    *,
    isocenter_mm: Point,
    patient_position: str,
    sad_mm: float,
) -> NDArray[np.bool_]:
    """Bixels `[sectors, leaf rows, columns]` within the jaws that cover targets at the sector's middle."""
    edges, rows = columns_over_jaws(model), model.row_edges_mm
    frames = [sectors.frames[a] for a in sectors.arc]
    out = np.stack(
        [
            bixels_over_targets(
                targets_mm,
                beam_axes(gantry, frame.collimator_deg, frame.couch_deg, patient_position),
                isocenter_mm=isocenter_mm,
                sad_mm=sad_mm,
                row_edges_mm=rows,
                column_edges_mm=edges,
            )
            for gantry, frame in zip(sectors.middles.gantry_deg, frames, strict=True)
        ]
    )
    centre = (edges[1:] + edges[:-1]) / 2
    for bixels, (x1, x2, y1, y2) in zip(out, sectors.jaws_mm, strict=True):
        bixels[:, (centre < x1) | (centre > x2)] = False
        bixels[(rows[1:] <= y1) | (rows[:-1] >= y2)] = False
    return out


def first_apertures(
    sectors: Sectors, maps: FluenceMaps, limits: Limits, rates: DeliveryRates, *, every: int
) -> Apertures:
    """Every n-th control point of sweeps through all maps. The leaves may still break the travel limit."""
    leaves, mu = [], []
    for number, frame in enumerate(sectors.frames):
        of_arc = [k for k, s in enumerate(sectors.each) if s.arc == number]
        positions, meterset = sweep_arc(
            frame.gantry_deg, [sectors.each[k] for k in of_arc], maps.mu[of_arc], maps.column_edges_mm,
            limits, mu_cap_per_deg=rates.mu_cap_per_deg,
            travel_mm_per_deg=rates.travel_mm_per_deg(limits), rightward=number % 2 == 0,
        )  # fmt: skip
        thin = frame.thinned(every)
        leaves.append(positions[thin])
        mu.append(np.add.reduceat(meterset, thin[:-1]))
    return Apertures(np.concatenate(leaves), np.concatenate(mu))


def fluence_record(sectors: Sectors, maps: FluenceMaps, row_edges_mm: NDArray) -> dict[str, NDArray]:
    """The ideal maps with their axes and sectors, arcs numbered from 1, as a plan's record keeps them."""
    ends_deg = sectors.ends_deg % 360
    return {
        "ideal_mu": maps.mu.astype(np.float32),
        "column_edges_mm": maps.column_edges_mm,
        "row_edges_mm": row_edges_mm,
        "sector_arc": sectors.arc + 1,
        "sector_start_deg": ends_deg[:, 0],
        "sector_stop_deg": ends_deg[:, 1],
    }
