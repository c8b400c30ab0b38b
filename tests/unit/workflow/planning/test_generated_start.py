"""`--start generated`: which searches begin with which sample, and what contradicts it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from small_case import StandIn

from vmat_diffusion.errors import InputError
from vmat_diffusion.generate.sample import GeneratedMaps, Reverse
from vmat_diffusion.workflow import plan_case, plan_settings


def test_the_search_makes_its_own_maps_unless_asked_otherwise(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    plan_case(case_folder, tmp_path / "out", plan_settings(goals="tg119_cshape_easy"), tools=optimiser.tools)
    assert "maps_of" not in calls[0]


@pytest.mark.slow
def test_each_candidate_starts_from_another_sample(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    settings = plan_settings(
        goals="tg119_cshape_easy", start="generated", candidates=3, search_minutes=9, seed=4
    )
    run = plan_case(case_folder, tmp_path / "out", settings, tools=optimiser.tools)
    starts = [call["maps_of"] for call in calls]
    assert starts == [GeneratedMaps("shipped", 4, number) for number in range(3)]
    assert all(call["target"] is None for call in calls)
    assert len(run.candidates) == 3
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [c["candidate"] for c in record["candidates"]] == [0, 1, 2]


def test_a_start_can_be_sent_to_another_process() -> None:
    start = GeneratedMaps("some.safetensors", 1, 2, Reverse(3, 5, False))
    assert pickle.loads(pickle.dumps(start)) == start


def test_one_start_at_a_time() -> None:
    with pytest.raises(InputError, match="leave out --start generated or --improve"):
        plan_settings(goals="tg119_cshape_easy", start="generated", improve="RP.dcm")
    with pytest.raises(InputError, match="--start generated or one candidate"):
        plan_settings(goals="tg119_cshape_easy", candidates=2)
    with pytest.raises(InputError, match="101 steps"):
        Reverse(101)
