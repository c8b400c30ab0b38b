"""The multi-Gaussian pencil beam: from exposures to dose in the patient.

Dose to a voxel is the convolved fluence at its projection, weighted per kernel by radiological
depth, times off-axis ratio and inverse square; after Bortfeld et al., Med Phys 20:311 (1993), with
Gaussians as base functions. Method, validation and limits: `docs/dose_engine.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion import __version__
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.fluence import Exposures, FluenceModel, Nodes, convolved_fluence, exposures, fluence_model
from vmat_diffusion.dose.rays import Density, density_of, depth_at, depth_field
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, Point, beam_axes
from vmat_diffusion.machine import BeamModel, Machine
from vmat_diffusion.plan import Plan

Progress = Callable[[float, str], None]
_DEPTH_STEP_MM = 1.0
_HORN_STEP_MM = 2.0


class DoseEngine(Protocol):
    """Anything that computes the dose of a plan on a case; two of them check each other."""

    def __call__(self, plan: Plan, case: Case, grid: Grid | None = None) -> Dose:
        """Dose in Gy for the whole course on `grid` (by default the case's own dose grid)."""
        ...


def dose_grid(case: Case, spacing_mm: float = 3.0) -> Grid:
    """A cubic grid that covers the body contour, with one voxel of margin, inside the CT.

    Raises CaseError for a spacing outside 1 to 10 mm.
    """
    if not 1.0 <= spacing_mm <= 10.0:
        raise CaseError(f"dose grid spacing {spacing_mm:g} mm is outside 1 to 10 mm; 2 to 4 mm are usual")
    mask = case.body.mask
    low, high = [], []
    for axis, (centre, step) in enumerate(zip(case.grid.axes_mm, case.grid.spacing_mm, strict=True)):
        other = tuple(a for a in range(3) if a != 2 - axis)
        inside = np.flatnonzero(mask.any(axis=other))
        if len(inside) == 0:
            raise CaseError("the body contour is empty; contour it or let it be made from the CT")
        low.append(centre[inside[0]] - step / 2 - spacing_mm)
        high.append(centre[inside[-1]] + step / 2 + spacing_mm)
    return case.grid.around(tuple(low), tuple(high), (spacing_mm,) * 3)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Tables:
    """The beam model as evenly spaced float32 tables: kernel weights by depth, off-axis ratio by radius."""

    weight: NDArray[np.float32]
    horn: NDArray[np.float32]
    softening_per_mm2: float
    sad_mm: float


def tables(beam: BeamModel) -> Tables:
    """Depth weights every 1 mm to 70 cm (exponential beyond the data), off-axis ratio every 2 mm."""
    depth = np.arange(0.0, 700.0, _DEPTH_STEP_MM)
    nodes_mm, weight = np.asarray(beam.depth_mm), np.asarray(beam.kernel_weight)
    rows = []
    for row in weight:
        total = weight.sum(axis=0)
        fall = np.log(total[-2] / total[-1]) / (nodes_mm[-1] - nodes_mm[-2])
        beyond = row[-1] * np.exp(-fall * np.maximum(depth - nodes_mm[-1], 0))
        rows.append(np.where(depth <= nodes_mm[-1], np.interp(depth, nodes_mm, row), beyond))
    radius = np.arange(0.0, 500.0, _HORN_STEP_MM)
    horn = np.interp(radius, beam.horn_radius_mm, beam.horn)
    return Tables(
        np.ascontiguousarray(np.stack(rows, axis=1), dtype=np.float32),
        horn.astype(np.float32),
        beam.softening_per_mm2,
        beam.sad_mm,
    )


def jaw_box(exposed: Exposures) -> tuple[float, float, float, float]:
    """The smallest box (x1, x2, y1, y2) in mm that holds all jaw openings."""
    jaws = exposed.jaws_mm.reshape(-1, 4)
    return (
        float(jaws[:, 0].min()),
        float(jaws[:, 1].max()),
        float(jaws[:, 2].min()),
        float(jaws[:, 3].max()),
    )


@dataclass(frozen=True)
class PencilBeam:
    """The fast engine. `step_mm` is the node spacing of the fluence between the jaws."""

    machine: Machine
    device: str = "cpu"
    step_mm: float = 1.5

    def __call__(
        self, plan: Plan, case: Case, grid: Grid | None = None, progress: Progress | None = None
    ) -> Dose:
        """Dose in Gy of the whole course on `grid` (3 mm over the body where none is given).

        Cost: about 10 ms per control point and million body voxels on two cores.
        """
        where = grid or dose_grid(case)
        exposed = exposures(plan, self.machine)
        density = density_of(case, where)
        model = fluence_model(self.machine, jaw_box(exposed), self.step_mm)
        table = tables(self.machine.require_beam())
        inside = np.flatnonzero(density.g_cm3.ravel() > 0)
        points = (where.points_mm(inside) - np.asarray(plan.isocenter_mm)).astype(np.float32)
        out = np.zeros(len(points), np.float32)
        groups = _same_beam_direction(exposed)
        for done, members in enumerate(groups):
            if progress and done % 8 == 0:
                progress(done / len(groups), f"gantry {exposed.gantry_deg[members[0]] % 360:.0f} deg")
            field = convolved_fluence(
                model,
                torch.as_tensor(exposed.leaves_mm[members][..., model.strips], dtype=torch.float32),
                torch.as_tensor(exposed.jaws_mm[members], dtype=torch.float32),
                torch.as_tensor(exposed.mu[members], dtype=torch.float32),
            ).numpy()
            first = members[0]
            axes = beam_axes(exposed.gantry_deg[first], 0.0, exposed.couch_deg[first], plan.patient_position)
            rays = depth_field(density, axes, plan.isocenter_mm, table.sad_mm)
            angle = np.deg2rad(exposed.collimator_deg[members])
            _deliver(
                points, np.stack([axes.x, axes.y, axes.to_source]), rays.depth_mm, rays.low,
                table.weight, table.horn, table.softening_per_mm2, table.sad_mm, field,
                np.cos(angle), np.sin(angle), model.u.lut, model.u.lut_low_mm, model.v.lut, model.v.lut_low_mm, out,
            )  # fmt: skip
        gy = np.zeros(where.shape, np.float32)
        gy.ravel()[inside] = out * (self.machine.require_beam().gy_per_mu * plan.fractions)
        return Dose(
            where,
            gy,
            medium="water",
            provenance={
                "engine": "pencil-beam",
                "version": __version__,
                "machine": self.machine.name,
                "fluence_step_mm": self.step_mm,
                "exposures": len(exposed.mu),
            },
        )


def _same_beam_direction(exposed: Exposures) -> list[NDArray[np.intp]]:
    """Indices of exposures that share gantry and couch angle, so that their rays are traced once."""
    keys = np.round(np.stack([exposed.gantry_deg % 360.0, exposed.couch_deg], axis=1), 3)
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(inverse.ravel()[order])) + 1)


