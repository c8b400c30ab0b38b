"""The network: a residual U-Net in 3-D that encodes the anatomy once for all sampling steps.

One network in two roles. Without a noisy sample it is a regression of the dose. With a noisy sample and the
regression as its mean, it denoises the residual. The trunk works at half the resolution, with the eight
sub-voxels as channels, so that its input loses no information. A perceptron per voxel combines its output
with the full-resolution channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmat_diffusion.diffusion.places import (
    GROUP,
    Convolution,
    Down,
    Level,
    Norm,
    Places,
    places_of,
    take,
)

_Layer = TypeVar("_Layer", bound=nn.Linear)
_TIME_FEATURES = 64
_VOXEL_FEATURES = 32


@dataclass(frozen=True)
class Size:
    """Channels at 1/2, 1/4, 1/8 and 1/16 of the resolution, residual blocks per level, heads of attention.

    `mixing` is the layer that connects all voxels of the coarsest level.
    """

    widths: tuple[int, ...] = (32, 64, 96, 128)
    blocks: int = 1
    heads: int = 4
    condition: int = 128
    mixing: Literal["attention", "state space"] = "attention"

    @property
    def multiple(self) -> int:
        """The sides of the network's volumes are multiples of this."""
        return 2 ** len(self.widths)


SIZES = {
    "small": Size(),
    "base": Size(widths=(64, 128, 256, 320), blocks=2, heads=8, condition=256),
}


class Anatomy(NamedTuple):
    """The encoded case: features of each level and of each voxel, the embedding of the vector, its places."""

    features: tuple[Tensor, ...]
    voxels: Tensor
    condition: Tensor
    places: Places


class _Block(nn.Module):
    """Two convolutions with a residual, scaled and shifted by the condition (FiLM, arXiv:1709.07871)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = Norm(channels), Norm(channels)
        self.conv_in = Convolution(channels, channels)
        self.conv_out = _silent(Convolution(channels, channels))
        self.film = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor, around: Tensor) -> Tensor:
        scale, shift = self.film(F.silu(condition))[0].chunk(2)
        h = self.conv_in(F.silu(self.norm_in(x)), around)
        return x + self.conv_out(F.silu(self.norm_out(h, (scale, shift))), around)


class _Attention(nn.Module):
    """Self-attention over all voxels of the coarsest level."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = _silent(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, 3, 1, self.heads, c // self.heads).permute(1, 2, 3, 0, 4)
        h = F.scaled_dot_product_attention(q, k, v)[0]
        return x + self.out(h.transpose(0, 1).reshape(n, c))


