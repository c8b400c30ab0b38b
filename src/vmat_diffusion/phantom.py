"""Cases built in code: the TG-119 geometries, a water cylinder and a thorax with lungs.

The TG-119 cases follow Ezzell et al., Med Phys 36:5359 (2009), in water (0 HU). Where the report
gives words instead of numbers (skin outline, bladder position, parotids) the choice made here is
stated beside it. All phantoms are centred on (0, 0, 0), head-first supine, and end with the CT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vmat_diffusion.case import Case, Prescription, Role, Structure
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, Mask, Point

_AIR_HU = -1000
_WATER_HU = 0
_LUNG_HU = -749  # 0.26 g/cm3 by the density table of `case`
_BONE_HU = 700  # 1.43 g/cm3


def phantom(name: str) -> Case:
    """A built-in case with contours and prescription. Raises CaseError for an unknown name.

    Names are in `PHANTOMS`. The case has no DICOM source; write it with `dicom.write_case` first
    if a plan is to be exported for it.
    """
    if name not in _BUILDERS:
        raise CaseError(f"phantom {name!r} is not known; choose one of {', '.join(PHANTOMS)}")
    return _BUILDERS[name]()


def squared(case: Case) -> Case:
    """The case with as many rows as columns, air added at the far ends.

    Libraries that take a slice's two sides for one another cut or turn what is not square.
    """
    nz, ny, nx = case.grid.shape
    size = max(ny, nx)
    pad = ((0, 0), (0, size - ny), (0, size - nx))
    structures = {n: replace(s, mask=np.pad(s.mask, pad)) for n, s in case.structures.items()}
    return replace(
        case,
        grid=replace(case.grid, shape=(nz, size, size)),
        hu=np.pad(case.hu, pad, constant_values=_AIR_HU),
        structures=structures,
    )


@dataclass(frozen=True, eq=False)
class _Space:
    """Voxel-centre coordinates of a grid around the origin, and the solids that can be cut from it."""

    grid: Grid

    @property
    def xyz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates in mm, shaped to broadcast over `[z, y, x]`."""
        x, y, z = self.grid.axes_mm
        return x[None, None, :], y[None, :, None], z[:, None, None]

    def ellipsoid(self, center: Point, semi_axes: Point) -> Mask:
        """An axis-aligned ellipsoid."""
        terms = (((a - c) / s) ** 2 for a, c, s in zip(self.xyz, center, semi_axes, strict=True))
        return sum(terms, np.zeros(self.grid.shape)) <= 1

    def column(self, center: tuple[float, float], semi_axes: tuple[float, float]) -> Mask:
        """An elliptic cylinder along z without ends."""
        x, y, _ = self.xyz
        inside = ((x - center[0]) / semi_axes[0]) ** 2 + ((y - center[1]) / semi_axes[1]) ** 2 <= 1
        return np.broadcast_to(inside, self.grid.shape).copy()

    def rounded_block(self, width: float, depth: float, corner: float) -> Mask:
        """A block along z without ends, `width` along x and `depth` along y, with round corners."""
        x, y, _ = self.xyz
        beyond_x = np.maximum(np.abs(x) - (width / 2 - corner), 0)
        beyond_y = np.maximum(np.abs(y) - (depth / 2 - corner), 0)
        return np.broadcast_to(beyond_x**2 + beyond_y**2 <= corner**2, self.grid.shape).copy()

    def between(self, axis: int, low: float, high: float) -> Mask:
        """The slab `low < coordinate < high` along x (0), y (1) or z (2)."""
        a = self.xyz[axis]
        return np.broadcast_to((a > low) & (a < high), self.grid.shape).copy()

    def cylinder(self, center: Point, radius: float, length: float) -> Mask:
        """A round cylinder along z."""
        column = self.column(center[:2], (radius, radius))
        return column & self.between(2, center[2] - length / 2, center[2] + length / 2)


def _space(size_mm: Point, spacing_mm: Point = (2.0, 2.0, 2.5)) -> _Space:
    """A grid of whole voxels around the origin.

    Sizes are chosen so that flat faces of the solids fall between voxel centres, not on them.
    """
    counts = [int(np.ceil(length / step)) for length, step in zip(size_mm, spacing_mm, strict=True)]
    origin = tuple(-(n - 1) / 2 * step for n, step in zip(counts, spacing_mm, strict=True))
    return _Space(Grid(tuple(counts[::-1]), spacing_mm, origin))  # type: ignore[arg-type]


