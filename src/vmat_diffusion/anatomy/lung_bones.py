"""The chest: its wall, spine, ribs, breastbone, collar bones and shoulder blades."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.anatomy.solids import (
    Frame,
    Solid,
    above,
    below,
    ellipsoid,
    half_space,
    rod,
    tube,
)

_RIB_PITCH_MM = 25.0
_RIB_SLOPE = 0.5


def chest_cavity(chest: Frame) -> Solid:
    """The room within the ribs."""
    rows = (
        (-180, 0, 0, 132, 88), (-110, 0, 0, 133, 90), (-50, 0, 2, 129, 87), (0, 0, 6, 121, 81),
        (50, 0, 14, 105, 69), (90, 0, 24, 82, 53), (116, 0, 31, 57, 38), (132, 0, 34, 36, 24),
    )  # fmt: skip
    room = chest.tube(*rows, power=2.3)
    apex = [chest.ellipsoid((sign * 30, 34, 112), (32, 28, 24)) for sign in (1, -1)]
    cut = room & below(124.0 * chest.height_scale)
    return cut.blended(apex[0], 10.0).blended(apex[1], 10.0)


def chest_outline_mm(chest: Frame, fat_mm: float) -> tuple[float, float]:
    """Half width and half depth of the body."""
    return 133 * chest.scale + 24 + fat_mm, 90 * chest.scale + 22 + fat_mm


def chest_body(chest: Frame, fat_mm: float) -> Solid:
    """The outline: ribs, muscles and fat; wide at the top, where the arms go up."""
    wide, deep = chest_outline_mm(chest, fat_mm)
    rows = (
        (-185, 0, 2, 0, 0), (-60, 0, 2, 0, -1), (0, 0, 5, 0, -5), (50, 0, 11, 0, -13),
        (95, 0, 18, -4, -22), (130, 0, 22, -22, -32), (165, 0, 24, -50, -40),
    )  # fmt: skip
    stations = [(z * chest.height_scale, x, y, wide + a, deep + b) for z, x, y, a, b in rows]
    return tube(stations, power=2.4, ends=False)


def spinal_canal(chest: Frame) -> Solid:
    """The canal within the vertebrae."""
    rows = ((-185, 84), (-60, 87), (20, 85), (90, 77), (175, 62))
    return chest.tube(*((z, 0, y, 9.5, 8.5) for z, y in rows))


def bones(chest: Frame) -> list[Solid]:
    """All bones of the chest but the ribs."""
    breast = chest.points((0, -62, 62), (0, -72, 40), (0, -84, 0), (0, -95, -60))
    sternum = rod(breast, 6.0, stretch=(2.6, 1, 1))
    out = [*_spine(chest), sternum]
    for s in (1, -1):
        collar = chest.points((s * 16, -52, 78), (s * 60, -46, 100), (s * 110, -14, 116), (s * 132, 8, 118))
        out.append(rod(collar, 6.0))
        for z, inner, outer in (
            (92, (74, 90), (120, 58)),
            (60, (76, 97), (120, 68)),
            (26, (86, 99), (110, 84)),
        ):
            blade = chest.points((s * inner[0], inner[1], z), (s * outer[0], outer[1], z + 4))
            out.append(rod(blade, 3.6, stretch=(1, 1, 4.6)))
        out.append(rod(chest.points((s * 120, 58, 96), (s * 140, 40, 112)), 10.0))
    return out


def front(chest: Frame) -> Solid:
    """Where ribs are cartilage: the front, 6 cm to either side of the middle."""
    sides = half_space((1, 0, 0), chest.at(58, 0, 0)) & half_space((-1, 0, 0), chest.at(-58, 0, 0))
    return sides & half_space((0, 1, 0), chest.at(0, -10, 0))


def ribs(chest: Frame) -> Solid:
    """Ribs in the wall of the cavity, falling towards the front, with their cartilage."""

    def level(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        pitch = _RIB_PITCH_MM * chest.height_scale
        along = np.mod(z - _RIB_SLOPE * y, pitch) - pitch / 2
        return np.abs(along) - 5.5

    wall = chest_cavity(chest).shell(1.5, 9.5)
    bands = Solid(level, wall.low, wall.high)
    trunk = above(-175 * chest.height_scale) & below(128 * chest.height_scale)
    return (wall & bands & trunk) - spinal_canal(chest)


def _spine(chest: Frame) -> list[Solid]:
    """Thoracic vertebrae around the canal, each with a disc's gap to the next."""
    canal = spinal_canal(chest)
    out = []
    for n in range(16):
        z = 152.0 - 21.5 * n
        canal_y = float(np.interp(z, (-185, -60, 20, 90, 175), (84, 87, 85, 77, 62)))
        size = 14.0 + 0.35 * n
        body = ellipsoid(chest.at(0, canal_y - 23, z), chest.at(size, 14.5 + 0.15 * n, 9.0), power=3.5)
        arch = chest.ellipsoid((0, canal_y + 2, z), (18, 15, 9.0))
        wings = rod(chest.points((-32, canal_y + 10, z), (0, canal_y + 4, z), (32, canal_y + 10, z)), 5.0)
        spinous = rod(chest.points((0, canal_y + 12, z), (0, canal_y + 32, z - 14)), 3.2, stretch=(1, 1, 2))
        out += [part - canal for part in (body, arch, wings, spinous)]
    return out