class _StateSpace(nn.Module):
    """A selective state space over all voxels of the coarsest level, read from both ends.

    h_i = a_i h_(i-1) + b_i x_i and y_i = c_i h_i, where a, b and c depend on the input, in the dual form of
    Mamba-2 (Dao and Gu, arXiv:2405.21060): one masked product of all pairs, in plain torch.
    """

    def __init__(self, channels: int, heads: int, states: int = 16) -> None:
        super().__init__()
        self.heads, self.states = heads, states
        self.norm = Norm(channels)
        self.into = nn.Linear(channels, channels + heads * (2 * states + 1))
        self.out = _silent(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape
        parts = self.into(self.norm(x)).float()
        sizes = (c, self.heads * self.states, self.heads * self.states, self.heads)
        values, b, c_, step = (
            part.reshape(n, self.heads, -1).transpose(0, 1) for part in parts.split(sizes, dim=-1)
        )
        step = F.softplus(step)[..., 0]
        weights = (c_ @ b.transpose(-1, -2)) * (_decay(step) + _decay(step.flip(-1)).flip(-1, -2))
        h = (weights * step[..., None, :]) @ values
        return x + self.out(h.transpose(0, 1).reshape(n, c).to(x))


def _silent(layer: _Layer) -> _Layer:
    """The layer with weights of 0: the residual that it ends begins as nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _decay(step: Tensor) -> Tensor:
    """The share of the state at j that remains at i >= j, `[..., i, j]`; 0 for j after i."""
    total = step.cumsum(-1)
    left = -(total[..., :, None] - total[..., None, :])
    later = torch.ones(left.shape[-2:], dtype=torch.bool, device=step.device).triu(1)
    return left.masked_fill(later, -torch.inf).exp()


class _Level(nn.ModuleList):
    """Residual blocks one after the other."""

    def __init__(self, channels: int, condition: int, blocks: int) -> None:
        super().__init__([_Block(channels, condition) for _ in range(blocks)])

    def forward(self, x: Tensor, condition: Tensor, around: Tensor) -> Tensor:
        for block in self:
            x = block(x, condition, around)
        return x


class DoseNet(nn.Module):
    """Dose of a case relative to its highest prescription, or the residual of such a dose.

    Volumes are `[1, channels, z, y, x]`, each side a multiple of `multiple`. What they hold outside the mask
    has no influence, and neither has the size of the volume.
    """

    def __init__(self, channels: int, numbers: int, size: Size = SIZES["small"]) -> None:
        super().__init__()
        w, c = size.widths, size.condition
        self.multiple = size.multiple
        self.vector = nn.Sequential(nn.Linear(numbers, c), nn.SiLU(), nn.Linear(c, c))
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, c), nn.SiLU(), nn.Linear(c, c))
        self.stem = Down(channels, w[0])
        self.encoder = nn.ModuleList(_Level(n, c, size.blocks) for n in w)
        self.encoder_down = nn.ModuleList(Down(a, b) for a, b in pairwise(w))
        self.sample_stem = Down(2, w[0])
        self.mixer = nn.ModuleList(_Level(n, c, 1) for n in w[1:])
        self.mixer_down = nn.ModuleList(Down(a, b) for a, b in pairwise(w))
        mixing = _Attention if size.mixing == "attention" else _StateSpace
        self.attention = mixing(w[-1], size.heads)
        self.up = nn.ModuleList(nn.Linear(b, a) for a, b in pairwise(w))
        self.decoder = nn.ModuleList(_Level(n, c, size.blocks) for n in w)
        self.sub_voxels = nn.Linear(w[0], 8 * GROUP)
        self.from_volume = nn.Linear(channels, _VOXEL_FEATURES)
        self.from_trunk = nn.Linear(GROUP, _VOXEL_FEATURES)
        self.from_sample = nn.Linear(2, _VOXEL_FEATURES, bias=False)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(_VOXEL_FEATURES, 16), nn.SiLU(), nn.Linear(16, 1))

    def anatomy(self, volume: Tensor, vector: Tensor, mask: Tensor) -> Anatomy:
        """Encode a case with its `mask[z, y, x]` and its goals; the result serves all sampling steps."""
        places = places_of(mask, len(self.encoder))
        rows = _rows(volume, places)
        condition = self.vector(vector)
        h = self.stem(rows, places.levels[0])
        features = []
        for number, (block, level) in enumerate(zip(self.encoder, places.levels, strict=True)):
            h = block(h, condition, level.around)
            features.append(h)
            if number < len(self.encoder_down):
                h = self.encoder_down[number](h, places.levels[number + 1])
        return Anatomy(tuple(features), self.from_volume(rows), condition, places)

    def forward(
        self, anatomy: Anatomy, time: Tensor, sample: Tensor | None = None, mean: Tensor | None = None
    ) -> Tensor:
        """The dose (without sample) or the noise-free residual, `[1, 1, z, y, x]`; 0 outside the mask.

        `time[1]` runs from 0 (no noise) to 1; `sample` is the noisy residual, `mean` the regression.
        """
        levels, flat = anatomy.places.levels, anatomy.places.flat
        condition = anatomy.condition + self.time(_waves(time, anatomy.condition.dtype))
        h, voxels = anatomy.features[0], anatomy.voxels
        if sample is not None and mean is not None:
            state = _rows(torch.cat([sample, mean], 1), anatomy.places)
            h, voxels = h + self.sample_stem(state, levels[0]), voxels + self.from_sample(state)
        skips = [h]
        for number, (down, block) in enumerate(zip(self.mixer_down, self.mixer, strict=True), start=1):
            h = down(h, levels[number]) + anatomy.features[number]
            h = block(h, condition, levels[number].around)
            skips.append(h)
        h = self.decoder[-1](self.attention(h), condition, levels[-1].around)
        for number in reversed(range(len(self.up))):
            coarse = levels[number + 1]
            h = skips[number] + take(self.up[number](h), coarse.parent, coarse.children)
            h = self.decoder[number](h, condition, levels[number].around)
        voxels = voxels + self.from_trunk(_full_resolution(self.sub_voxels(h), levels[0]))
        with torch.autocast(voxels.device.type, enabled=False):  # bfloat16 has steps of 0.3 Gy at 70 Gy
            values = self.head(voxels.float())[:, 0]
        empty = values.new_zeros(math.prod(anatomy.places.shape))
        return empty.scatter(0, flat, values).reshape(1, 1, *anatomy.places.shape)


def _rows(volume: Tensor, places: Places) -> Tensor:
    """The channels of the voxels in the mask, `[voxels, channels]`."""
    return volume[0].flatten(1)[:, places.flat].t().contiguous()


def _waves(time: Tensor, dtype: torch.dtype) -> Tensor:
    """Sines and cosines of the time at frequencies from 1 to 1000."""
    frequency = torch.exp(torch.linspace(0.0, math.log(1000.0), _TIME_FEATURES // 2, device=time.device))
    angle = time.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(dtype)


def _full_resolution(rows: Tensor, level: Level) -> Tensor:
    """Channels in groups of eight sub-voxels, `[n, 8 x c]`, for each voxel of the mask, `[m, c]`."""
    n, c = rows.shape
    by_child = rows.reshape(n, c // 8, 8).transpose(1, 2).reshape(8 * n, c // 8)
    return take(by_child, level.inverse, level.children.reshape(-1, 1))
