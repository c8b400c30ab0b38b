"""One prediction, from a case to the doses that a model expects of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.evaluate.goals import goal_record
from vmat_diffusion.progress import Progress
from vmat_diffusion.workflow.provenance import case_provenance
from vmat_diffusion.workflow.run_files import appearing_whole, write_json
from vmat_diffusion.workflow.settings import PlanSettings, PredictSettings, fitted, read_with_goals

if TYPE_CHECKING:
    from vmat_diffusion.dataset.cases import TrainingCase
    from vmat_diffusion.diffusion.encode import DoseGoals
    from vmat_diffusion.diffusion.model import DoseModel
    from vmat_diffusion.diffusion.predict import Prediction
    from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
    from vmat_diffusion.evaluate.ranking import GoalScore
    from vmat_diffusion.qa import Check


# torch and scipy take seconds to load: a wrong name is refused before.

# The most that is asked of a model below its free prediction: two standard deviations of what anatomy leaves
# open, 2.6 Gy for means and 3.3 Gy for D0.1cc of the organs of OpenKBP's 40 validation patients. Beyond, it
# would answer to cases that it never saw.
_MOST_ASKED_GY = 6.0


@dataclass(frozen=True, eq=False)
class Subject:
    """A case with the goals that it is predicted for; `training` is there if it came as a training case."""

    case: Case
    sheet: GoalSheet
    training: TrainingCase | None = None


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a model expects of a case, on voxels of the case.

    `regression` is the answer without diffusion, given the goals that were `told`; `mean` that of the
    `samples`, or the regression where none was drawn. `results` and `scores` hold the goals on the mean,
    then on each sample. `chosen` is the sample that meets the sheet best, None without samples; `reason`
    says why in one sentence. `unusual` are sentences on what the model does not know.
    """

    regression: Dose
    mean: Dose
    samples: tuple[Dose, ...]
    told: DoseGoals
    results: tuple[tuple[GoalResult, ...], ...]
    scores: tuple[GoalScore, ...]
    chosen: int | None
    reason: str
    unusual: tuple[str, ...] = ()

    @property
    def best(self) -> Dose:
        """The chosen sample, or the mean where there is none."""
        return self.mean if self.chosen is None else self.samples[self.chosen]


def read_subject(source: Path, settings: PredictSettings) -> Subject:
    """A case from a DICOM folder, or from the npz of a training case, with its goals.

    Raises InputError where they cannot be used.
    """
    if source.suffix != ".npz":
        return Subject(*read_with_goals(source, settings.goals, settings.reading))
    from vmat_diffusion.evaluate.goals import load_goals

    sheet = load_goals(settings.goals)
    if not source.is_file():
        raise CaseError(f"case {source} does not exist; give a DICOM folder or the npz of a training case")
    from vmat_diffusion.dataset.cases import load_case

    training = load_case(source)
    return Subject(*fitted(training.case, sheet), training)


def predicted(
    subject: Subject, model: DoseModel, settings: PredictSettings, progress: Progress | None = None
) -> Predicted:
    """Predict a case twice: without goals, then with the limits that the first prediction exceeds.

    Raises InputError for a case that cannot be encoded.
    """
    from vmat_diffusion.diffusion.domain import unusual
    from vmat_diffusion.diffusion.encode import encode, told
    from vmat_diffusion.diffusion.grid import dose_voxels, onto_case
    from vmat_diffusion.diffusion.predict import Sampling, predict_encoded
    from vmat_diffusion.diffusion.steer import aims_of, pull_of

    report = progress or (lambda stage, fraction, note: None)
    model, encoding = model.to(chosen_device(settings.device)), model.encoding
    report("encode", 0.0, "")
    training = _on_grid(subject, model)
    case = training.case
    encoded = encode(case, training.possible_dose, encoding, has_ct=training.has_ct)
    report("encode", 1.0, "")
    report("predict", 0.0, "")
    free = predict_encoded(encoded, model, Sampling())
    goals = exceeded(subject.sheet, case, free.mean, encoding.organs)
    asked = Sampling(
        samples=settings.samples, steps=settings.steps, seed=settings.seed, guidance=settings.guidance
    )
    found = predict_encoded(
        told(encoded, goals, encoding),
        model,
        asked,
        pull=pull_of(
            aims_of(subject.sheet, case, encoded), settings.pull, model.description.process.smooth_voxels
        ),
        progress=lambda done: report("predict", done, f"{settings.samples} samples"),
    )
    report("predict", 1.0, "")
    grid = dose_voxels(subject.case, case.grid, training.possible_dose)
    done = _judged(subject, found, goals, lambda dose: onto_case(dose, subject.case, grid))
    return replace(done, unusual=unusual(training, model))


