"""Scan files of water tanks and planning systems, read as blocks of points.

Each reader turns its layout into `Block`s in one frame: mm, IEC 61217 at gantry and collimator 0
(x crossline, y inline towards the gantry), depth positive. What each layout says of units and axes,
and where that was read, is in `docs/scans.md`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import MachineError

_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST = 1e12
_DEPTH_TYPES = {"OPD", "MeasuredDepthDosesForOpenBeam"}
_PROFILE_TYPES = {"OPP", "DPR", "MeasuredProfileForOpenBeam"}
_WEDGE_TYPES = ("WD", "WL", "WP")
_DIAGONALS = {"NOT_DIAGONAL": 0.0, "FIRST_DIAGONAL": 1.0, "SECOND_DIAGONAL": -1.0}
_CSV_POINTS = ("x_mm", "y_mm", "z_depth_mm", "dose_rel")
_CSV_NEEDED = ("field_mm", "ssd_mm", *_CSV_POINTS)
_CSV_TYPES = ("curve", "type")


@dataclass(frozen=True)
class Place:
    """A line of a file, to be named in errors. Lines count from 1."""

    name: str
    line: int

    def fault(self, sentence: str) -> MachineError:
        """The error that names this place."""
        return MachineError(f"{self.name}, line {self.line}: {sentence}")

    def number(self, text: str, what: str) -> float:
        """A number with decimal point or comma."""
        if not _NUMBER.fullmatch(text.strip()):
            raise self.fault(f"{what} is {_short(text)}, not a number; correct the file or export it again")
        value = float(text.replace(",", "."))
        if abs(value) > _LARGEST:
            raise self.fault(f"{what} is {_short(text)}, which is no length or dose; correct the file")
        return value


@dataclass(frozen=True, eq=False)
class Block:
    """One scan as its file has it: `points[n, 4]` of x, y, depth in mm and dose.

    `is_depth` is what the file calls the scan, None where it does not say; `depth_mm` the nominal depth of
    a profile where it is stated.
    """

    place: Place
    field_mm: tuple[float, float]
    ssd_mm: float
    points: NDArray[np.float64]
    is_depth: bool | None = None
    depth_mm: float | None = None
    energy_mv: float | None = None


def read_blocks(text: str, name: str) -> list[Block]:
    """All scans of a file, its layout told by its content.

    Raises MachineError naming the line for a layout that is not known, scans that are cut off, and
    beams that are not open photon fields.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line in lines:
        start = line.strip()
        if start.startswith("$STOD"):
            raise MachineError(f"{name} holds doses calculated by a planning system; give measured scans")
        for grammar in _GRAMMARS:
            if grammar.known_by.match(start):
                return [grammar.block(found) for found in _sections(lines, name, grammar)]
        if set(_CSV_NEEDED) <= set(_cells(line)):
            return _csv_blocks(lines, name)
    raise MachineError(
        f"{name} is none of the known layouts (W2CAD, RFA300 ASCII, PTW mcc, CSV with the columns "
        f"{', '.join(_CSV_NEEDED)}); export the scans in one of them"
    )


