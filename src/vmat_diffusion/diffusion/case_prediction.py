"""Dose prediction for a case and its goals, on voxels of the case.

The model predicts twice: first without goals, then conditioned on the limits that the first prediction
exceeds. Of the regression and the samples, the one that meets the goals best is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.diffusion.domain import domain_warnings, knows_spacing
from vmat_diffusion.diffusion.encode import DoseGoals, encode, with_goals
from vmat_diffusion.diffusion.grid import dose_voxels, on_model_grid, onto_case
from vmat_diffusion.diffusion.model import DoseModel
from vmat_diffusion.diffusion.predict import Sampling, predict_encoded
from vmat_diffusion.diffusion.steer import dose_limits, goal_guidance
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet, evaluate
from vmat_diffusion.evaluate.ranking import GoalScore, goal_score
from vmat_diffusion.progress import Progress, silent

# A limit that conditions the model is at most this far below its first prediction: two standard deviations
# of the variation that anatomy leaves open, 2.6 Gy for means and 3.3 Gy for D0.1cc of the organs of OpenKBP's
# 40 validation patients. The model has seen no case beyond.
_MOST_BELOW_GY = 6.0


@dataclass(frozen=True, eq=False)
class CasePrediction:
    """The doses that a model predicts for a case, on voxels of the case, with their goals.

    `regression` is the dose without diffusion, given the goals of `conditioning`; `mean` is the mean of the
    `samples`, or the regression where there are none. `results` and `scores` hold the goals on the mean,
    then on each sample; `regression_score` is that of the regression. `chosen` is the sample that meets the
    sheet best, None where the regression meets it better or there is none; `reason` explains the choice in
    one sentence. `warnings` are sentences on how the case leaves the model's domain.
    """

    regression: Dose
    mean: Dose
    samples: tuple[Dose, ...]
    conditioning: DoseGoals
    results: tuple[tuple[GoalResult, ...], ...]
    scores: tuple[GoalScore, ...]
    regression_score: GoalScore
    chosen: int | None
    reason: str
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> Dose:
        """The chosen sample, or the regression where none is chosen."""
        return self.regression if self.chosen is None else self.samples[self.chosen]

    @property
    def aims(self) -> tuple[Dose, ...]:
        """The doses worth a plan, the best by the sheet first: the regression and what meets it better.

        A sample that meets the sheet less well than the regression is none: what it has beside it is noise.
        """
        pairs = zip(self.scores[1:], self.samples, strict=True)
        better = sorted(
            ((score, k) for k, (score, _) in enumerate(pairs) if score < self.regression_score),
        )
        return (*(self.samples[k] for _, k in better), self.regression)


def predict_for_goals(
    case: Case,
    sheet: GoalSheet,
    model: DoseModel,
    sampling: Sampling,
    *,
    training: TrainingCase | None = None,
    goal_weight: float = 0.0,
    progress: Progress = silent,
) -> CasePrediction:
    """Predict the dose of a case for the goals of a sheet that fits it.

    `training` is the training case that `case` belongs to, if there is one: its mask of possible dose is
    used. `goal_weight` is the weight of the goal guidance (`diffusion.steer`) of the samples. Raises
    InputError for a case that cannot be encoded.
    """
    progress("encode", 0.0, "")
    training = _on_model_grid(case, sheet, model, training)
    encoded = encode(training.case, training.possible_dose, model.encoding, has_ct=training.has_ct)
    progress("encode", 1.0, "")
    progress("predict", 0.0, "")
    first = predict_encoded(encoded, model, Sampling())
    goals = exceeded_limits(sheet, training.case, first.mean, model.encoding.organs)
    limits = dose_limits(sheet, training.case, encoded)
    second = predict_encoded(
        with_goals(encoded, goals, model.encoding),
        model,
        sampling,
        goal_guidance=goal_guidance(limits, goal_weight, model.description.process.smooth_voxels),
        progress=lambda share: progress("predict", share, f"{sampling.samples} samples"),
    )
    progress("predict", 1.0, "")
    grid = dose_voxels(case, training.case.grid, training.possible_dose)
    regression = onto_case(second.regression, case, grid)
    samples = tuple(onto_case(dose, case, grid) for dose in second.samples)
    mean = onto_case(second.mean, case, grid) if samples else regression
    results = tuple(evaluate(sheet, case, dose) for dose in (mean, *samples))
    scores = tuple(goal_score(r) for r in results)
    base = goal_score(evaluate(sheet, case, regression)) if samples else scores[0]
    best = min(range(len(samples)), key=lambda k: scores[k + 1]) if samples else None
    return CasePrediction(
        regression=regression,
        mean=mean,
        samples=samples,
        conditioning=goals,
        results=results,
        scores=scores,
        regression_score=base,
        chosen=best if best is not None and scores[best + 1] < base else None,
        reason=_reason(base, scores[1:], best),
        warnings=(*domain_warnings(training, model), *_spread_warnings(model, sampling)),
    )


def exceeded_limits(sheet: GoalSheet, case: Case, dose: Dose, organs: tuple[str, ...]) -> DoseGoals:
    """The upper limits on mean and near-maximum dose of the named organs that a dose exceeds.

    A limit that the dose keeps is left out: the model would raise the dose to a limit that conditions it. A
    limit more than 6 Gy below the dose becomes one 6 Gy below it.
    """
    mean: dict[str, float] = {}
    hot: dict[str, float] = {}
    for result in evaluate(sheet.in_gy(), case, dose):
        goal, metric, value = result.goal, result.goal.metric, result.value
        if (
            goal.comparator != "<="
            or goal.structure not in organs
            or not (metric.kind == "mean" or metric.is_near_maximum)
        ):
            continue
        if value is not None and value > goal.limit:
            limits = mean if metric.kind == "mean" else hot
            limit = max(goal.limit, value - _MOST_BELOW_GY)
            limits[goal.structure] = min(limit, limits.get(goal.structure, limit))
    return DoseGoals(mean, hot)


def choose_device(name: str) -> str:
    """`cpu` or `cuda` of a name; `auto` takes cuda where it is there. Raises InputError for another name."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {name!r} is not known; give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda is not there; give auto or cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _on_model_grid(
    case: Case, sheet: GoalSheet, model: DoseModel, training: TrainingCase | None
) -> TrainingCase:
    """The case on the model's grid, with the structures that the model and the goals name.

    A training case keeps its own mask, and its voxels if the model was trained on voxels of that size.
    """
    names = {*model.encoding.organs, *(goal.structure for goal in sheet.goals)}
    if training is None:
        return on_model_grid(case, model.encoding.voxel_mm, names)
    resampled = on_model_grid(
        case,
        model.encoding.voxel_mm,
        names,
        possible=training.possible_dose,
        keep_grid=knows_spacing(case.grid.spacing_mm, model),
    )
    return replace(resampled, has_ct=training.has_ct)


