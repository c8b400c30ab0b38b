"""Outputs that must not change by accident: first their form, exactly; then their figures.

A wanted change is accepted with `pytest tests/golden --update-golden` and read in the diff.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_case import StandIn, open_arc

from vmat_diffusion.dose import PencilBeam
from vmat_diffusion.geometry import Grid, sample
from vmat_diffusion.machine import load_machine
from vmat_diffusion.phantom import phantom
from vmat_diffusion.plan import delivery_s
from vmat_diffusion.workflow import plan_case, plan_settings

FOLDER = Path(__file__).parent


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Any:
    """The content of a golden file, after writing it anew if asked to."""

    def content(name: str, found: Any) -> Any:
        file = FOLDER / name
        if request.config.getoption("--update-golden"):
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return json.loads(file.read_text(encoding="utf-8"))

    return content


def keys(node: Any) -> Any:
    """The form of plain data: keys kept, values replaced by the names of their types."""
    if isinstance(node, dict):
        return {key: keys(value) for key, value in node.items()}
    if isinstance(node, list):
        return [keys(node[0])] if node else []
    return type(node).__name__


def test_form_of_a_run_s_files(case_folder: Path, tmp_path: Path, optimiser: StandIn, golden: Any) -> None:
    optimiser()
    run = plan_case(
        case_folder, tmp_path / "out", plan_settings(goals="tg119_cshape_easy"), tools=optimiser.tools
    )
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    record["program"]["git"] = record["program"]["git"] or ""
    with (tmp_path / "out" / "control_points.csv").open(newline="") as stream:
        header = next(csv.reader(stream))
    with np.load(tmp_path / "out" / "fluence.npz") as arrays:
        shapes = {name: [str(array.dtype), *array.shape] for name, array in sorted(arrays.items())}
    found = {
        "files": sorted(f.name for f in (tmp_path / "out").iterdir()),
        "summary": keys(run.summary()),
        "run.json": keys(record),
        "control_points.csv": header,
        "fluence.npz": shapes,
    }
    assert found == golden("run_form.json", found)


def test_figures_of_an_open_arc_in_water(golden: Any) -> None:
    """Dose along three lines through a water cylinder, and the delivery time, of a fixed arc."""
    machine, plan = load_machine("generic_6mv"), open_arc()
    case = phantom("water_cylinder")
    grid = Grid((9, 41, 41), (5.0, 5.0, 5.0), (-100.0, -100.0, -20.0))
    dose = PencilBeam(machine)(plan, case, grid)
    reach = np.arange(-75.0, 76.0, 25.0)
    zero = np.zeros_like(reach)
    lines = {
        "x": np.stack([reach, zero, zero], axis=1),
        "y": np.stack([zero, reach, zero], axis=1),
        "z": np.stack([zero, zero, reach / 5], axis=1),
    }
    found = {name: np.round(sample(dose.gy, grid, points), 4).tolist() for name, points in lines.items()}
    found |= {"delivery_s": [round(delivery_s(plan, machine), 4)]}
    expected = golden("open_arc.json", found)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # float32 sums in another order (threads, library versions) differ by about 1e-5 of the maximum.
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-3, err_msg=name)
