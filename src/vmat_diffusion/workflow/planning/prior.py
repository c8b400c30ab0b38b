"""Doses that a plan aims at beside its goals, and the predicted ones among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.progress import Progress
from vmat_diffusion.workflow.predict import PredictionInput, conditioning_record, predict_input
from vmat_diffusion.workflow.settings import PlanSettings, PredictSettings

if TYPE_CHECKING:  # torch and scipy take seconds to load: a wrong name is refused before
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.qa import Check

DOMAIN = "model's domain"


@dataclass(frozen=True, eq=False)
class Prior:
    """Doses that a plan aims at, one for each candidate; empty where the goals alone drive the plan.

    `checks` enter the gate; `origin` says how the doses were predicted.
    """

    doses: tuple[Dose, ...] = ()
    checks: tuple[Check, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The entry in a run's provenance."""
        return {"prior": self.origin} if self.origin else {}


def prior_of(case: Case, sheet: GoalSheet, settings: PlanSettings, progress: Progress) -> Prior:
    """The predicted dose of a case, or the doses that several candidates aim at.

    With candidates so many samples are drawn. The aims are the regression and the samples that meet the goals
    better, of which the worst is left out where all do; there are fewer aims than candidates where few do.

    A case of a site that the model was not trained on is planned by its goals alone. The gate warns of that,
    and of all else that leaves the model's domain. Raises InputError for weights that are missing, or
    without diffusion where there are several candidates.
    """
    from vmat_diffusion.diffusion.domain import is_outside_sites
    from vmat_diffusion.diffusion.model import load_model
    from vmat_diffusion.qa import warning

    model = load_model(settings.weights)
    several = settings.candidates > 1
    if several:
        model.require_samples(settings.candidates, "--candidates 1")
    if is_outside_sites(case, model):
        sites = ", ".join(model.description.known["sites"])
        why = (
            f"the site is {case.site or 'not stated'}, the model was made for {sites}: the plan was driven "
            "by its goals alone"
        )
        return Prior(checks=(warning(DOMAIN, [why], ""),), origin={"model": model.name, "used": False})
    # Samples as the weights' uncertainty was fitted, where it was.
    fitted = model.description.calibration or PredictSettings
    asked = PredictSettings(
        steps=fitted.steps,
        method=fitted.method,
        goals=settings.goals,
        samples=settings.candidates if several else 0,
        seed=settings.seed,
        weights=settings.weights,
        device=settings.device,
    )
    prediction = predict_input(PredictionInput(case, sheet), model, asked, progress)
    aims = prediction.aims[: settings.candidates]
    checks = (warning(DOMAIN, prediction.warnings, "nothing about the case is unusual for the model"),)
    origin = {
        "model": model.name,
        "used": True,
        "told": conditioning_record(prediction.conditioning),
        "aims": len(aims),
        "reason": prediction.reason,
        **dict(prediction.regression.provenance),
    }
    return Prior(aims, checks, origin)
