"""An encoded case seen from another side: mirrored left to right, or turned about the patient's axis.

Nine fields 40 degrees apart look the same after either, so the network must answer alike: training draws
such views, and the regression is the mean over a case and its mirror image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vmat_diffusion.diffusion.encode import Encoding


def other_side(name: str, known: Sequence[str]) -> str:
    """The name of the same structure or channel on the other side, if it is among the `known` ones."""
    swapped = {"_L": "_R", "_R": "_L"}.get(name[-2:])
    other = name[:-2] + swapped if swapped else name
    return other if other in known else name


def mirrored(volume: Tensor, vector: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """The case left to right: `volume[..., c, z, y, x]` and `vector[..., n]`, organs changing sides."""
    channels, organs = encoding.channels, encoding.organs
    sides = [channels.index(other_side(c, channels)) for c in channels]
    order = [organs.index(other_side(o, organs)) for o in organs]
    k, first = len(organs), len(encoding.levels)
    places = torch.arange(vector.shape[-1])
    for start in (first, *range(encoding.numbers - 4 * k, encoding.numbers, k)):
        places[start : start + k] = start + torch.tensor(order)
    return volume[..., sides, :, :, :].flip(-1), vector[..., places]


def outside(encoding: Encoding) -> Tensor:
    """What each channel holds where there is nothing, `[c]`: distances are far, all else is 0."""
    return torch.tensor([1.0 if "distance" in c else 0.0 for c in encoding.channels])


def turned(values: Tensor, angle_deg: float, fill: Tensor, mode: str = "bilinear") -> Tensor:
    """Each slice of `values[c, z, y, x]` turned about the middle; what comes from outside is `fill[c]`."""
    c, nz, ny, nx = values.shape
    level = fill[:, None, None, None]
    a = np.deg2rad(angle_deg)
    turn = torch.tensor(
        [[np.cos(a), -np.sin(a) * ny / nx, 0.0], [np.sin(a) * nx / ny, np.cos(a), 0.0]], dtype=torch.float32
    )
    grid = F.affine_grid(turn[None], [1, 1, ny, nx], align_corners=False)
    flat = (values - level).reshape(1, c * nz, ny, nx)
    return F.grid_sample(flat, grid, mode=mode, align_corners=False).reshape(c, nz, ny, nx) + level


def padded(volume: Tensor, encoding: Encoding, multiple: int) -> Tensor:
    """`volume[c, z, y, x]` with nothing added at the far ends until its sides are multiples."""
    sides = [side for n in volume.shape[:0:-1] for side in (0, -n % multiple)]
    level = outside(encoding)[:, None, None, None]
    return F.pad(volume - level, sides) + level
