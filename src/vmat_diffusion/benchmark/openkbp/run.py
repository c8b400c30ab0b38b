"""The OpenKBP benchmark: predict the patients of a split, score them, keep each result as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vmat_diffusion.benchmark.journal import Journal, check_places, journal_path
from vmat_diffusion.benchmark.openkbp.boosting import VoxelModel, fit_voxels
from vmat_diffusion.benchmark.openkbp.calibration import Spread, coverage, fit_spread, reliability
from vmat_diffusion.benchmark.openkbp.patient import (
    REGRESSION,
    PatientResult,
    PredictionTask,
    claim_places,
    is_published,
    judge_patient,
    publish,
)
from vmat_diffusion.benchmark.openkbp.steering import SteeringResult, check_organs, steering_table
from vmat_diffusion.benchmark.openkbp.tables import PatientScores, gain, headline, structure_table, subgroups
from vmat_diffusion.benchmark.settings import BenchmarkSettings, SteeringRequest
from vmat_diffusion.benchmark.statistics import Interval
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.dataset.openkbp import patients_of_split, read_openkbp
from vmat_diffusion.dataset.tables import Rejection, rejection
from vmat_diffusion.diffusion.case_prediction import choose_device
from vmat_diffusion.diffusion.model import DoseModel, load_model, weights_path
from vmat_diffusion.diffusion.predict import Sampling
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.files import sha256_of, write_json, written_whole
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow.provenance import program_record

# What the result of a patient depends on, beside the weights and what is asked for.
_KEPT = (
    "samples",
    "steps",
    "method",
    "temperature",
    "seed",
    "gamma",
    "steer_cases",
    "boosting",
    "boosting_cases",
)


@dataclass(frozen=True, eq=False)
class BenchmarkResult:
    """The results of all patients and where they come from."""

    settings: BenchmarkSettings
    weights: Mapping[str, Any]
    patients: tuple[PatientResult, ...]
    left_out: tuple[Rejection, ...]
    seconds: float

    @property
    def scored(self) -> list[PatientScores]:
        """The patients with a reference dose."""
        return [p.scores for p in self.patients if p.scores.ways]

    @property
    def steered(self) -> list[SteeringResult]:
        """What became of all that was asked for."""
        return [one for p in self.patients for one in p.steered]

    @property
    def ways(self) -> list[str]:
        """The ways of predicting that were scored, the one whose dose is written last."""
        return list(self.scored[0].ways) if self.scored else []

    @property
    def best(self) -> str:
        """The way whose dose is written: the mean of the samples, or the regression where none was drawn."""
        return self.ways[-1] if self.ways else REGRESSION

    def calibration(self) -> dict[str, Any] | None:
        """Coverage of the samples' bands, reliability of their spread, and the fitted factor on it."""
        spreads = {p.scores.id: p.spread for p in self.patients if p.spread is not None}
        if not spreads:
            return None
        out: dict[str, Any] = {
            "coverage": _covered(list(spreads.values())),
            "reliability": reliability(list(spreads.values())),
        }
        fitted = [f"pt_{n}" for n in self.settings.fit_spread if f"pt_{n}" in spreads]
        others = [name for name in spreads if name not in fitted]
        if fitted and others:
            factor = fit_spread([spreads[name] for name in fitted])
            points = fit_spread([spreads[name] for name in fitted], points=True)
            rest = [spreads[name] for name in others]
            out["fit"] = {
                "fitted_on": fitted,
                "judged_on": others,
                "factor": factor,
                "points_factor": points,
                "coverage_as_drawn": _covered(rest),
                "coverage_widened": None if factor is None else _covered(rest, factor),
                "coverage_points_widened": None if points is None else _covered(rest, points),
            }
        return out

    def summary(self) -> dict[str, Any]:
        """The object that `benchmark openkbp --json` prints."""
        groups = subgroups(self.scored)
        train = None if self.settings.train_data is None else str(self.settings.train_data)
        return {
            "program": program_record(),
            "settings": {**asdict(self.settings), "data": str(self.settings.data), "train_data": train},
            "weights": self.weights,
            "patients": len(self.patients),
            "scored": len(self.scored),
            "seconds": round(self.seconds, 1),
            "scores": {way: _plain(headline(self.scored, way)) for way in self.ways},
            "scores_with_ct": {
                way: _plain(headline(groups["with CT"], way)) for way in self.ways if "with CT" in groups
            },
            "gain_over_regression": {
                way: _plain(gain(self.scored, way, REGRESSION)) for way in self.ways if way != REGRESSION
            },
            "structures": {
                way: {name: _plain(row) for name, row in structure_table(self.scored, way).items()}
                for way in self.ways
            },
            "calibration": self.calibration(),
            "steering": [asdict(row) for row in steering_table(self.steered)],
            "subgroups": {name: _plain(headline(members, self.best)) for name, members in groups.items()},
            "left_out": [asdict(r) for r in self.left_out],
            "by_patient": [asdict(p) for p in self.patients],
        }


