"""An objective term of your own: here the equivalent uniform dose of the rectum, without a limit.

    python examples/own_objective.py

The goals of a sheet become terms that vanish once they are met. A term of your own is any differentiable
function of a structure's dose; it is minimised beside them, and the gate judges the plan as before.
"""

from __future__ import annotations

import torch

import vmat_diffusion as vd

# Of the gEUD: a serial organ, in which the hottest parts count most.
EXPONENT = 8.0


def equivalent_uniform_dose(gy: torch.Tensor) -> torch.Tensor:
    """The gEUD of an organ in units of 10 Gy, squared, so that more dose costs ever more."""
    return (gy.clamp_min(0.1).pow(EXPONENT).mean().pow(1 / EXPONENT) / 10).square()


def main() -> dict[str, float]:
    """Plan the prostate of TG-119 with and without the term; returns the gEUD of the rectum in Gy."""
    machine = vd.load_machine("generic_6mv")
    task = vd.Task.fitted(vd.phantom("tg119_prostate"), vd.load_goals("tg119_prostate"), machine)
    quick = vd.OptimizerSettings(
        grid_mm=8.0, arcs=1, arc_start_deg=182.0, arc_stop_deg=300.0, spacing_deg=4.0, effort=0.3
    )
    term = vd.ObjectiveTerm("gEUD of the rectum", "Rectum", equivalent_uniform_dose, weight=0.05)
    found = {}
    for name, terms in (("goals alone", ()), ("own term", (term,))):
        result = vd.optimize(task.case, task.sheet, machine, settings=quick, terms=terms)
        rectum = vd.structure_dvh(result.dose, task.case.structures["Rectum"], task.case.grid)
        found[name] = rectum.geud_gy(EXPONENT)
        print(f"{name:12} gEUD of the rectum {found[name]:.1f} Gy")
    return found


if __name__ == "__main__":
    main()
