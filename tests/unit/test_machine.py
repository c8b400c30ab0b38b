"""Machine files: every number with its source, every mistake named by its key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmat_diffusion.errors import MachineError
from vmat_diffusion.machine import SEEN, load_machine, machine_names, machine_text, parse_machine

SHIPPED = Path(__file__).parents[2] / "src" / "vmat_diffusion" / "machines" / "generic_6mv.toml"
TEXT = SHIPPED.read_text(encoding="utf-8")
HEAD = TEXT[: TEXT.index("[beam]")]
SPEED_SOURCE = TEXT[TEXT.index("source = ", TEXT.index("gantry_speed_deg_s")) : TEXT.index(" }\n")]


def changed(old: str, new: str) -> str:
    assert old in TEXT, f"the shipped machine no longer holds {old!r}"
    return TEXT.replace(old, new, 1)


def test_the_generic_machine_has_40_leaves_of_5_mm_between_20_of_10_mm() -> None:
    machine = load_machine("generic_6mv")
    widths = np.diff(machine.mlc.layers[0].boundaries_mm)
    assert widths.tolist() == [10] * 10 + [5] * 40 + [10] * 10
    assert machine.mlc.pairs == 60 and machine.sad_mm == 1000
    assert machine.row_pairs()[:, 0].tolist() == list(range(60))


@pytest.mark.parametrize(
    ("name", "widths", "edges", "jaws"),
    [
        ("generic_hd120", [[5] * 14 + [2.5] * 32 + [5] * 14], [(-110, 110)], ("ASYMX", "ASYMY")),
        ("generic_agility", [[5] * 80], [(-200, 200)], ("ASYMY",)),
        ("generic_halcyon", [[10] * 28, [10] * 29], [(-140, 140), (-145, 145)], ("X", "Y")),
    ],
)
def test_machines_of_geometry_alone(
    name: str, widths: list[list[float]], edges: list[tuple[float, float]], jaws: tuple[str, ...]
) -> None:
    machine = load_machine(name)
    assert [np.diff(layer.boundaries_mm).tolist() for layer in machine.mlc.layers] == widths
    assert [(la.boundaries_mm[0], la.boundaries_mm[-1]) for la in machine.mlc.layers] == edges
    assert machine.jaws == jaws
    with pytest.raises(MachineError, match=r"no beam model.*choose one of .*generic_6mv"):
        machine.require_beam()


def test_every_number_of_a_shipped_machine_has_a_source() -> None:
    for name in machine_names():
        machine = load_machine(name)
        fields = [
            f"limits.{k}" for k, v in vars(machine.limits).items() if not k.startswith("_") and v is not None
        ]
        fields += ["mlc.transmission", "mlc.gap_offset_mm", "mlc.source_distance_mm"]
        fields += [f"mlc.layers[{k}].boundaries_mm" for k in range(len(machine.mlc.layers))]
        fields += ["beam.spectrum_number"] if machine.beam else []
        for field in fields:
            assert machine.sources[field].strip(), field


def test_limits_of_shipped_machines_say_how_their_source_was_seen() -> None:
    for name in machine_names():
        for key, source in load_machine(name).sources.items():
            if key.startswith(("limits.", "mlc.")):
                assert source.endswith(tuple(f"[{seen}]" for seen in SEEN)), (name, key)


def test_a_maximum_is_not_called_conservative_and_contradictions_are_named() -> None:
    for name in ("generic_6mv", "generic_6fff", "generic_hd120", "generic_agility"):
        sources = load_machine(name).sources
        assert (
            sources["limits.gantry_speed_deg_s"].startswith("maximum")
            and "4.8 deg/s" in sources["limits.gantry_speed_deg_s"]
        )
        assert "not conservative" in sources["limits.gantry_acceleration_deg_s2"]
    halcyon = load_machine("generic_halcyon").sources
    for key, other in (("gantry_speed_deg_s", "24 deg/s"), ("leaf_speed_mm_s", "25 mm/s")):
        assert "contradict" in halcyon[f"limits.{key}"] and other in halcyon[f"limits.{key}"]
    assert "0.7 to 2.3 mm" in load_machine("generic_6mv").sources["mlc.gap_offset_mm"]


def test_how_a_source_was_seen_is_one_of_the_known_ways() -> None:
    text = machine_text("generic_6mv").replace('seen = "practice"', 'seen = "dreamt"', 1)
    with pytest.raises(MachineError, match="gantry_speed_deg_s: seen 'dreamt' is not one of publication"):
        parse_machine(text, "ours")


def test_a_machine_is_loaded_by_path_and_takes_the_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(changed('name = "generic_6mv"\n', "").replace("value = 22.5", "value = 19.0"))
    machine = load_machine(file)
    assert machine.name == "ours" and machine.limits.leaf_speed_mm_s == 19.0
    assert load_machine(str(file)).name == "ours"


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="generic_6mv"):
        load_machine("truebeam")
    with pytest.raises(MachineError, match="does not exist"):
        load_machine(tmp_path / "absent.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MachineError, match="cannot be read"):
        load_machine(binary)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (changed("leaf_speed_mm_s = {", "leaf_sped_mm_s = {"), "limits.leaf_speed_mm_s"),
        (changed("interdigitation = true", "interdigitation = true\nfoo = true"), "mlc.foo"),
        (changed("interdigitation = true\n", ""), "mlc.interdigitation"),
        (changed("[mlc]", "[mcl]"), "mlc"),
        (TEXT + '\n[more]\na = "b"\n', "more"),
        (
            changed("leaf_speed_mm_s = { value = 22.5", "leaf_speed_mm_s = { value = 0"),
            "limits.leaf_speed_mm_s",
        ),
        (
            changed("leaf_speed_mm_s = { value = 22.5", "leaf_speed_mm_s = { value = nan"),
            "limits.leaf_speed_mm_s",
        ),
        (
            changed("leaf_speed_mm_s = { value = 22.5", "leaf_speed_mm_s = { value = '9'"),
            "limits.leaf_speed_mm_s",
        ),
        (changed("transmission = { value = 0.015", "transmission = { value = 1.5"), "mlc.transmission"),
        (
            changed("control_points_max = { value = 500", "control_points_max = { value = 1"),
            "control_points_max",
        ),
        (changed("[-200, -190", "[-190, -200"), "boundaries_mm of MLCX"),
        (
            changed("[mlc]", "dose_rate_levels_mu_min = { value = [300, 900], source = 'x' }\n[mlc]"),
            "limits: dose_rate_levels_mu_min must ascend to dose_rate_mu_min at most",
        ),
        (changed("[mlc]", "leaf_acceleration_mm_s2 = 500.0\n[mlc]"), "leaf_acceleration_mm_s2 has no source"),
        (changed('device = "MLCX"', 'device = "MLC"'), "'MLC'"),
        (changed('"ASYMX"', '"XJAW"'), "'XJAW'"),
        (changed("horn = { value = [1, ", "horn = { value = [1, 1, "), "horn"),
        (changed("spectrum_upper_mev = { value = [", "spectrum_upper_mev = { value = [9, "), "spectrum"),
        (
            changed("focal_sigma_mm = { value = ", "focal_sigma_mm = { value = -"),
            "beam.focal_sigma_mm",
        ),
        ("name = ", "TOML"),
    ],
)
def test_mistakes_are_named_by_their_key(text: str, named: str) -> None:
    with pytest.raises(MachineError) as caught:
        parse_machine(text, "ours")
    message = str(caught.value)
    assert message.startswith("machine ours: ") and named in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (
            'gy_per_mu = { value = 0.01, source = "calibration: 1 cGy/MU at the reference point" }',
            "gy_per_mu = 0.01",
            "beam.gy_per_mu",
        ),
        (SPEED_SOURCE, 'source = ""', "limits.gantry_speed_deg_s"),
        ('value = 6.0, source = "maximum', 'value = 6.0, sauce = "maximum', "limits.gantry_speed_deg_s"),
        ("horn_radius_mm = {", "horn_radius_mm = [1.0, 2.0, 3.0, 4.0]\nunused = {", "beam.horn_radius_mm"),
        ("leaf_gap_mm = {", "leaf_gap_mm = '0.5'\nunused = {", "limits.leaf_gap_mm"),
    ],
)
def test_numbers_without_a_source_are_refused(old: str, new: str, named: str) -> None:
    with pytest.raises(MachineError, match=named.replace(".", r"\.")):
        parse_machine(changed(old, new), "ours")


def test_a_machine_without_beam_says_that_it_has_no_dose() -> None:
    machine = parse_machine(HEAD, "geometry")
    assert machine.beam is None and machine.sad_mm == 1000
    with pytest.raises(MachineError, match="no beam model"):
        machine.require_beam()


STACKED = "\n".join(
    line for line in HEAD[: HEAD.index("[[mlc.layers]]")].splitlines() if not line.startswith("tongue")
) + "".join(
    f'\n[[mlc.layers]]\ndevice = "{device}"\nboundaries_mm = {{ value = {edges}, source = "test" }}\n'
    for device, edges in (("MLCX1", [-20, -10, 0, 10, 20]), ("MLCX2", [-25, -15, -5, 5, 15, 25]))
)


def test_leaf_rows_of_two_stacked_layers_lie_between_all_leaf_boundaries() -> None:
    """Two layers offset by half a leaf: each leaf row lies behind one leaf of each, numbered through."""
    machine = parse_machine(STACKED, "stacked")
    assert machine.mlc.pairs == 9
    assert machine.row_edges_mm().tolist() == [-25, -20, -15, -10, -5, 0, 5, 10, 15, 20, 25]
    assert machine.row_pairs().tolist() == [
        [-1, 4], [0, 4], [0, 5], [1, 5], [1, 6], [2, 6], [2, 7], [3, 7], [3, 8], [-1, 8],
    ]  # fmt: skip