def _reason(regression: GoalScore, samples: tuple[GoalScore, ...], best: int | None) -> str:
    """Why the regression or the best sample was chosen."""
    if best is None:
        return f"No sample was drawn, so the regression is taken: {regression}."
    score = samples[best]
    if not score < regression:
        return (
            f"The regression is taken, as no sample meets the goals better: {regression}; sample {best} of "
            f"{len(samples)}, the best, has {score}."
        )
    others = sorted(s for k, s in enumerate(samples) if k != best)
    if not others:
        return f"Sample {best} is the only one: {score}; the regression has {regression}."
    equal = sum(s == score for s in others)
    if equal:
        return f"Sample {best} is the first of {equal + 1} that meet the goals alike and best: {score}."
    return f"Sample {best} of {len(samples)} meets the goals best: {score}; the next has {others[0]}."


def _spread_warnings(model: DoseModel, sampling: Sampling) -> tuple[str, ...]:
    """A sentence where the spread of the samples was not fitted on the weights as they are."""
    calibration = model.description.calibration
    if not sampling.samples or (calibration is not None and not calibration.inherited):
        return ()
    if calibration is None:
        return ("the spread of these weights' samples was never compared with patients",)
    return (
        "the spread of the samples was fitted on the weights that these began with, not on these; fit it "
        "with benchmark openkbp --fit-spread",
    )