def _case(
    name: str,
    site: str,
    space: _Space,
    masks: Mapping[str, tuple[Role, Mask]],
    prescription: Prescription,
    *,
    hu: Mapping[int, Mask] | None = None,
) -> Case:
    """Assemble a case: water inside BODY, then the regions of `hu` in their order, air outside."""
    volume = np.full(space.grid.shape, _AIR_HU, np.int16)
    volume[masks["BODY"][1]] = _WATER_HU
    for value, region in (hu or {}).items():
        volume[region] = value
    structures = {key: Structure(key, role, mask, alias=key) for key, (role, mask) in masks.items()}
    return Case(name, site, space.grid, volume, structures, prescription)


def _tg119_cshape() -> Case:
    """C-shape: target radii 15 and 37 mm, 80 mm long, open to posterior; core radius 10 mm, 100 mm long.

    The report draws the ends of the C without numbers; they are cut 7.5 mm behind the core's axis,
    which gives the target volume that other open versions of the case have (168 cc).
    """
    space = _space((320.0, 170.0, 200.0))
    target = space.cylinder((0, 0, 0), 37.0, 80.0) & ~space.cylinder((0, 0, 0), 15.0, 80.0)
    masks: dict[str, tuple[Role, Mask]] = {
        "BODY": ("body", space.rounded_block(300.0, 150.0, 15.0)),
        "PTV": ("target", target & space.between(1, -100.0, 7.5)),
        "Core": ("organ", space.cylinder((0, 0, 0), 10.0, 100.0)),
    }
    return _case("tg119_cshape", "phantom", space, masks, Prescription(25, {"PTV": 50.0}))


def _tg119_multitarget() -> Case:
    """Three cylinders, 40 mm in diameter and length, stacked along the axis of rotation."""
    space = _space((320.0, 170.0, 220.0))
    masks: dict[str, tuple[Role, Mask]] = {
        "BODY": ("body", space.rounded_block(300.0, 150.0, 15.0)),
        "PTV_Center": ("target", space.cylinder((0, 0, 0), 20.0, 40.0)),
        "PTV_Superior": ("target", space.cylinder((0, 0, 40.0), 20.0, 40.0)),
        "PTV_Inferior": ("target", space.cylinder((0, 0, -40.0), 20.0, 40.0)),
    }
    levels = {"PTV_Center": 50.0, "PTV_Superior": 25.0, "PTV_Inferior": 12.5}
    return _case("tg119_multitarget", "phantom", space, masks, Prescription(25, levels))


def _tg119_prostate() -> Case:
    """Prostate: 40 x 26 x 65 mm ellipsoid, hollow towards the rectum, plus 6 mm; 75.6 Gy in 42.

    The rectum (15 mm across) lies in the hollow so that a third of its section is in the target at
    mid-height, as the report says. The hollow's curvature, the rectum's length (80 mm) and the
    bladder's position (overlapping the target's upper end) are chosen.
    """
    space = _space((320.0, 220.0, 200.0))
    hollow = space.column((0.0, 24.0), (18.0, 9.0))
    masks: dict[str, tuple[Role, Mask]] = {
        "BODY": ("body", space.rounded_block(300.0, 200.0, 70.0)),
        "PTV": ("target", space.ellipsoid((0, 0, 0), (26.0, 19.0, 38.5)) & ~hollow),
        "Rectum": ("organ", space.cylinder((0, 18.0, 0), 7.5, 80.0)),
        "Bladder": ("organ", space.ellipsoid((0, -8.0, 52.0), (25.0, 20.0, 25.0))),
    }
    return _case("tg119_prostate", "prostate", space, masks, Prescription(42, {"PTV": 75.6}))


