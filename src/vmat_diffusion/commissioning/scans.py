"""Water-tank data: depth doses, profiles and output factors of open photon fields.

`read_curves` takes W2CAD, RFA300 ASCII, PTW mcc and CSV files, told apart by their content;
`read_output_factors` a table of rectangular fields or a list. Layouts, axes and units: `docs/scans.md`.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from gzip import BadGzipFile, GzipFile
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.commissioning.scan_formats import Block, Place, read_blocks
from vmat_diffusion.errors import MachineError

Kind = Literal["depth", "crossline", "inline", "diagonal"]

_SAD_MM = 1000.0
_FEWEST_POINTS = 5
_MOST_BYTES = 200_000_000
# What a number may be; beyond it the unit is wrong.
_SSD_MM = (500.0, 3000.0)
_SIDE_MM = (2.0, 500.0)
_REACH_MM = 1000.0
# A scan that goes straight strays from its axis by less than this and this share of its way.
_STRAY_MM, _STRAY_SHARE = 1.0, 0.02
_DEPTH_AGREES_MM = 1.0
# Width at half dose over the projected field; centimetres taken for millimetres give a tenth or tenfold.
_WIDTH_SHARE = (0.5, 2.0)


@dataclass(frozen=True, eq=False)
class Curve:
    """One scan in water, ordered along its way; all lengths in mm.

    `field_mm` is the field's full width in x and y at the isocentre distance. `x_mm`, `y_mm`, `z_mm` and
    `dose`, each of shape (n,), are the points: x crossline and y inline towards the gantry (IEC 61217,
    gantry and collimator 0), z the depth below the surface at `ssd_mm`. `dose` keeps the scale of the
    file: only ratios within a curve have a meaning. `depth_mm` is the depth of a profile, None for a depth
    dose; `energy_mv` None where the file does not say. `origin` names file and line.
    """

    kind: Kind
    field_mm: tuple[float, float]
    ssd_mm: float
    depth_mm: float | None
    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    z_mm: NDArray[np.float64]
    dose: NDArray[np.float64]
    energy_mv: float | None
    origin: str

    @property
    def along_mm(self) -> NDArray[np.float64]:
        """Position along the scan, ascending: depth, x, y, or on a diagonal the radius with the sign of x."""
        if self.kind == "depth":
            return self.z_mm
        return _off_axis(self.kind, self.x_mm, self.y_mm)

    @property
    def is_square(self) -> bool:
        """Whether the field's sides are equal."""
        return abs(self.field_mm[0] - self.field_mm[1]) < 0.05

    @property
    def label(self) -> str:
        """The curve in words, such as `crossline profile 100 x 100 mm at 50 mm depth`."""
        size = f"{self.field_mm[0]:g} x {self.field_mm[1]:g} mm"
        if self.depth_mm is None:
            return f"depth dose {size}"
        return f"{self.kind} profile {size} at {self.depth_mm:g} mm depth"