@dataclass(frozen=True, eq=False)
class _Section:
    """The keys and rows of one scan, each with its line."""

    place: Place
    values: dict[str, tuple[Place, str]] = field(default_factory=dict)
    rows: list[tuple[Place, str]] = field(default_factory=list)

    def text(self, key: str, default: str | None = None) -> str:
        """A header value without its comment. Raises MachineError where it is missing and has no default."""
        if key not in self.values:
            if default is None:
                raise self.place.fault(f"the scan that starts here has no {key}; export it again")
            return default
        return self.values[key][1].split("#")[0].strip()

    def number(self, key: str, default: float | None = None) -> float:
        """The first number of a header value."""
        text = self.text(key, None if default is None else "")
        if not text and default is not None:
            return default
        return self.at(key).number(next(iter(text.split()), ""), key)

    def at(self, key: str) -> Place:
        """Where the key stands; the start of the scan if it is missing."""
        return self.values.get(key, (self.place, ""))[0]

    def one_of(self, key: str, known: Mapping[str, object] | set[str], remedy: str) -> str:
        """A header value that must be one of those known."""
        value = self.text(key)
        if value not in known:
            raise self.at(key).fault(f"{key} is {_short(value)}, not {' or '.join(known)}; {remedy}")
        return value

    def open_field(self, key: str) -> None:
        """Refuse a wedge."""
        if self.number(key, 0.0):
            raise self.at(key).fault(f"the field has a wedge ({key}); give scans of open fields only")

    def table(self, columns: int) -> NDArray[np.float64]:
        """The first columns of all rows. Raises MachineError for a row that has fewer."""
        out = np.empty((len(self.rows), columns))
        for k, (place, row) in enumerate(self.rows):
            cells = row.split("#")[0].split()
            if len(cells) < columns:
                raise place.fault(f"a point has {len(cells)} values, {columns} are needed; export it again")
            out[k] = [place.number(cell, "a value of a point") for cell in cells[:columns]]
        return out

    def counted(self, key: str) -> None:
        """Refuse a scan whose header states another number of points than follow."""
        stated = self.number(key, float(len(self.rows)))
        if stated != len(self.rows):
            raise self.at(key).fault(
                f"{key} states {stated:g} points, {len(self.rows)} follow; the file is cut off or changed, "
                "export it again"
            )


@dataclass(frozen=True, eq=False)
class _Grammar:
    """How a layout marks its scans; `begin` is None where a scan begins with its first key."""

    known_by: re.Pattern[str]
    begin: re.Pattern[str] | None
    end: re.Pattern[str]
    key: re.Pattern[str]
    row: re.Pattern[str]
    count: re.Pattern[str] | None
    last: re.Pattern[str]
    block: Callable[[_Section], Block]


def _sections(lines: list[str], name: str, grammar: _Grammar) -> Iterator[_Section]:
    """The scans of a file one by one, then a check that none is missing."""
    current: _Section | None = None
    stated, found, ended = None, 0, False
    for n, line in enumerate(lines, start=1):
        text, place = line.strip(), Place(name, n)
        if grammar.count and (hit := grammar.count.match(text)):
            stated = place.number(hit[1], "the number of scans")
        elif grammar.last.match(text):
            ended = True
            break
        elif grammar.begin and grammar.begin.match(text):
            if current is not None:
                raise place.fault(
                    f"a scan begins before that of line {current.place.line} ends; export again"
                )
            current = _Section(place)
        elif grammar.end.match(text):
            if current is None:
                raise place.fault("a scan ends that has not begun; export the file again")
            found += 1
            yield current
            current = None
        elif hit := grammar.key.match(text):
            current = current or (None if grammar.begin else _Section(place))
            if current is not None:
                current.values[hit[1]] = (place, hit[2])
        elif (hit := grammar.row.match(text)) and current is not None:
            current.rows.append((place, hit[1]))
    if current is not None:
        raise current.place.fault(
            "the scan that starts here has no end; the file is cut off, export it again"
        )
    if stated is not None and stated != found:
        raise MachineError(f"{name} states {stated:g} scans and holds {found}; export it again")
    if stated is None and not ended:
        raise MachineError(f"{name} has no end mark after {found} scans; it is cut off, export it again")


def _w2cad_block(section: _Section) -> Block:
    """A scan of W2CAD: mm, IEC axes, dose in percent."""
    section.one_of("BMTY", {"PHO"}, "give scans of photon beams")
    kind = section.text("TYPE")
    if kind.startswith(_WEDGE_TYPES):
        raise section.at("TYPE").fault(f"TYPE is {kind}, a wedge; give scans of open fields only")
    section.one_of("TYPE", _DEPTH_TYPES | _PROFILE_TYPES, "give depth doses and profiles of open fields")
    section.counted("PNTS")
    depth = section.number("DPTH", math.nan)
    return Block(
        place=section.place,
        field_mm=_sides(section.text("FLSZ"), section.at("FLSZ")),
        ssd_mm=section.number("SSD"),
        points=section.table(4),
        is_depth=kind in _DEPTH_TYPES,
        depth_mm=None if math.isnan(depth) or kind in _DEPTH_TYPES else depth,
    )


