"""Ideal fluence of each arc sector: the convex problem before any leaf is considered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize
from scipy.special import erf
from torch import Tensor

from vmat_diffusion.dose.fluence import FluenceModel, row_shares
from vmat_diffusion.dose.influence import SampledDose
from vmat_diffusion.geometry import Point, beam_axes, project
from vmat_diffusion.optimize.objectives import Objective

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
