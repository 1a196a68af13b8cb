"""`DiffusersScheduler` as a loop: every solver with one evaluation a step does in it what it does in `tw.sample`."""

import pytest
import torch

pytest.importorskip("diffusers")

import tweed as tw
from tweed.core.exact import MixtureDenoiser
from tweed.core.random import normal
from tweed.errors import IncompatibleError
from tweed.interop import DiffusersScheduler
from tweed.solvers.registry import names, parse

pytestmark = pytest.mark.parity

LIKE = {
    "betas": {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing"},
    "v, zero signal at the end": {
        "beta_schedule": "linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0},
    "EDM": {"_class_name": "EDMEulerScheduler"},
}  # fmt: skip
SINGLE = [name for name in names() if parse(name).evaluations == 1 and not parse(name).adaptive]
STEPS = 7


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("name", SINGLE)
def test_the_loop_is_the_run(name, like):
    try:
        scheduler = DiffusersScheduler(name, like=LIKE[like])
    except IncompatibleError:
        pytest.skip(f"{name} does not follow {like}")
    schedule = scheduler.schedule
    exact = MixtureDenoiser(normal((4, 6), 1), 0.1, process=schedule.process)
    scheduler.set_timesteps(STEPS)
    start = scheduler.init_noise_sigma * normal((3, 6), 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    seed = int(torch.randint(2**31, (1,), generator=generator)) if parse(name).stochastic else 0
    generator.manual_seed(5)
    x, failed = start, None
    for t, label in zip(scheduler._times[:-1], scheduler.timesteps, strict=True):
        torch.testing.assert_close(scheduler._time_of(label).item(), t, atol=1e-5, rtol=0)
        try:
            x = scheduler.step(exact(x, t).to(schedule.target), label, x, generator=generator).prev_sample
        except IncompatibleError as error:
            failed = str(error)
            break
    if failed is not None and "evaluates once" not in failed:
        # What does not fit the process either way.
        with pytest.raises(IncompatibleError):
            tw.sample(exact, start, solver=parse(name), times=scheduler._times, seed=seed)
    if failed is not None:
        # Some evaluate twice, or elsewhere: named, not wrong.
        return
    expected = tw.sample(exact, start, solver=parse(name), times=scheduler._times, seed=seed)
    torch.testing.assert_close(x, expected, atol=1e-8, rtol=1e-6)


def test_most_solvers_run_in_the_loop():
    assert {"DDIM", "DPMSolver", "UniPC", "DEIS", "AdamsBashforth", "Euler"} <= set(SINGLE)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 4, 30, 1000])
def test_spacings_are_those_of_diffusers(spacing, steps):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(timestep_spacing=spacing)
    ours = DiffusersScheduler("DDIM", like=theirs)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps)
    assert torch.equal(ours.timesteps.round().long(), theirs.timesteps)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.float(), atol=1e-3, rtol=0)


def test_states_stay_in_float32_between_steps():
    scheduler = DiffusersScheduler("DDIM", like=LIKE["betas"])
    exact = MixtureDenoiser(normal((4, 6), 1), 0.1, process=scheduler.schedule.process)
    start = normal((3, 6), 2)
    scheduler.set_timesteps(50)
    x = start.half()
    for t, label in zip(scheduler._times[:-1], scheduler.timesteps, strict=True):
        x = scheduler.step(exact(x.float(), t).eps.half(), label, x).prev_sample
    assert x.dtype == torch.float16
    expected = tw.sample(exact, start.half().float(), solver=tw.solvers.DDIM(), times=scheduler._times)
    assert (x - expected).abs().max() < 0.01


def test_noise_is_added_as_at_the_time():
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    x, noise = normal((2, 3), 1), normal((2, 3), 2)
    theirs = DDIMScheduler()
    steps = torch.tensor([10, 900])
    torch.testing.assert_close(
        DiffusersScheduler("DDIM", like=theirs).add_noise(x, noise, steps), theirs.add_noise(x, noise, steps),
        atol=1e-6, rtol=0,
    )  # fmt: skip
    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(10)
    at = flow.timesteps[[3, 7]]
    ours = DiffusersScheduler("DDIM", like=flow).scale_noise(x, at, noise)
    torch.testing.assert_close(ours, flow.scale_noise(x, at, noise), atol=1e-5, rtol=0)
