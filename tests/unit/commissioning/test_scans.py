"""Water-tank files of every layout, written here with invented numbers, and what is refused of them."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vmat_diffusion.commissioning.scans import Curve, read_curves, read_output_factors
from vmat_diffusion.errors import MachineError

Point = tuple[float, float, float, float]
# kind, field (x, y), depth and points in IEC axes, deliberately not in ascending order. The profiles are
# lopsided, so that a mirrored axis shows.
Scan = tuple[str, tuple[float, float], float | None, list[Point]]


def depth_dose(side: float) -> list[Point]:
    z = np.arange(200.0, -1.0, -4.0)
    dose = np.round(100 * np.exp(-z / (200 + side)) * (1 - 0.5 * np.exp(-z / 4)), 1)
    return [(0.0, 0.0, float(a), float(b)) for a, b in zip(z, dose, strict=True)]


def profile(
    side: float, depth: float, way: tuple[float, float] = (1.0, 0.0), ssd_mm: float = 1000.0
) -> list[Point]:
    half = side / 2 * (ssd_mm + depth) / 1000 * float(np.hypot(*way))
    at = np.round(np.linspace(-1.6 * half, 1.6 * half, 81), 1)
    dose = (1 + 0.04 * at / half) / (1 + np.exp((np.abs(at) - half) / 3))
    unit = np.array(way) / np.hypot(*way)
    return [
        (round(float(p * unit[0]), 1), round(float(p * unit[1]), 1), depth, round(float(100 * d), 1))
        for p, d in zip(at, dose, strict=True)
    ]


SCANS: list[Scan] = [
    ("depth", (60, 60), None, depth_dose(60)),
    ("depth", (100, 100), None, depth_dose(100)),
    ("crossline", (100, 100), 50.0, profile(100, 50.0)),
    ("inline", (100, 100), 100.0, profile(100, 100.0, (0.0, 1.0))),
    ("crossline", (40, 200), 100.0, profile(40, 100.0)),
    ("diagonal", (100, 100), 50.0, profile(100, 50.0, (1.0, 1.0))),
]
OTHER_DIAGONAL: Scan = ("diagonal", (100, 100), 50.0, profile(100, 50.0, (1.0, -1.0)))


def as_w2cad(scans: list[Scan]) -> str:
    out = [f"$NUMS {len(scans):03d}"]
    for kind, (x, y), depth, points in scans:
        named = {"depth": ("OPD", "Z"), "crossline": ("OPP", "X"), "inline": ("OPP", "Y")}
        code, axis = named.get(kind, ("DPR", "D"))
        out += ["$STOM", "#", "# Comment: invented", "#", "%VERSION 02", "%DATE 01-02-2003", "%DETY CHA"]
        out += ["%BMTY PHO", f"%FLSZ {x:03.0f}*{y:03.0f}", f"%TYPE {code}", f"%AXIS {axis}"]
        out += [f"%PNTS {len(points)}", "%STEP 010", "%SSD  1000"]
        out += [] if depth is None else [f"%DPTH {depth:03.0f}"]
        out += ["<" + " ".join(f"{v:+06.1f}" for v in point) + ">" for point in points]
        out += ["$ENOM"]
    return "\n".join([*out, "$ENOF", ""])


def as_rfa300(scans: list[Scan]) -> str:
    out = [f":MSR \t{len(scans)}\t # No. of measurement in file", ":SYS BDS 0 # Beam Data Scanner System"]
    for n, (kind, (x, y), depth, points) in enumerate(scans, start=1):
        code = {"depth": "DPT", "diagonal": "DIA"}.get(kind, "PRO")
        out += [
            "#",
            "# RFA300 ASCII Measurement Dump ( BDS format )",
            "#",
            f"# Measurement number \t{n}",
            "#",
        ]
        out += [
            "%VNR 1.0",
            "%MOD \tRAT",
            "%TYP \tSCN ",
            f"%SCN \t{code} ",
            "%FLD \tION ",
            "%DAT \t02-01-2003 ",
        ]
        out += [
            "%TIM \t12:00:00 ",
            f"%FSZ \t{y:.0f}\t{x:.0f}",
            "%BMT \tPHO\t    6.0",
            "%SSD \t1000",
            "%BUP \t0",
        ]
        out += ["%BRD \t1000", "%FSH \t-1", "%ASC \t0", "%WEG \t0", "%GPO \t0", "%CPO \t0", "%MEA \t2"]
        out += [f"%PRD \t{10 * (depth or 0):.0f}", f"%PTS \t{len(points)}"]
        for key, (px, py, pz, _) in (("%STS", points[0]), ("%EDS", points[-1])):
            out += [f"{key} \t{-py:7.1f}\t{px:7.1f}\t{pz:7.1f} # Scan values in mm ( X , Y , Z )"]
        out += ["!invented", "#", "#\t  X      Y      Z     Dose", "#"]
        out += [f"= \t{-py:7.1f}\t{px:7.1f}\t{pz:7.1f}\t{d:7.1f}" for px, py, pz, d in points]
        out += [":EOM  # End of Measurement"]
    return "\r\n".join([*out, ":EOF # End of File", ""])


def as_mcc(scans: list[Scan]) -> str:
    """Inline positions count from gun to target, away from the gantry; doses are in arbitrary units."""
    out = ["BEGIN_SCAN_DATA", "\tFORMAT=CC-Export V1.9", "\tLAST_MODIFIED=01-Feb-2003 12:00:00"]
    for n, (kind, (x, y), depth, points) in enumerate(scans, start=1):
        rising = kind == "diagonal" and points[-1][1] > 0
        curve = {"depth": "PDD", "crossline": "CROSSPLANE_PROFILE"}.get(kind, "INPLANE_PROFILE")
        curve = "CROSSPLANE_PROFILE" if kind == "diagonal" and not rising else curve
        out += [f"\tBEGIN_SCAN  {n}", "\t\tLINAC=INVENTED", "\t\tCOMMENT=Größe"]
        keys = {
            "MODALITY": "X", "ISOCENTER": "1000.00", "INPLANE_AXIS": "Y", "CROSSPLANE_AXIS": "X",
            "INPLANE_AXIS_DIR": "GUN_TARGET", "CROSSPLANE_AXIS_DIR": "LEFT_RIGHT", "ENERGY": "6.00",
            "SSD": "1000.00", "WEDGE_ANGLE": "0.00", "FIELD_INPLANE": f"{y:.2f}",
            "FIELD_CROSSPLANE": f"{x:.2f}", "COLL_ANGLE": "0.00", "COLL_OFFSET_INPLANE": "0.00",
            "COLL_OFFSET_CROSSPLANE": "0.00", "FILTER": "FF", "SCAN_CURVETYPE": curve,
            "SCAN_OFFAXIS_INPLANE": "0.00", "SCAN_OFFAXIS_CROSSPLANE": "0.00", "SCAN_ANGLE": "0.00",
            "SCAN_DIAGONAL": "FIRST_DIAGONAL" if kind == "diagonal" else "NOT_DIAGONAL",
        }  # fmt: skip
        if depth is not None:
            keys["SCAN_DEPTH"] = f"{depth:.2f}"
        out += [f"\t\t{key}={value}" for key, value in keys.items()] + ["\t\tBEGIN_DATA"]
        for px, py, pz, dose in points:
            at = {"depth": pz, "crossline": px, "inline": -py}.get(kind, np.hypot(px, py) * np.sign(px))
            out += [f"\t\t\t{at:.2f}\t\t{10 * dose:.2f}E-03\t\t5.4003E+00"]
        out += ["\t\tEND_DATA", f"\tEND_SCAN  {n}"]
    return "\n".join([*out, "END_SCAN_DATA", ""])


def as_csv(scans: list[Scan]) -> str:
    out = ["curve,field_mm,ssd_mm,type,axis,depth_mm,x_mm,y_mm,z_depth_mm,dose_rel"]
    for kind, (x, y), depth, points in scans:
        named = {
            "depth": ("PDD", "OPD", "Z"),
            "crossline": ("PRF", "OPP", "X"),
            "inline": ("PRF", "OPP", "Y"),
        }
        curve, code, axis = named.get(kind, ("Diag", "DPR", "D"))
        head = f"{curve},{x:03.0f}*{y:03.0f},1000,{code},{axis},{'' if depth is None else f'{depth:03.0f}'}"
        out += [f"{head},{px},{py},{pz},{dose}" for px, py, pz, dose in points]
    return "\n".join([*out, ""])


WRITERS: dict[str, Callable[[list[Scan]], str]] = {
    "w2cad": as_w2cad,
    "rfa300": as_rfa300,
    "mcc": as_mcc,
    "csv": as_csv,
}


def read(tmp_path: Path, content: str | bytes, name: str = "scans.dat") -> tuple[Curve, ...]:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_curves(file)


def table(curve: Curve) -> NDArray[np.float64]:
    return np.stack([curve.x_mm, curve.y_mm, curve.z_mm, curve.dose], axis=1)


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_every_layout_gives_the_same_curves_in_one_frame(tmp_path: Path, layout: str) -> None:
    """Kind, field, depth and every point, whatever the layout's units, signs and order of axes."""
    scans = [*SCANS, OTHER_DIAGONAL] if layout != "csv" else SCANS
    curves = read(tmp_path, WRITERS[layout](scans))
    assert len(curves) == len(scans)
    for curve, (kind, field, depth, points) in zip(curves, scans, strict=True):
        assert (curve.kind, curve.field_mm, curve.depth_mm, curve.ssd_mm) == (kind, field, depth, 1000.0)
        expected = np.array(points)
        along = expected[:, 2] if kind == "depth" else np.hypot(expected[:, 0], expected[:, 1])
        if kind != "depth":
            along = along * np.sign(expected[:, 1] if kind == "inline" else expected[:, 0])
        order = np.argsort(along, kind="stable")
        found = table(curve) * (1, 1, 1, 100 if layout == "mcc" else 1)
        # Diagonals of the mcc layout store the radius, from which x and y follow to the rounding of 0.1 mm.
        assert np.allclose(found, expected[order], atol=0.06 if kind == "diagonal" else 1e-9)
        assert np.allclose(curve.along_mm, along[order], atol=0.1) and np.all(np.diff(curve.along_mm) >= 0)
    assert {c.energy_mv for c in curves} == ({6.0} if layout in ("rfa300", "mcc") else {None})
    assert curves[0].origin.startswith("scans.dat, line ")


