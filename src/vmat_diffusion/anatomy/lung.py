"""A chest with a lung tumour, arms above the head. The origin is at the fork of the windpipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vmat_diffusion.anatomy import tissue
from vmat_diffusion.anatomy.lung_bones import (
    bones,
    chest_body,
    chest_cavity,
    chest_outline_mm,
    front,
    ribs,
    spinal_canal,
)
from vmat_diffusion.anatomy.scan import (
    CORD_MARGIN_MM,
    SKIN_MARGIN_MM,
    Parts,
    Scan,
    draw_scan,
    skewed,
    some_of,
    truncated,
    uniform,
)
from vmat_diffusion.anatomy.solids import (
    Frame,
    Solid,
    Space,
    ball_radius_mm,
    below,
    draw_waves,
    ellipsoid,
    generator,
    half_space,
    rod,
    union,
)
from vmat_diffusion.anatomy.tissue import Tissue
from vmat_diffusion.case import Prescription, Role
from vmat_diffusion.geometry import Mask, Point

OPTIONAL = ("Trachea", "A_Aorta", "Liver", "Bronchus_Prox", "BrachialPlex_L", "BrachialPlex_R", "CTV")
_BOTTOM_MM, _TOP_MM = -165.0, 150.0
# Enlarged nodes of the mediastinum: beside the windpipe, below its fork, at the root of either lung.
_NODES: tuple[Point, ...] = ((-17, 2, 26), (16, 0, 22), (0, 20, -20), (-42, 6, -20), (44, 6, -20))


@dataclass(frozen=True)
class LungParameters:
    """One chest. `tumour_mm` is the tumour's centre before bending; `node` is None where none is enlarged."""

    site: ClassVar[str] = "lung"
    scan: Scan
    chest: Frame
    fat_mm: float
    heart_cc: float
    tumour_mm: Point
    tumour_cc: float
    node: int | None
    node_cc: float
    margin_mm: float
    absent: tuple[str, ...]


def draw(rng: np.random.Generator) -> LungParameters:
    """A random chest, the tumour anywhere in either lung. Spreads are chosen, see docs/anatomy.md."""
    scan = draw_scan(rng, turn_deg=1.2, bend_mm=6.0)
    chest = Frame(truncated(rng, 0.97, 0.05, 0.88, 1.08), truncated(rng, 0.95, 0.05, 0.84, 1.04))
    heart_cc = truncated(rng, 680.0, 110.0, 450.0, 950.0)
    lung = _lung(chest, heart_cc, 1 if rng.uniform() < 0.5 else -1)
    return LungParameters(
        scan=scan,
        chest=chest,
        fat_mm=skewed(rng, 14.0, 0.45, 6.0, 32.0),
        heart_cc=heart_cc,
        tumour_mm=_place_within(rng, lung),
        tumour_cc=skewed(rng, 45.0, 0.8, 4.0, 200.0),
        node=int(rng.integers(len(_NODES))) if rng.uniform() < 0.6 else None,
        node_cc=skewed(rng, 10.0, 0.6, 2.0, 35.0),
        margin_mm=uniform(rng, 6.0, 9.0),
        absent=some_of(rng, OPTIONAL, 0.15),
    )


def _place_within(rng: np.random.Generator, solid: Solid) -> Point:
    """A point of a solid, 5 mm or more from its surface, all equally likely."""
    low, high = np.array(solid.low), np.array(solid.high)
    low[2], high[2] = max(low[2], _BOTTOM_MM + 40), min(high[2], _TOP_MM - 40)
    points = rng.uniform(low, high, (512, 3)).astype(np.float32)
    inside = np.flatnonzero(solid.level(*points.T) <= -5.0)
    x, y, z = points[inside[0]].tolist()
    return x, y, z


def _around_lungs(chest: Frame, heart_cc: float) -> tuple[Solid, ...]:
    """What takes room from the lungs within the ribs."""
    return (
        _mediastinum(chest),
        _heart(chest, heart_cc).grown(4.0),
        spinal_canal(chest).grown(14.0),
        _dome(chest, 1),
        _dome(chest, -1),
    )


def _lung(chest: Frame, heart_cc: float, sign: int) -> Solid:
    """The left (1) or right (-1) lung."""
    lung = chest_cavity(chest).grown(-3.0) & half_space((-sign, 0, 0), (0, 0, 0))
    for part in _around_lungs(chest, heart_cc):
        lung = lung - part
    return lung


def _dome(chest: Frame, sign: int) -> Solid:
    """What lies under one half of the diaphragm; the right one, over the liver, is higher."""
    return chest.ellipsoid((sign * 70, 2, -190 if sign < 0 else -202), (80, 92, 95))


