"""One OpenKBP patient of a benchmark: read, predicted in each way, scored, written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.benchmark.boosting import VoxelModel, predict_voxels
from vmat_diffusion.benchmark.calibration import Spread, spread_of
from vmat_diffusion.benchmark.journal import PatientResult, unpublished
from vmat_diffusion.benchmark.openkbp_tables import DoseScores, PatientScores, dose_scores
from vmat_diffusion.benchmark.steering import Steer, Steered, can_steer, steer
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
from vmat_diffusion.diffusion.predict import Prediction, Sampling, predict_encoded
from vmat_diffusion.evaluate.gamma import gamma
from vmat_diffusion.evaluate.openkbp import score
from vmat_diffusion.files import sha256_of

BOOSTING, REGRESSION, ONE_SAMPLE, MEAN = "boosting", "regression", "one sample", "mean of samples"
# Whether a voxel passes is known at 1; a wider search would tell by how much the others fail.
_LARGEST_GAMMA = 1.1


@dataclass(frozen=True, eq=False)
class Task:
    """What is done with each patient."""

    model: DoseModel
    sampling: Sampling = field(default_factory=Sampling)
    gamma: bool = True
    boosting: VoxelModel | None = None
    csv_out: Path | None = None


def judge_patient(path: Path, task: Task, asked: Sequence[Steer] = ()) -> PatientResult:
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
        spread = spread_in(prediction, patient)
        ways = {way: scores_of(dose, patient, case, task) for way, dose in doses.items()}
    judged = time.perf_counter()
    changes: list[Steered] = []
    for one in asked:
        if can_steer(case.case, prediction.mean, one, task.model):
            changes += steer(case.case, encoded, prediction.mean, one, task.model, task.sampling)
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
        file = write_dose_csv(unpublished(task.csv_out, patient.id), as_written(list(doses.values())[-1]))
        written = sha256_of(file)
    return PatientResult(scores, rounded, spread, tuple(changes), written)


def _boosted(encoded: Encoded, task: Task) -> dict[str, Dose]:
    return {} if task.boosting is None else {BOOSTING: predict_voxels(task.boosting, encoded)}


def doses_by_way(prediction: Prediction) -> dict[str, Dose]:
    """The doses to be scored, that to be written last."""
    doses = {REGRESSION: prediction.regression}
    if prediction.samples:
        doses[ONE_SAMPLE] = prediction.samples[0]
    if len(prediction.samples) > 1:
        doses[MEAN] = prediction.mean
    return doses


def spread_in(prediction: Prediction, patient: OpenKbpPatient) -> Spread | None:
    """Counts for the calibration of the samples' spread; None for fewer than two."""
    if len(prediction.samples) < 2 or patient.dose_gy is None:
        return None
    return spread_of(
        patient.dose_gy,
        to_openkbp(prediction.regression.gy),
        [to_openkbp(sample.gy) for sample in prediction.samples],
        patient.possible_dose,
        patient.structures,
        patient.voxel_cc,
    )


def scores_of(dose: Dose, patient: OpenKbpPatient, case: TrainingCase, task: Task) -> DoseScores:
    """Scores of a dose as it stands in the challenge's file, with that file's decimals."""
    assert patient.dose_gy is not None and case.case.reference_dose is not None
    gy = as_written(dose)
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


def as_written(dose: Dose) -> NDArray[np.float64]:
    """A dose on the challenge's axes with the decimals of its files."""
    gy: NDArray[np.float64] = to_openkbp(dose.gy).astype(np.float64)
    return gy.round(DECIMALS)