def _rfa300_block(section: _Section) -> Block:
    """A scan of RFA300 (BDS) ASCII: mm; the first column is inline, away from the gantry."""
    beam = section.text("BMT").split()
    if beam[:1] != ["PHO"]:
        raise section.at("BMT").fault(f"BMT is {_short(' '.join(beam))}, not PHO; give scans of photon beams")
    section.one_of("TYP", {"SCN"}, "export scans, not isodoses")
    scan = section.one_of("SCN", {"DPT", "PRO", "DIA"}, "export depth doses and profiles")
    section.open_field("WEG")
    section.counted("PTS")
    sides = section.text("FSZ").split()
    if len(sides) < 2:
        raise section.at("FSZ").fault("FSZ holds fewer than two field sides; export the scan again")
    inline, crossline = (section.at("FSZ").number(side, "FSZ") for side in sides[:2])
    x, y, z, dose = section.table(4).T
    return Block(
        place=section.place,
        field_mm=(crossline, inline),
        ssd_mm=section.number("SSD"),
        points=np.stack([y, -x, z, dose], axis=1),
        is_depth=scan == "DPT",
        energy_mv=section.at("BMT").number(beam[1], "BMT") if len(beam) > 1 else None,
    )


def _mcc_block(section: _Section) -> Block:
    """A scan of PTW CC-Export (mcc): mm; positions along one axis, dose already over the reference."""
    section.one_of("MODALITY", {"X"}, "give scans of photon beams")
    curves = {"PDD", "INPLANE_PROFILE", "CROSSPLANE_PROFILE"}
    curve = section.one_of("SCAN_CURVETYPE", curves, "export depth doses and profiles")
    section.open_field("WEDGE_ANGLE")
    for key in ("COLL_OFFSET_INPLANE", "COLL_OFFSET_CROSSPLANE", "SCAN_ANGLE"):
        if value := section.number(key, 0.0):
            raise section.at(key).fault(f"{key} is {value:g}; only fields and scans on the axis can be used")
    if turn := section.number("COLL_ANGLE", 0.0) % 90.0:
        raise section.at("COLL_ANGLE").fault(f"the collimator is turned by {turn:g} degrees; use 0 or 90")
    away = section.text("INPLANE_AXIS_DIR", "TARGET_GUN") == "GUN_TARGET"
    right_left = section.text("CROSSPLANE_AXIS_DIR", "LEFT_RIGHT") == "RIGHT_LEFT"
    sign_x, sign_y = (-1.0 if right_left else 1.0), (-1.0 if away else 1.0)
    position, dose = section.table(2).T
    fixed = np.ones_like(position)
    x = sign_x * section.number("SCAN_OFFAXIS_CROSSPLANE", 0.0) * fixed
    y = sign_y * section.number("SCAN_OFFAXIS_INPLANE", 0.0) * fixed
    if curve == "PDD":
        z = position
    else:
        z = section.number("SCAN_DEPTH") * fixed
        diagonal = section.text("SCAN_DIAGONAL", "NOT_DIAGONAL")
        if diagonal not in _DIAGONALS:
            raise section.at("SCAN_DIAGONAL").fault(f"SCAN_DIAGONAL is {_short(diagonal)}; export it again")
        if way := _DIAGONALS[diagonal]:
            x = position / math.sqrt(2)
            y = x * (way if curve == "INPLANE_PROFILE" else -way)
        elif curve == "INPLANE_PROFILE":
            y = sign_y * position
        else:
            x = sign_x * position
    energy = section.number("ENERGY", math.nan)
    return Block(
        place=section.place,
        field_mm=(section.number("FIELD_CROSSPLANE"), section.number("FIELD_INPLANE")),
        ssd_mm=section.number("SSD"),
        points=np.stack([x, y, z, dose], axis=1),
        is_depth=curve == "PDD",
        energy_mv=None if math.isnan(energy) else energy,
    )


