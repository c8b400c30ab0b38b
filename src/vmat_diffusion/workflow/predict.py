"""`predict`: the doses that a model predicts for a case."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.errors import CaseError
from vmat_diffusion.evaluate.goals import goal_record, group_record, group_results, sheet_record
from vmat_diffusion.files import write_json
from vmat_diffusion.machine import load_machine
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.report.coding import Coding, coding_of
from vmat_diffusion.workflow.output import appearing_whole, require_apart
from vmat_diffusion.workflow.provenance import case_provenance, origins_record, settings_record
from vmat_diffusion.workflow.reading import read_with_goals
from vmat_diffusion.workflow.settings import PredictSettings

if TYPE_CHECKING:  # torch and scipy take seconds to load: a wrong name is refused before
    from vmat_diffusion.dataset.cases import TrainingCase
    from vmat_diffusion.diffusion.case_prediction import CasePrediction
    from vmat_diffusion.diffusion.encode import DoseGoals
    from vmat_diffusion.diffusion.model import DoseModel
    from vmat_diffusion.diffusion.predict import Sampling
    from vmat_diffusion.evaluate.goals import GoalSheet

# Steps of the stored doses, as in training cases; 655 Gy at most.
_STEP_GY = 0.01
_OWN_FILES = ("mean.dcm", "std.dcm", "dvh.png", "prediction.npz", "prediction.json")
_MOST_SAMPLES = 100


@dataclass(frozen=True, eq=False)
class PredictRun:
    """The result of `predict`. `files` are absolute paths."""

    case: Case
    prediction: CasePrediction
    seconds: dict[str, float]
    files: tuple[Path, ...]
    provenance: dict[str, Any]
    sheet: GoalSheet | None = None

    def summary(self) -> dict[str, Any]:
        """The object that `predict --json` prints."""
        from vmat_diffusion.qa.ct_numbers import ignored_overrides

        done = self.prediction
        return {
            "chosen": done.chosen,
            "reason": done.reason,
            "unusual": list(done.warnings),
            "remarks": ignored_overrides(self.case),
            "told": conditioning_record(done.conditioning),
            "goals": [goal_record(r) for r in done.results[0]],
            "groups": [group_record(g) for g in group_results(done.results[0])],
            "sheet": sheet_record(self.sheet) if self.sheet else None,
            "regression": done.regression_score.record(),
            "samples": [
                {**score.record(), "goals": [goal_record(r) for r in results]}
                for score, results in zip(done.scores[1:], done.results[1:], strict=True)
            ],
            "seconds": {name: round(s, 2) for name, s in self.seconds.items()},
            "files": [str(f) for f in self.files],
        }


def predict_case(
    path: Path,
    out: Path,
    settings: PredictSettings,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PredictRun:
    """Predict the dose of a DICOM folder or of a training case's npz, and write it into `out`.

    RTDOSE files are written for DICOM folders alone: they refer to its CT. A failure leaves no files. Raises
    InputError where the input, the settings, the weights or `out` cannot be used.
    """
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[name], start = now - start, now

    require_apart(out, path)
    old = [*_OWN_FILES, *(_sample_name(k) for k in range(_MOST_SAMPLES))]
    with appearing_whole(out, overwrite=overwrite, names=old) as folder:
        from vmat_diffusion.evaluate.goals import load_goals, with_conditions

        with_conditions(
            load_goals(settings.goals), settings.conditions
        )  # a wrong name is refused before torch is loaded
        from vmat_diffusion.diffusion.model import load_model

        model = load_model(settings.weights)
        model.require_samples(settings.samples)
        if settings.samples > 1:
            model.spread(settings.method, settings.steps)  # before the case is read
        lap("model")
        progress("read", 0.0, "")
        source = read_input(path, settings)
        progress("read", 1.0, "")
        lap("read")
        prediction = predict_input(source, model, settings, progress)
        lap("predict")
        progress("write", 0.0, "")
        coding = coding_of(
            source.case,
            load_machine(model.description.encoding.machine),
            machine_file=model.description.encoding.machine,
            folder=path if path.is_dir() else None,
            files=[path if path.is_file() else None],
            mapping=settings.mapping,
            shareable=settings.shareable,
        )
        names = _write_doses(folder, source, prediction, coding)
        lap("write")
        calibration = model.description.calibration
        run = PredictRun(
            case=source.case,
            prediction=prediction,
            seconds=seconds,
            files=tuple(out.resolve() / name for name in (*names, "prediction.json")),
            provenance={
                **case_provenance(path, source.case),
                "settings": settings_record(settings),
                **origins_record(settings.origins),
                "model": {
                    "card": dict(model.description.card),
                    "calibration": calibration and asdict(calibration),
                },
            },
            sheet=source.sheet,
        )
        record = {**run.provenance, **run.summary(), "files": [f.name for f in run.files]}
        write_json(folder / "prediction.json", coding.record(record))
        progress("write", 1.0, "")
    return run


@dataclass(frozen=True, eq=False)
class PredictionInput:
    """A case and the goals that fit it; `training` if it was read from the file of a training case."""

    case: Case
    sheet: GoalSheet
    training: TrainingCase | None = None


def read_input(path: Path, settings: PredictSettings) -> PredictionInput:
    """A case from a DICOM folder, or from the npz of a training case, with its goals.

    Raises InputError where they cannot be used.
    """
    if path.suffix != ".npz":
        return PredictionInput(*read_with_goals(path, settings.goals, settings, settings.conditions))
    from vmat_diffusion.evaluate.goals import load_goals, with_conditions

    sheet = with_conditions(load_goals(settings.goals), settings.conditions)
    if not path.is_file():
        raise CaseError(f"case {path} does not exist; give a DICOM folder or the npz of a training case")
    from vmat_diffusion.dataset.cases import load_case
    from vmat_diffusion.evaluate.task import fit_to_each_other

    training = load_case(path)
    return PredictionInput(*fit_to_each_other(training.case, sheet), training)


def predict_input(
    source: PredictionInput, model: DoseModel, settings: PredictSettings, progress: Progress = silent
) -> CasePrediction:
    """Predict a case that was read, by the settings. Raises InputError for a case that cannot be encoded."""
    from vmat_diffusion.diffusion.case_prediction import choose_device, predict_for_goals

    return predict_for_goals(
        source.case,
        source.sheet,
        model.to(choose_device(settings.device)),
        sampling_in(settings),
        training=source.training,
        goal_weight=settings.pull,
        progress=progress,
    )


def sampling_in(settings: PredictSettings) -> Sampling:
    """How samples are drawn by the settings."""
    from vmat_diffusion.diffusion.predict import Sampling

    return Sampling(
        samples=settings.samples,
        steps=settings.steps,
        seed=settings.seed,
        method=settings.method,
        temperature=settings.temperature,
        guidance=settings.guidance,
    )


def _sample_name(k: int) -> str:
    return f"sample_{k}.dcm"


def _write_doses(
    folder: Path, source: PredictionInput, prediction: CasePrediction, coding: Coding
) -> list[str]:
    """The doses as RTDOSE (of a DICOM case), as npz, and as bands of histograms; the names of the files."""
    from vmat_diffusion.report.comparison import bands_picture

    names = []
    if source.case.source.image_path:
        from vmat_diffusion.dicom import write_dose

        doses = [("mean.dcm", "Predicted dose, not of a plan", prediction.mean)]
        if prediction.mean.std_gy is not None:
            std = replace(prediction.mean, gy=prediction.mean.std_gy, std_gy=None)
            doses.append(("std.dcm", "Standard deviation by which the dose may differ from the mean", std))
        for k, sample in enumerate(prediction.samples):
            doses.append((_sample_name(k), f"Predicted dose, sample {k}, not of a plan", sample))
        for name, description, dose in doses:
            write_dose(folder / name, dose, source.case, plan_file=None, description=description)
            names.append(name)
    _write_npz(folder / "prediction.npz", prediction)
    bands_picture(
        folder / "dvh.png",
        case=coding.case(source.case),
        mean=prediction.mean,
        samples=prediction.samples,
        chosen=prediction.chosen,
        results=coding.results(prediction.results[0]),
        prescription=coding.prescription(source.sheet.prescription),
    )
    return [*names, "prediction.npz", "dvh.png"]


def _write_npz(path: Path, prediction: CasePrediction) -> None:
    import numpy as np

    def steps(doses: Sequence[Dose]) -> Any:
        return np.stack([np.rint(d.gy / _STEP_GY) for d in doses]).astype(np.uint16)

    grid = prediction.mean.grid
    arrays = {
        "mean": steps([prediction.mean])[0],
        "regression": steps([prediction.regression])[0],
        "dose_step_gy": np.float64(_STEP_GY),
        "spacing_mm": np.array(grid.spacing_mm),
        "origin_mm": np.array(grid.origin_mm),
    }
    if prediction.mean.std_gy is not None:
        arrays["std"] = np.rint(prediction.mean.std_gy / _STEP_GY).astype(np.uint16)
    if prediction.samples:
        arrays["samples"] = steps(prediction.samples)
        arrays["chosen"] = np.int64(-1 if prediction.chosen is None else prediction.chosen)
    np.savez_compressed(path, **arrays)


def conditioning_record(goals: DoseGoals) -> dict[str, Any]:
    """Goals as plain data, in Gy by organ."""
    return {"mean_gy": dict(goals.mean_gy), "hot_gy": dict(goals.hot_gy)}


def predict_dose(
    case: Case,
    sheet: GoalSheet,
    weights: str = "shipped",
    *,
    samples: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> Dose:
    """The dose that a model expects of a case for a sheet that was fitted to it, to be aimed at.

    The regression, or of so many `samples` the one that meets the sheet best. `weights` is "shipped" or a
    path. Raises InputError for weights or a case that cannot be used.
    """
    from vmat_diffusion.diffusion.model import load_model

    asked = PredictSettings(goals=sheet.name, weights=weights, samples=samples, seed=seed)
    return predict_input(PredictionInput(case, sheet), load_model(weights), asked, progress).best
