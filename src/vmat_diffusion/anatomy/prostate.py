"""A male pelvis with a prostate to be treated. The origin is the middle of the prostate."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import ClassVar

import numpy as np

from vmat_diffusion.anatomy import tissue
from vmat_diffusion.anatomy.scan import (
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
    Solid,
    Space,
    above,
    draw_waves,
    ellipsoid,
    generator,
    half_space,
    rod,
    tube,
    union,
)
from vmat_diffusion.anatomy.tissue import Tissue
from vmat_diffusion.case import Prescription, Role
from vmat_diffusion.geometry import Mask, Point

OPTIONAL = ("PenileBulb", "Bag_Bowel", "SeminalVes", "Prostate")
_BOTTOM_MM, _TOP_MM = -95.0, 140.0


@dataclass(frozen=True)
class ProstateParameters:
    """One pelvis. `rectum_gas_mm` is the radius of the gas in the rectum, 0 for none."""

    site: ClassVar[str] = "prostate"
    scan: Scan
    fat_mm: float
    bone_scale: float
    prostate_cc: float
    bladder_cc: float
    rectum_radius_mm: float
    rectum_gas_mm: float
    treat_seminal_vesicles: bool
    margin_mm: float
    prescription: Prescription
    absent: tuple[str, ...]


def draw(rng: np.random.Generator) -> ProstateParameters:
    """A random pelvis. All spreads are chosen; docs/anatomy.md has the volumes that come out."""
    if rng.uniform() < 0.5:
        prescription = Prescription(20, {"PTV_60": 60.0})
    else:
        prescription = Prescription(39, {"PTV_78": 78.0})
    return ProstateParameters(
        scan=draw_scan(rng, turn_deg=1.5, bend_mm=6.0),
        fat_mm=skewed(rng, 20.0, 0.4, 9.0, 42.0),
        bone_scale=truncated(rng, 1.0, 0.04, 0.92, 1.08),
        prostate_cc=skewed(rng, 45.0, 0.35, 20.0, 100.0),
        bladder_cc=skewed(rng, 190.0, 0.45, 70.0, 420.0),
        rectum_radius_mm=truncated(rng, 15.0, 1.8, 11.5, 19.0),
        rectum_gas_mm=uniform(rng, 5.0, 9.0) if rng.uniform() < 0.35 else 0.0,
        treat_seminal_vesicles=bool(rng.uniform() < 0.4),
        margin_mm=uniform(rng, 5.0, 8.0),
        prescription=prescription,
        absent=some_of(rng, OPTIONAL, 0.15),
    )


@dataclass(frozen=True)
class _Organs:
    """The solids of the organs, before the room that they take from each other is settled."""

    prostate: Solid
    vesicles: Solid
    bladder: Solid
    rectum: Solid
    gas: Solid | None
    bulb: Solid


def parts(p: ProstateParameters, spacing_mm: Point) -> Parts:
    """The pelvis on a grid."""
    half_width, half_depth = _outline(p)
    space = p.scan.space(
        (-half_width - 18, -half_depth - 18, _BOTTOM_MM),
        (half_width + 18, half_depth + 18, _TOP_MM),
        spacing_mm,
    )
    body, under_skin, deep_enough = space.masks(_body(p), 0.0, -2.0, -SKIN_MARGIN_MM)
    heads = {side: space.mask(_femoral_head(p, sign)) for side, sign in (("L", 1), ("R", -1))}
    bones = space.mask(*_bones(p)) | heads["L"] | heads["R"]
    cavity, peritoneum = space.masks(_cavity(p), 0.0, -4.0)
    cavity &= ~bones
    organs = _organs(p)
    prostate = space.mask(organs.prostate) & ~bones
    bladder = space.mask(organs.bladder) & ~bones & ~prostate
    rectum = space.mask(organs.rectum) & ~bones & ~prostate & ~bladder
    vesicles = space.mask(organs.vesicles) & ~(bones | prostate | bladder | rectum)
    bulb = space.mask(organs.bulb) & ~(bones | prostate | rectum)
    bowel = peritoneum & space.mask(above(_bowel_floor_mm(p))) & ~bones
    bowel &= ~space.grown(bladder | vesicles, 3.0) & ~space.grown(rectum, 2.0)
    ctv = prostate | vesicles if p.treat_seminal_vesicles else prostate
    ptv = space.grown(ctv, p.margin_mm) & deep_enough
    target = next(iter(p.prescription.target_gy))
    contours: dict[str, tuple[Role, Mask]] = {
        "BODY": ("body", body),
        target: ("target", ptv),
        "CTV": ("target", ctv),
        "Prostate": ("organ", prostate),
        "SeminalVes": ("organ", vesicles),
        "Rectum": ("organ", rectum),
        "Bladder": ("organ", bladder),
        "Femur_Head_L": ("organ", heads["L"]),
        "Femur_Head_R": ("organ", heads["R"]),
        "PenileBulb": ("organ", bulb),
        "Bag_Bowel": ("organ", bowel),
    }
    layers = [
        (body, tissue.SKIN),
        (under_skin, tissue.FAT),
        *_soft_tissue(p, space, body, cavity),
        *_bowel_layers(p, space, bowel),
        (bones, tissue.BONE),
        (vesicles, tissue.SOFT),
        (bulb, tissue.SOFT),
        (bladder, tissue.URINE),
        (bladder & ~space.mask(organs.bladder.grown(-3.0)), tissue.SOFT),
        (prostate, tissue.PROSTATE),
        (rectum, tissue.STOOL),
        (rectum & ~space.mask(organs.rectum.grown(-3.0)), tissue.SOFT),
    ]
    if organs.gas is not None:
        layers.append((rectum & space.mask(organs.gas), tissue.GAS))
    kept = {name: part for name, part in contours.items() if name not in p.absent}
    return Parts(space, kept, layers, p.prescription)


def _outline(p: ProstateParameters) -> tuple[float, float]:
    """Half width and half depth of the body at the hips: the bones, and fat over them."""
    return 160 * p.bone_scale + 14 + 0.8 * p.fat_mm, 98 * p.bone_scale + 5 + 0.75 * p.fat_mm


def _section(p: ProstateParameters, side_mm: float, front_mm: float, back_mm: float) -> Solid:
    """The outline, moved inwards by these lengths."""
    half_width, half_depth = _outline(p)
    sections = (
        (-110, 0.0, 0.89, 0.86),
        (-60, 2.0, 0.97, 0.95),
        (-10, 0.0, 1.0, 1.0),
        (40, 0.0, 0.98, 1.0),
        (90, -4.0, 0.92, 0.97),
        (150, -8.0, 0.86, 0.96),
    )
    stations = [
        (
            z * p.bone_scale,
            0.0,
            y + (front_mm - back_mm) / 2,
            half_width * a - side_mm,
            half_depth * b - (front_mm + back_mm) / 2,
        )
        for z, y, a, b in sections
    ]
    return tube(stations, power=2.5, ends=False)


def _body(p: ProstateParameters) -> Solid:
    """The outline with the cleft between the buttocks."""
    _, half_depth = _outline(p)
    cleft = rod(
        [(0, half_depth + 8, -150), (0, half_depth + 6, 10), (0, half_depth + 20, 45)],
        9.0,
        stretch=(0.8, 2.6, 1.0),
    )
    return _section(p, 0.0, 0.0, 0.0) - cleft


def _cavity(p: ProstateParameters) -> Solid:
    """Pelvic and abdominal cavity: what lies between the walls of muscle and bone."""
    _, half_depth = _outline(p)
    front = -(half_depth - 0.9 * p.fat_mm - 12)
    s = p.bone_scale
    sections = ((-48, 28, -12, 52), (0, 43, -44, 58), (35, 51, -68, 72), (70, 72, front, 62))
    top = ((95, 88, front, 42), (150, 104, front + 4, 22))
    return tube(
        [(z * s, 0.0, (f + b) / 2 * s, a * s, (b - f) / 2 * s) for z, a, f, b in (*sections, *top)],
        ends=False,
    ) & above(-50 * s)


def _femoral_head(p: ProstateParameters, sign: int) -> Solid:
    s = p.bone_scale
    return ellipsoid((sign * 92 * s, -8 * s, 20 * s), (24 * s, 24 * s, 24 * s))


def _bones(p: ProstateParameters) -> list[Solid]:
    """Hip bones, sacrum, fifth lumbar vertebra and femora without their heads."""
    s = p.bone_scale
    # Marrow of the sacral canal is no bone; contours and beams know no finer detail there.
    canal = rod([(0, 64 * s, 150 * s), (0, 84 * s, 100 * s), (0, 92 * s, 60 * s)], 6.0, stretch=(1.5, 1, 1))
    lumbar = ellipsoid((0, 24 * s, 140 * s), (25 * s, 18 * s, 13 * s), power=3.0)
    arch = ellipsoid((0, 62 * s, 138 * s), (20 * s, 18 * s, 12 * s))
    blocks = (
        (50, 108, 44, 20, 15),
        (72, 82, 42, 16, 15),
        (83, 58, 32, 12, 14),
        (87, 37, 21, 9, 12),
    )
    sacrum = [ellipsoid((0, y * s, z * s), (a * s, b * s, c * s)) for y, z, a, b, c in blocks]
    coccyx = rod([(0, 86 * s, 26 * s), (0, 80 * s, 10 * s), (0, 71 * s, 0)], 4.5, stretch=(1.5, 1, 1))
    spine = [solid - canal for solid in (lumbar, arch, *sacrum, coccyx)]
    return [*spine, *_hip(s, 1), *_hip(s, -1), *_femur(s, 1), *_femur(s, -1)]


def _hip(s: float, sign: int) -> list[Solid]:
    """One hip bone; the room of the joint is left free."""

    def at(*points: Point) -> list[Point]:
        return [(sign * x * s, y * s, z * s) for x, y, z in points]

    joint = ellipsoid(at((92, -8, 20))[0], (27.5 * s,) * 3)
    opening = half_space((sign * 0.75, -0.15, -0.6), at((95, -8, 18))[0])
    cup = ellipsoid(at((90, -7, 22))[0], (35 * s,) * 3) & opening
    crest = rod(at((124, -46, 96), (117, -5, 116), (88, 48, 118), (50, 84, 104)), 6.5 * s, stretch=(1, 1, 4))
    wing = rod(at((110, -30, 62), (100, 6, 76), (78, 44, 82), (53, 74, 82)), 6.5 * s, stretch=(1, 1, 3.2))
    root = ellipsoid(at((93, 4, 48))[0], (13 * s, 25 * s, 22 * s))
    upper = rod(at((84, -18, 24), (50, -46, 16), (17, -55, 5)), 7.5 * s, stretch=(1, 1, 1.3))
    pubis = ellipsoid(at((12, -54, -3))[0], (9 * s, 9 * s, 19 * s), power=2.5)
    lower = rod(at((12, -50, -15), (34, -24, -38), (56, 14, -52)), 6.0 * s)
    ischium = rod(at((84, 24, 14), (74, 34, -20), (59, 24, -50)), 12.5 * s, stretch=(0.8, 1.2, 1))
    return [part - joint for part in (cup, crest, wing, root, upper, pubis, lower, ischium)]


def _femur(s: float, sign: int) -> list[Solid]:
    head, shaft_top = (sign * 92 * s, -8 * s, 20 * s), (sign * 128 * s, 2 * s, 6 * s)
    neck = rod([head, shaft_top], 14.0 * s, stretch=(1, 0.85, 1.1))
    trochanter = ellipsoid((sign * 136 * s, 9 * s, 6 * s), (14 * s, 18 * s, 23 * s))
    shaft = rod([(sign * 130 * s, 4 * s, -12 * s), (sign * 120 * s, -4 * s, -140 * s)], 15.0 * s)
    return [neck, trochanter, shaft]


def _organs(p: ProstateParameters) -> _Organs:
    s, r = p.bone_scale, p.rectum_radius_mm
    wide, deep, high = _semi_axes(p.prostate_cc, (1.15, 0.85, 1.02))
    prostate = ellipsoid((0, 0, 0), (wide, deep, high), toward=(0, -0.15, 1))
    across, along, up = _semi_axes(p.bladder_cc, (1.18, 0.98, 0.87))
    bladder = ellipsoid((0, deep - 4 - along, high + up - 7), (across, along, up), toward=(0, -0.2, 1))
    behind = deep + 0.85 * r + 1.5
    rectum = tube(
        [
            (-46 * s, 0, behind + 9, 0.6 * r, 0.65 * r),
            (-28 * s, 0, behind + 2, 0.8 * r, 0.75 * r),
            (0, 0, behind, 1.1 * r, 0.85 * r),
            (28 * s, 1, min(behind + 9, 78 * s - 1.1 * r), 1.15 * r, r),
            (55 * s, -2, min(behind + 13, 68 * s - 1.05 * r), r, r),
            (78 * s, 4, 52 * s - r, 0.85 * r, 0.85 * r),
        ]
    )
    gas = None
    if p.rectum_gas_mm:
        g = min(p.rectum_gas_mm, 0.6 * r)
        gas = rod([(0, behind - 2, -8), (0, behind + 3, 30)], g, stretch=(1.1, 0.9, 1))
    vesicles = union(
        *(
            rod(
                [(sign * 6, deep * 0.75, high * 0.75), (sign * 22, deep + 3, high + 9)],
                5.5,
                stretch=(1, 0.9, 1.2),
            )
            for sign in (1, -1)
        )
    )
    bulb = ellipsoid((0, 6, -high - 20), (11.5, 12.5, 10.0))
    waves = {
        name: draw_waves(generator(p.scan.shape_seed, name), length)
        for name, length in (
            ("prostate", 35),
            ("bladder", 80),
            ("rectum", 45),
            ("vesicles", 25),
            ("bulb", 25),
        )
    }
    return _Organs(
        prostate.rough(waves["prostate"], 3.0),
        vesicles.rough(waves["vesicles"], 2.0),
        bladder.rough(waves["bladder"], 8.0),
        rectum.rough(waves["rectum"], 4.0),
        gas,
        bulb.rough(waves["bulb"], 2.0),
    )


def _semi_axes(volume_cc: float, ratio: Point) -> Point:
    """Semi-axes in mm of an ellipsoid of a volume, in a ratio whose product is about 1."""
    radius = (volume_cc * 1000 * 3 / (4 * pi * ratio[0] * ratio[1] * ratio[2])) ** (1 / 3)
    return radius * ratio[0], radius * ratio[1], radius * ratio[2]


def _bowel_floor_mm(p: ProstateParameters) -> float:
    """Bowel reaches down to the upper part of the bladder, not below the brim of the pelvis."""
    _, _, up = _semi_axes(p.bladder_cc, (1.18, 0.98, 0.87))
    return min(20 + 1.3 * up, 70.0)


def _soft_tissue(p: ProstateParameters, space: Space, body: Mask, cavity: Mask) -> list[tuple[Mask, Tissue]]:
    """Muscle with its fat planes, and the fat in the cavity and beside the anus."""
    s = p.bone_scale
    muscle = space.mask(_section(p, 0.8 * p.fat_mm, 0.9 * p.fat_mm, p.fat_mm)) & body
    planes = draw_waves(generator(p.scan.shape_seed, "planes"), 75.0)(*space.xyz)
    fossa = [ellipsoid((x * s, 48 * s, -38 * s), (17 * s, 24 * s, 24 * s)) for x in (27, -27)]
    groin, vessels, psoas = [], [], []
    for sign in (1, -1):
        path = [(sign * 84 * s, -72 * s, -110 * s), (sign * 68 * s, -62 * s, 30 * s)]
        path.append((sign * 46 * s, 0.0, 95 * s))
        groin.append(rod(path, 13.0, stretch=(1.3, 0.8, 1)))
        vessels += [rod([(x + dx, y, z) for x, y, z in path], 5.0) for dx in (7.0, -7.0)]
        psoas.append(rod([(sign * 42 * s, 26 * s, 160 * s), (sign * 66 * s, -10 * s, 80 * s)], 19.0 * s))
        psoas.append(rod([(sign * 66 * s, -10 * s, 80 * s), (sign * 88 * s, -46 * s, 20 * s)], 17.0 * s))
    return [
        (muscle, tissue.MUSCLE),
        (muscle & (np.abs(planes) < 0.045), tissue.FAT),
        (cavity & body, tissue.FAT),
        (space.mask(*fossa, *groin) & body, tissue.FAT),
        (space.mask(*psoas) & muscle, tissue.MUSCLE),
        (space.mask(*vessels) & body, tissue.BLOOD),
    ]


def _bowel_layers(p: ProstateParameters, space: Space, bowel: Mask) -> list[tuple[Mask, Tissue]]:
    """Loops of bowel in fat, some of them with gas."""
    loops = draw_waves(generator(p.scan.shape_seed, "loops"), 50.0, 6)(*space.xyz)
    return [
        (bowel & (np.abs(loops) < 0.3), tissue.SOFT),
        (bowel & (np.abs(loops) < 0.13), tissue.STOOL),
        (bowel & (loops > 0.55), tissue.GAS),
    ]
