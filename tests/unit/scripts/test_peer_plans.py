"""Planning beside another program, without running it: the case it gets, the plan it gives, the page."""

from __future__ import annotations

from pathlib import Path

import figures
import numpy as np
import peer_plans
import pytest

from vmat_diffusion.evaluate.goals import fit_to_case, load_goals
from vmat_diffusion.machine import load_machine
from vmat_diffusion.phantom import phantom
from vmat_diffusion.plan import violations


def test_the_peer_gets_the_case_and_its_apertures_come_back_as_a_plan(tmp_path: Path) -> None:
    case, machine = phantom("tg119_cshape"), load_machine("generic_6mv")
    sheet = fit_to_case(load_goals(peer_plans.SHEET), case)
    frames, grid = peer_plans.peer_case(case, machine, tmp_path / "case.npz")
    with np.load(tmp_path / "case.npz") as made:
        points = sum(len(f.gantry_deg) for f in frames)
        assert made["density"].shape == made["ptv"].shape == grid.shape
        assert made["leaves_mm"].shape == (points, machine.mlc.pairs, 2)
        assert made["arc_stop"].tolist() == [len(frames[0].gantry_deg), points]
        # The middle voxel of the grid is the isocentre, so that it can be turned about it.
        middle = (np.array(grid.shape) - 1) / 2 * np.array(grid.spacing_mm)[::-1]
        np.testing.assert_allclose(made["isocenter_zyx_mm"], middle)
        assert not (made["ptv"] & made["around"]).any() and (made["ptv"] & made["core"]).sum() < 5
        found = {
            "leaves_mm": made["leaves_mm"].transpose(0, 2, 1),
            "mu": np.full(points - len(frames), 3.0),
        }
    plan = peer_plans.peer_plan(found, frames, case, machine, sheet)
    assert plan.total_mu == pytest.approx(3.0 * (points - len(frames))) and len(plan.arcs) == 2
    # Leaves that follow the outline are too fast for the linac, and nothing else is wrong with them.
    assert all("leaf" in sentence for sentence in violations(plan, machine))


def test_the_page_shows_both_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DOCS", tmp_path)
    assert list(peer_plans.section()) == []
    score = {"target_d10_gy": 55.5, "target_d99_gy": 48.8, "organ_d10_gy": 16.1, "organ_mean_gy": 11.2}
    side = {"seconds": 61.0, "steps": 255, "mu": 900.0, "own": score, "recomputed": score, "violations": 0}
    row = {"threads": 2, "ours": side, "peer": side | {"version": "9.9", "violations": 17}}
    row |= {"date": "2030-01-02", "machine": "an abacus"}
    figures.save("peer_plans", row)
    text = "\n".join(peer_plans.section())
    assert "PyDoseRT 9.9" in text and "an abacus" in text
    assert text.count("| VMAT Diffusion | 61 | 255 |") == 2 and "| 17 |" in text