def _covered(spreads: Sequence[Spread], factor: float = 1.0) -> dict[str, Any] | None:
    found = coverage(spreads, factor)
    return None if found is None else {level: _plain(shares) for level, shares in found.items()}


def _plain(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: asdict(interval) for name, interval in intervals.items()}


def benchmark_openkbp(
    settings: BenchmarkSettings,
    *,
    csv_out: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Predict and score the patients of a split.

    `csv_out` takes each dose as the challenge's `pt_N.csv`, `out` the summary as JSON. Each patient's result
    is kept at once in a file beside `out` or in `csv_out`, and a run that was interrupted goes on there;
    `overwrite` starts afresh. Raises InputError for settings, weights or folders that cannot be used or hold
    other results, or where no patient can be predicted; one that cannot is left out and named.
    """
    started = time.perf_counter()
    check_places(out, csv_out, settings.data, settings.train_data, settings.weights)
    report = progress or silent
    every = patients_of_split(settings.data, settings.split)
    paths = list(every) if settings.patients is None else _chosen(every, settings.patients, settings)
    if settings.fit_spread and len(_chosen(paths, settings.fit_spread, settings)) == len(paths):
        raise InputError("benchmark: the spread is fitted on all patients; leave some to judge it on")
    model = load_model(settings.weights).to(choose_device(settings.device))
    model.require_samples(settings.samples)
    if settings.samples > 1 and not settings.fit_spread:
        model.spread(settings.method, settings.steps)
    check_organs(settings.steer, model)
    weights = _weights(model, settings)
    task = PredictionTask(
        model=model,
        sampling=sampling_of(settings),
        gamma=settings.gamma,
        csv_out=csv_out,
    )
    journal = Journal.opened(
        journal_path(out, csv_out), _depends_on(settings, weights), PatientResult, overwrite=overwrite
    )
    claim_places(out, csv_out, journal, overwrite=overwrite)
    results, left_out = _judge_all(paths, task, settings, journal, report)
    if not results:
        raise InputError(
            f"none of {len(paths)} patients could be predicted; {left_out[0].case}: {left_out[0].reason}"
        )
    result = BenchmarkResult(settings, weights, results, left_out, time.perf_counter() - started)
    if out is not None:
        with written_whole(out) as part:
            write_json(part, result.summary())
    return result


def sampling_of(settings: BenchmarkSettings) -> Sampling:
    """How samples are drawn: as `predict` does, without the factor of the weights where it is fitted."""
    return Sampling(
        samples=settings.samples,
        steps=settings.steps,
        seed=settings.seed,
        method=settings.method,
        temperature=settings.temperature,
        calibrated=not settings.fit_spread,
    )


def _judge_all(
    paths: Sequence[Path],
    task: PredictionTask,
    settings: BenchmarkSettings,
    journal: Journal[PatientResult],
    report: Progress,
) -> tuple[tuple[PatientResult, ...], tuple[Rejection, ...]]:
    """The results of all patients, kept as they come, and those who are left out."""
    results: list[PatientResult] = []
    left_out: list[Rejection] = []
    for count, path in enumerate(paths, start=1):
        done = journal.kept(path)
        if done is not None and task.csv_out is not None and not is_published(task.csv_out, done):
            done = None
        if done is None and settings.boosting and task.boosting is None:
            task = replace(task, boosting=_boosting(settings, task.model, report))
        try:
            if done is None:
                done = journal.keep(path, judge_patient(path, task, _still_asked(settings, results)))
                if task.csv_out is not None:
                    publish(task.csv_out, done)
            results.append(done)
        except CaseError as error:
            left_out.append(rejection(path.stem, str(error)))
        report("benchmark", count / len(paths), f"{count} of {len(paths)}{_so_far(results)}")
    return tuple(results), tuple(left_out)


def _depends_on(settings: BenchmarkSettings, weights: Mapping[str, Any]) -> dict[str, Any]:
    """What the result of a patient depends on, beside the patient's own files."""
    kept = {"weights": weights["sha256"], **{name: getattr(settings, name) for name in _KEPT}}
    kept["calibrated"] = not settings.fit_spread
    kept["steer"] = [asdict(one) for one in settings.steer]
    kept["train_data"] = str(_train_data(settings).resolve()) if settings.boosting else None
    return kept


def _train_data(settings: BenchmarkSettings) -> Path:
    return settings.train_data or settings.data


def _boosting(settings: BenchmarkSettings, model: DoseModel, report: Progress) -> VoxelModel:
    """Trees fitted to cases of the split train."""
    paths = patients_of_split(_train_data(settings), "train")
    count = min(settings.boosting_cases, len(paths))
    chosen = np.random.default_rng(settings.seed).choice(len(paths), count, replace=False)

    def cases() -> Iterator[TrainingCase]:
        for done, k in enumerate(sorted(chosen)):
            report("boosting", done / (count + 1), f"{done} of {count} cases")
            yield read_openkbp(paths[k])
        report("boosting", count / (count + 1), f"fitting to {count} cases")

    fitted = fit_voxels(cases(), model.encoding, seed=settings.seed)
    report("boosting", 1.0, f"fitted to {count} cases")
    return fitted


def _still_asked(settings: BenchmarkSettings, results: Sequence[PatientResult]) -> list[SteeringRequest]:
    """What has not been asked of enough patients yet."""

    def patients(one: SteeringRequest) -> int:
        asked = (one.organ, one.change_gy)
        return sum(asked in {(s.organ, s.asked_gy) for s in r.steered} for r in results)

    return [one for one in settings.steer if patients(one) < settings.steer_cases]


def _chosen(paths: Sequence[Path], numbers: Sequence[int], settings: BenchmarkSettings) -> list[Path]:
    by_number = {int(path.stem.removeprefix("pt_")): path for path in paths}
    missing = [number for number in numbers if number not in by_number]
    if missing:
        raise InputError(
            f"pt_{missing[0]} is not among these {len(paths)} patients of split {settings.split}; "
            "choose others"
        )
    return [by_number[number] for number in numbers]


def _weights(model: DoseModel, settings: BenchmarkSettings) -> dict[str, Any]:
    calibration = model.description.calibration
    return {
        "name": model.description.card.get("name", ""),
        "sha256": sha256_of(weights_path(settings.weights)),
        "networks_sha256": model.networks_sha256(),
        "diffusion": model.residual is not None,
        "calibration": calibration and asdict(calibration),
    }


def _so_far(results: Sequence[PatientResult]) -> str:
    scored = [r.scores for r in results if r.scores.ways]
    if not scored:
        return ""
    found = headline(scored, list(scored[0].ways)[-1])
    return f", dose {found['dose'].value:.2f} and DVH {found['dvh'].value:.2f} Gy so far"
