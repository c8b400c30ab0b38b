"""Ideal fluence of each arc sector: the convex problem before any leaf is considered."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize
from scipy.special import erf
from torch import Tensor

from vmat_diffusion.dose.pencil_beam.fluence import FluenceModel, row_shares
from vmat_diffusion.dose.pencil_beam.sampled import SampledDose
from vmat_diffusion.geometry import Point, beam_axes, project
from vmat_diffusion.machine import Limits
from vmat_diffusion.optimize.arcs import ArcFrame
from vmat_diffusion.optimize.objectives import Objective
from vmat_diffusion.optimize.reach import Apertures, Track
from vmat_diffusion.optimize.sequence import Sector, sweep_arc

_COLUMN_MM = 5.0
_ROUGHNESS = 1e-3
_ROUNDS = 6
# No bixel gives more than this many times what a uniform field would: sweeps have little time for peaks.
_HIGHEST = 3.0


@dataclass(frozen=True, eq=False)
class FluenceMaps:
    """Fluence in MU of each map: `mu[maps, strips, columns]`, columns between `column_edges_mm`."""

    mu: NDArray[np.float64]
    column_edges_mm: NDArray[np.float64]


def column_edges_mm(model: FluenceModel) -> NDArray[np.float64]:
    """Borders of 5 mm columns that cover the jaws."""
    margin = 2 * model.u.step_mm
    inner = model.u.position_mm[np.abs(np.diff(model.u.position_mm, append=np.inf)) < model.u.step_mm * 1.01]
    low, high = inner[0] + margin, inner[-1] + model.u.step_mm - margin
    return low + _COLUMN_MM * np.arange(int(np.ceil((high - low) / _COLUMN_MM - 1e-6)) + 1)


def target_shadow(
    targets_mm: NDArray,
    gantry_deg: float,
    collimator_deg: float,
    couch_deg: float,
    isocenter_mm: Point,
    patient_position: str,
    sad_mm: float,
    row_edges_mm: NDArray,
    columns_mm: NDArray,
    grow_mm: float = 7.0,
) -> NDArray[np.bool_]:
    """Which bixels a beam needs: those within `grow_mm` of the projected targets; (strips, columns)."""
    axes = beam_axes(gantry_deg, collimator_deg, couch_deg, patient_position)
    uv = project(targets_mm, axes, isocenter_mm, sad_mm)
    fine = 2.5
    v0, u0 = row_edges_mm[0] - 20, columns_mm[0] - 20
    shape = (int((row_edges_mm[-1] + 20 - v0) / fine) + 1, int((columns_mm[-1] + 20 - u0) / fine) + 1)
    index = np.stack([(uv[:, 1] - v0) / fine, (uv[:, 0] - u0) / fine]).astype(int)
    ok = (index >= 0).all(axis=0) & (index[0] < shape[0]) & (index[1] < shape[1])
    raster = np.zeros(shape, bool)
    raster[index[0, ok], index[1, ok]] = True
    raster = ndimage.binary_closing(raster, iterations=2)
    near = ndimage.distance_transform_edt(~raster, sampling=fine) <= grow_mm
    vv = ((row_edges_mm[1:] + row_edges_mm[:-1]) / 2 - v0) / fine
    uu = ((columns_mm[1:] + columns_mm[:-1]) / 2 - u0) / fine
    return near[np.ix_(np.round(vv).astype(int), np.round(uu).astype(int))]


def optimize_fluence(
    objective: Objective,
    sampled: SampledDose,
    model: FluenceModel,
    y_jaws_mm: NDArray,
    open_bixels: NDArray,
    relative_per_mu: float,
    *,
    iterations: int = 160,
    roughness: float = _ROUGHNESS,
    progress: Callable[[float, str], None] | None = None,
) -> FluenceMaps:
    """Fluence maps that minimise the objective: L-BFGS-B with fluence at least 0.

    `y_jaws_mm[maps, 2]`; `open_bixels[maps, strips, columns]` says which bixels exist;
    `relative_per_mu` converts MU times `gy_per_mu` to relative dose. The rise of fluence along the
    leaves, which is what sweeping leaves pay for in MU, is penalised.
    """
    edges = column_edges_mm(model)
    columns = _column_shares(model, edges)
    rows = row_shares(
        model, torch.as_tensor(y_jaws_mm[:, 0]).float(), torch.as_tensor(y_jaws_mm[:, 1]).float()
    )
    allowed = torch.as_tensor(open_bixels).float()
    with torch.no_grad():
        seen = sampled.dose(_field(allowed, rows, columns)) * relative_per_mu
        level = torch.cat([seen[objective.regions[t].points] for t in objective.targets]).mean()
        scale = 1.0 / float(level.clamp_min(1e-9))
    index = np.flatnonzero(open_bixels.ravel())
    shape = open_bixels.shape
    done = [0]

    def maps_of(x: NDArray) -> Tensor:
        full = np.zeros(open_bixels.size, np.float32)
        full[index] = x
        return torch.from_numpy(full.reshape(shape) * np.float32(scale))

    def cost(x: NDArray) -> tuple[float, NDArray]:
        relative = maps_of(x).requires_grad_(True)
        dose = sampled.dose(_field(relative, rows, columns)) * relative_per_mu
        step = torch.diff(relative, dim=2, prepend=relative[..., :1] * 0) / scale
        rise = (step.square() + 0.01).sqrt() - 0.1
        value = objective(dose) + roughness * rise.sum() / shape[0]
        value.backward()
        assert relative.grad is not None
        done[0] += 1
        if progress and done[0] % 10 == 0:
            progress(min(done[0] / iterations, 1.0), f"fluence maps, objective {value.item():.4f}")
        return value.item(), relative.grad.numpy().ravel()[index].astype(np.float64) * scale

    x = np.ones(len(index))
    for _ in range(_ROUNDS):
        x = minimize(
            cost, x, jac=True, method="L-BFGS-B", bounds=[(0, _HIGHEST)] * len(x),
            options={"maxfun": iterations // _ROUNDS, "maxiter": iterations, "maxcor": 12},
        ).x  # fmt: skip
        with torch.no_grad():
            objective.adapt((sampled.dose(_field(maps_of(x), rows, columns)) * relative_per_mu).numpy())
    return FluenceMaps(maps_of(x).double().numpy(), edges)


def _column_shares(model: FluenceModel, edges: NDArray) -> Tensor:
    """How much of each column reaches each node along u, per kernel: (kernels, columns, u)."""
    z = (model.u.position_mm[None, None, :] - edges[None, :, None]) / (
        model.sigma_mm[:, None, None] * np.sqrt(2)
    )
    step = 0.5 * erf(z)
    return torch.as_tensor(step[:, :-1] - step[:, 1:]).float()


def _field(mu: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Convolved fluence of maps: (maps, v, u, kernels)."""
    across = torch.einsum("src,kcu->skru", mu, columns)
    return torch.matmul(rows, across).permute(0, 2, 3, 1).contiguous()


