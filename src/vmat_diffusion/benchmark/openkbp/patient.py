"""One OpenKBP patient of a benchmark: read, predicted in each way, scored, and its dose as a file."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.benchmark.journal import Journal
from vmat_diffusion.benchmark.openkbp.boosting import VoxelModel, predict_voxels
from vmat_diffusion.benchmark.openkbp.calibration import Spread, spread_of
from vmat_diffusion.benchmark.openkbp.steering import SteeringResult, can_steer, steer
from vmat_diffusion.benchmark.openkbp.tables import DoseScores, PatientScores, dose_scores
from vmat_diffusion.benchmark.settings import SteeringRequest
from vmat_diffusion.case import Dose
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.dataset.openkbp import (
    DECIMALS,
    NAMES,
    TARGET_GY,
    OpenKbpPatient,
    read_patient,
    to_openkbp,
    training_case,
    write_dose_csv,
)
from vmat_diffusion.diffusion.encode import Encoded, encode
from vmat_diffusion.diffusion.model import DoseModel
from vmat_diffusion.diffusion.predict import Prediction, Sampling, band_factors, predict_encoded
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.gamma import gamma
from vmat_diffusion.evaluate.openkbp import score
from vmat_diffusion.files import sha256_of

BOOSTING, REGRESSION, ONE_SAMPLE, MEAN = "boosting", "regression", "one sample", "mean of samples"
# Whether a voxel passes is known at 1; a wider search would tell by how much the others fail.
_LARGEST_GAMMA = 1.1


@dataclass(frozen=True)
class PatientResult:
    """What was found of one patient, and how many seconds it took to read, predict and score.

    `spread` is there for at least two samples and a reference dose, `steered` for the patients in whom
    something was asked for, `csv_sha256` where the dose was written.
    """

    scores: PatientScores
    seconds: Mapping[str, float]
    spread: Spread | None = None
    steered: tuple[SteeringResult, ...] = ()
    csv_sha256: str | None = None

    @property
    def id(self) -> str:
        """The patient."""
        return self.scores.id


@dataclass(frozen=True, eq=False)
class PredictionTask:
    """What is done with each patient."""

    model: DoseModel
    sampling: Sampling = field(default_factory=Sampling)
    gamma: bool = True
    boosting: VoxelModel | None = None
    csv_out: Path | None = None


def judge_patient(path: Path, task: PredictionTask, asked: Sequence[SteeringRequest] = ()) -> PatientResult:
    """Predict a patient, score the dose where there is a reference, steer it as `asked`, and write it.

    The dose is written as `unpublished` until the result is kept. What cannot be asked of a patient is left
    out.
    Raises CaseError for a patient that cannot be read or predicted.
    """
    started = time.perf_counter()
    patient = read_patient(path)
    case = training_case(patient)
    read = time.perf_counter()
    encoded = encode(case.case, case.possible_dose, task.model.encoding, has_ct=case.has_ct)
    prediction = predict_encoded(encoded, task.model, task.sampling)
    # The dose to be written comes last.
    doses = _boosted(encoded, task) | doses_by_way(prediction)
    done = time.perf_counter()
    ways, spread = {}, None
    if patient.dose_gy is not None:
        spread = spread_in(prediction, patient, band_factors(task.model, task.sampling))
        ways = {way: scores_of(dose, patient, case, task) for way, dose in doses.items()}
    judged = time.perf_counter()
    changes: list[SteeringResult] = []
    for one in asked:
        if can_steer(case.case, prediction.mean, one, task.model):
            changes += steer(
                case.case, encoded, one, task.model, free=prediction.mean, sampling=task.sampling
            )
    seconds = {
        "read": read - started,
        "predict": done - read,
        "score": judged - done,
        "steer": time.perf_counter() - judged,
    }
    targets = np.logical_or.reduce([mask for name, mask in patient.masks.items() if name in TARGET_GY])
    scores = PatientScores(
        id=patient.id,
        has_ct=patient.ct is not None,
        target_cc=float(np.count_nonzero(targets)) * patient.voxel_cc,
        target_levels=sum(name in patient.masks for name in TARGET_GY),
        missing_organs=sum(n not in patient.masks for n in NAMES.values() if n not in TARGET_GY),
        ways=ways,
    )
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    written = None
    if task.csv_out is not None:
        file = write_dose_csv(unpublished(task.csv_out, patient.id), challenge_gy(list(doses.values())[-1]))
        written = sha256_of(file)
    return PatientResult(scores, rounded, spread, tuple(changes), written)


def _boosted(encoded: Encoded, task: PredictionTask) -> dict[str, Dose]:
    return {} if task.boosting is None else {BOOSTING: predict_voxels(task.boosting, encoded)}


def doses_by_way(prediction: Prediction) -> dict[str, Dose]:
    """The doses to be scored, that to be written last."""
    doses = {REGRESSION: prediction.regression}
    if prediction.samples:
        doses[ONE_SAMPLE] = prediction.samples[0]
    if len(prediction.samples) > 1:
        doses[MEAN] = prediction.mean
    return doses


def spread_in(prediction: Prediction, patient: OpenKbpPatient, widened: tuple[float, float]) -> Spread | None:
    """Counts for the calibration of the samples' bands, `widened` so far; None for fewer than two samples."""
    if len(prediction.samples) < 2 or patient.dose_gy is None:
        return None
    return spread_of(
        patient.dose_gy,
        to_openkbp(prediction.regression.gy),
        [to_openkbp(sample.gy) for sample in prediction.samples],
        possible_dose=patient.possible_dose,
        structures=patient.structures,
        voxel_cc=patient.voxel_cc,
        widened=widened,
    )