def _mediastinum(chest: Frame) -> Solid:
    rows = (
        (-175, 4, 18, 34, 80), (-70, 4, 14, 26, 84), (-10, 2, 6, 34, 82), (45, 1, 6, 29, 70),
        (85, 0, 16, 25, 52), (115, 0, 22, 28, 46), (165, 0, 25, 36, 46),
    )  # fmt: skip
    return chest.tube(*rows)


def _heart(chest: Frame, volume_cc: float) -> Solid:
    radius = ball_radius_mm(volume_cc)
    semi = (0.95 * radius, 0.9 * radius, 1.17 * radius)
    return ellipsoid(chest.at(24, -22, -64), semi, toward=(0.6, -0.4, -0.65))


def parts(p: LungParameters, spacing_mm: Point) -> Parts:
    """The chest on a grid."""
    chest = p.chest
    wide, deep = chest_outline_mm(chest, p.fat_mm)
    space = p.scan.space((-wide - 15, -deep - 14, _BOTTOM_MM), (wide + 15, deep + 28, _TOP_MM), spacing_mm)
    skin = (0.0, -2.0, -SKIN_MARGIN_MM, -p.fat_mm - 2)
    body, under_skin, deep_enough, inner = space.masks(chest_body(chest, p.fat_mm), *skin)
    cavity, pleura, reach = space.masks(chest_cavity(chest), 0.0, -3.0, 2.0)
    rib, breast = space.mask(ribs(chest)), space.mask(front(chest))
    bone = (space.mask(*bones(chest)) | (rib & ~breast)) & body
    organs = _organs(p, space, body & ~bone, cavity, pleura)
    keep_out = bone | organs["SpinalCord"] | organs["Esophagus"] | organs["Heart"] | organs["Trachea"]
    keep_out |= space.mask(spinal_canal(chest).grown(1.0))
    gross = _gross_tumour(p, space, reach & body & ~keep_out & ~organs["Bronchus_Prox"])
    for name in ("Lung_L", "Lung_R", "A_Aorta", "Liver"):
        organs[name] &= ~gross
    organs["Lungs"] = organs["Lung_L"] | organs["Lung_R"]
    clinical = gross | (space.grown(gross, 6.0) & ~keep_out & reach)
    planning = space.grown(clinical, p.margin_mm) & deep_enough
    planning &= ~space.grown(organs["SpinalCord"], CORD_MARGIN_MM)
    contours: dict[str, tuple[Role, Mask]] = {
        "BODY": ("body", body),
        "PTV_60": ("target", planning),
        "CTV": ("target", clinical),
        "GTV": ("target", gross),
    }
    contours |= {name: ("organ", mask) for name, mask in organs.items()}
    kept = {name: part for name, part in contours.items() if name not in p.absent}
    layers = [
        (body, tissue.SKIN),
        (under_skin, tissue.FAT),
        (inner, tissue.MUSCLE),
        (inner & _fat_planes(p, space), tissue.FAT),
        (cavity, tissue.FAT),
        *_organ_layers(p, space, cavity, organs),
        (rib & breast & body, tissue.CARTILAGE),
        (bone, tissue.BONE),
        (gross, tissue.TUMOUR),
        (space.mask(*_airways(chest, 8.0, 5.0)), tissue.AIR),
    ]
    return Parts(space, kept, layers, Prescription(30, {"PTV_60": 60.0}))


def _organs(p: LungParameters, space: Space, room: Mask, cavity: Mask, pleura: Mask) -> dict[str, Mask]:
    """Contours of the organs, none of which share a voxel: earlier ones take the room of later ones."""
    chest = p.chest
    seed = p.scan.shape_seed
    cord = spinal_canal(chest).grown(-3.5)
    windpipe, branches = _airways(chest, 10.0, 7.5)
    gullet = (
        (-175, 8, 34, 9, 6.5),
        (-60, 5, 37, 9.5, 6),
        (0, 3, 27, 9, 5.5),
        (60, 2, 28, 9, 5.5),
        (170, 1, 21, 8.5, 5),
    )
    solids = {
        "SpinalCord": cord,
        "Trachea": windpipe,
        "Bronchus_Prox": branches,
        "Esophagus": chest.tube(*gullet),
        "Heart": _heart(chest, p.heart_cc).rough(draw_waves(generator(seed, "Heart"), 80.0), 6.0),
        "A_Aorta": _aorta(chest),
        "BrachialPlex_L": rod(chest.points((16, 40, 150), (42, 28, 118), (80, 18, 104)), 5.0),
        "BrachialPlex_R": rod(chest.points((-16, 40, 150), (-42, 28, 118), (-80, 18, 104)), 5.0),
    }
    masks = {}
    taken = ~room
    for name, solid in solids.items():
        masks[name] = space.mask(solid) & ~taken
        taken = taken | masks[name]
    lungs = pleura & ~taken & ~space.mask(*_around_lungs(chest, p.heart_cc))
    for name, sign in (("Lung_L", 1), ("Lung_R", -1)):
        masks[name] = lungs & (space.xyz[0] * sign > 0)
    liver = _dome(chest, -1).grown(-3.0) | chest.ellipsoid((-10, -25, -175), (75, 58, 46))
    masks["Liver"] = space.mask(liver) & cavity & ~taken & ~lungs
    return masks


