"""A dose model with few weights, all of them random."""

from __future__ import annotations

from pathlib import Path

import torch

from vmat_diffusion.diffusion.model import DoseModel, ModelDescription, new_network, save_model
from vmat_diffusion.diffusion.network import Size


def small_model(seed: int = 0, *, diffusion: bool = True) -> DoseModel:
    """Networks whose every layer acts, also those that start at zero in training."""
    torch.manual_seed(seed)
    description = ModelDescription(size=Size(widths=(8, 8, 16, 16), heads=2, condition=16))
    networks = [new_network(description) for _ in range(1 + diffusion)]
    for network in networks:
        for values in network.parameters():
            torch.nn.init.normal_(values, std=0.2)
    return DoseModel(description, *(n.eval().requires_grad_(False) for n in networks))


def write_small_model(file: Path, seed: int = 0, *, diffusion: bool = True) -> Path:
    """The same as a file of weights."""
    return save_model(file, small_model(seed, diffusion=diffusion))