@dataclass(frozen=True, eq=False)
class OutputFactors:
    """Dose per MU of n fields relative to the reference field, at one point on the axis.

    `x_mm[n]`, `y_mm[n]` are field sides at the isocentre distance. `ssd_mm` and `depth_mm` of the point are
    None where the file does not say.
    """

    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    factor: NDArray[np.float64]
    ssd_mm: float | None
    depth_mm: float | None

    def square(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sides of the square fields in mm, ascending, and their factors."""
        same = np.abs(self.x_mm - self.y_mm) < 0.05
        order = np.argsort(self.x_mm[same])
        return self.x_mm[same][order], self.factor[same][order]


def read_curves(*paths: str | Path) -> tuple[Curve, ...]:
    """All scans of the files, in their order.

    Raises MachineError, naming file and line, for what is no scan of an open photon field in a known
    layout, for scans that are cut off, oblique or in a wrong unit, and for files of different energies.
    """
    curves: list[Curve] = []
    for path in paths:
        blocks = read_blocks(_text(Path(path)), Path(path).name)
        if not blocks:
            raise MachineError(f"{Path(path).name} holds no scans; export them again")
        curves += [_curve(block) for block in blocks]
    if len(energies := sorted({c.energy_mv for c in curves if c.energy_mv is not None})) > 1:
        named = " and ".join(f"{energy:g}" for energy in energies)
        raise MachineError(f"the scans are of {named} MV; give those of one beam")
    return tuple(curves)


def read_output_factors(path: str | Path) -> OutputFactors:
    """Output factors from a table (columns x, rows y, in cm) or a CSV with sides in named units.

    The table's first line holds energy, gantry, SSD and source-to-detector distance in cm; a CSV has the
    columns `side_mm` (or `x_mm` and `y_mm`; `_cm` in place of `_mm` for centimetres) and `of`, and may
    state `# ssd_mm = 950` and `# depth_mm = 50` in comments. Raises MachineError naming the line.
    """
    name = Path(path).name
    lines = [(Place(name, n), line.strip()) for n, line in enumerate(_text(Path(path)).splitlines(), start=1)]
    notes = [line for line in lines if line[1].startswith("#")]
    rows = [(p, [c.strip() for c in t.rstrip(",;").split(",")]) for p, t in lines if t and t[0] != "#"]
    if len(rows) < 2:
        raise MachineError(f"{name} holds no output factors; give a table or a list with side and factor")
    factors = _listed(rows, notes) if "of" in rows[0][1] else _tabled(rows)
    for values, what, (low, high) in (
        (np.concatenate([factors.x_mm, factors.y_mm]), "field side", _SIDE_MM),
        (factors.factor, "output factor", (0.05, 5.0)),
        (np.array([v for v in (factors.ssd_mm,) if v is not None]), "SSD", _SSD_MM),
        (np.array([v for v in (factors.depth_mm,) if v is not None]), "depth", (0.0, _REACH_MM)),
    ):
        if len(wrong := values[(values < low) | (values > high)]):
            raise MachineError(f"{name}: {what} {wrong[0]:g} is outside {low:g} to {high:g}; check the units")
    pairs = np.stack([factors.x_mm, factors.y_mm])
    if len(np.unique(np.round(pairs, 2), axis=1).T) < len(factors.factor):
        raise MachineError(f"{name} lists a field twice; remove one of the two")
    return factors


def _text(path: Path) -> str:
    """The content of a file, decompressed where it is gzipped."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = GzipFile(fileobj=io.BytesIO(data)).read(_MOST_BYTES + 1)
    except (BadGzipFile, EOFError, zlib.error):
        raise MachineError(f"{path.name} is not a whole gzip file; copy it again") from None
    except OSError as error:
        raise MachineError(f"{path} cannot be read ({error.strerror}); give an existing file") from None
    if len(data) > _MOST_BYTES:
        raise MachineError(f"{path.name} is larger than {_MOST_BYTES:g} bytes; give the scans of one beam")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # comments of older tank software; numbers are the same in both


def _curve(block: Block) -> Curve:
    """A block with its kind found from how the points move, ordered and checked."""
    place, points = block.place, block.points
    if len(points) < _FEWEST_POINTS:
        raise place.fault(f"the scan has {len(points)} points, {_FEWEST_POINTS} are needed; leave it out")
    for values, what, (low, high) in (
        (np.array(block.field_mm), "field side", _SIDE_MM),
        (np.array([block.ssd_mm]), "SSD", _SSD_MM),
        (points[:, :3].ravel(), "position", (-_REACH_MM, _REACH_MM)),
    ):
        if len(wrong := values[(values < low) | (values > high)]):
            raise place.fault(
                f"{what} {wrong[0]:g} mm is outside {low:g} to {high:g} mm; check the units of the scan"
            )
    x, y, z, dose = points.T
    if z.sum() < 0:  # some tanks count depth upwards
        z = -z
    if not dose.max() > 0:
        raise place.fault("no dose of the scan is positive; leave it out")
    kind = _kind(block, x, y, z)
    order = np.argsort(z if kind == "depth" else _off_axis(kind, x, y), kind="stable")
    depth = None if kind == "depth" else round(float(np.median(z)), 2)
    if depth is not None and block.depth_mm is not None:
        if abs(abs(block.depth_mm) - depth) > _DEPTH_AGREES_MM:
            raise place.fault(
                f"the scan states {block.depth_mm:g} mm depth, its points lie at {depth:g} mm; correct one"
            )
        depth = abs(block.depth_mm)
    curve = Curve(
        kind, block.field_mm, block.ssd_mm, depth, x[order], y[order], z[order], dose[order],
        block.energy_mv, f"{place.name}, line {place.line}",
    )  # fmt: skip
    _check_width(curve, place)
    return curve


def _kind(block: Block, x: NDArray, y: NDArray, z: NDArray) -> Kind:
    """What moves during a scan. Raises MachineError where it is not what the file says, or oblique."""
    way = np.array([np.ptp(x), np.ptp(y), np.ptp(z)])
    lateral = float(np.hypot(way[0], way[1]))

    def still(travel: float, whole: float) -> bool:
        return travel <= _STRAY_MM + _STRAY_SHARE * whole

    kind: Kind
    if way[2] > lateral:
        kind, straight = "depth", still(lateral, way[2])
    else:
        straight = still(way[2], lateral)
        kind = "crossline" if still(way[1], way[0]) else "inline" if still(way[0], way[1]) else "diagonal"
    if way.max() < _STRAY_MM or not straight:
        raise block.place.fault(
            f"the points move by {way[0]:g}, {way[1]:g}, {way[2]:g} mm in x, y and depth, neither along the "
            "beam nor across it; give straight scans"
        )
    if block.is_depth is not None and block.is_depth != (kind == "depth"):
        said = "a depth dose" if block.is_depth else "a profile"
        raise block.place.fault(f"the file says {said}, the points are a {kind} scan; export it again")
    return kind


def _off_axis(kind: Kind, x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Position along a profile."""
    if kind == "diagonal":
        return np.hypot(x, y) * np.where(x < 0, -1.0, 1.0)
    return x if kind == "crossline" else y


def _check_width(curve: Curve, place: Place) -> None:
    """Refuse a profile whose width at half dose is far from its field: its unit or its field is wrong."""
    along = curve.along_mm
    if curve.depth_mm is None or along[0] >= 0 or along[-1] <= 0:
        return
    lit = along[curve.dose >= 0.5 * np.interp(0.0, along, curve.dose)]
    if not len(lit) or lit[0] == along[0] or lit[-1] == along[-1]:
        return  # the scan does not cross both edges
    side = {"crossline": curve.field_mm[0], "inline": curve.field_mm[1]}.get(
        curve.kind, float(np.hypot(*curve.field_mm))
    )
    projected = side * (curve.ssd_mm + curve.depth_mm) / _SAD_MM
    share = (lit[-1] - lit[0]) / projected
    if not _WIDTH_SHARE[0] <= share <= _WIDTH_SHARE[1]:
        raise place.fault(
            f"the profile is {lit[-1] - lit[0]:.1f} mm wide, its field {projected:.1f} mm; "
            "check the units of the positions and the field size"
        )


_Row = tuple[Place, list[str]]


def _tabled(rows: list[_Row]) -> OutputFactors:
    """Table of rectangular fields: a line of set-up, a line of x sides, then y side and factors, in cm."""
    (top, setup), (where, sides), *body = rows
    if len(setup) < 4 or not body:
        raise top.fault(
            "the first line of a table of output factors holds energy, gantry, SSD and detector distance "
            "in cm; give that table, or a CSV with side_mm and of"
        )
    ssd, detector = (10 * top.number(setup[k], "a distance of the set-up") for k in (2, 3))
    x = 10 * np.array([where.number(side, "a field side") for side in sides])
    out = np.empty((len(body), len(x)))
    y = np.empty(len(body))
    for k, (place, cells) in enumerate(body):
        if len(cells) != len(x) + 1:
            raise place.fault(f"{len(cells) - 1} factors, {len(x)} are needed; correct the row")
        y[k] = 10 * place.number(cells[0], "a field side")
        out[k] = [place.number(cell, "an output factor") for cell in cells[1:]]
    wide, long = np.meshgrid(x, y)
    return OutputFactors(wide.ravel(), long.ravel(), out.ravel(), ssd, detector - ssd)


def _listed(rows: list[_Row], notes: list[tuple[Place, str]]) -> OutputFactors:
    """A list of fields with named columns."""
    top, header = rows[0]
    choices = (("side_mm", "side_mm"), ("x_mm", "y_mm"), ("side_cm", "side_cm"), ("x_cm", "y_cm"))
    names = next((pair for pair in choices if {*pair} <= {*header}), None)
    if names is None:
        raise top.fault(
            "no column is called side_mm, or x_mm and y_mm (or _cm); name the sides and their unit"
        )
    scale = 10.0 if names[0].endswith("_cm") else 1.0
    columns = [header.index(name) for name in (*names, "of")]
    table = np.empty((len(rows) - 1, 3))
    for k, (place, cells) in enumerate(rows[1:]):
        if len(cells) != len(header):
            raise place.fault(f"{len(cells)} columns, the header has {len(header)}; correct the row")
        table[k] = [place.number(cells[c], header[c]) for c in columns]
    stated: dict[str, float] = {}
    for place, note in notes:
        if hit := re.match(r"#\s*(ssd_mm|depth_mm)\s*=\s*(.*)", note):
            stated[hit[1]] = place.number(hit[2], hit[1])
    x, y, factor = table.T
    return OutputFactors(scale * x, scale * y, factor, stated.get("ssd_mm"), stated.get("depth_mm"))
