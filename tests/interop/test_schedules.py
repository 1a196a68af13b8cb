"""What is read from scheduler configurations, against the schedulers themselves; denoisers of sigma, both ways."""

import pytest
import torch

import tweed as tw
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser
from tweed.core.processes import EDM, VP, FromBetas, RectifiedFlow
from tweed.core.random import normal
from tweed.errors import IncompatibleError, InputError
from tweed.interop import SigmaDenoiser, from_sigma, read_schedule
from tweed.interop.schedules import configuration


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero", [False, True])
def test_betas_are_those_of_diffusers(kind, zero):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_schedule=kind, rescale_betas_zero_snr=zero)
    process = read_schedule(configuration(scheduler)).process
    assert isinstance(process, FromBetas)
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    torch.testing.assert_close(process.alpha(t) ** 2, scheduler.alphas_cumprod.double(), atol=2e-6, rtol=0)


@pytest.mark.parity
def test_the_sigmoid_and_given_betas():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule="sigmoid")
    process = read_schedule(configuration(scheduler)).process
    torch.testing.assert_close(torch.tensor(process.betas), scheduler.betas, atol=1e-6, rtol=0)
    given = read_schedule({"trained_betas": [0.1, 0.2], "prediction_type": "sample"})
    assert given.process.betas == (0.1, 0.2)
    assert given.target == tw.targets.Data()


@pytest.mark.parity
def test_edm_preconditioning_is_that_of_the_scheduler():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=20.0, sigma_data=0.6)
    schedule = read_schedule(configuration(scheduler))
    x, answer, sigma = normal((2, 3), 1), normal((2, 3), 2), 3.0
    t = schedule.process.time(-torch.tensor(sigma, dtype=torch.float64).log())
    denoiser = tw.NetworkDenoiser(lambda x, t: answer, schedule.process, schedule.target, time=schedule.time)
    expected = scheduler.precondition_outputs(x, answer, torch.tensor(sigma))
    torch.testing.assert_close(denoiser(x, t.item()).x0, expected, atol=1e-5, rtol=1e-5)
    assert denoiser.time_input(x, t.item())[0].item() == pytest.approx(
        scheduler.precondition_noise(torch.tensor(sigma)).item()
    )
    with pytest.raises(InputError, match="epsilon"):
        read_schedule({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"})


def test_flow_matching():
    fixed = read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert (fixed.process, fixed.target, fixed.shift) == (RectifiedFlow(), tw.targets.Velocity(), 3.0)
    times = fixed.grid()(fixed.process, 4)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(times, 3 * t / (1 + 2 * t))
    assert read_schedule({"use_flow_sigmas": True, "flow_shift": 2.0, "beta_schedule": "linear"}).shift == 2.0
    with pytest.raises(InputError, match="time_shift_type"):
        read_schedule({"_class_name": "FlowMatchEuler", "use_dynamic_shifting": True, "time_shift_type": "linear"})


def test_a_denoiser_of_sigma_there_and_back():
    means = normal((3, 4), 1)
    exact = MixtureDenoiser(means, 0.2, process=EDM(0.002, 80.0))
    outside = SigmaDenoiser(exact)
    back = from_sigma(outside, event=(4,))
    x = 5.0 * normal((6, 4), 2)
    for t in (0.2, 0.5, 0.9):
        torch.testing.assert_close(back(x, t).x0, exact(x, t).x0, atol=2e-4, rtol=1e-4)
    assert tw.sample(back, 5, solver=tw.solvers.Heun(), steps=6).shape == (5, 4)


@pytest.mark.parametrize("process", [VP(), RectifiedFlow(), EDM(0.002, 80.0)], ids=repr)
def test_sigma_is_noise_beside_unit_data_on_any_process(process):
    variance = 0.3
    denoiser = SigmaDenoiser(GaussianDenoiser(torch.zeros(3), variance, process))
    x, sigma = normal((4, 3), 1, dtype=torch.float64), torch.tensor([0.1, 0.5, 2.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, sigma), x * (variance / (variance + sigma**2))[:, None])


@pytest.mark.parity
def test_samplers_of_k_diffusion_run_our_denoisers():
    sampling = pytest.importorskip("k_diffusion.sampling", exc_type=ImportError)
    denoiser = SigmaDenoiser(GaussianDenoiser(torch.zeros(3), 0.25, VP()))
    sigmas = torch.cat((torch.linspace(5.0, 0.01, 40, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)))
    x = 5.0 * normal((4, 3), 1, dtype=torch.float64)
    made = sampling.sample_heun(denoiser, x, sigmas, disable=True)
    torch.testing.assert_close(made, x * (0.25 / (0.25 + 25.0)) ** 0.5, atol=0.02, rtol=0)


def test_processes_with_an_endpoint_are_refused():
    process = tw.processes.OUVE()
    denoiser = tw.FunctionDenoiser(lambda x, t, y: x, process)
    with pytest.raises(IncompatibleError, match="endpoint"):
        SigmaDenoiser(denoiser)
