"""The bones of head, neck and shoulders."""

from __future__ import annotations

from dataclasses import dataclass

from vmat_diffusion.anatomy.solids import (
    Frame,
    Solid,
    above,
    rod,
    union,
)


@dataclass(frozen=True)
class Skeleton:
    """Groups of bones."""

    skull: list[Solid]
    spine: list[Solid]
    mandible: list[Solid]
    shoulders: list[Solid]


def cord_room(frame: Frame) -> Solid:
    """The spinal canal from the skull down."""
    return frame.tube((-170, 0, 75, 10, 9), (-120, 0, 60, 10, 9), (-70, 0, 48, 10.5, 9), (22, 0, 46, 11, 10))


def bones(frame: Frame) -> Skeleton:
    """All bones of a head of the frame's size."""
    return Skeleton(_skull(frame), _spine(frame), _mandible(frame), _shoulders(frame))


def _vault(frame: Frame, inset_mm: float) -> Solid:
    return frame.ellipsoid((0, 12, 82), (77 - inset_mm, 98 - inset_mm, 80 - inset_mm), power=2.3)


def _floor(frame: Frame) -> Solid:
    """Above the base of the skull: the orbits' roof in front, then the temporal and posterior fossae."""
    front = frame.half_space((0, -0.25, -1), (0, -30, 74))
    temples = [frame.ellipsoid((side * 42, -2, 68), (25, 32, 26)) for side in (1, -1)]
    return union(front, *temples, frame.ellipsoid((0, 48, 62), (64, 56, 37)))


def _petrous(frame: Frame) -> Solid:
    """The bone around both inner ears."""
    return union(*(rod(frame.points((s * 60, 26, 42), (s * 16, 6, 48)), 9.0 * frame.scale) for s in (1, -1)))


def skull_room(frame: Frame) -> Solid:
    """The inside of the skull, where the brain is."""
    return (_vault(frame, 14.0) & _floor(frame)) - _petrous(frame)


def _skull(frame: Frame) -> list[Solid]:
    room = skull_room(frame)
    canal = cord_room(frame) | frame.tube((10, 0, 44, 13, 12), (40, 0, 40, 14, 14))
    vault = (_vault(frame, 7.0) & above(22 * frame.scale)) & room.shell(0.0, 9.0)
    base = room.shell(0.0, 6.0)
    cells = [frame.ellipsoid((s * 58, 30, 30), (8, 10, 12)) for s in (1, -1)]
    clivus = rod(frame.points((0, 22, 26), (0, 0, 52)), 7.0 * frame.scale, stretch=(1.6, 1, 1))
    palate = frame.ellipsoid((0, -42, 29), (24, 30, 2.6)) | _arc(frame, 24.0, 4.5, 4.0, depth=1.5)
    # Cheek bones and the arch behind them, and a rim around each orbit.
    arches = []
    for s in (1, -1):
        path = ((s * 40, -64, 42), (s * 56, -46, 44), (s * 65, -16, 42), (s * 64, 4, 42))
        arches.append(rod(frame.points(*path), 3.5 * frame.scale, stretch=(1, 1, 1.6)))
        orbit = frame.ellipsoid((s * 30, -56, 60), (17, 24, 16))
        shell = frame.ellipsoid((s * 30, -52, 60), (20, 25, 19)) - orbit
        arches.append(shell & frame.half_space((0, -1, 0), (0, -70, 0)) & above(44 * frame.scale))
        sinus = frame.ellipsoid((s * 31, -48, 46), (15, 17, 17))
        arches.append(sinus - frame.ellipsoid((s * 31, -48, 46), (13, 15, 15)))
    septum = frame.ellipsoid((0, -50, 48), (1.6, 34, 18))
    keep_out = canal | room
    return [
        vault,
        base - canal,
        *(x - keep_out for x in (_petrous(frame), *cells, clivus)),
        palate,
        *arches,
        septum,
    ]


def _arc(frame: Frame, height: float, radius: float, tall: float, *, depth: float) -> Solid:
    """The arch of the teeth at a height: a rod bent round the mouth."""
    points = [(s, y, height) for s, y in ((-29, -38), (-25, -56), (-15, -70), (0, -75))]
    points += [(-x, y, z) for x, y, z in reversed(points[:-1])]
    return rod(frame.points(*points), radius * frame.scale, stretch=(1, 1, tall / radius * depth))


def teeth(frame: Frame) -> list[Solid]:
    """Upper and lower teeth."""
    return [_arc(frame, 15.0, 3.0, 4.5, depth=1.0), _arc(frame, 3.0, 2.8, 4.5, depth=1.0)]


def _mandible(frame: Frame) -> list[Solid]:
    k = frame.scale
    out = []
    for s in (1, -1):
        ramus = ((s * 50, 6, 40), (s * 48, 0, 16), (s * 46, -6, -2))
        out.append(rod(frame.points(*ramus), 5.1 * k, stretch=(1, 2.6, 1)))
        body = ((s * 46, -8, -2), (s * 38, -38, -8), (s * 24, -62, -13))
        out.append(rod(frame.points(*body), 5.7 * k, stretch=(1, 1, 2.3)))
        out.append(rod(frame.points((s * 24, -62, -13), (0, -75, -15)), 5.7 * k, stretch=(1, 1, 2.3)))
    return out


def _spine(frame: Frame) -> list[Solid]:
    """Cervical and upper thoracic vertebrae around the canal, each with a disc's gap to the next."""
    k = frame.scale
    canal = cord_room(frame)
    out = []
    for n in range(10):
        z = 14.0 - 17.5 * n
        canal_y = 46.0 + max(0.0, -70.0 - z) * 0.25
        body = frame.ellipsoid((0, canal_y - 18, z), (12.0 + 0.5 * n, 9.0 + 0.3 * n, 7.2), power=3.5)
        arch = frame.ellipsoid((0, canal_y + 2, z), (18 + 0.3 * n, 16, 7.5))
        spinous = rod(
            frame.points((0, canal_y + 14, z), (0, canal_y + 30, z - 6)), 3.2 * k, stretch=(1, 1, 1.5)
        )
        wings = rod(frame.points((-24, canal_y - 6, z), (24, canal_y - 6, z)), 4.5 * k, stretch=(1, 1, 1.1))
        out += [part - canal for part in (body, arch, spinous, wings)]
    return out


def _shoulders(frame: Frame) -> list[Solid]:
    """Collar bones, first ribs, shoulder blades and the heads of the upper arms."""
    k = frame.scale
    out = []
    for s in (1, -1):
        collar = ((s * 14, -22, -138), (s * 60, -18, -124), (s * 110, 8, -112), (s * 140, 22, -110))
        out.append(rod(frame.points(*collar), 6.5 * k))
        first = ((s * 22, 52, -112), (s * 50, 46, -112), (s * 58, 18, -122), (s * 30, -14, -142))
        out.append(rod(frame.points(*first), 4.5 * k))
        blade = union(
            rod(frame.points((s * 132, 42, -112), (s * 90, 74, -116)), 5.0 * k, stretch=(1, 1, 2)),
            rod(frame.points((s * 128, 42, -135), (s * 70, 78, -150)), 4.0 * k, stretch=(1, 1, 5)),
        )
        out.append(blade)
        out.append(frame.ellipsoid((s * 152, 28, -136), (22, 22, 22)))
    return out
