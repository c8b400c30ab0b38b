"""A head and neck with a primary tumour, its nodes and the neck around. z = 0 is at the angle of the jaw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vmat_diffusion.anatomy import tissue
from vmat_diffusion.anatomy.head_neck_bones import bones, cord_room, skull_room, teeth
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
    above,
    ball_radius_mm,
    below,
    draw_waves,
    ellipsoid,
    generator,
    rod,
    tube,
    union,
)
from vmat_diffusion.anatomy.tissue import Tissue
from vmat_diffusion.case import Prescription, Role
from vmat_diffusion.geometry import Mask, Point

OPTIONAL = (
    "SpinalCord_PRV", "Brainstem_PRV", "Brain", "Glnd_Submand_L", "Glnd_Submand_R", "Cavity_Oral", "Larynx",
    "Musc_Constrict", "Thyroid", "Esophagus", "Trachea", "Cochlea_L", "Cochlea_R", "Eye_L", "Eye_R", "Lens_L",
    "Lens_R", "OpticNrv_L", "OpticNrv_R", "OpticChiasm", "BrachialPlex_L", "BrachialPlex_R",
)  # fmt: skip
# Where primaries grow: the centre of one on the left, in an average head.
PRIMARIES: dict[str, Point] = {
    "tonsil": (22.0, -4.0, 8.0),
    "base of tongue": (11.0, -12.0, -8.0),
    "larynx": (8.0, -12.0, -55.0),
    "hypopharynx": (13.0, 6.0, -42.0),
    "nasopharynx": (8.0, -2.0, 46.0),
}
_BOTTOM_MM, _TOP_MM = -150.0, 170.0


@dataclass(frozen=True)
class HeadNeckParameters:
    """One head and neck. `side` is 1 for a tumour on the left, -1 for one on the right.

    `node_cc` is 0 where no node is enlarged; `treat_63` adds the level of intermediate risk.
    """

    site: ClassVar[str] = "head_neck"
    scan: Scan
    head_scale: float
    neck_half_width_mm: float
    shoulder_half_width_mm: float
    fat_mm: float
    parotid_scale: float
    primary: str
    primary_cc: float
    node_cc: float
    node_height_mm: float
    side: int
    treat_63: bool
    margin_mm: float
    absent: tuple[str, ...]


def draw(rng: np.random.Generator) -> HeadNeckParameters:
    """A random head and neck. All spreads are chosen; docs/anatomy.md has the volumes that come out."""
    # Larynx contours are absent or replaced where the larynx is the target.
    primary = str(rng.choice(list(PRIMARIES), p=[0.3, 0.3, 0.17, 0.13, 0.1]))
    return HeadNeckParameters(
        scan=draw_scan(rng, turn_deg=1.5, bend_mm=6.0),
        head_scale=truncated(rng, 1.0, 0.035, 0.92, 1.08),
        neck_half_width_mm=truncated(rng, 62.0, 5.0, 54.0, 74.0),
        shoulder_half_width_mm=truncated(rng, 195.0, 12.0, 170.0, 220.0),
        fat_mm=skewed(rng, 5.0, 0.4, 3.0, 12.0),
        parotid_scale=truncated(rng, 1.08, 0.08, 0.9, 1.28),
        primary=primary,
        primary_cc=skewed(rng, 60.0, 0.55, 12.0, 140.0),
        node_cc=skewed(rng, 25.0, 0.6, 4.0, 70.0) if rng.uniform() < 0.8 else 0.0,
        node_height_mm=uniform(rng, -55.0, 0.0),
        side=1 if rng.uniform() < 0.5 else -1,
        treat_63=bool(rng.uniform() < 0.7),
        margin_mm=uniform(rng, 4.0, 6.0),
        absent=some_of(rng, OPTIONAL, 0.15),
    )


def parts(p: HeadNeckParameters, spacing_mm: Point) -> Parts:
    """The head and neck on a grid."""
    s = p.head_scale
    half_width = p.shoulder_half_width_mm + 20
    space = p.scan.space((-half_width, -140 * s, _BOTTOM_MM), (half_width, 148 * s, _TOP_MM * s), spacing_mm)
    frame = Frame(s, s)
    skin = (0.0, -2.0, -SKIN_MARGIN_MM, -p.fat_mm - 2)
    body, under_skin, deep_enough, inner = space.masks(_body(p), *skin)
    skeleton = bones(frame)
    mandible = space.mask(*skeleton.mandible) & under_skin
    bone = space.mask(*skeleton.skull) | space.mask(*skeleton.spine) | space.mask(*skeleton.shoulders)
    bone = (bone | mandible) & body
    air = space.mask(*_air(frame)) & body & ~bone
    organs = _organs(p, space, frame, body & ~bone)
    nerves = organs["Brain"] | organs["Brainstem"] | organs["SpinalCord"] | organs["OpticChiasm"]
    inside = deep_enough & ~space.grown(organs["SpinalCord"], CORD_MARGIN_MM)
    targets = _targets(p, space, frame, inside=inside, barrier=bone | nerves, air=air)
    contours: dict[str, tuple[Role, Mask]] = {"BODY": ("body", body)}
    contours |= {name: ("target", mask) for name, mask in targets.items()}
    contours |= {name: ("organ", mask) for name, mask in organs.items()}
    contours["Bone_Mandible"] = ("organ", mandible)
    contours["SpinalCord_PRV"] = ("organ", space.grown(organs["SpinalCord"], 5.0))
    contours["Brainstem_PRV"] = ("organ", space.grown(organs["Brainstem"], 3.0))
    layers = [
        (body, tissue.SKIN),
        (under_skin, tissue.FAT),
        *_soft_tissue(p, space, frame, inner),
        *((organs[name], kind) for name, kind in _ORGAN_TISSUE.items()),
        (targets["GTVp"] | targets.get("GTVn", np.zeros_like(body)), tissue.TUMOUR),
        (bone & ~mandible, tissue.SKULL),
        (mandible, tissue.BONE),
        (space.mask(*teeth(frame)) & body, tissue.TEETH),
        (air, tissue.AIR),
    ]
    levels = {name: float(name[4:]) for name in targets if name.startswith("PTV")}
    kept = {name: part for name, part in contours.items() if name not in p.absent}
    return Parts(space, kept, layers, Prescription(35, levels))


def _body(p: HeadNeckParameters) -> Solid:
    s, neck = p.head_scale, p.neck_half_width_mm
    wide = p.shoulder_half_width_mm
    cranium = ellipsoid((0, 12 * s, 82 * s), (77 * s, 98 * s, 80 * s), power=2.3)
    face = tube(
        [
            (-44 * s, 0, -22 * s, 26 * s, 36 * s),
            (-32 * s, 0, -32 * s, 38 * s, 52 * s),
            (-16 * s, 0, -34 * s, 48 * s, 54 * s),
            (10 * s, 0, -34 * s, 58 * s, 54 * s),
            (45 * s, 0, -30 * s, 66 * s, 56 * s),
            (80 * s, 0, -20 * s, 66 * s, 58 * s),
        ],
        power=2.3,
    )
    nose = rod([(0, -88 * s, 50 * s), (0, -100 * s, 30 * s)], 9 * s, stretch=(1.2, 1.2, 1))
    trunk = tube(
        [
            (-160, 0, 18, wide, 102),
            (-130, 0, 20, 0.96 * wide, 95),
            (-112, 0, 22, 0.80 * wide, 86),
            (-94, 0, 24, 0.52 * wide, 76),
            (-76, 0, 26, 1.18 * neck, 68),
            (-50, 0, 26, neck, 64),
            (0, 0, 34, neck, 64),
            (60, 0, 34, neck, 64),
        ],
        power=2.2,
    )
    return trunk.blended(face.blended(nose, 8.0), 30.0).blended(cranium, 24.0)


def _airway(frame: Frame) -> Solid:
    """Nose to trachea behind tongue and larynx."""
    stations = [
        (-160, 0, 22, 8.5, 8), (-100, 0, 6, 8.5, 8), (-75, 0, -10, 8, 9), (-62, 0, -13, 5, 9),
        (-50, 0, -12, 6, 9), (-40, 0, -4, 10, 6), (-20, 0, 1, 12, 6), (5, 0, 2, 11, 6), (25, 0, 2, 12, 6),
        (42, 0, 0, 13, 10), (52, 0, -4, 10, 9),
    ]  # fmt: skip
    return frame.tube(*stations)


def _air(frame: Frame) -> list[Solid]:
    e = frame.ellipsoid
    return [
        _airway(frame),
        *(e((side * 6, -48, 46), (3.0, 36, 14)) for side in (1, -1)),
        *(e((side * 31, -48, 46), (13, 15, 15)) for side in (1, -1)),
        *(e((side * 10, -60, 66), (6, 16, 8)) for side in (1, -1)),
        *(rod(frame.points((side * 76, 12, 40), (side * 52, 14, 40)), 3.0) for side in (1, -1)),
        e((0, -36, 21), (20, 24, 2.5)),
        *(e((side * 62, 26, -160), (38, 46, 46)) for side in (1, -1)),
    ]


_ORGAN_TISSUE: dict[str, Tissue] = {
    "Brain": tissue.BRAIN, "Brainstem": tissue.BRAIN, "SpinalCord": tissue.CORD, "Cavity_Oral": tissue.MUSCLE,
    "Larynx": tissue.CARTILAGE, "Musc_Constrict": tissue.MUSCLE, "Esophagus": tissue.SOFT,
    "Thyroid": tissue.CARTILAGE, "Parotid_L": tissue.GLAND, "Parotid_R": tissue.GLAND,
    "Glnd_Submand_L": tissue.PROSTATE, "Glnd_Submand_R": tissue.PROSTATE, "Eye_L": tissue.EYE,
    "Eye_R": tissue.EYE, "Lens_L": tissue.LENS, "Lens_R": tissue.LENS, "OpticNrv_L": tissue.SOFT,
    "OpticNrv_R": tissue.SOFT, "OpticChiasm": tissue.SOFT,
}  # fmt: skip


def _organ_solids(p: HeadNeckParameters, frame: Frame) -> dict[str, Solid]:
    """Organs in the order in which they take room; the first come first."""
    e, g = frame.ellipsoid, p.parotid_scale
    stem = [
        (18, 0, 42, 7, 6.5),
        (34, 0, 35, 12, 11),
        (50, 0, 24, 16, 15),
        (62, 0, 20, 15, 13),
        (76, 0, 18, 13, 9),
    ]
    cord = [(-160, 0, 72, 7, 6), (-120, 0, 60, 7.5, 6), (-70, 0, 48, 7.5, 6), (0, 0, 46, 7.5, 6.5)]
    solids = {
        "Brainstem": frame.tube(*stem),
        "SpinalCord": frame.tube(*cord, (18, 0, 42, 6.5, 6)),
        "OpticChiasm": e((0, -8, 74), (8, 5, 3)),
    }
    for name, side in (("L", 1), ("R", -1)):
        solids[f"Lens_{name}"] = e((side * 32, -78, 60), (4.5, 2.5, 4.5))
        solids[f"Eye_{name}"] = e((side * 32, -68, 60), (12.2, 12.2, 12.2))
        path = ((side * 31, -57, 60), (side * 22, -34, 66), (side * 7, -11, 73))
        solids[f"OpticNrv_{name}"] = rod(frame.points(*path), 2.7)
        solids[f"Cochlea_{name}"] = e((side * 26, 14, 42), (4.2, 4.2, 4.2))
        gland = e((side * 58, 20, 20), (13 * g, 18 * g, 30 * g))
        deep = e((side * 46, 20, 12), (10 * g, 9 * g, 14 * g))
        solids[f"Parotid_{name}"] = gland | deep
        solids[f"Glnd_Submand_{name}"] = e((side * 31, -20, -20), (8.5, 14.5, 15))
        plexus = ((side * 20, 36, -66), (side * 36, 30, -92), (side * 66, 30, -116))
        solids[f"BrachialPlex_{name}"] = rod(frame.points(*plexus), 4.5)
    solids["Larynx"] = frame.tube((-77, 0, -10, 11, 11), (-60, 0, -14, 15, 14), (-40, 0, -13, 14, 12))
    wall = _airway(frame).grown(4.5)
    behind = frame.half_space((0, -1, 0), (0, 3, 0)) & above(-72 * p.head_scale) & below(30 * p.head_scale)
    solids["Musc_Constrict"] = wall & behind
    gullet = ((-160, 3, 40, 9.5, 7), (-110, 4, 27, 9, 6.5), (-78, 1, 10, 8.5, 5.5))
    solids["Esophagus"] = frame.tube(*gullet)
    windpipe = ((-160, 0, 22, 10.5, 10), (-100, 0, 6, 10.5, 10), (-79, 0, -8, 10, 10.5))
    solids["Trachea"] = frame.tube(*windpipe)
    solids["Thyroid"] = union(*(e((side * 18, -4, -84), (8, 10, 22)) for side in (1, -1)))
    solids["Cavity_Oral"] = e((0, -40, 3), (27, 32, 22))
    solids["Brain"] = skull_room(frame)
    return solids


_IN_BONE = ("Cochlea", "OpticNrv")
_ROUGHNESS_MM = {"Parotid": 3.5, "Glnd_Submand": 2.0, "Larynx": 2.0, "Cavity_Oral": 3.0, "Thyroid": 2.0}


def _organs(p: HeadNeckParameters, space: Space, frame: Frame, room: Mask) -> dict[str, Mask]:
    """Contours of the organs, none of which share a voxel: earlier ones take the room of later ones."""
    taken = ~room
    masks = {}
    airway = space.mask(_airway(frame))
    for name, solid in _organ_solids(p, frame).items():
        amplitude = next((mm for start, mm in _ROUGHNESS_MM.items() if name.startswith(start)), 0.0)
        if amplitude:
            solid = solid.rough(draw_waves(generator(p.scan.shape_seed, name), 28.0), amplitude)
        mask = space.mask(solid)
        mask &= ~(taken & room) if name.startswith(_IN_BONE) else ~taken
        if name in ("Musc_Constrict", "Cavity_Oral", "Esophagus"):
            mask &= ~airway
        masks[name] = mask
        taken = taken | mask
    return masks


def _ball(center: Point, volume_cc: float, waves_seed: int, name: str) -> Solid:
    radius = ball_radius_mm(volume_cc)
    waves = draw_waves(generator(waves_seed, name), 30.0)
    return ellipsoid(center, (0.9 * radius, 0.95 * radius, 1.17 * radius)).rough(waves, 0.25 * radius)


def _neck_levels(frame: Frame, side: int, high: float, low: float) -> Solid:
    """Levels II to IV of one side along the vessels, from height `high` to `low`."""
    stations = [
        (-112, 30, 10, 14, 15), (-90, 29, 8, 14, 16), (-55, 33, 12, 14, 19), (-20, 38, 14, 14, 20),
        (10, 42, 18, 12, 17), (24, 42, 18, 11, 14),
    ]  # fmt: skip
    column = frame.tube(*((z, side * x, y, a, b) for z, x, y, a, b in stations))
    return column & below(high * frame.scale) & above(low * frame.scale)


def _targets(
    p: HeadNeckParameters, space: Space, frame: Frame, *, inside: Mask, barrier: Mask, air: Mask
) -> dict[str, Mask]:
    """GTV and the planning volumes of the three levels, which share no voxel.

    Tumour and spread respect the `barrier` of bone, brain and cord; planning volumes stay `inside`: below
    the skin and off the cord.
    """
    x, y, z = PRIMARIES[p.primary]
    seed = p.scan.shape_seed
    primary = space.mask(_ball(frame.at(p.side * x, y, z), p.primary_cc, seed, "GTVp")) & ~barrier & ~air
    out = {"GTVp": primary & inside}
    gross = out["GTVp"]
    if p.node_cc:
        node = space.mask(_ball(frame.at(p.side * 38, 13, p.node_height_mm), p.node_cc, seed, "GTVn"))
        out["GTVn"] = node & ~barrier & ~air & inside & ~gross
        gross = gross | out["GTVn"]
    spread = ~(barrier | space.mask(cord_room(frame)))
    own = space.mask(_neck_levels(frame, p.side, 20.0, -70.0))
    levels = [_neck_levels(frame, side, 12.0, -110.0) for side in (1, -1)]
    risk = {
        "PTV_70": space.grown(gross, 5.0) & spread,
        "PTV_63": (space.grown(gross, 10.0) | own) & spread,
        "PTV_56": space.mask(*levels) & spread,
    }
    if not p.treat_63:
        risk["PTV_56"] |= risk.pop("PTV_63")
    earlier = np.zeros_like(air)
    for name, clinical in risk.items():
        planning = space.grown(clinical, p.margin_mm) & inside & ~earlier
        earlier = earlier | planning
        out[name] = planning
    return out


def _soft_tissue(p: HeadNeckParameters, space: Space, frame: Frame, inner: Mask) -> list[tuple[Mask, Tissue]]:
    """Muscles with fat planes between them, vessels, the fluid around the cord, and lungs below."""
    planes = draw_waves(generator(p.scan.shape_seed, "planes"), 45.0)(*space.xyz)
    neck_fat, muscle, vessels = [], [], []
    for side in (1, -1):
        neck_fat.append(_neck_levels(frame, side, 20.0, -112.0).grown(4.0))
        sling = ((side * 60, 34, 22), (side * 46, 4, -50), (side * 16, -14, -118))
        muscle.append(rod(frame.points(*sling), 7.0, stretch=(0.9, 1.6, 1)))
        carotid = ((side * 30, 18, 40), (side * 32, 10, -20), (side * 22, 8, -80), (side * 16, 12, -150))
        vessels.append(rod(frame.points(*carotid), 3.5))
        vessels.append(rod(frame.points(*((x + side * 8, y + 7, z) for x, y, z in carotid)), 5.5))
    cheeks = [frame.ellipsoid((side * 44, -52, 22), (14, 18, 22)) for side in (1, -1)]
    orbits = [frame.ellipsoid((side * 30, -52, 60), (16, 22, 15)) for side in (1, -1)]
    lungs = [frame.ellipsoid((side * 62, 26, -160), (38, 46, 46)) for side in (1, -1)]
    return [
        (inner, tissue.MUSCLE),
        (inner & (np.abs(planes) < 0.06), tissue.FAT),
        (space.mask(*neck_fat, *cheeks, *orbits) & inner, tissue.FAT),
        (space.mask(*muscle) & inner, tissue.MUSCLE),
        (space.mask(*vessels) & inner, tissue.BLOOD),
        (space.mask(*lungs) & inner, tissue.LUNG),
        (space.mask(cord_room(frame)) & inner, tissue.URINE),
    ]