@numba.njit(inline="always")
def _lookup(lut, low, at):  # type: ignore[no-untyped-def]
    """Fractional node index of a position, -1 outside the nodes."""
    f = (at - low) * 2.0
    if f < 0.0 or f >= len(lut) - 1:
        return -1.0
    i = int(f)
    return lut[i] + (f - i) * (lut[i + 1] - lut[i])


@numba.njit(parallel=True, cache=True, fastmath=True)
def _deliver(
    points, axes, depth, low, weight, horn, softening, sad, field, cosine, sine, lut_u, low_u, lut_v, low_v, out
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Add the dose of the exposures of one beam direction to every point."""
    n_exposures, n_kernels = field.shape[0], field.shape[3]
    block = 1024
    for b in numba.prange((len(points) + block - 1) // block):
        for i in range(b * block, min((b + 1) * block, len(points))):
            p0, p1, p2 = points[i, 0], points[i, 1], points[i, 2]
            height = p0 * axes[2, 0] + p1 * axes[2, 1] + p2 * axes[2, 2]
            scale = sad / (sad - height)
            u0 = (p0 * axes[0, 0] + p1 * axes[0, 1] + p2 * axes[0, 2]) * scale
            v0 = (p0 * axes[1, 0] + p1 * axes[1, 1] + p2 * axes[1, 2]) * scale
            square = u0 * u0 + v0 * v0
            d = depth_at(depth, low, u0, v0, height) * (1.0 + softening * square) / _DEPTH_STEP_MM
            d = min(d, len(weight) - 1.001)
            di = int(d)
            td = d - di
            r = min(np.sqrt(square) / _HORN_STEP_MM, len(horn) - 1.001)
            ri = int(r)
            factor = scale * scale * (horn[ri] + (r - ri) * (horn[ri + 1] - horn[ri]))
            total = 0.0
            for m in range(n_exposures):
                fu = _lookup(lut_u, low_u, cosine[m] * u0 + sine[m] * v0)
                fv = _lookup(lut_v, low_v, cosine[m] * v0 - sine[m] * u0)
                if fu < 0.0 or fv < 0.0:
                    continue
                iu, iv = int(fu), int(fv)
                tu, tv = fu - iu, fv - iv
                for k in range(n_kernels):
                    near = field[m, iv, iu, k] + tu * (field[m, iv, iu + 1, k] - field[m, iv, iu, k])
                    far = field[m, iv + 1, iu, k] + tu * (field[m, iv + 1, iu + 1, k] - field[m, iv + 1, iu, k])
                    w = weight[di, k] + td * (weight[di + 1, k] - weight[di, k])
                    total += w * (near + tv * (far - near))
            out[i] += factor * total


@dataclass(frozen=True, eq=False)
class SampledDose:
    """The linear map from convolved fluence to dose at chosen points, as a compressed influence matrix.

    For each exposure and point: the fractional node index along u and v (-1 outside) and the weight
    of each kernel, 8 + 4 kernels bytes. Exact: nothing is cut off, nothing is re-sampled.
    """

    index_u: NDArray[np.float32]
    index_v: NDArray[np.float32]
    weight: NDArray[np.float32]

    @property
    def gigabytes(self) -> float:
        """Memory held."""
        return (self.index_u.nbytes + self.index_v.nbytes + self.weight.nbytes) / 1e9

    def dose(self, field: Tensor) -> Tensor:
        """Dose in units of `gy_per_mu` at the points, shape (points,), from `convolved_fluence`."""
        return _Gather.apply(field, self)

    def by_exposure(self, field: Tensor) -> NDArray[np.float32]:
        """The same, kept apart for each exposure: shape (points, exposures)."""
        out = np.zeros((self.index_u.shape[1], self.index_u.shape[0]), np.float32)
        _gather_each(field.detach().numpy(), self.index_u, self.index_v, self.weight, out)
        return out


def sampled_dose(
    machine: Machine,
    density: Density,
    points_mm: NDArray,
    exposed: Exposures,
    model: FluenceModel,
    isocenter_mm: Point,
    patient_position: str = "HFS",
    progress: Progress | None = None,
) -> SampledDose:
    """Trace all beam directions of `exposed` to the points and tabulate the map; angles count, not leaves."""
    table = tables(machine.require_beam())
    n, m, kernels = len(exposed.gantry_deg), len(points_mm), table.weight.shape[1]
    relative = (np.asarray(points_mm) - np.asarray(isocenter_mm)).astype(np.float32)
    index_u, index_v = np.empty((n, m), np.float32), np.empty((n, m), np.float32)
    weight = np.empty((n, m, kernels), np.float32)
    groups = _same_beam_direction(exposed)
    for done, members in enumerate(groups):
        if progress and done % 8 == 0:
            progress(done / len(groups), "tracing rays")
        first = members[0]
        axes = beam_axes(exposed.gantry_deg[first], 0.0, exposed.couch_deg[first], patient_position)
        rays = depth_field(density, axes, isocenter_mm, table.sad_mm)
        angle = np.deg2rad(exposed.collimator_deg[members])
        _tabulate(
            relative, np.stack([axes.x, axes.y, axes.to_source]), rays.depth_mm, rays.low,
            table.weight, table.horn, table.softening_per_mm2, table.sad_mm, np.cos(angle), np.sin(angle),
            model.u.lut, model.u.lut_low_mm, model.v.lut, model.v.lut_low_mm, members, index_u, index_v, weight,
        )  # fmt: skip
    return SampledDose(index_u, index_v, weight)


@numba.njit(parallel=True, cache=True, fastmath=True)
def _tabulate(
    points, axes, depth, low, weight, horn, softening, sad, cosine, sine, lut_u, low_u, lut_v, low_v,
    members, index_u, index_v, out,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Fill the rows `members` of the map; the same formula as `_deliver`."""
    n_kernels = weight.shape[1]
    block = 1024
    for b in numba.prange((len(points) + block - 1) // block):
        for i in range(b * block, min((b + 1) * block, len(points))):
            p0, p1, p2 = points[i, 0], points[i, 1], points[i, 2]
            height = p0 * axes[2, 0] + p1 * axes[2, 1] + p2 * axes[2, 2]
            scale = sad / (sad - height)
            u0 = (p0 * axes[0, 0] + p1 * axes[0, 1] + p2 * axes[0, 2]) * scale
            v0 = (p0 * axes[1, 0] + p1 * axes[1, 1] + p2 * axes[1, 2]) * scale
            square = u0 * u0 + v0 * v0
            d = depth_at(depth, low, u0, v0, height) * (1.0 + softening * square) / _DEPTH_STEP_MM
            d = min(d, len(weight) - 1.001)
            di = int(d)
            td = d - di
            r = min(np.sqrt(square) / _HORN_STEP_MM, len(horn) - 1.001)
            ri = int(r)
            factor = scale * scale * (horn[ri] + (r - ri) * (horn[ri + 1] - horn[ri]))
            for m in range(len(members)):
                s = members[m]
                fu = _lookup(lut_u, low_u, cosine[m] * u0 + sine[m] * v0)
                fv = _lookup(lut_v, low_v, cosine[m] * v0 - sine[m] * u0)
                outside = fu < 0.0 or fv < 0.0
                index_u[s, i] = -1.0 if outside else fu
                index_v[s, i] = -1.0 if outside else fv
                for k in range(n_kernels):
                    out[s, i, k] = factor * (weight[di, k] + td * (weight[di + 1, k] - weight[di, k]))


class _Gather(torch.autograd.Function):
    """Dose at points from node fields and its transpose, both in compiled loops."""

    @staticmethod
    def forward(ctx, field, sampled):  # type: ignore[no-untyped-def]
        ctx.sampled, ctx.shape = sampled, field.shape
        out = np.zeros(sampled.index_u.shape[1], np.float32)
        _gather(field.detach().numpy(), sampled.index_u, sampled.index_v, sampled.weight, out)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        sampled = ctx.sampled
        out = np.zeros(ctx.shape, np.float32)
        _scatter(gradient.contiguous().numpy(), sampled.index_u, sampled.index_v, sampled.weight, out)
        return torch.from_numpy(out), None


@numba.njit(inline="always")
def _read(field, index_u, index_v, weight, s, i):  # type: ignore[no-untyped-def]
    """Dose of exposure s at point i."""
    fu, fv = index_u[s, i], index_v[s, i]
    total = np.float32(0.0)
    if fu < 0.0:
        return total
    iu, iv = int(fu), int(fv)
    tu, tv = fu - iu, fv - iv
    a, c = (1 - tu) * (1 - tv), tu * (1 - tv)
    d, e = (1 - tu) * tv, tu * tv
    for k in range(weight.shape[2]):
        total += weight[s, i, k] * (
            a * field[s, iv, iu, k]
            + c * field[s, iv, iu + 1, k]
            + d * field[s, iv + 1, iu, k]
            + e * field[s, iv + 1, iu + 1, k]
        )
    return total


@numba.njit(parallel=True, cache=True, fastmath=True)
def _gather(field, index_u, index_v, weight, out):  # type: ignore[no-untyped-def]
    n, m = index_u.shape
    block = 2048
    for b in numba.prange((m + block - 1) // block):
        for s in range(n):
            for i in range(b * block, min((b + 1) * block, m)):
                out[i] += _read(field, index_u, index_v, weight, s, i)


@numba.njit(parallel=True, cache=True, fastmath=True)
def _gather_each(field, index_u, index_v, weight, out):  # type: ignore[no-untyped-def]
    n, m = index_u.shape
    for i in numba.prange(m):
        for s in range(n):
            out[i, s] = _read(field, index_u, index_v, weight, s, i)


@numba.njit(parallel=True, cache=True, fastmath=True)
def _scatter(gradient, index_u, index_v, weight, out):  # type: ignore[no-untyped-def]
    n, m = index_u.shape
    kernels = weight.shape[2]
    for s in numba.prange(n):
        for i in range(m):
            fu, fv = index_u[s, i], index_v[s, i]
            g = gradient[i]
            if fu < 0.0 or g == 0.0:
                continue
            iu, iv = int(fu), int(fv)
            tu, tv = fu - iu, fv - iv
            a, c = g * (1 - tu) * (1 - tv), g * tu * (1 - tv)
            d, e = g * (1 - tu) * tv, g * tu * tv
            for k in range(kernels):
                w = weight[s, i, k]
                out[s, iv, iu, k] += w * a
                out[s, iv, iu + 1, k] += w * c
                out[s, iv + 1, iu, k] += w * d
                out[s, iv + 1, iu + 1, k] += w * e


__all__ = ["DoseEngine", "Nodes", "PencilBeam", "SampledDose", "dose_grid", "sampled_dose"]