def test_several_files_and_gzip_are_read_in_order(tmp_path: Path) -> None:
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(as_csv(SCANS[:2]).encode()))
    plain = tmp_path / "b.asc"
    plain.write_text(as_w2cad(SCANS[2:3]))
    curves = read_curves(packed, str(plain))
    assert [c.label for c in curves] == [
        "depth dose 60 x 60 mm",
        "depth dose 100 x 100 mm",
        "crossline profile 100 x 100 mm at 50 mm depth",
    ]


def test_depths_counted_upwards_and_decimal_commas_are_understood(tmp_path: Path) -> None:
    upwards: list[Scan] = [(k, f, d, [(x, y, -z, v) for x, y, z, v in p]) for k, f, d, p in SCANS]
    for curve, right in zip(read(tmp_path, as_w2cad(upwards)), read(tmp_path, as_w2cad(SCANS)), strict=True):
        assert np.array_equal(table(curve), table(right))
    comma = as_rfa300(SCANS[:1]).replace("%PRD \t0", "%PRD \t0,00003427124")
    comma = "\n".join(r.replace(".", ",") if r.startswith("=") else r for r in comma.splitlines())
    assert np.array_equal(table(read(tmp_path, comma)[0]), table(read(tmp_path, as_rfa300(SCANS[:1]))[0]))


