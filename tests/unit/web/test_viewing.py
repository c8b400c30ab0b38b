"""What the page asks for over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from viewed_run import made_run, noisy, shaped_case, shaped_dose
from viewer_server import application

from vmat_diffusion.dicom import read_case, write_case
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import sample_dose
from vmat_diffusion.web.view.planes import PLANES, layer_grid
from vmat_diffusion.web.viewing import Answers, case_beside


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("viewing")
    one, case = made_run(root)
    two, _ = made_run(root, "two")
    other, other_case = made_run(root / "elsewhere")
    return {"one": (one, case), "two": (two, case), "other": (other, other_case)}


@pytest.fixture(scope="module")
def client(folders: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return TestClient(application(folders, tmp_path_factory.mktemp("store")))


def get(client: TestClient, path: str) -> Any:
    answer = client.get(f"/api/runs/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json() if answer.headers["content-type"].startswith("application/json") else answer.content


@pytest.mark.parametrize(("plane", "index"), [("axial", 5), ("coronal", 17), ("sagittal", 24)])
def test_the_pixels_of_a_plane_are_hu_and_both_doses(
    client: TestClient, folders: dict[str, tuple[Path, Path]], plane: str, index: int
) -> None:
    case = read_case(folders["one"][1])
    hu = np.frombuffer(get(client, f"one/ct/{plane}/{index}"), "<i2")
    np.testing.assert_array_equal(hu, np.take(case.hu, index, PLANES[plane]).ravel())
    facts = get(client, "one/view")
    layer = layer_grid(case.grid, plane, index)
    points = layer.points_mm(np.arange(np.prod(layer.shape)))
    dose = shaped_dose(shaped_case())
    for volume, known in zip(facts["volumes"], (dose, noisy(dose)), strict=False):
        steps = np.frombuffer(get(client, f"one/dose/{volume['name']}/{plane}/{index}"), "<u2")
        expected = sample_dose(known.gy, known.grid, points)
        assert np.abs(steps * volume["step_gy"] - expected).max() < 0.51 * volume["step_gy"] + 2e-4


def test_structures_are_numbered_and_their_outlines_go_by_these_numbers(client: TestClient) -> None:
    listed = get(client, "one/structures")
    assert [s["number"] for s in listed] == list(range(len(listed)))
    by_name = {s["name"]: s for s in listed}
    target = by_name["PTV_60"]
    assert target["role"] == "target" and target["prescribed_gy"] == 60.0 and len(target["colour"]) == 3
    middle = target["slices"][len(target["slices"]) // 2]
    outlines = get(client, f"one/outlines/axial/{middle}")
    assert outlines[str(target["number"])]["drawn"]
    assert len(outlines[str(target["number"])]["lines"]) == 2, "the target has a hole"
    across = get(client, "one/outlines/sagittal/24")
    assert not across[str(target["number"])]["drawn"]
    xy = np.concatenate(outlines[str(target["number"])]["lines"])
    assert np.all(xy.min(axis=0) >= np.array(target["low_mm"][:2]) - 1e-3)
    assert np.all(xy.max(axis=0) <= np.array(target["high_mm"][:2]) + 1e-3)


def test_histograms_are_of_both_engines(client: TestClient) -> None:
    number = next(s["number"] for s in get(client, "one/structures") if s["name"] == "PTV_60")
    found = get(client, f"one/dvh/{number}")
    assert found["name"] == "PTV_60" and set(found["curves"]) == {"planned", "independent"}
    assert "low" in found["curves"]["independent"] and "low" not in found["curves"]["planned"]
    assert found["curves"]["independent"]["mean_gy"] > found["curves"]["planned"]["mean_gy"]


def test_projections_are_those_of_the_structures_asked_for(client: TestClient) -> None:
    first, last = (
        get(client, "one/arcs/0/projections/0?structures=0,1"),
        get(client, "one/arcs/1/projections/30?structures=1"),
    )
    assert set(first) == {"0", "1"} and set(last) == {"1"}
    assert all(line for line in first["0"])


@pytest.mark.parametrize(
    "path",
    [
        "one/ct/axial/12",
        "one/ct/oblique/0",
        "one/dose/none/axial/0",
        "one/dose/planned/axial/-1",
        "one/outlines/coronal/40",
        "one/dvh/99",
        "one/arcs/2/projections/0?structures=0",
        "one/arcs/0/projections/31?structures=0",
        "one/arcs/0/projections/0?structures=a;b",
        "one/arcs/0/projections/0?structures=" + ",".join("1" * 41),
        "none/view",
    ],
)
def test_what_is_not_there_is_refused_by_a_sentence(client: TestClient, path: str) -> None:
    answer = client.get(f"/api/runs/{path}")
    assert answer.status_code == 400 and ";" in answer.json()["error"]


def test_answers_of_all_cases_keep_to_their_memory() -> None:
    answers, made = Answers(most_bytes=2500), []

    def make(name: str, size: int) -> Any:
        def made_now() -> Any:
            made.append(name)
            return np.zeros(size // 4, np.float32) if name[0] == "s" else b"x" * size

        return answers.get(name, made_now)

    for name, size in (("a", 1000), ("surface", 1000), ("a", 1000), ("b", 1000), ("a", 1000)):
        assert len(make(name, size)) == (250 if name == "surface" else 1000)
    assert made == ["a", "surface", "b"], "what was asked for lately stays"
    make("surface", 1000)
    assert made[-1] == "surface" and answers._bytes <= 2500
    assert len(make("c", 9000)) == 9000 and len(answers._kept) == 1, "one that is larger is kept alone"


def test_two_plans_of_one_ct_can_be_compared_and_others_not(client: TestClient) -> None:
    assert get(client, "one/against/two") == {"remarks": []}
    answer = client.get("/api/runs/one/against/other")
    assert answer.status_code == 400 and "different images" in answer.json()["error"]


@pytest.mark.parametrize("what", ["goals", "checks", "complexity", "arcs"])
def test_the_other_parts_are_plain_data(client: TestClient, what: str) -> None:
    assert get(client, f"one/{what}")


def test_the_case_lies_in_or_beside_the_run_where_nothing_else_is_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(CaseError, match="not at hand"):
        case_beside(run)
    write_case(tmp_path / "case", shaped_case())
    assert case_beside(run) == tmp_path / "case"
    (run / "case").mkdir()
    assert case_beside(run) == run / "case"
