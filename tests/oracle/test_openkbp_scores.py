"""The benchmark's scores against the challenge's own evaluation, written down again from its description."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from openkbp_files import arrays, write_folder

from vmat_diffusion.dataset.openkbp import SHAPE, read_patient, write_dose_csv
from vmat_diffusion.evaluate.openkbp import overall, score

ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")
TARGETS = ("PTV56", "PTV63", "PTV70")


def _column(file: Path) -> np.ndarray:
    out = np.zeros(128**3)
    for line in file.read_text().splitlines()[1:]:
        index, value = line.split(",")
        out[int(index)] = float(value or 1)
    return out


def _challenge(predictions: Path, references: Path) -> tuple[float, float]:
    """dose_evaluation_class.py of github.com/ababier/open-kbp, over all patients with a prediction."""
    dose, dvh = [], []
    for file in predictions.glob("pt_*.csv"):
        folder = references / file.stem
        mine, theirs = _column(file), _column(folder / "dose.csv")
        dose.append(np.sum(np.abs(theirs - mine)) / np.sum(_column(folder / "possible_dose_mask.csv")))
        voxels = max(1, np.round(100 / np.prod(np.loadtxt(folder / "voxel_dimensions.csv"))))
        for roi in (*ORGANS, *TARGETS):
            if not (folder / f"{roi}.csv").is_file():
                continue
            inside = _column(folder / f"{roi}.csv") > 0
            hot = 100 - voxels / np.sum(inside) * 100
            for a, b in [(theirs[inside], mine[inside])]:
                if roi in TARGETS:
                    dvh += [abs(np.percentile(a, p) - np.percentile(b, p)) for p in (1, 5, 99)]
                else:
                    dvh += [abs(np.percentile(a, hot) - np.percentile(b, hot)), abs(a.mean() - b.mean())]
    return float(np.mean(dose)), float(np.nanmean(dvh))


def test_scores_are_those_of_the_challenge_for_the_written_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    mine = []
    (tmp_path / "predictions").mkdir()
    for number in (241, 242):
        parts = arrays(number)
        if number == 242:
            parts["structures"] &= ~np.uint16(1 << 7 | 1 << 2)  # no PTV56 and no right parotid
        patient = read_patient(write_folder(tmp_path / "references" / f"pt_{number}", parts))
        noise = rng.normal(0, 3, SHAPE) * (rng.random(SHAPE) < 0.9)  # outside the mask as well
        predicted = np.round(np.maximum(patient.dose_gy + noise * (noise > -2.5), 0), 3)
        write_dose_csv(tmp_path / "predictions" / f"pt_{number}.csv", predicted)
        mine.append(
            score(predicted, patient.dose_gy, patient.possible_dose, patient.structures, patient.voxel_cc)
        )
    theirs = _challenge(tmp_path / "predictions", tmp_path / "references")
    assert theirs[0] > 2 and theirs[1] > 0.3
    # Both are sums in double precision of the same numbers.
    assert overall(mine) == pytest.approx(theirs, rel=1e-9)


def test_a_prediction_is_written_as_the_challenge_writes_its_files(tmp_path: Path) -> None:
    gy = np.zeros(SHAPE)
    gy[1, 2, 3], gy[127, 127, 127], gy[5, 5, 5] = 12.3456, 70.0, 0.0004
    text = write_dose_csv(tmp_path / "pt_1.csv", gy).read_text()
    assert text == f",data\n{128 * 128 + 2 * 128 + 3},12.346\n{128**3 - 1},70.000\n"