def test_a_profile_called_diagonal_is_what_its_points_are(tmp_path: Path) -> None:
    text = as_rfa300(SCANS[2:3]).replace("%SCN \tPRO", "%SCN \tDIA")
    assert read(tmp_path, text)[0].kind == "crossline"


def oblique() -> list[Scan]:
    return [("crossline", (100, 100), 50.0, [(x, y, 50 + x / 3, d) for x, y, _, d in profile(100, 50.0)])]


def in_cm() -> list[Scan]:
    return [("crossline", (100, 100), 50.0, [(x / 10, y, z, d) for x, y, z, d in profile(100, 50.0)])]


W, R, M, C = as_w2cad(SCANS), as_rfa300(SCANS), as_mcc(SCANS), as_csv(SCANS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "none of the known layouts"),
        ("a,b\n1,2\n", "none of the known layouts"),
        ("\0\1\2" * 100, "none of the known layouts"),
        ("$STOD\n", "calculated"),
        ("$NUMS 0\n$ENOF\n", "no scans"),
        (W.replace("%PNTS 51", "%PNTS 52", 1), "line 13: PNTS states 52 points, 51 follow"),
        (W.replace("$NUMS 006", "$NUMS 007"), "states 7 scans and holds 6"),
        (W.replace("$NUMS 006", "$NUMS six"), "line 1: the number of scans is 'six'"),
        (W[: W.rindex("$ENOM")], "has no end"),
        (W[W.index("$STOM") : W.rindex("$STOM")], "no end mark after 5 scans"),
        (W.replace("$ENOM\n", "", 1), "begins before that of line 2 ends"),
        (W.replace("$STOM\n", "", 1), "a scan ends that has not begun"),
        (W.replace("%BMTY PHO", "%BMTY ELE", 1), "photon"),
        (W.replace("%TYPE OPP", "%TYPE WDP", 1), "a wedge"),
        (W.replace("%TYPE OPP", "%TYPE XYZ", 1), "TYPE is 'XYZ'"),
        (W.replace("%TYPE OPP", "%TYPE OPD", 1), "the file says a depth dose, the points are a crossline"),
        (W.replace("%SSD  1000", "%SSD  100", 1), "SSD 100 mm is outside 500 to 3000 mm"),
        (W.replace("%SSD  1000\n", "", 1), "line 2: the scan that starts here has no SSD"),
        (W.replace("%FLSZ 060*060", "%FLSZ 060*060*060", 1), "not of the form 100*100"),
        (W.replace("%FLSZ 060*060", "%FLSZ 060x060", 1), "'060x060', not a number"),
        (W.replace("%DPTH 050", "%DPTH 100", 1), "states 100 mm depth, its points lie at 50 mm"),
        (W.replace("+200.0", "+2OO.0", 1), "'+2OO.0', not a number"),
        (W.replace("+200.0", "+1e999", 1), "no length or dose"),
        (W.replace("+000.0 +000.0 +200.0", "+000.0 +200.0", 1), "a point has 3 values, 4 are needed"),
        (as_w2cad(oblique()), "neither along the beam nor across it"),
        (as_w2cad(in_cm()), "check the units"),
        (as_w2cad([("depth", (60, 60), None, depth_dose(60)[:4])]), "4 points, 5 are needed"),
        (as_w2cad([("depth", (60, 60), None, [(0, 0, 5, 1)] * 9)]), "neither along the beam"),
        (as_w2cad([("depth", (60, 60), None, [(0, 0, z, 0.0) for z in range(9)])]), "no dose"),
        (R.replace("PHO\t", "ELE\t", 1), "BMT is 'ELE 6.0'"),
        (R.replace("%WEG \t0", "%WEG \t30", 1), "wedge"),
        (R.replace("%TYP \tSCN", "%TYP \tISO", 1), "TYP is 'ISO'"),
        (R.replace("%SCN \tDPT", "%SCN \tMTX", 1), "SCN is 'MTX'"),
        (R.replace("%FSZ \t60\t60", "%FSZ \t60", 1), "fewer than two field sides"),
        (R.replace("PHO\t    6.0", "PHO\t    15.0", 1), "scans are of 6 and 15 MV"),
        (R.replace(":MSR \t6", ":MSR \t5"), "states 5 scans and holds 6"),
        (M.replace("MODALITY=X", "MODALITY=EL", 1), "MODALITY is 'EL'"),
        (M.replace("WEDGE_ANGLE=0.00", "WEDGE_ANGLE=60.00", 1), "wedge"),
        (M.replace("OFFSET_INPLANE=0.00", "OFFSET_INPLANE=-110.00", 1), "OFFSET_INPLANE is -110"),
        (M.replace("COLL_ANGLE=0.00", "COLL_ANGLE=45.00", 1), "turned by 45 degrees"),
        (M.replace("=PDD", "=TPR", 1), "SCAN_CURVETYPE is 'TPR'"),
        (M.replace("=NOT_DIAGONAL", "=THIRD_DIAGONAL").replace("=PDD", "=INPLANE_PROFILE"), "SCAN_D"),
        (M.replace("END_SCAN_DATA", ""), "no end mark after 6 scans"),
        (C.replace("OPD,Z,,0.0,", "OPD,Z,,", 1), "line 2: 9 columns, the header has 10"),
        (C.replace("060*060", "1"), "field side 1 mm is outside 2 to 500 mm"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(MachineError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert said in message and message.startswith(("scans.dat", "the scans")) and "\n" not in message


def test_files_that_are_not_there_or_not_whole(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot be read"):
        read_curves(tmp_path / "absent.asc")
    with pytest.raises(MachineError, match="cannot be read"):
        read_output_factors(tmp_path)
    with pytest.raises(MachineError, match="not a whole gzip"):
        read(tmp_path, gzip.compress(C.encode())[:-20])


FACTORS = """X06,0,95,100,10,10,Gy/MU,
4,10,20,
4,0.91,0.94,0.95
10,0.95,1.000,1.02
20,0.96,1.03,1.06
"""


def factors(tmp_path: Path, text: str):  # type: ignore[no-untyped-def]
    file = tmp_path / "factors.txt"
    file.write_text(text)
    return read_output_factors(file)


def test_a_table_of_output_factors_has_x_in_columns_and_y_in_rows(tmp_path: Path) -> None:
    found = factors(tmp_path, FACTORS)
    by_field = {(x, y): f for x, y, f in zip(found.x_mm, found.y_mm, found.factor, strict=True)}
    assert by_field[(200.0, 100.0)] == 1.02 and by_field[(100.0, 200.0)] == 1.03 and len(by_field) == 9
    assert (found.ssd_mm, found.depth_mm) == (950.0, 50.0)
    assert [v.tolist() for v in found.square()] == [[40.0, 100.0, 200.0], [0.91, 1.0, 1.06]]


def test_lists_of_output_factors_name_their_unit(tmp_path: Path) -> None:
    listed = factors(tmp_path, "# ssd_mm = 900\n# depth_mm = 100\nside_mm,of\n200,1.06\n40,0.91\n")
    assert [v.tolist() for v in listed.square()] == [[40.0, 200.0], [0.91, 1.06]]
    assert (listed.ssd_mm, listed.depth_mm) == (900.0, 100.0)
    sides = factors(tmp_path, "of,x_cm,y_cm\n1.02,20,10\n1.0,10,10\n")
    assert sides.x_mm.tolist() == [200.0, 100.0] and sides.y_mm.tolist() == [100.0, 100.0]
    assert sides.ssd_mm is None and sides.square()[0].tolist() == [100.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no output factors"),
        ("side,of\n10,1\n", "name the sides and their unit"),
        ("side_mm,of\n10,1,2\n", "line 2: 3 columns, the header has 2"),
        ("side_mm,of\n100,one\n", "line 2: of is 'one'"),
        ("side_mm,of\n100,-1\n", "output factor -1 is outside"),
        ("side_mm,of\n100,1\n100,1\n", "lists a field twice"),
        ("side_mm,of\n1,1\n", "check the units"),
        ("X06,0\n4,10\n4,1,1\n", "holds energy, gantry, SSD"),
        (FACTORS.replace("0.94,0.95", "0.94"), "line 3: 2 factors, 3 are needed"),
        (FACTORS.replace("95,100", "950,1000"), "SSD 9500 is outside"),
        (FACTORS.replace("95,100", "95,90"), "depth -50 is outside"),
    ],
)
def test_wrong_output_factors_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(MachineError) as caught:
        factors(tmp_path, text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cuts, changed bytes, lines left out, doubled or swapped, numbers replaced by odd ones."""
    for _ in range(rng.randint(1, 3)):
        lines = data.split(b"\n")
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        n, m = rng.randrange(len(lines)), rng.randrange(len(lines))
        way = rng.randrange(7)
        if way == 0:
            data = data[:b]
        elif way == 1:
            data = data[:a] + data[min(b, a + 300) :]
        elif way == 2:
            data = data[:a] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 6))) + data[a + 3 :]
        elif way == 3:
            data = b"\n".join(lines[:n] + lines[n + 1 :])
        elif way == 4:
            lines[n], lines[m] = lines[m], lines[n]
            data = b"\n".join(lines)
        elif way == 5:
            odd = [b"nan", b"-1e308", b"1e999", b"", b"0", b"9" * 400, b"1_0", b"=", b"%", b"\xff\xfe"]
            cells = lines[n].split()
            if cells:
                cells[rng.randrange(len(cells))] = rng.choice(odd)
            lines[n] = b" ".join(cells)
            data = b"\n".join(lines)
        else:
            data = b"\n".join(lines[:n] + lines[min(n, m) : max(n, m)] + lines[n:])
    return data


@pytest.mark.parametrize("layout", [*sorted(WRITERS), "factors", "list", "gzip"])
def test_harmed_files_end_in_curves_or_in_a_sentence(tmp_path: Path, layout: str) -> None:
    """Seeded mutations: whatever leaves the readers is finite data or one MachineError."""
    # Short scans keep the 150 files of each layout to a second.
    short: list[Scan] = [(k, f, d, p[::4]) for k, f, d, p in SCANS[1:4]]
    whole = {
        "factors": FACTORS.encode(),
        "list": b"# ssd_mm = 900\nside_mm,of\n200,1.06\n40,0.91\n",
        "gzip": gzip.compress(as_csv(short).encode(), mtime=0),
    }
    original = whole.get(layout) or WRITERS[layout](short).encode()
    rng, file, refused = random.Random(layout), tmp_path / "harmed", 0
    for _ in range(150):
        file.write_bytes(mutated(original, rng))
        try:
            if layout in ("factors", "list"):
                found = read_output_factors(file)
                assert np.all(np.isfinite(found.factor)) and len(found.factor) == len(found.x_mm)
                continue
            for curve in read_curves(file):
                assert np.all(np.isfinite(table(curve))) and np.all(np.diff(curve.along_mm) >= 0)
        except MachineError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 400
    assert refused > 30


def test_the_representative_scans_are_read_whole(shared_data: Path) -> None:
    for beam in ("6mv", "6fff"):
        folder = shared_data / "beam"
        curves = read_curves(folder / f"truebeam_representative_{beam}_scans.csv.gz")
        kinds = [c.kind for c in curves]
        assert [kinds.count(k) for k in ("depth", "crossline", "diagonal")] == [8, 40, 5]
        factors_ = read_output_factors(folder / f"truebeam_representative_{beam}_output_factors.txt")
        assert len(factors_.factor) == 81 and factors_.ssd_mm == 950.0
        assert factors_.factor[(factors_.x_mm == 100) & (factors_.y_mm == 100)].tolist() == [1.0]
