"""The voxels of a mask at each resolution of the network, and layers on lists of them.

The network computes in the mask of possible dose alone, a fifth of its box: features are rows `[voxels,
channels]`, and a convolution gathers the neighbours of each voxel. Outside the mask every feature is 0 and
counts in no statistics, so empty space around a case changes nothing and takes no time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Rows of a convolution that are gathered at once on a processor, so that they stay in its cache.
_ROWS_AT_ONCE = 512
GROUP = 8


class Level(NamedTuple):
    """The voxels of one resolution that hold some of the mask, in raster order.

    `around[n, 27]` are the neighbours of each voxel, `children[n, 8]` the voxels of the finer resolution in
    it, `parent[m]` and `inverse[m]` for each finer voxel the voxel that holds it and its place among all
    children. An index that equals the number of voxels stands for one outside the mask.
    """

    around: Tensor
    children: Tensor
    parent: Tensor
    inverse: Tensor


class Places(NamedTuple):
    """A mask: `flat[m]` are its voxels in the volume of `shape (z, y, x)`; the levels are 1/2, 1/4, ..."""

    shape: tuple[int, ...]
    flat: Tensor
    levels: tuple[Level, ...]


def places_of(mask: Tensor, levels: int) -> Places:
    """The places of `mask[z, y, x]`, whose sides are multiples of `2 ** levels`."""
    finer = mask > 0
    flat = finer.flatten().nonzero()[:, 0]
    numbers, count = _numbers(finer, flat)
    made = []
    for _ in range(levels):
        z, y, x = (n // 2 for n in finer.shape)
        blocks = finer.reshape(z, 2, y, 2, x, 2).permute(0, 2, 4, 1, 3, 5).reshape(z, y, x, 8)
        coarse = blocks.any(-1)
        own = coarse.flatten().nonzero()[:, 0]
        children = numbers.reshape(z, 2, y, 2, x, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8)[own]
        inverse = torch.empty(count + 1, dtype=torch.long, device=mask.device)
        inverse[children.flatten()] = torch.arange(children.numel(), device=mask.device)
        inverse = inverse[:count]
        coarse_numbers, count = _numbers(coarse, own)
        made.append(Level(_around(coarse_numbers, own, count), children, inverse // 8, inverse))
        finer, numbers = coarse, coarse_numbers
    return Places(tuple(mask.shape), flat, tuple(made))


def _numbers(mask: Tensor, flat: Tensor) -> tuple[Tensor, int]:
    """The number of each voxel of the mask, and their count for voxels outside; and the count."""
    count = len(flat)
    numbers = torch.full((mask.numel(),), count, dtype=torch.long, device=mask.device)
    numbers[flat] = torch.arange(count, device=mask.device)
    return numbers.reshape(mask.shape), count


def _around(numbers: Tensor, flat: Tensor, count: int) -> Tensor:
    _, y, x = numbers.shape
    wide = F.pad(numbers, (1, 1, 1, 1, 1, 1), value=count).flatten()
    at = (flat // (y * x) * (y + 2) + flat // x % y) * (x + 2) + flat % x
    steps = torch.arange(3, device=flat.device)
    offsets = ((steps[:, None, None] * (y + 2) + steps[:, None]) * (x + 2) + steps).flatten()
    return wide[at[:, None] + offsets]


def with_outside(rows: Tensor) -> Tensor:
    """The rows and one of zeros, for voxels outside the mask."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def take(rows: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """`rows[index]`, 0 for the index `len(rows)`; `back[len(rows), k]` are the places that take each row."""
    return _Take.apply(rows, index, back)  # type: ignore[no-any-return,no-untyped-call]


class _Take(torch.autograd.Function):
    """A gather whose gradient is a gather too: faster than adding by index, and always in the same order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return with_outside(rows).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        picked = with_outside(grads[0]).index_select(0, back.flatten())
        return picked.reshape(*back.shape, -1).sum(1), None, None


class Convolution(nn.Linear):
    """A convolution over the 27 neighbours of each voxel, with the weights `[out, 27 x in]`."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(27 * into, out)

    def forward(self, rows: Tensor, around: Tensor) -> Tensor:  # type: ignore[override]
        """`[n, out]` of `rows[n, in]`."""
        weight, device = self.weight, rows.device.type
        if torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
            rows, weight = rows.to(kind), weight.to(kind)
        return _Convolve.apply(rows, weight, around) + self.bias  # type: ignore[no-any-return,no-untyped-call]


class _Convolve(torch.autograd.Function):
    """The product of gathered neighbours with weights; the neighbours are gathered again for the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, around: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, around)
        return _gathered_product(rows, weight.t().contiguous(), around)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight, around = ctx.saved_tensors
        grad = grads[0].contiguous()
        out, into = weight.shape[0], rows.shape[1]
        # A voxel that is neighbour k of another has this other as its neighbour 26 - k.
        mirrored = weight.reshape(out, 27, into).flip(1).permute(1, 0, 2).reshape(27 * out, into)
        towards_rows = _gathered_product(grad, mirrored, around)
        wide, total = with_outside(rows), torch.zeros_like(weight, dtype=torch.float32)
        for part in _parts(around):
            near = wide.index_select(0, around[part].flatten()).reshape(-1, 27 * into)
            if total.dtype == grad.dtype:
                total.addmm_(grad[part].t(), near)
            else:
                total += grad[part].t() @ near
        return towards_rows, total.to(weight.dtype), None


def _gathered_product(rows: Tensor, weight: Tensor, around: Tensor) -> Tensor:
    wide = with_outside(rows)
    out = rows.new_empty(len(around), weight.shape[1])
    for part in _parts(around):
        near = wide.index_select(0, around[part].flatten()).reshape(-1, weight.shape[0])
        torch.mm(near, weight, out=out[part])
    return out


def _parts(around: Tensor) -> list[slice]:
    step = _ROWS_AT_ONCE if around.device.type == "cpu" else max(len(around), 1)
    return [slice(k, k + step) for k in range(0, len(around), step)]


class Down(nn.Linear):
    """A convolution over the eight children of each voxel, with the weights `[out, 8 x in]`."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(8 * into, out)

    def forward(self, rows: Tensor, level: Level) -> Tensor:  # type: ignore[override]
        """`[n, out]` of the finer level's `rows[m, in]`."""
        near = take(rows, level.children.flatten(), level.inverse[:, None])
        return super().forward(near.reshape(len(level.children), -1))


class Norm(nn.Module):
    """Group normalisation (arXiv:1803.08494) over the voxels of the mask, with an optional FiLM after it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, rows: Tensor, film: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The same shape; `film` is a scale and a shift, `[channels]` each."""
        with torch.autocast(rows.device.type, enabled=False):  # squares of bfloat16 sum badly
            values = rows.float()
            mean = _of_group(values.mean(0))
            variance = (_of_group((values * values).mean(0)) - mean * mean).clamp(min=0)
            factor = self.weight * (variance + 1e-5).rsqrt()
            shift = self.bias - mean * factor
            if film is not None:
                factor, shift = (
                    factor * (1 + film[0].float()),
                    shift * (1 + film[0].float()) + film[1].float(),
                )
            return torch.addcmul(shift, values, factor).to(rows.dtype)


def _of_group(values: Tensor) -> Tensor:
    """The mean of each group of channels, for each of its channels."""
    return values.reshape(-1, GROUP).mean(1).repeat_interleave(GROUP)
