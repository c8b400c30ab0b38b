"""The run behind `predict`: a folder with the doses, their goals and a picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vmat_diffusion.case import Dose
from vmat_diffusion.workflow.files import appearing_whole, write_json
from vmat_diffusion.workflow.predict import (
    Predicted,
    Progress,
    Subject,
    goals_told,
    predicted,
    read_subject,
)
from vmat_diffusion.workflow.provenance import case_provenance
from vmat_diffusion.workflow.run import goal_record
from vmat_diffusion.workflow.settings import PredictSettings

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
        from vmat_diffusion.dicom.write import write_dose

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