def chosen_device(asked: str) -> str:
    """`cpu` or `cuda`, for `auto` the faster one that is there. Raises InputError for what is not."""
    import torch

    if asked not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {asked!r} is not known; give auto, cpu or cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda is not there; give auto or cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def _on_grid(subject: Subject, model: DoseModel) -> TrainingCase:
    """The case on the model's grid, with the structures that model and goals name.

    A training case keeps its own mask, and its voxels if the model was trained on such ones.
    """
    from vmat_diffusion.diffusion.domain import knows_spacing
    from vmat_diffusion.diffusion.grid import on_model_grid

    case, own, encoding = subject.case, subject.training, model.encoding
    names = {*encoding.organs, *(goal.structure for goal in subject.sheet.goals)}
    if own is None:
        return on_model_grid(case, encoding.voxel_mm, names)
    made = on_model_grid(
        case,
        encoding.voxel_mm,
        names,
        possible=own.possible_dose,
        keep_grid=knows_spacing(case.grid.spacing_mm, model),
    )
    return replace(made, has_ct=own.has_ct)


def exceeded(sheet: GoalSheet, case: Case, dose: Dose, organs: tuple[str, ...]) -> DoseGoals:
    """The upper limits on mean and near-maximum dose of the named organs that a dose exceeds.

    What it meets anyway is not told: a model told a limit takes it for what is to be reached. A limit that
    is out of reach is told as 6 Gy below the dose.
    """
    from vmat_diffusion.diffusion.encode import DoseGoals
    from vmat_diffusion.diffusion.steer import POINT_CC
    from vmat_diffusion.evaluate.goals import evaluate

    mean: dict[str, float] = {}
    hot: dict[str, float] = {}
    for result in evaluate(sheet, case, dose):
        goal, metric, value = result.goal, result.goal.metric, result.value
        near_maximum = metric.kind == "max" or (metric.kind == "Dcc" and (metric.value or 0.0) <= POINT_CC)
        if (
            goal.comparator != "<="
            or goal.structure not in organs
            or not (metric.kind == "mean" or near_maximum)
        ):
            continue
        if value is not None and value > goal.limit:
            limits = mean if metric.kind == "mean" else hot
            wish = max(goal.limit, value - _MOST_ASKED_GY)
            limits[goal.structure] = min(wish, limits.get(goal.structure, wish))
    return DoseGoals(mean, hot)


def _judged(subject: Subject, found: Prediction, goals: DoseGoals, back: Callable[[Dose], Dose]) -> Predicted:
    """The doses on the case's voxels with their goals, and the sample that meets them best."""
    from vmat_diffusion.evaluate.goals import evaluate
    from vmat_diffusion.evaluate.ranking import goal_score

    regression = back(found.regression)
    samples = tuple(back(s) for s in found.samples)
    mean = back(found.mean) if samples else regression
    results = tuple(evaluate(subject.sheet, subject.case, dose) for dose in (mean, *samples))
    scores = tuple(goal_score(r) for r in results)
    chosen = min(range(len(samples)), key=lambda k: scores[k + 1]) if samples else None
    return Predicted(regression, mean, samples, goals, results, scores, chosen, _reason(scores, chosen))


def _reason(scores: tuple[GoalScore, ...], chosen: int | None) -> str:
    if chosen is None:
        return f"No sample was drawn, so the regression is taken: {scores[0]}."
    drawn = scores[1:]
    best = drawn[chosen]
    others = sorted(s for k, s in enumerate(drawn) if k != chosen)
    if not others:
        return f"Sample {chosen} is the only one: {best}."
    equal = sum(s == best for s in others)
    if equal:
        return f"Sample {chosen} is the first of {equal + 1} that meet the goals alike and best: {best}."
    return f"Sample {chosen} of {len(drawn)} meets the goals best: {best}; the next has {others[0]}."


def goals_told(goals: DoseGoals) -> dict[str, Any]:
    """The limits that were told to the model as plain data, in Gy by organ."""
    return {"mean_gy": dict(goals.mean_gy), "hot_gy": dict(goals.hot_gy)}


# Hundredths of a gray, as in training cases; 655 Gy at most.
_STEP_GY = 0.01
_OWN_FILES = ("mean.dcm", "std.dcm", "dvh.png", "prediction.npz", "prediction.json")
_MOST_SAMPLES = 100


