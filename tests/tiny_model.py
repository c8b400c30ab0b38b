"""Dose models of a few thousand random weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.model import DoseModel, ModelDescription, new_network
from vmat_diffusion.diffusion.network import Size

TINY = Size(widths=(8, 8, 8, 8), heads=2, condition=16)


def tiny_model(*, residual: bool = True, seed: int = 0, encoding: Encoding | None = None) -> DoseModel:
    """A model that answers something around half the prescription, whatever it is asked.

    It knows the voxels of the small cases.
    """
    description = ModelDescription(
        encoding or Encoding(voxel_mm=(4.0, 4.0, 5.0)), TINY, card={"name": "tiny"}
    )
    torch.manual_seed(seed)
    nets = []
    for bias in (0.5, 0.0):
        net = new_network(description).eval().requires_grad_(False)
        torch.nn.init.constant_(net.head[-1].bias, bias)
        # Blocks begin as the identity; here the vector and the time are to be seen in the answer.
        for parameter in net.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        nets.append(net)
    return DoseModel(description, nets[0], nets[1] if residual else None)


def described(model: DoseModel, **changes: object) -> DoseModel:
    """The model with a changed description."""
    return replace(model, description=replace(model.description, **changes))
