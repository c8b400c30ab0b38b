"""Goal guidance: the gradient is that of the function, and the pull goes towards the goals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_cases import small_training

from vmat_diffusion.case import Dose
from vmat_diffusion.diffusion.encode import Encoded
from vmat_diffusion.diffusion.steer import dose_limits, goal_guidance, shortfall
from vmat_diffusion.evaluate.dvh import bounding_box
from vmat_diffusion.evaluate.goals import evaluate, parse_goals

GOALS = {
    "PTV_70": ["D95% >= 66.5 Gy", "D2% <= 74.9 Gy", "V95% >= 98 %"],
    "Parotid_L": ["mean <= 26 Gy", "V20Gy <= 30 %"],
    "Parotid_R": ["D0.03cc <= 40 Gy", "D50% <= 20 Gy", "V30Gy <= 1 cc"],
}


def sheet_of(goals: dict[str, list[str]]):
    lines = [
        'title = "t"\nsite = "head_neck"\nsource = "s"\nfractions = 35',
        "[prescription_gy]\nPTV_70 = 70.0\nPTV_56 = 56.0",
        '[normalization]\nPTV_70 = "D95% = 70 Gy"',
    ]
    for name, own in goals.items():
        lines += [f'[[goals]]\nstructure = "{name}"\ngoal = "{g}"\npriority = 2\nsource = "s"' for g in own]
    return parse_goals("\n".join(lines), "steering")


def boxed():
    """The small case with the box of its mask, as an encoded case has it."""
    training = small_training()
    box = bounding_box(training.possible_dose)
    mask = training.possible_dose[box]
    nothing = np.zeros(0, np.float32)
    return training.case, Encoded(nothing, nothing, mask, box, training.case.grid, 70.0)


def aims(goals: dict[str, list[str]]):
    case, encoded = boxed()
    return case, encoded, dose_limits(sheet_of(goals), case, encoded)


def dose_on(case, encoded, gy) -> Dose:
    whole = np.zeros(case.grid.shape, np.float32)
    whole[encoded.box] = np.asarray(gy)
    return Dose(case.grid, whole)


def test_the_gradient_is_that_of_the_shortfall() -> None:
    _, encoded, wanted = aims(GOALS)
    assert len(wanted) == sum(len(g) for g in GOALS.values())
    rng = np.random.default_rng(0)
    gy = torch.tensor(rng.uniform(10, 80, encoded.mask.shape), requires_grad=True)
    (gradient,) = torch.autograd.grad(shortfall(gy, wanted), gy)
    direction = torch.tensor(rng.normal(size=encoded.mask.shape))
    step = 1e-6
    high, low = (shortfall(gy.detach() + sign * step * direction, wanted) for sign in (1, -1))
    # No two of the random doses are within a step of each other, so ranks do not change.
    assert float((gradient * direction).sum()) == pytest.approx(float(high - low) / (2 * step), rel=1e-5)
    assert float(gradient.abs().sum()) > 0


def test_met_goals_do_not_pull() -> None:
    case, encoded, wanted = aims(GOALS)
    gy = np.full(case.grid.shape, 10.0)
    gy[case.structures["PTV_70"].mask] = 70.0
    inside = torch.tensor(gy[encoded.box])
    assert float(shortfall(inside, wanted)) == 0
    np.testing.assert_array_equal(goal_guidance(wanted, 1.0, 1.5)(inside), inside.float())


@pytest.mark.parametrize("structure", list(GOALS))
def test_a_whole_step_meets_a_goal(structure: str) -> None:
    for text in GOALS[structure]:
        case, encoded, wanted = aims({structure: [text]})
        rng = np.random.default_rng(1)
        gy = torch.tensor(rng.uniform(30, 80, encoded.mask.shape), requires_grad=True)
        (gradient,) = torch.autograd.grad(shortfall(gy, wanted), gy)
        better = (gy - 1.0001 * gradient).detach()  # a voxel at the very level still counts as above
        (before,), (after,) = (
            evaluate(sheet_of({structure: [text]}), case, dose_on(case, encoded, d.detach()))
            for d in (gy, better)
        )
        assert before.status == "fail"
        assert after.status == "pass", text


def test_an_organ_s_voxels_in_a_target_are_left_to_the_target() -> None:
    case, encoded = boxed()
    organ, target = case.structures["Parotid_L"], case.structures["PTV_70"]
    both = replace(organ, mask=organ.mask | target.mask)
    case = replace(case, structures={**case.structures, "Parotid_L": both})
    wanted = dose_limits(sheet_of({"Parotid_L": ["mean <= 26 Gy"]}), case, encoded)
    gy = torch.full(encoded.mask.shape, 60.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(shortfall(gy, wanted), gy)
    assert not gradient.numpy()[target.mask[encoded.box]].any()
    assert (gradient.numpy()[organ.mask[encoded.box] & ~target.mask[encoded.box]] > 0).all()


def test_the_pull_spares_the_organ_and_keeps_the_target() -> None:
    case, encoded, wanted = aims({"PTV_70": ["D95% >= 66.5 Gy"], "Parotid_L": ["mean <= 26 Gy"]})
    gy = np.full(case.grid.shape, 40.0)
    gy[case.structures["PTV_70"].mask] = 64.0
    pulled = goal_guidance(wanted, 1.0, 1.5)(torch.tensor(gy[encoded.box]))
    organ = case.structures["Parotid_L"].mask[encoded.box]
    target = case.structures["PTV_70"].mask[encoded.box]
    assert pulled.numpy()[organ].mean() < 33
    assert np.percentile(pulled.numpy()[target], 5) > 65
    far = np.ones_like(organ)
    far[:, :, 3:] = False
    assert pulled.numpy()[far] == pytest.approx(40.0)  # beyond the blur nothing moves


def test_without_weight_or_aims_there_is_no_pull() -> None:
    _, _, wanted = aims(GOALS)
    assert goal_guidance(wanted, 0.0, 1.5) is None
    assert goal_guidance((), 1.0, 1.5) is None


@pytest.mark.parametrize("seed", range(5))
def test_doses_in_percent_pull_as_the_same_doses_in_gy(seed: int) -> None:
    """100 % is the prescription of the target; of an organ it is the highest of the sheet."""
    rng = np.random.default_rng(seed)
    first, second, third, share = (round(float(v), 1) for v in rng.uniform(20, 110, 4))
    percent = {
        "PTV_70": [f"D95%[%] >= {first} %", f"D2%[%] <= {second} %", f"V{third}% >= {min(share, 99.0)} %"],
        "Parotid_L": [f"mean[%] <= {first} %", f"D0.03cc[%] <= {second} %"],
    }
    in_gy = {
        "PTV_70": [
            f"D95% >= {0.7 * first:.4f} Gy",
            f"D2% <= {0.7 * second:.4f} Gy",
            f"V{0.7 * third:.4f}Gy >= {min(share, 99.0)} %",
        ],
        "Parotid_L": [f"mean <= {0.7 * first:.4f} Gy", f"D0.03cc <= {0.7 * second:.4f} Gy"],
    }
    _, encoded, wanted = aims(percent)
    _, _, same = aims(in_gy)
    assert len(wanted) == len(same) == 5
    for a, b in zip(wanted, same, strict=True):
        assert (a.count, a.at_least) == (b.count, b.at_least) and a.limit_gy == pytest.approx(b.limit_gy)
    gy = torch.tensor(rng.uniform(10, 80, encoded.mask.shape))
    assert float(shortfall(gy, wanted)) == pytest.approx(float(shortfall(gy, same)), rel=1e-5)
