"""Validation on whole volumes: both scores of OpenKBP, mean absolute error, gamma."""

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
from vmat_diffusion.training.samples import EncodedCases, Sample
from vmat_diffusion.training.stage import on_device

# Doses `[k, z, y, x]` of a case in units of its highest prescription: one, or several samples.
Predict = Callable[[Sample], torch.Tensor]


@dataclass(frozen=True, eq=False)
class CaseValidation:
    """The validation of one case: scores of the mean dose, its absolute error summed over `voxels`.

    `single` holds the scores of the first sample alone where there are several. `gamma_percent` is the share
    of voxels that pass 3 %/3 mm where gamma was computed.
    """

    name: str
    scores: Scores
    error_gy: float
    voxels: int
    single: Scores | None = None
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
) -> list[CaseValidation]:
    """Results of every `every`-th case from `first` on; gamma for those among the first `gamma_cases`."""
    return [
        _result(cases[i], predict, device, spacings_mm[i] if i < gamma_cases else None)
        for i in range(first, len(cases), every)
    ]


def _result(
    sample: Sample,
    predict: Predict,
    device: torch.device,
    gamma_spacing_mm: tuple[float, float, float] | None,
) -> CaseValidation:
    doses = [dose_gy(d, sample) for d in predict(on_device(sample, device)).cpu()]
    mean = np.mean(doses, axis=0)
    reference = (sample.dose * sample.top_gy).numpy()
    mask, structures = sample.mask.numpy() > 0, _structures(sample)
    mine, *single = (
        score(gy, reference, mask, structures, sample.voxel_cc)
        for gy in ([mean, doses[0]] if len(doses) > 1 else [mean])
    )
    return CaseValidation(
        sample.name,
        mine,
        error_gy=float(np.abs(mean - reference)[mask].sum()),
        voxels=int(mask.sum()),
        single=single[0] if single else None,
        gamma_percent=_gamma_percent(mean, reference, gamma_spacing_mm) if gamma_spacing_mm else None,
    )


def dose_gy(relative: torch.Tensor, sample: Sample) -> NDArray[np.float32]:
    """The dose in Gy: nowhere negative, 0 outside the mask."""
    return (relative.float().clamp(min=0) * sample.mask * sample.top_gy).numpy()


def summary(results: Sequence[CaseValidation]) -> dict[str, float]:
    """Figures over all cases; the mean absolute error is over voxels, the dose score over patients."""
    dose, dvh = overall([r.scores for r in results])
    figures = {
        "dose_score_gy": dose,
        "dvh_score_gy": dvh,
        "mae_gy": sum(r.error_gy for r in results) / sum(r.voxels for r in results),
    }
    singles = [r.single for r in results if r.single is not None]
    if singles:
        figures["sample_dose_score_gy"], figures["sample_dvh_score_gy"] = overall(singles)
    judged = [r.gamma_percent for r in results if r.gamma_percent is not None]
    if judged:
        figures["gamma_percent"] = float(np.mean(judged))
    return figures


def picture(predict: Predict, sample: Sample, device: torch.device) -> NDArray[np.float32]:
    """Reference, prediction and their difference in the slice of the highest mean dose, side by side.

    Values from 0 to 1: doses relative to 1.1 times the prescription, differences around the middle gray.
    """
    predicted = predict(on_device(sample, device))[0].float().cpu().clamp(min=0) * sample.mask
    k = int(sample.dose.mean(dim=(1, 2)).argmax())
    mine, theirs = predicted[k].numpy(), sample.dose[k].numpy()
    return np.concatenate([theirs / 1.1, mine / 1.1, 0.5 + (mine - theirs)], axis=1).clip(0, 1)


def _structures(sample: Sample) -> dict[str, tuple[bool, NDArray[np.bool_]]]:
    """Structures as `evaluate.openkbp.score` takes them."""
    shape = tuple(sample.dose.shape)
    out = {}
    for structure in sample.structures:
        mask = np.zeros(int(np.prod(shape)), bool)
        mask[structure.flat.cpu().numpy()] = True
        out[structure.name] = (structure.target, mask.reshape(shape))
    return out


def _gamma_percent(
    predicted: NDArray[np.float32], reference: NDArray[np.float32], spacing_mm: tuple[float, float, float]
) -> float:
    """Share of voxels that pass 3 %/3 mm, global, above 10 % of the maximum."""
    grid = Grid(reference.shape, spacing_mm, (0.0, 0.0, 0.0))
    return gamma(Dose(grid, reference), Dose(grid, predicted)).pass_percent
