"""Asking a prediction for less dose to an organ, in each of the ways in which it can be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.diffusion.encode import DoseGoals, Encoded, told
from vmat_diffusion.diffusion.model import DoseModel
from vmat_diffusion.diffusion.predict import Pull, Sampling, predict_encoded
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.steering import Steered, steered
from vmat_diffusion.geometry import Mask

# Weight of classifier-free guidance: the answer to the goals goes this much further from that without.
GUIDANCE = 3.0
# The pull of a case that takes the mean dose of a mask on the case's grid down to a limit in Gy.
PullTo = Callable[[Encoded, Mask, float], Pull]


@dataclass(frozen=True)
class Steer:
    """A change of an organ's mean dose that is asked for, in Gy."""

    organ: str
    change_gy: float


def parse_steer(text: str) -> Steer:
    """`Parotid_L:-5`; InputError for anything else."""
    organ, _, change = text.partition(":")
    try:
        gy = float(change)
    except ValueError:
        gy = 0.0
    if not organ or not -70 <= gy <= 70 or gy == 0:
        raise InputError(
            f"steer {text!r} is no organ with a change of its mean of -70 to 70 Gy; write Parotid_L:-5"
        )
    return Steer(organ, gy)


def can_steer(case: Case, free: Dose, asked: Steer, model: DoseModel) -> bool:
    """Whether the model knows the organ, the case has it and its mean in the prediction can move so far."""
    if asked.organ not in model.encoding.organs or asked.organ not in case.structures:
        return False
    mean = float(free.gy[case.structures[asked.organ].mask].mean())
    return mean + asked.change_gy > 0


def steer(
    case: Case,
    encoded: Encoded,
    free: Dose,
    asked: Steer,
    model: DoseModel,
    sampling: Sampling,
    *,
    pull_to: PullTo | None = None,
) -> list[Steered]:
    """Predict the case again, once in each way, and compare with the dose `free` of the same sampling.

    Told: the mean that is wanted stands in the vector of goals. Guided: the same with guidance. Pulled, for
    samples and where there is such a pull: nothing is told, but at every step the organ is pulled.
    """
    mask = case.structures[asked.organ].mask
    wanted = float(free.gy[mask].mean()) + asked.change_gy
    tells = told(encoded, DoseGoals(mean_gy={asked.organ: wanted}), model.encoding)
    ways = {
        "told": predict_encoded(tells, model, sampling),
        f"told, guidance {GUIDANCE:g}": predict_encoded(tells, model, replace(sampling, guidance=GUIDANCE)),
    }
    if pull_to is not None and sampling.samples:
        pull = pull_to(encoded, mask, wanted)
        ways["pulled"] = predict_encoded(encoded, model, sampling, pull=pull)
    structures = {
        s.name: (s.role == "target", s.mask)
        for s in case.structures.values()
        if s.role in ("target", "organ") and s.voxels
    }
    return [
        steered(way, asked.organ, asked.change_gy, free.gy, prediction.mean.gy, structures)
        for way, prediction in ways.items()
    ]


def check_organs(asked: Sequence[Steer], model: DoseModel) -> None:
    """Raises InputError for an organ the model cannot be asked about."""
    for one in asked:
        if one.organ not in model.encoding.organs:
            raise InputError(
                f"steer: the model knows no goals for {one.organ}; known are "
                + ", ".join(model.encoding.organs)
            )