def scores_of(dose: Dose, patient: OpenKbpPatient, case: TrainingCase, task: PredictionTask) -> DoseScores:
    """Scores of a dose as it stands in the challenge's file, with that file's decimals."""
    assert patient.dose_gy is not None and case.case.reference_dose is not None
    gy = challenge_gy(dose)
    found = score(gy, patient.dose_gy, patient.possible_dose, patient.structures, patient.voxel_cc)
    passed = None
    if task.gamma:
        passed = gamma(
            case.case.reference_dose,
            replace(dose, std_gy=None),
            mask=case.possible_dose,
            max_gamma=_LARGEST_GAMMA,
        ).pass_percent
    return dose_scores(found, gy, patient.dose_gy, patient.structures, passed)


def challenge_gy(dose: Dose) -> NDArray[np.float64]:
    """A dose on the challenge's axes with the decimals of its files."""
    gy: NDArray[np.float64] = to_openkbp(dose.gy).astype(np.float64)
    return gy.round(DECIMALS)


_DOSE_FILE = re.compile(r"pt_\d{1,6}\.csv")


def claim_places(
    out: Path | None, csv_out: Path | None, journal: Journal[PatientResult], *, overwrite: bool
) -> None:
    """Make the folders, which hold no results but those of the journal.

    Raises InputError for a file that is not of this run; with `overwrite` doses are removed, so that
    none is taken for this run's.
    """
    if out is not None and out.exists() and not len(journal) and not overwrite:
        raise InputError(
            f"--out {out.name} is there, but no results by patient are beside it; name another file or pass "
            "--overwrite"
        )
    doses = (
        [p for p in csv_out.iterdir() if _DOSE_FILE.fullmatch(p.name)] if csv_out and csv_out.is_dir() else []
    )
    written = {r.id for r in journal.results if r.csv_sha256 is not None}
    foreign = sorted(p for p in doses if p.stem not in written)
    if foreign and not overwrite:
        raise InputError(
            f"--csv-out {csv_out} holds {len(foreign)} doses that are not of this run, such as "
            f"{foreign[0].name}; name another folder or pass --overwrite"
        )
    for path in foreign:
        path.unlink()
    for folder in (csv_out, out.parent if out else None):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)


def unpublished(csv_out: Path, patient: str) -> Path:
    """The name of a dose whose result is not kept yet."""
    return csv_out / f".{patient}.csv.new"


def publish(csv_out: Path, result: PatientResult) -> None:
    """Give a dose its name, now that its result is kept: under its name is never a dose that is not."""
    unpublished(csv_out, result.scores.id).replace(csv_out / f"{result.scores.id}.csv")


def is_published(csv_out: Path, result: PatientResult) -> bool:
    """Whether the dose of a kept result is there as it was written."""
    file = csv_out / f"{result.scores.id}.csv"
    return file.is_file() and sha256_of(file) == result.csv_sha256
