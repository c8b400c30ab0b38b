"""Optimise leaves and MU with PyDoseRT; run by peer_plans.py with the Python of the peer's venv.

    run_pydosert_plan.py MINUTES CASE.npz PLAN.npz FIGURES.json

Its engine, its map from free variables to apertures (`condition_beam_params`) and its objectives, with
Adam as in its example of inverse planning. The dose is in units of that of the first apertures: it needs no
calibration.
"""

from __future__ import annotations

import sys
import time
from importlib import metadata

import numpy as np
import torch
from clock import report
from pydosert.data import BeamSequence
from pydosert.data.beam import condition_beam_params
from pydosert.objectives.losses import lower_penalty, upper_penalty
from pydosert_engine import FIELD_MM, engine_for

OPENING_MM = 100.0
STEP = 0.1  # of the free variables: up to 2.5 mm of a leaf


def free(leaves_mm: np.ndarray) -> torch.Tensor:
    """The free variables of leaves `[control points, pairs, 2]`: the inverse of the peer's own map."""
    centre, width = leaves_mm.mean(-1), leaves_mm[..., 1] - leaves_mm[..., 0]
    both = np.stack([centre / OPENING_MM + 0.5, (width - 1.0) / (OPENING_MM - 1.0)], axis=-1)
    return torch.logit(torch.as_tensor(both, dtype=torch.float32).clamp(0.02, 0.98))


def main(minutes: float, case_file: str, plan_file: str, figures: str) -> None:
    begun = time.perf_counter()
    case = dict(np.load(case_file))
    density = torch.as_tensor(case["density"], dtype=torch.float32)
    ptv, core, around = (torch.as_tensor(case[name]) for name in ("ptv", "core", "around"))
    ceiling = torch.as_tensor(case["ceiling"], dtype=torch.float32)[around]
    starts, stops = case["arc_start"], case["arc_stop"]
    first = np.concatenate([np.arange(a, b - 1) for a, b in zip(starts, stops, strict=True)])
    leaves = free(case["leaves_mm"]).requires_grad_(True)
    raw_mu = torch.zeros(len(first), requires_grad=True)
    jaws = torch.as_tensor(case["jaws_y_mm"], dtype=torch.float32)
    gantry = torch.deg2rad(torch.as_tensor(case["gantry_deg"], dtype=torch.float32))
    collimator = torch.deg2rad(torch.as_tensor(case["collimator_deg"], dtype=torch.float32))

    def physical() -> tuple[torch.Tensor, torch.Tensor]:
        made, mu, _ = condition_beam_params(leaves, raw_mu, torch.zeros(len(leaves), 2))
        return made, mu

    def beams() -> BeamSequence:
        """The middle of every segment."""
        made, mu = physical()
        return BeamSequence(
            mus=mu,
            leaf_positions=(made[first] + made[first + 1]) / 2,
            jaw_positions=jaws[first],
            gantry_angles=(gantry[first] + gantry[first + 1]) / 2,
            collimator_angles=collimator[first],
            field_size=(FIELD_MM, FIELD_MM),
            iso_center=tuple(case["isocenter_zyx_mm"].tolist()),
            sid=1000.0,
        )

    with torch.no_grad():
        template = beams()
    widths = np.diff(case["leaf_edges_mm"]).tolist()
    engine = engine_for(case, widths, template)
    with torch.no_grad():
        unit = float(engine.compute_dose(beams(), density_image=density)[0][ptv].mean())
    adam = torch.optim.Adam([leaves, raw_mu], lr=STEP)
    best, kept, history = np.inf, None, []
    while kept is None or time.perf_counter() - begun < 60 * minutes:
        adam.zero_grad()
        dose = engine.compute_dose(beams(), density_image=density)[0] / unit
        # Goals relative to the prescription: PTV D95 >= 1 and D10 <= 1.1, core D10 <= 0.2, falloff around.
        value = (
            lower_penalty(dose[ptv], 1.0, 200.0)
            + upper_penalty(dose[ptv], 1.08, 100.0)
            + upper_penalty(dose[core], 0.18, 100.0)
            + upper_penalty(dose[around] - ceiling, 0.0, 25.0)
        )
        value.backward()
        history.append(round(value.item(), 5))
        if history[-1] < best:
            best = history[-1]
            kept = [t.detach().numpy().copy() for t in (*physical(), dose)]
        adam.step()
    made, mu, found = kept
    np.savez(plan_file, leaves_mm=made.transpose(0, 2, 1), mu=mu, dose=found)
    report(
        figures,
        {
            "version": metadata.version("pydosert"),
            "seconds": time.perf_counter() - begun,
            "steps": len(history),
            "first": history[0],
            "last": best,
        },
    )


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