def _airways(chest: Frame, windpipe_mm: float, branch_mm: float) -> tuple[Solid, Solid]:
    """Windpipe and main branches of these radii."""
    windpipe = rod(chest.points((0, 4, 165), (0, 8, 60), (0, 8, 0)), windpipe_mm)
    paths = [chest.points((0, 8, 2), (sign * 38, 12, -24), (sign * 50, 22, -50)) for sign in (1, -1)]
    return windpipe, union(*(rod(path, branch_mm) for path in paths))


def _aorta(chest: Frame) -> Solid:
    rising = rod(chest.points((6, -24, -22), (-4, -28, 18), (8, -12, 44)), 15.0)
    arch = rod(chest.points((8, -12, 44), (20, 14, 46), (22, 36, 24)), 13.0)
    falling = rod(chest.points((22, 36, 24), (23, 44, -40), (15, 44, -175)), 12.0)
    return union(rising, arch, falling)


def _gross_tumour(p: LungParameters, space: Space, room: Mask) -> Mask:
    """Tumour and enlarged node; neither grows into bone, heart, gullet, cord or airways here."""

    def ball(center: Point, volume_cc: float, name: str) -> Solid:
        radius = ball_radius_mm(volume_cc)
        waves = draw_waves(generator(p.scan.shape_seed, name), 1.6 * radius + 10)
        return ellipsoid(center, (radius, 0.95 * radius, 1.05 * radius)).rough(waves, 0.3 * radius)

    solids = [ball(p.tumour_mm, p.tumour_cc, "tumour")]
    if p.node is not None:
        solids.append(ball(p.chest.at(*_NODES[p.node]), p.node_cc, "node"))
    return space.mask(*solids) & room


def _fat_planes(p: LungParameters, space: Space) -> Mask:
    """Thin sheets between the muscles."""
    return np.abs(draw_waves(generator(p.scan.shape_seed, "planes"), 60.0)(*space.xyz)) < 0.07


def _organ_layers(
    p: LungParameters, space: Space, cavity: Mask, organs: dict[str, Mask]
) -> list[tuple[Mask, Tissue]]:
    """The tissues within the ribs."""
    chest, seed = p.chest, p.scan.shape_seed
    lungs = organs["Lungs"]
    veins = rod(chest.points((-22, -24, -30), (-22, -24, 60), (-34, -18, 110)), 8.5)
    trunk = rod(chest.points((22, -30, -24), (14, -22, 8)), 13.0)
    roots = [
        rod(chest.points((10, -4, -4), (sign * 48, 4, -12), (sign * 62, 14, -40)), 7.0) for sign in (1, -1)
    ]
    belly = cavity & space.mask(_dome(chest, 1).grown(-3.0))
    loops = draw_waves(generator(seed, "stomach"), 90.0)(*space.xyz)
    return [
        (cavity & space.mask(below(-120.0 * chest.height_scale)), tissue.SOFT),
        (belly, tissue.SOFT),
        (belly & (loops > 0.35), tissue.GAS),
        (organs["Liver"], tissue.LIVER),
        (space.mask(spinal_canal(chest)), tissue.URINE),
        (organs["SpinalCord"], tissue.CORD),
        (lungs, tissue.LUNG),
        (lungs & (space.xyz[1] > 45), tissue.DEPENDENT_LUNG),
        (_pulmonary_vessels(seed, space, lungs), tissue.BLOOD),
        (space.mask(veins, trunk, *roots) & cavity, tissue.BLOOD),
        (organs["A_Aorta"], tissue.BLOOD),
        (organs["Heart"], tissue.BLOOD),
        (organs["Esophagus"], tissue.SOFT),
        (organs["Trachea"] | organs["Bronchus_Prox"], tissue.SOFT),
    ]


def _pulmonary_vessels(seed: int, space: Space, lungs: Mask) -> Mask:
    """Branching lines of a few mm: where two smooth random functions are zero at once."""
    out = np.zeros_like(lungs)
    xyz = [a[lungs] for a in space.xyz]
    total: np.ndarray = np.zeros(xyz[0].shape, np.bool_)
    for n, (length, width) in enumerate(((60.0, 0.085), (35.0, 0.09))):
        first, second = (draw_waves(generator(seed, f"vessels {n}{k}"), length)(*xyz) for k in "ab")
        total |= first**2 + second**2 < width**2
    out[lungs] = total
    return out
