"""The samplers step by step against the schedulers of diffusers."""

import numpy as np
import pytest
import torch

from vmat_diffusion.diffusion.process import SCHEDULES, STEPS, add_noise, run_sampler, trailing_steps, x0_from

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the [dev] extra; install it")

BETAS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
ANSWERS = {"noise": "epsilon", "v": "v_prediction", "x0": "sample"}
OURS_TO_THEIRS = {
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small"}),
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": True}),
    "dpm2": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    ),
}


def scheduler(method, schedule, answer, clip=None):
    name, options = OURS_TO_THEIRS[method]
    if method != "dpm2":
        options = {**options, "clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    return getattr(diffusers, name)(
        num_train_timesteps=STEPS,
        beta_schedule=BETAS[schedule],
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=ANSWERS[answer],
        timestep_spacing="trailing",
        **options,
    )


def network(x, t):
    """Some smooth function of sample and step."""
    return torch.tanh(1.3 * x + 0.2) * (0.5 + t.reshape(-1, 1, 1) / 2000.0)


def theirs(method, schedule, answer, steps, start, clip=None):
    chosen = scheduler(method, schedule, answer, clip)
    chosen.set_timesteps(steps)
    x, generator = start, torch.Generator().manual_seed(4)
    for t in chosen.timesteps:
        options = {"generator": generator} if method == "ddpm" else {}
        output = network(x, torch.full((len(x),), int(t)))
        x = chosen.step(output, t, x, **options).prev_sample
    return x


def ours(method, schedule, answer, steps, start, clip=None):
    generator = torch.Generator().manual_seed(4)
    return run_sampler(
        network,
        start,
        SCHEDULES[schedule](),
        steps=steps,
        target=answer,
        method=method,
        clamp=None if clip is None else (-clip, clip),
        draw=lambda shape: torch.randn(shape, generator=generator),
    )


@pytest.mark.parametrize("schedule", BETAS)
def test_the_schedules_are_those_of_diffusers(schedule):
    other = scheduler("ddpm", schedule, "noise").alphas_cumprod.double()
    torch.testing.assert_close(SCHEDULES[schedule]().signal, other, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("schedule", BETAS)
def test_noise_goes_in_as_in_diffusers(schedule):
    x0, noise = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    t = torch.tensor([0, 10, 200, 500, 900, 999])
    other = scheduler("ddpm", schedule, "noise").add_noise(x0, noise, t)
    torch.testing.assert_close(add_noise(x0, noise, t, SCHEDULES[schedule]()), other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_the_steps_are_those_of_diffusers(steps):
    chosen = scheduler("ddim", "cosine", "x0")
    chosen.set_timesteps(steps)
    np.testing.assert_array_equal(trailing_steps(SCHEDULES["cosine"](), steps), chosen.timesteps.numpy())


# The noise and the v of the last cosine step stand for an x0 that single precision cannot resolve.
@pytest.mark.parametrize(
    ("schedule", "answer"),
    [("cosine", "x0"), ("linear", "x0"), ("linear", "v"), ("linear", "noise"), ("cosine", "v")],
)
@pytest.mark.parametrize("method", OURS_TO_THEIRS)
@pytest.mark.parametrize("steps", [4, 20])
def test_a_sampler_ends_where_that_of_diffusers_ends(method, schedule, answer, steps):
    start = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))
    mine = ours(method, schedule, answer, steps, start)
    torch.testing.assert_close(mine, theirs(method, schedule, answer, steps, start), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_a_clamped_x0_has_the_noise_that_belongs_to_it(method):
    start = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))
    if method == "ddim":
        chosen = scheduler(method, "linear", "noise", clip=0.3)
        chosen.set_timesteps(10)
        x = start
        for t in chosen.timesteps:
            output = network(x, torch.full((len(x),), int(t)))
            x = chosen.step(output, t, x, use_clipped_model_output=True).prev_sample
    else:
        x = theirs(method, "linear", "noise", 10, start, clip=0.3)
    torch.testing.assert_close(ours(method, "linear", "noise", 10, start, clip=0.3), x, rtol=1e-3, atol=1e-3)


def test_x0_is_read_from_each_answer_alike():
    generator = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(4, 6, generator=generator) for _ in range(2))
    schedule, t = SCHEDULES["linear"](), torch.tensor([0, 100, 500, 900])
    x = add_noise(x0, noise, t, schedule)
    root_a, root_b = schedule.at(t, x0)
    for answer, output in (("x0", x0), ("noise", noise), ("v", root_a * noise - root_b * x0)):
        torch.testing.assert_close(x0_from(output, x, t, schedule, answer), x0, rtol=1e-3, atol=1e-3)
