"""What drives a plan besides its goals: the doses that a model predicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.workflow.clock import Progress
from vmat_diffusion.workflow.settings import PlanSettings, PredictSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.qa import Check

DOMAIN = "model's domain"


@dataclass(frozen=True, eq=False)
class Prior:
    """Doses to aim at, one for each plan; none where the goals alone drive the plan.

    `checks` enter the gate; `made` says how the doses were predicted.
    """

    doses: tuple[Dose, ...] = ()
    checks: tuple[Check, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What goes into a run's provenance."""
        return {"prior": self.made} if self.made else {}


def prior_of(case: Case, sheet: GoalSheet, settings: PlanSettings, report: Progress) -> Prior:
    """The predicted dose of a case, or as many samples as there are to be candidates.

    A case of a site that the model was not made for is planned by its goals alone, and the gate says so;
    so it does of all else that is unusual. Raises InputError for weights that are missing,
    or without diffusion where there are to be several candidates.
    """
    from vmat_diffusion.diffusion.domain import is_foreign
    from vmat_diffusion.diffusion.model import load_model
    from vmat_diffusion.qa import warning
    from vmat_diffusion.workflow.predict import Subject, goals_told, predicted

    model = load_model(settings.weights)
    several = settings.candidates > 1
    if several:
        model.require_samples(settings.candidates, "--candidates 1")
    name = str(model.description.card.get("name", "weights without a card"))
    if is_foreign(case, model):
        sites = ", ".join(model.description.known["sites"])
        why = (
            f"the site is {case.site or 'not stated'}, the model was made for {sites}: the plan was driven "
            "by its goals alone"
        )
        return Prior(checks=(warning(DOMAIN, [why], ""),), made={"model": name, "used": False})
    asked = PredictSettings(
        goals=settings.goals,
        samples=settings.candidates if several else 0,
        seed=settings.seed,
        weights=settings.weights,
        device=settings.device,
    )
    done = predicted(Subject(case, sheet), model, asked, report)
    checks = (warning(DOMAIN, done.unusual, "nothing about the case is unusual for the model"),)
    made = {"model": name, "used": True, "told": goals_told(done.told), **dict(done.regression.provenance)}
    return Prior(done.samples if several else (done.regression,), checks, made)