def _tg119_headneck() -> Case:
    """Head and neck: target from skull base to neck, 6 mm under the skin, 15 mm from the cord.

    The report gives no sizes for outline, cord and parotids: an elliptic neck of 130 x 150 mm, a
    cord of 15 mm, a target of 100 mm that embraces the cord below and lies between the parotids
    (22 x 40 x 44 mm, 6 mm from it) above.
    """
    space = _space((150.0, 170.0, 200.0))
    cord = (0.0, 30.0)
    keep_out = space.column(cord, (22.5, 22.5))
    keep_out |= space.between(0, -22.5, 22.5) & space.between(1, cord[1], 100.0)
    keep_out |= ~space.between(0, -32.0, 32.0) & space.between(2, 0.0, 100.0)
    target = space.column((0.0, 0.0), (59.0, 69.0)) & space.between(1, -100.0, 45.0)
    parotid = (11.0, 20.0, 22.0)
    masks: dict[str, tuple[Role, Mask]] = {
        "BODY": ("body", space.column((0.0, 0.0), (65.0, 75.0))),
        "PTV": ("target", target & space.between(2, -50.0, 50.0) & ~keep_out),
        "SpinalCord": ("organ", space.cylinder((*cord, 0.0), 7.5, 180.0)),
        "Parotid_L": ("organ", space.ellipsoid((49.0, 5.0, 30.0), parotid)),
        "Parotid_R": ("organ", space.ellipsoid((-49.0, 5.0, 30.0), parotid)),
    }
    return _case("tg119_headneck", "head_neck", space, masks, Prescription(25, {"PTV": 50.0}))


def _water_cylinder() -> Case:
    """A water cylinder of radius 100 mm along z with one cylindrical target in its middle."""
    space = _space((220.0, 220.0, 200.0))
    masks: dict[str, tuple[Role, Mask]] = {
        "BODY": ("body", space.column((0.0, 0.0), (100.0, 100.0))),
        "PTV": ("target", space.cylinder((0, 0, 0), 25.0, 50.0)),
    }
    return _case("water_cylinder", "phantom", space, masks, Prescription(25, {"PTV": 50.0}))


def _thorax() -> Case:
    """A thorax: lungs of 0.26 g/cm3, heart, oesophagus, cord in a vertebra, tumour in the right lung.

    The tumour (radius 15 mm, water) sits in a target of radius 22 mm; `Lungs` is both lungs without
    the tumour.
    """
    space = _space((360.0, 240.0, 200.0), (2.5, 2.5, 2.5))
    heart = space.ellipsoid((25.0, -35.0, -30.0), (45.0, 40.0, 45.0))
    tumour = space.ellipsoid((-85.0, 5.0, 10.0), (15.0, 15.0, 15.0))
    outside = heart | tumour
    left = space.ellipsoid((85.0, -5.0, 0.0), (55.0, 75.0, 85.0)) & ~outside
    right = space.ellipsoid((-85.0, -5.0, 0.0), (55.0, 75.0, 85.0)) & ~outside
    vertebra = space.column((0.0, 45.0), (19.0, 19.0)) & ~space.column((0.0, 55.0), (8.0, 8.0))
    masks: dict[str, tuple[Role, Mask]] = {
        "BODY": ("body", space.column((0.0, 0.0), (170.0, 110.0))),
        "PTV_60": ("target", space.ellipsoid((-85.0, 5.0, 10.0), (22.0, 22.0, 22.0))),
        "Lung_L": ("organ", left),
        "Lung_R": ("organ", right),
        "Lungs": ("organ", left | right),
        "Heart": ("organ", heart),
        "Esophagus": ("organ", space.column((5.0, 18.0), (8.0, 8.0))),
        "SpinalCord": ("organ", space.column((0.0, 55.0), (6.0, 6.0))),
    }
    densities = {_LUNG_HU: left | right, _BONE_HU: vertebra}
    return _case("thorax", "lung", space, masks, Prescription(30, {"PTV_60": 60.0}), hu=densities)


_BUILDERS: dict[str, Callable[[], Case]] = {
    "tg119_cshape": _tg119_cshape,
    "tg119_prostate": _tg119_prostate,
    "tg119_headneck": _tg119_headneck,
    "tg119_multitarget": _tg119_multitarget,
    "water_cylinder": _water_cylinder,
    "thorax": _thorax,
}
PHANTOMS: tuple[str, ...] = tuple(_BUILDERS)
