"""Samplers on data whose answer is known: a normal distribution, for which the best network is a formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vmat_diffusion.diffusion import process
from vmat_diffusion.diffusion.process import Schedule, prediction_target, run_sampler, x0_from

MEAN, STD = 0.7, 0.3


def best_x0(x: torch.Tensor, t: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """E(x_0 | x_t) of x_0 ~ N(MEAN, STD^2)."""
    a, b = schedule.at(t, x)
    return MEAN + STD**2 * a / (a**2 * STD**2 + b**2) * (x - a * MEAN)


def exact_flow(x: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """Where the deterministic flow leads each start: the same quantile of the data, less the last noise."""
    first = schedule.signal[-1]
    start_std = (first * STD**2 + 1 - first).sqrt()
    quantile = (x - first.sqrt() * MEAN) / start_std
    last = schedule.signal[0]
    at_last = last.sqrt() * MEAN + (last * STD**2 + 1 - last).sqrt() * quantile
    return best_x0(at_last, torch.zeros(len(x), dtype=torch.long), schedule)


@pytest.fixture(scope="module")
def start() -> torch.Tensor:
    return torch.randn(4000, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(process.SCHEDULES))
@pytest.mark.parametrize(("method", "bound"), [("ddim", 2e-3), ("dpm2", 2e-4)])
def test_all_steps_of_a_deterministic_sampler_follow_the_exact_flow(start, name, method, bound):
    schedule = process.SCHEDULES[name]()
    model = lambda x, t: best_x0(x, t, schedule)  # noqa: E731
    found = run_sampler(model, start, schedule, steps=process.STEPS, method=method)
    # DDIM is of first order: its error is about the size of a step; the solver's is that squared.
    assert float((found - exact_flow(start, schedule)).abs().mean()) < bound


def test_few_steps_of_the_default_sampler_keep_more_of_the_spread(start):
    schedule = process.cosine()
    model = lambda x, t: best_x0(x, t, schedule)  # noqa: E731
    default, ddim = (
        float(run_sampler(model, start, schedule, steps=8, **how).std()) / STD
        for how in ({}, {"method": "ddim"})
    )
    assert 1 > default > ddim + 0.04


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpm2", 2)])
def test_the_error_falls_with_the_order_of_the_sampler(start, method, order):
    schedule = process.linear()
    model = lambda x, t: best_x0(x, t, schedule)  # noqa: E731
    exact = exact_flow(start, schedule)
    errors = [
        float((run_sampler(model, start, schedule, steps=n, method=method) - exact).abs().mean())
        for n in (25, 50, 100)
    ]
    fall = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(fall > order - 0.35), (errors, fall)


def test_ancestral_sampling_has_the_mean_and_spread_of_the_data():
    schedule = process.cosine()
    generator = torch.Generator().manual_seed(5)

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    begin = torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    model = lambda x, t: best_x0(x, t, schedule)  # noqa: E731
    found = run_sampler(model, begin, schedule, steps=process.STEPS, method="ddpm", draw=draw)
    # Four standard errors of a mean and of a standard deviation of 40,000 draws, and the variance that
    # the last of 1000 steps leaves out.
    assert float(found.mean()) == pytest.approx(MEAN, abs=4 * STD / 200)
    assert float(found.std()) == pytest.approx(STD, abs=4 * STD / 283 + 0.003)


@pytest.mark.parametrize("answer", ["noise", "v", "x0"])
def test_every_answer_of_a_network_gives_the_same_x0_and_the_same_sample(start, answer):
    schedule = process.cosine()
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.randint(0, 900, (len(start),), generator=torch.Generator().manual_seed(2))
    x = process.add_noise(start, noise, t, schedule)
    given = prediction_target(start, noise, t, schedule, answer)
    torch.testing.assert_close(x0_from(given, x, t, schedule, answer), start, rtol=0, atol=1e-9)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x0 = best_x0(x, t, schedule)
        a, b = schedule.at(t, x)
        return prediction_target(x0, (x - a * x0) / b, t, schedule, answer)

    x0_model = lambda x, t: best_x0(x, t, schedule)  # noqa: E731
    mine = run_sampler(model, start, schedule, steps=8, target=answer)
    theirs = run_sampler(x0_model, start, schedule, steps=8)
    # Noise at a signal of 1e-9, where the cosine schedule starts, costs half the digits.
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_a_clamped_x0_bounds_the_sample_and_an_adjusted_one_moves_it(start):
    schedule = process.cosine()
    model = lambda x, t: best_x0(x, t, schedule)  # noqa: E731
    clamped = run_sampler(model, start, schedule, steps=8, clamp=(0.5, 0.9))
    assert clamped.min() >= 0.5 and clamped.max() <= 0.9
    moved = run_sampler(model, start, schedule, steps=8, adjust=lambda x0, t: x0 + 0.1)
    assert float(moved.mean()) > float(run_sampler(model, start, schedule, steps=8).mean()) + 0.1


def test_steps_start_at_the_noisiest_and_are_refused_out_of_range():
    schedule = process.cosine()
    assert process.trailing_steps(schedule, 4) == [999, 749, 499, 249]
    assert process.trailing_steps(schedule, 1) == [999]
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="outside 1 to 1000"):
            process.trailing_steps(schedule, steps)


def test_min_snr_weights_agree_between_answers():
    """The error of the noise is the error of x_0 times a / (1 - a), and so must be the weights."""
    schedule, t = process.cosine(), torch.tensor([10, 300, 700])
    a = schedule.signal[t]
    x0 = process.min_snr_weight(t, schedule, "x0").double()
    noise = process.min_snr_weight(t, schedule, "noise").double()
    v = process.min_snr_weight(t, schedule, "v").double()
    loud = a > 0.5  # where there is more noise than signal, the noise has no lower bound
    torch.testing.assert_close((noise * a / (1 - a))[loud], x0[loud], rtol=1e-5, atol=0)
    assert noise.max() <= 1
    torch.testing.assert_close(v / (1 - a), x0, rtol=1e-5, atol=0)