_SECTOR_DEG = 45.0


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
    def middles(self) -> Track:
        """The middle of every sector as a control point of its own."""
        arc, middle = self.arc, self.ends_deg.mean(axis=1)
        index = np.arange(len(arc))
        return Track(self.frames, middle, self.jaws_mm, (), index, index, middle, np.ones(len(arc)), arc)


def cut_into_sectors(frames: tuple[ArcFrame, ...]) -> Sectors:
    """Sectors of about 45 degrees that begin and end at control points."""
    each: list[Sector] = []
    for number, frame in enumerate(frames):
        count = len(frame.gantry_deg) - 1
        parts = max(round(abs(frame.gantry_deg[-1] - frame.gantry_deg[0]) / _SECTOR_DEG), 1)
        # Every other arc is cut in between, so that the maps of both come from twice as many angles.
        between = np.concatenate([[0.0], np.arange(parts) + 0.5, [parts]])
        cuts = between if number % 2 else np.arange(parts + 1.0)
        borders = np.round(cuts * count / parts).astype(int)
        each += [Sector(number, int(a), int(b)) for a, b in itertools.pairwise(borders)]
    return Sectors(frames, tuple(each))


def open_bixels(
    sectors: Sectors,
    targets_mm: NDArray,
    isocenter_mm: Point,
    patient_position: str,
    sad_mm: float,
    model: FluenceModel,
) -> NDArray[np.bool_]:
    """Bixels `[sectors, strips, columns]` within the jaws that see targets from the middle of the sector."""
    edges, rows = column_edges_mm(model), model.row_edges_mm
    opened = np.stack(
        [
            target_shadow(
                targets_mm, gantry, sectors.frames[a].collimator_deg, sectors.frames[a].couch_deg,
                isocenter_mm, patient_position, sad_mm, rows, edges,
            )
            for gantry, a in zip(sectors.middles.gantry_deg, sectors.arc, strict=True)
        ]
    )  # fmt: skip
    centre = (edges[1:] + edges[:-1]) / 2
    for one, (x1, x2, y1, y2) in zip(opened, sectors.jaws_mm, strict=True):
        one[:, (centre < x1) | (centre > x2)] = False
        one[(rows[1:] <= y1) | (rows[:-1] >= y2)] = False
    return opened


def first_apertures(
    sectors: Sectors, maps: FluenceMaps, limits: Limits, mu_cap_per_deg: float, every: int
) -> Apertures:
    """Every n-th control point of sweeps through all maps. The leaves may still break the travel limit."""
    leaves, mu = [], []
    for number, frame in enumerate(sectors.frames):
        own = [k for k, s in enumerate(sectors.each) if s.arc == number]
        positions, meterset = sweep_arc(
            frame.gantry_deg, [sectors.each[k] for k in own], maps.mu[own], maps.column_edges_mm, limits,
            mu_cap_per_deg, rightward=number % 2 == 0,
        )  # fmt: skip
        thin = frame.thinned(every)
        leaves.append(positions[thin])
        mu.append(np.add.reduceat(meterset, thin[:-1]))
    return Apertures(np.concatenate(leaves), np.concatenate(mu))


def map_arrays(sectors: Sectors, maps: FluenceMaps, row_edges_mm: NDArray) -> dict[str, NDArray]:
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
