"""A dose model that sees one voxel at a time: gradient-boosted trees on what a network is told of it.

Whatever a network does better comes from seeing the surroundings. Trees by histograms (Ke et al., LightGBM,
NeurIPS 2017) as scikit-learn has them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Dose
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.diffusion.encode import Encoded, Encoding, decode, encode
from vmat_diffusion.errors import InputError

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor


@dataclass(frozen=True, eq=False)
class VoxelModel:
    """Fitted trees and the encoding they were fitted on."""

    trees: HistGradientBoostingRegressor
    encoding: Encoding


def fit_voxels(
    cases: Iterable[TrainingCase], encoding: Encoding, *, voxels: int = 4000, trees: int = 300, seed: int = 0
) -> VoxelModel:
    """Fit trees to so many random voxels of the possible-dose mask of each case, by absolute error.

    The same seed gives the same trees. Cost: encoding the cases, 2 s each, and half a minute for 240,000
    voxels. Raises InputError where scikit-learn is not installed or there is no case with dose.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise InputError(
            "the boosting baseline needs scikit-learn, which is not installed; "
            "pip install 'vmat-diffusion[train]'"
        ) from None
    rng = np.random.default_rng(seed)
    rows, wanted = [], []
    for case in cases:
        dose = case.case.reference_dose
        if dose is None:
            continue
        encoded = encode(case.case, case.possible_dose, encoding, has_ct=case.has_ct)
        inside = int(np.count_nonzero(encoded.mask))
        chosen = rng.choice(inside, min(voxels, inside), replace=False)
        rows.append(_features(encoded, encoding)[chosen])
        wanted.append(dose.gy[encoded.box][encoded.mask][chosen] / encoded.top_gy)
    if not rows:
        raise InputError("the boosting baseline has no case with dose to learn from; name others")
    model = HistGradientBoostingRegressor(
        loss="absolute_error", max_iter=trees, max_leaf_nodes=63, early_stopping=False, random_state=seed
    )
    # The threads wait for each other thousands of times: on a busy computer two take a hundred times longer.
    with threadpool_limits(1):
        return VoxelModel(model.fit(np.concatenate(rows), np.concatenate(wanted)), encoding)


def predict_voxels(model: VoxelModel, encoded: Encoded) -> Dose:
    """The dose of an encoded case, voxel by voxel."""
    from threadpoolctl import threadpool_limits

    relative = np.zeros(encoded.mask.shape, np.float32)
    with threadpool_limits(1):
        relative[encoded.mask] = model.trees.predict(_features(encoded, model.encoding))
    return decode(relative, encoded, {"predicted by": "gradient boosting of voxels"})


def _features(encoded: Encoded, encoding: Encoding) -> NDArray[np.float32]:
    """What is known of each voxel in the mask: its channels, and the case's numbers but for goals."""
    voxels = encoded.volume[:, encoded.mask].T
    without_goals = np.delete(encoded.vector, encoding.layout.goals)
    numbers = np.broadcast_to(without_goals, (len(voxels), len(without_goals)))
    return np.concatenate([voxels, numbers], axis=1)
