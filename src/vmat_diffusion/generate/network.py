"""A small 2-D network shared by all sectors of all arcs, with mixing among neighbouring sectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# How narrowly "near" and "opposite" directions are seen when sectors are mixed.
_KAPPA = 4.0
_GROUPS = 8


@dataclass(frozen=True)
class FluenceSize:
    """Channels at full and half resolution and of the embedding of time; residual blocks at each."""

    channels: int = 16
    deep_channels: int = 32
    embedding: int = 32
    blocks: int = 2


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Which sectors see which: the ones before and after in the arc, and weights by direction.

    `before[s]`, `after[s]` are sectors, s itself at the ends of an arc; `context[3, s, s]` averages over near
    directions, opposite ones, and all.
    """

    before: Tensor
    after: Tensor
    context: Tensor

    @classmethod
    def of(cls, arc: Tensor, gantry_deg: Tensor) -> Neighbours:
        """For sectors in the order of their arcs."""
        index = torch.arange(len(arc))
        before, after = (index - 1).clamp_min(0), (index + 1).clamp_max(len(arc) - 1)
        before = torch.where(arc[before] == arc, before, index)
        after = torch.where(arc[after] == arc, after, index)
        angle = torch.deg2rad(gantry_deg.float())
        cosine = torch.cos(angle[:, None] - angle[None, :])
        other = ~torch.eye(len(arc), dtype=torch.bool)
        near = torch.softmax((_KAPPA * cosine).masked_fill(~other, -1e4), dim=1)
        opposite = torch.softmax((-_KAPPA * cosine).masked_fill(~other, -1e4), dim=1)
        everywhere = torch.full_like(near, 1.0 / len(arc))
        return cls(before, after, torch.stack([near, opposite, everywhere]))


class _Block(nn.Module):
    """Two convolutions with time, the neighbours in the arc, and the context of all directions."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = (nn.GroupNorm(_GROUPS, channels) for _ in range(2))
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.of_time = nn.Linear(embedding, 2 * channels)
        self.of_context = nn.Linear(3 * channels, 2 * channels)
        self.of_arc = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.second.weight)
        for part in (self.of_time, self.of_context, self.of_arc):
            nn.init.zeros_(part.weight)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor, neighbours: Neighbours) -> Tensor:
        h = self.first(F.silu(self.first_norm(x)))
        pooled = (h * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1.0)
        context = torch.einsum("kst,tc->skc", neighbours.context, pooled).flatten(1)
        scale, shift = (self.of_time(time) + self.of_context(context)).chunk(2, dim=1)
        h = self.second_norm(h) * (1 + scale[..., None, None]) + shift[..., None, None]
        h = h + self.of_arc(torch.cat([h[neighbours.before], h[neighbours.after]], dim=1))
        return x + self.second(F.silu(h))


class FluenceNet(nn.Module):
    """From features and noisy fluence of all sectors of a plan to their fluence without noise.

    `forward(x[s, 1, r, c], time, features[s, f, r, c], neighbours)`: `x` and the output are in units of the
    process, `time` runs from 0 to 1. Sectors are one batch: each sees its neighbours.
    """

    def __init__(self, features: int, size: FluenceSize) -> None:
        super().__init__()
        self.size = size
        wide, deep = size.channels, size.deep_channels
        self.embed = nn.Sequential(nn.Linear(size.embedding, size.embedding), nn.SiLU())
        self.stem = nn.Conv2d(features + 1, wide, 3, padding=1)
        self.down_blocks = nn.ModuleList(_Block(wide, size.embedding) for _ in range(size.blocks))
        self.narrow = nn.Conv2d(wide, deep, 2, stride=2)
        self.deep_blocks = nn.ModuleList(_Block(deep, size.embedding) for _ in range(size.blocks))
        self.widen = nn.Conv2d(deep, wide, 1)
        self.up_blocks = nn.ModuleList(_Block(wide, size.embedding) for _ in range(size.blocks))
        self.head = nn.Conv2d(wide, 1, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, features: Tensor, neighbours: Neighbours) -> Tensor:
        """The fluence without noise, `[s, 1, r, c]`."""
        sectors, _, rows, columns = x.shape
        pad = (0, columns % 2, 0, rows % 2)
        x, features = F.pad(x, pad), F.pad(features, pad)
        mask = features[:, _OPEN : _OPEN + 1]
        emb = self.embed(_waves(time.reshape(1, 1).to(x), self.size.embedding)).expand(sectors, -1)
        h = self.stem(torch.cat([x, features], dim=1))
        for block in self.down_blocks:
            h = block(h, emb, mask, neighbours)
        small = F.avg_pool2d(mask, 2)
        deep = self.narrow(h)
        for block in self.deep_blocks:
            deep = block(deep, emb, small, neighbours)
        h = h + F.interpolate(self.widen(deep), scale_factor=2, mode="nearest")
        for block in self.up_blocks:
            h = block(h, emb, mask, neighbours)
        return self.head(F.silu(h))[:, :, :rows, :columns]


def _waves(time: Tensor, size: int) -> Tensor:
    """Sines and cosines of a time `[n, 1]` from 0 to 1."""
    frequency = torch.exp(torch.arange(size // 2, dtype=time.dtype) * (math.log(200.0) / (size // 2)))
    phase = time * frequency * math.pi
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def _open_channel() -> int:
    from vmat_diffusion.generate.encode import FEATURES

    return FEATURES.index("open")


_OPEN = _open_channel()
