"""A made-up OpenKBP patient in both layouts: a block of water with a few structures, on its own axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dataset.openkbp import NAMES, SHAPE

# (anterior to posterior, right to left, head to feet)
BOXES = {
    "Brainstem": np.s_[66:70, 62:66, 30:36],
    "SpinalCord": np.s_[80:82, 63:65, 40:90],
    "RightParotid": np.s_[58:64, 46:52, 40:48],
    "LeftParotid": np.s_[58:64, 78:84, 40:48],
    "Larynx": np.s_[58:62, 61:67, 70:76],
    "PTV56": np.s_[54:62, 68:76, 50:66],
    "PTV70": np.s_[54:62, 56:68, 50:66],
}
VOXEL_MM = (4.0, 3.0, 2.5)


def arrays(seed: int = 0) -> dict[str, NDArray]:
    """The arrays of the npz layout, with a random CT and dose."""
    rng = np.random.default_rng(seed)
    body, possible = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    body[44:86, 40:90, 26:96] = True
    possible[50:72, 42:88, 28:80] = True
    bits = np.where(possible, 1 << 15, 0)
    for k, name in enumerate(NAMES):
        if name in BOXES:
            bits[BOXES[name]] |= 1 << k
    ct = np.where(body, rng.integers(950, 1100, SHAPE), 0)
    ct[60, 60, 60] = 20_000
    dose = np.where(possible, rng.integers(0, 7500, SHAPE), 0)
    return {
        "structures": bits.astype(np.uint16),
        "ct": ct.astype(np.int16),
        "voxel_mm": np.array(VOXEL_MM, np.float32),
        "dose_cGy": dose.astype(np.uint16),
    }


def write_npz(file: Path, parts: dict[str, NDArray]) -> Path:
    """The patient as one file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **parts)
    return file


def write_folder(folder: Path, parts: dict[str, NDArray]) -> Path:
    """The patient as the published folder of sparse CSV files."""
    folder.mkdir(parents=True)
    bits = parts["structures"]
    for k, name in [*enumerate(NAMES), (15, "possible_dose_mask")]:
        index = np.flatnonzero(bits >> k & 1)
        if index.size:
            text = ",data\n" + "".join(f"{i},\n" for i in index)
            (folder / f"{name}.csv").write_text(text, encoding="ascii")
    values = {"dose": parts["dose_cGy"] / 100}
    if "ct" in parts:
        values["ct"] = parts["ct"]
    for name, volume in values.items():
        index = np.flatnonzero(volume)
        text = ",data\n" + "".join(f"{i},{volume.ravel()[i]}\n" for i in index)
        (folder / f"{name}.csv").write_text(text, encoding="ascii")
    np.savetxt(folder / "voxel_dimensions.csv", parts["voxel_mm"])
    return folder
