"""How good a model is on whole volumes of the validation cases: both official scores, errors, gamma."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vmat_diffusion.case import Dose
from vmat_diffusion.evaluate.gamma import gamma
from vmat_diffusion.evaluate.openkbp import Scores, overall, score
from vmat_diffusion.geometry import Grid
from vmat_diffusion.training.encoded import EncodedCases, Sample
from vmat_diffusion.training.stage import on_device

# The dose `[z, y, x]` of a sample in units of its highest prescription.
Predict = Callable[[Sample], torch.Tensor]


@dataclass(frozen=True, eq=False)
class CaseResult:
    """Scores of one case, its absolute error summed over the voxels of the mask, and gamma in percent."""

    name: str
    scores: Scores
    error_gy: float
    voxels: int
    gamma_percent: float | None = None


def validate(
    predict: Predict,
    cases: EncodedCases,
    spacings_mm: Sequence[tuple[float, float, float]],
    *,
    device: torch.device,
    gamma_cases: int = 0,
    first: int = 0,
    every: int = 1,
) -> list[CaseResult]:
    """Results of every `every`-th case from `first` on; gamma for those among the first `gamma_cases`."""
    results = []
    for i in range(first, len(cases), every):
        sample = cases[i]
        predicted = dose_gy(predict(on_device(sample, device)).cpu(), sample)
        reference = (sample.dose * sample.top_gy).numpy()
        mask = sample.mask.numpy() > 0
        percent = _gamma_percent(predicted, reference, spacings_mm[i]) if i < gamma_cases else None
        error = float(np.abs(predicted - reference)[mask].sum())
        scores = score(predicted, reference, mask, _structures(sample), sample.voxel_cc)
        results.append(CaseResult(sample.name, scores, error, int(mask.sum()), percent))
    return results


def dose_gy(relative: torch.Tensor, sample: Sample) -> NDArray[np.float32]:
    """The dose in Gy: nowhere negative, 0 outside the mask."""
    return (relative.float().clamp(min=0) * sample.mask * sample.top_gy).numpy()


def summary(results: Sequence[CaseResult]) -> dict[str, float]:
    """Figures over all cases; the mean absolute error is over voxels, the dose score over patients."""
    dose, dvh = overall([r.scores for r in results])
    figures = {
        "dose_score_gy": dose,
        "dvh_score_gy": dvh,
        "mae_gy": sum(r.error_gy for r in results) / sum(r.voxels for r in results),
    }
    judged = [r.gamma_percent for r in results if r.gamma_percent is not None]
    if judged:
        figures["gamma_percent"] = float(np.mean(judged))
    return figures


def picture(predict: Predict, sample: Sample, device: torch.device) -> NDArray[np.float32]:
    """Reference, prediction and their difference in the slice of the highest mean dose, side by side.

    Values from 0 to 1: doses relative to 1.1 times the prescription, differences around the middle gray.
    """
    predicted = predict(on_device(sample, device)).float().cpu().clamp(min=0) * sample.mask
    k = int(sample.dose.mean(dim=(1, 2)).argmax())
    mine, theirs = predicted[k].numpy(), sample.dose[k].numpy()
    return np.concatenate([theirs / 1.1, mine / 1.1, 0.5 + (mine - theirs)], axis=1).clip(0, 1)


def _structures(sample: Sample) -> dict[str, tuple[bool, NDArray[np.bool_]]]:
    shape = tuple(sample.dose.shape)
    out = {}
    for name, region in zip(sample.region_names, sample.regions, strict=True):
        mask = np.zeros(int(np.prod(shape)), bool)
        mask[region.flat.cpu().numpy()] = True
        out[name] = (region.target, mask.reshape(shape))
    return out


def _gamma_percent(
    predicted: NDArray[np.float32], reference: NDArray[np.float32], spacing_mm: tuple[float, float, float]
) -> float:
    """Share of voxels that pass 3 %/3 mm, global, above 10 % of the maximum."""
    grid = Grid(reference.shape, spacing_mm, (0.0, 0.0, 0.0))
    return gamma(Dose(grid, reference), Dose(grid, predicted)).pass_percent
