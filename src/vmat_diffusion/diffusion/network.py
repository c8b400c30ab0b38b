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
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_GROUP = 8
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
    """The encoded case: features of each level and of each voxel, and the embedding of the vector."""

    features: tuple[Tensor, ...]
    voxels: Tensor
    condition: Tensor


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _GROUP, channels)


class _Block(nn.Module):
    """Two convolutions with a residual, scaled and shifted by the condition (FiLM, arXiv:1709.07871)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = _norm(channels), _norm(channels)
        self.conv_in = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv3d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(F.silu(condition))[:, :, None, None, None].chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = self.norm_out(h) * (1 + scale) + shift
        return x + self.conv_out(F.silu(h))


class _Attention(nn.Module):
    """Self-attention over all voxels of the coarsest level."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv3d(channels, 3 * channels, 1)
        self.out = nn.Conv3d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        n, c, *shape = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, -1).transpose(-1, -2)
        h = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        return x + self.out(h.transpose(-1, -2).reshape(n, c, *shape))


class _StateSpace(nn.Module):
    """A selective state space over all voxels of the coarsest level, read from both ends.

    h_i = a_i h_(i-1) + b_i x_i and y_i = c_i h_i, where a, b and c depend on the input, in the dual form of
    Mamba-2 (Dao and Gu, arXiv:2405.21060): one masked product of all pairs, in plain torch.
    """

    def __init__(self, channels: int, heads: int, states: int = 16) -> None:
        super().__init__()
        self.heads, self.states = heads, states
        self.norm = _norm(channels)
        self.into = nn.Conv3d(channels, channels + heads * (2 * states + 1), 1)
        self.out = nn.Conv3d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        n, c, *shape = x.shape
        parts = self.into(self.norm(x)).flatten(2).transpose(1, 2).float()
        sizes = (c, self.heads * self.states, self.heads * self.states, self.heads)
        values, b, c_, step = (
            part.reshape(n, -1, self.heads, part.shape[-1] // self.heads).transpose(1, 2)
            for part in parts.split(sizes, dim=-1)
        )
        step = F.softplus(step)[..., 0]
        weights = (c_ @ b.transpose(-1, -2)) * (_decay(step) + _decay(step.flip(-1)).flip(-1, -2))
        h = (weights * step[..., None, :]) @ values
        return x + self.out(h.transpose(1, 2).reshape(n, -1, c).transpose(1, 2).reshape(n, c, *shape).to(x))


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

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self:
            x = block(x, condition)
        return x


def _down(low: int, high: int) -> nn.Conv3d:
    return nn.Conv3d(low, high, 2, stride=2)


class DoseNet(nn.Module):
    """Dose of a case relative to its highest prescription, or the residual of such a dose.

    Volumes are `[batch, channels, z, y, x]`, each side a multiple of `multiple`.
    """

    def __init__(self, channels: int, numbers: int, size: Size = SIZES["small"]) -> None:
        super().__init__()
        w, c = size.widths, size.condition
        self.multiple = size.multiple
        self.vector = nn.Sequential(nn.Linear(numbers, c), nn.SiLU(), nn.Linear(c, c))
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, c), nn.SiLU(), nn.Linear(c, c))
        self.stem = _down(channels, w[0])
        self.encoder = nn.ModuleList(_Level(n, c, size.blocks) for n in w)
        self.encoder_down = nn.ModuleList(_down(a, b) for a, b in pairwise(w))
        self.sample_stem = _down(2, w[0])
        self.mixer = nn.ModuleList(_Level(n, c, 1) for n in w[1:])
        self.mixer_down = nn.ModuleList(_down(a, b) for a, b in pairwise(w))
        mixing = _Attention if size.mixing == "attention" else _StateSpace
        self.attention = mixing(w[-1], size.heads)
        self.up = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairwise(w))
        self.decoder = nn.ModuleList(_Level(n, c, size.blocks) for n in w)
        self.sub_voxels = nn.Conv3d(w[0], 8 * _GROUP, 1)
        self.from_volume = nn.Conv3d(channels, _VOXEL_FEATURES, 1)
        self.from_trunk = nn.Conv3d(_GROUP, _VOXEL_FEATURES, 1)
        self.from_sample = nn.Conv3d(2, _VOXEL_FEATURES, 1, bias=False)
        self.head = nn.Sequential(
            nn.SiLU(), nn.Conv3d(_VOXEL_FEATURES, 16, 1), nn.SiLU(), nn.Conv3d(16, 1, 1)
        )

    def anatomy(self, volume: Tensor, vector: Tensor) -> Anatomy:
        """Encode a case and its goals; the result serves all sampling steps."""
        condition = self.vector(vector)
        h = self.stem(volume)
        features = []
        for level, block in enumerate(self.encoder):
            h = block(h, condition)
            features.append(h)
            if level < len(self.encoder_down):
                h = self.encoder_down[level](h)
        return Anatomy(tuple(features), self.from_volume(volume), condition)

    def forward(
        self, anatomy: Anatomy, time: Tensor, sample: Tensor | None = None, mean: Tensor | None = None
    ) -> Tensor:
        """The dose (without sample) or the noise-free residual, `[batch, 1, z, y, x]`.

        `time[batch]` runs from 0 (no noise) to 1; `sample` is the noisy residual, `mean` the regression.
        """
        condition = anatomy.condition + self.time(_waves(time, anatomy.condition.dtype))
        h, voxels = anatomy.features[0], anatomy.voxels
        if sample is not None and mean is not None:
            state = torch.cat([sample, mean], 1)
            h, voxels = h + self.sample_stem(state), voxels + self.from_sample(state)
        skips = [h]
        for down, block, feature in zip(self.mixer_down, self.mixer, anatomy.features[1:], strict=True):
            h = block(down(h) + feature, condition)
            skips.append(h)
        h = self.decoder[-1](self.attention(h), condition)
        for level in reversed(range(len(self.up))):
            h = skips[level] + F.interpolate(self.up[level](h), scale_factor=2.0, mode="nearest")
            h = self.decoder[level](h, condition)
        voxels = voxels + self.from_trunk(_full_resolution(self.sub_voxels(h)))
        with torch.autocast(voxels.device.type, enabled=False):  # bfloat16 has steps of 0.3 Gy at 70 Gy
            return self.head(voxels.float())


def _waves(time: Tensor, dtype: torch.dtype) -> Tensor:
    """Sines and cosines of the time at frequencies from 1 to 1000."""
    frequency = torch.exp(torch.linspace(0.0, math.log(1000.0), _TIME_FEATURES // 2, device=time.device))
    angle = time.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(dtype)


def _full_resolution(x: Tensor) -> Tensor:
    """Channels in groups of eight sub-voxels to twice the resolution (pixel shuffle in 3-D)."""
    n, c, d, h, w = x.shape
    x = x.reshape(n, c // 8, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, c // 8, 2 * d, 2 * h, 2 * w)