@dataclass(frozen=True, eq=False)
class PredictRun:
    """What `predict` made of a case. `files` are absolute paths."""

    subject: Subject
    predicted: Predicted
    seconds: dict[str, float]
    files: tuple[Path, ...]
    provenance: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The object that `predict --json` prints."""
        done = self.predicted
        return {
            "chosen": done.chosen,
            "reason": done.reason,
            "unusual": list(done.unusual),
            "told": goals_told(done.told),
            "goals": [goal_record(r) for r in done.results[0]],
            "samples": [
                {**score.record(), "goals": [goal_record(r) for r in results]}
                for score, results in zip(done.scores[1:], done.results[1:], strict=True)
            ],
            "seconds": {name: round(s, 2) for name, s in self.seconds.items()},
            "files": [str(f) for f in self.files],
        }


def predict_case(
    source: Path,
    out: Path,
    settings: PredictSettings,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PredictRun:
    """Predict the dose of a DICOM folder or of a training case's npz, and write it into `out`.

    RTDOSE files are written for DICOM folders alone: they refer to its CT. Nothing is left behind on a
    failure. Raises InputError where the input, the settings, the weights or `out` cannot be used.
    """
    report = progress or (lambda stage, fraction, note: None)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[name], start = now - start, now

    old = [*_OWN_FILES, *(_sample_name(k) for k in range(_MOST_SAMPLES))]
    with appearing_whole(out, overwrite=overwrite, names=old) as folder:
        from vmat_diffusion.evaluate.goals import load_goals

        load_goals(settings.goals)  # a wrong name is refused before torch is loaded, which takes seconds
        from vmat_diffusion.diffusion.model import load_model

        model = load_model(settings.weights)
        model.require_samples(settings.samples)
        lap("model")
        report("read", 0.0, "")
        subject = read_subject(source, settings)
        report("read", 1.0, "")
        lap("read")
        done = predicted(subject, model, settings, report)
        lap("predict")
        report("write", 0.0, "")
        names = _write_doses(folder, subject, done)
        lap("write")
        run = PredictRun(
            subject=subject,
            predicted=done,
            seconds=seconds,
            files=tuple(out.resolve() / name for name in (*names, "prediction.json")),
            provenance={
                **case_provenance(source, subject.case),
                "settings": asdict(settings),
                "model": {"card": dict(model.description.card), "spread": model.description.spread},
            },
        )
        record = {**run.provenance, **run.summary(), "files": [f.name for f in run.files]}
        write_json(folder / "prediction.json", record)
        report("write", 1.0, "")
    return run


def _sample_name(k: int) -> str:
    return f"sample_{k}.dcm"


def _write_doses(folder: Path, subject: Subject, done: Predicted) -> list[str]:
    """The doses as RTDOSE (of a DICOM case), as npz, and as bands of histograms; the names of the files."""
    from vmat_diffusion.report.bands import bands_picture

    names = []
    if subject.case.source.image_path:
        from vmat_diffusion.dicom import write_dose

        doses = [("mean.dcm", "Predicted dose, not of a plan", done.mean)]
        if done.mean.std_gy is not None:
            std = replace(done.mean, gy=done.mean.std_gy, std_gy=None)
            doses.append(("std.dcm", "Standard deviation of predicted doses", std))
        for k, sample in enumerate(done.samples):
            doses.append((_sample_name(k), f"Predicted dose, sample {k}, not of a plan", sample))
        for name, description, dose in doses:
            write_dose(folder / name, dose, subject.case, plan_file=None, description=description)
            names.append(name)
    _write_npz(folder / "prediction.npz", done)
    bands_picture(
        folder / "dvh.png",
        case=subject.case,
        mean=done.mean,
        samples=done.samples,
        chosen=done.chosen,
        results=done.results[0],
        prescription=subject.sheet.prescription,
    )
    return [*names, "prediction.npz", "dvh.png"]


def _write_npz(path: Path, done: Predicted) -> None:
    import numpy as np

    def steps(doses: Sequence[Dose]) -> Any:
        return np.stack([np.rint(d.gy / _STEP_GY) for d in doses]).astype(np.uint16)

    grid = done.mean.grid
    arrays = {
        "mean": steps([done.mean])[0],
        "regression": steps([done.regression])[0],
        "dose_step_gy": np.float64(_STEP_GY),
        "spacing_mm": np.array(grid.spacing_mm),
        "origin_mm": np.array(grid.origin_mm),
    }
    if done.mean.std_gy is not None:
        arrays["std"] = np.rint(done.mean.std_gy / _STEP_GY).astype(np.uint16)
    if done.samples:
        arrays["samples"] = steps(done.samples)
        arrays["chosen"] = np.int64(-1 if done.chosen is None else done.chosen)
    np.savez_compressed(path, **arrays)


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