_GRAMMARS = (
    _Grammar(
        known_by=re.compile(r"\$(NUMS|STOM)\b"),
        begin=re.compile(r"\$STOM"),
        end=re.compile(r"\$ENOM"),
        key=re.compile(r"%(\w+)\s*(.*)"),
        row=re.compile(r"<([^>]*)>?"),
        count=re.compile(r"\$NUMS\s*([^#\s]*)"),
        last=re.compile(r"\$ENOF"),
        block=_w2cad_block,
    ),
    _Grammar(
        known_by=re.compile(r":(MSR|SYS)\b"),
        begin=None,
        end=re.compile(r":EOM"),
        key=re.compile(r"%(\w+)\s*(.*)"),
        row=re.compile(r"=(.*)"),
        count=re.compile(r":MSR\s*([^#\s]*)"),
        last=re.compile(r":EOF"),
        block=_rfa300_block,
    ),
    _Grammar(
        known_by=re.compile(r"BEGIN_SCAN_DATA\b"),
        begin=re.compile(r"BEGIN_SCAN\b"),
        end=re.compile(r"END_SCAN\b"),
        key=re.compile(r"(\w+)=(.*)"),
        row=re.compile(r"([-+.\d].*)"),
        count=None,
        last=re.compile(r"END_SCAN_DATA"),
        block=_mcc_block,
    ),
)


def _cells(line: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(",")]


def _csv_blocks(lines: list[str], name: str) -> list[Block]:
    """The scans of a CSV: rows that agree in all columns but those of the points are one scan."""
    first = next(k for k, line in enumerate(lines) if set(_CSV_NEEDED) <= set(_cells(line)))
    header = _cells(lines[first])
    groups: dict[tuple[str, ...], list[tuple[float, ...]]] = {}
    starts: dict[tuple[str, ...], Place] = {}
    for n, line in enumerate(lines[first + 1 :], start=first + 2):
        if not line.strip() or line.startswith("#"):
            continue
        place, cells = Place(name, n), _cells(line)
        if len(cells) != len(header):
            raise place.fault(f"{len(cells)} columns, the header has {len(header)}; correct the row")
        row = dict(zip(header, cells, strict=True))
        key = tuple(value for column, value in row.items() if column not in _CSV_POINTS)
        starts.setdefault(key, place)
        point = tuple(place.number(row[column] or "0", column) for column in _CSV_POINTS)
        groups.setdefault(key, []).append(point)
    names = [column for column in dict.fromkeys(header) if column not in _CSV_POINTS]
    return [_csv_block(dict(zip(names, k, strict=True)), starts[k], np.array(v)) for k, v in groups.items()]


def _csv_block(row: Mapping[str, str], place: Place, points: NDArray[np.float64]) -> Block:
    kinds = {row.get(column, "").upper() for column in _CSV_TYPES}
    depth, energy = row.get("depth_mm", ""), row.get("energy_mv", "")
    is_depth = bool(kinds & {"OPD", "PDD", "DEPTH"}) if kinds - {""} else None
    return Block(
        place=place,
        field_mm=_sides(row["field_mm"], place),
        ssd_mm=place.number(row["ssd_mm"], "ssd_mm"),
        points=points,
        is_depth=is_depth,
        depth_mm=place.number(depth, "depth_mm") if depth and not is_depth else None,
        energy_mv=place.number(energy, "energy_mv") if energy else None,
    )


def _sides(text: str, place: Place) -> tuple[float, float]:
    """Field sides of `100*100`, `30 * 30` or, for a square, `100`."""
    parts = text.split("*")
    if len(parts) > 2:
        raise place.fault(f"field size {_short(text)} is not of the form 100*100; correct it")
    sides = [place.number(part, "a field side") for part in parts]
    return sides[0], sides[-1]


def _short(text: str) -> str:
    """A value as an error shows it."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
