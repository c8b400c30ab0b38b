"""PyDoseRT's engine as both drivers set it: as is quickest on processors.

FFT convolution, no head scatter, penumbra or output factors.
"""

from __future__ import annotations

import numpy as np
import torch
from pydosert import DoseEngine, MachineConfig
from pydosert.data import BeamSequence

FIELD_MM = 400
KERNEL_VOXELS = 51  # as in its manual; by FFT the cost hardly depends on it
CHUNK = 6  # beams at once
TPR_20_10 = 0.676


def engine_for(case: dict[str, np.ndarray], leaf_widths_mm: list[float], beams: BeamSequence) -> DoseEngine:
    """The engine for the case's grid, its transmission and leaves of these widths."""
    machine = MachineConfig(
        tpr_20_10=TPR_20_10,
        number_of_leaf_pairs=len(leaf_widths_mm),
        leaf_widths=leaf_widths_mm,
        mlc_transmission=float(case["transmission"]),
    )
    return DoseEngine(
        machine,
        kernel_size=KERNEL_VOXELS,
        dose_grid_spacing=tuple(case["spacing_zyx_mm"].tolist()),
        dose_grid_shape=case["density"].shape,
        beam_template=beams,
        device="cpu",
        dtype=torch.float32,
        beam_chunk_size=CHUNK,
        conv_backend="fft",
    )
