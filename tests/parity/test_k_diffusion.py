"""k-diffusion's samplers, and diffusers' PNDM, side by side with ours on the same levels, noise and exact denoiser.

k-diffusion knows one process, x = x_0 + sigma n, which is that of `EDM` with t = sigma / sigma_max: states are equal.
Only its file `sampling.py` is loaded, with a stand-in for the one helper that it takes from its package.
"""

import importlib.metadata
import importlib.util
import sys
import types

import pytest
import torch

import tweed
from tweed import processes, random, solvers
from tweed.solvers import Problem

pytestmark = pytest.mark.parity

PROCESS = processes.EDM()
N = 256


@pytest.fixture(scope="module")
def k_sampling():
    """The module `k_diffusion.sampling`, alone."""
    try:
        files = importlib.metadata.files("k-diffusion") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("k-diffusion is not installed")
    for name in ("torchsde", "torchdiffeq", "scipy", "tqdm"):
        pytest.importorskip(name)
    path = next(file.locate() for file in files if str(file).endswith("k_diffusion/sampling.py"))
    package, helpers = types.ModuleType("k_alone"), types.ModuleType("k_alone.utils")
    package.__path__ = []
    helpers.append_dims = lambda x, ndim: x.reshape(x.shape + (1,) * (ndim - x.ndim))
    package.utils = helpers
    sys.modules.update({"k_alone": package, "k_alone.utils": helpers})
    spec = importlib.util.spec_from_file_location("k_alone.sampling", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["k_alone.sampling"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for name in ("k_alone", "k_alone.utils", "k_alone.sampling"):
            sys.modules.pop(name, None)


def denoiser():
    means = random.normal((3, 4), 7, dtype=torch.float64)
    variances = torch.tensor([0.1, 0.3, 0.05], dtype=torch.float64)
    return tweed.MixtureDenoiser(means, variances, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), PROCESS)


def levels(last=0.0, n=12, high=14.6, low=0.03):
    """Log-uniform noise levels and a last one."""
    sigmas = torch.logspace(torch.tensor(high).log10().item(), torch.tensor(low).log10().item(), n, dtype=torch.float64)
    return torch.cat([sigmas, torch.tensor([last], dtype=torch.float64)]) if last is not None else sigmas


class Case:
    """One run of both: the same start, levels and noise."""

    def __init__(self, sigmas):
        self.model, self.sigmas = denoiser(), sigmas
        self.x = sigmas[0] * random.normal((N, 4), 1, dtype=torch.float64)
        self.problem = Problem(self.model, tuple((sigmas / PROCESS.sigma_max).tolist()), seed=2)

    def noises(self, draw=0):
        step = iter(range(len(self.sigmas)))
        return lambda *_: self.problem.noise(self.x, next(step), draw)

    def theirs(self, sampler, **options):
        def denoise(x, sigma):
            return self.model(x, sigma / PROCESS.sigma_max).x0

        return sampler(denoise, self.x, self.sigmas, disable=True, **options)

    def ours(self, solver):
        return solver.integrate(self.problem, self.x)


@pytest.fixture(params=[0.0, None], ids=["to clean data", "to the smallest noise"])
def both(request):
    return Case(levels(request.param))


TOLERANCE = {"rtol": 0, "atol": 1e-12}


def test_euler(k_sampling, both):
    theirs = both.theirs(k_sampling.sample_euler)
    for solver in (solvers.Euler("velocity"), solvers.Euler("noise"), solvers.Euler("data"), solvers.DDIM()):
        torch.testing.assert_close(both.ours(solver), theirs, **TOLERANCE)


def test_heun(k_sampling, both):
    theirs = both.theirs(k_sampling.sample_heun)
    for solver in (solvers.Heun(), solvers.Heun("velocity")):
        torch.testing.assert_close(both.ours(solver), theirs, **TOLERANCE)


@pytest.mark.parametrize(
    ("churn", "low", "high", "strength"), [(3.0, 0.0, float("inf"), 1.0), (40.0, 0.05, 8.0, 1.003)]
)
def test_heun_with_churn(k_sampling, both, monkeypatch, churn, low, high, strength):
    noise = both.noises()
    monkeypatch.setattr(torch, "randn_like", noise)
    theirs = both.theirs(k_sampling.sample_heun, s_churn=churn, s_tmin=low, s_tmax=high, s_noise=strength)
    ours = both.ours(solvers.Heun("noise", churn, low, high, strength))
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_dpm_2(k_sampling, both):
    torch.testing.assert_close(both.ours(solvers.DPM2()), both.theirs(k_sampling.sample_dpm_2), **TOLERANCE)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms(k_sampling, both, order):
    theirs = both.theirs(k_sampling.sample_lms, order=order)
    torch.testing.assert_close(both.ours(solvers.LMS(order)), theirs, **TOLERANCE)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_ancestral(k_sampling, both, eta):
    theirs = both.theirs(k_sampling.sample_euler_ancestral, eta=eta, noise_sampler=both.noises())
    torch.testing.assert_close(both.ours(solvers.EulerAncestral(eta)), theirs, **TOLERANCE)


def test_dpmpp_2m(k_sampling, both):
    solver = solvers.DPMSolver(order=2, lower_order_final=False)
    torch.testing.assert_close(both.ours(solver), both.theirs(k_sampling.sample_dpmpp_2m), **TOLERANCE)


def scheduler(name, steps, **options):
    diffusers = pytest.importorskip("diffusers")
    made = getattr(diffusers, name)(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **options
    )
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("skip", [True, False], ids=["plms", "prk"])
@pytest.mark.parametrize("steps", [10, 20])
def test_diffusers_pndm(steps, skip):
    theirs = scheduler("PNDMScheduler", steps, skip_prk_steps=skip, set_alpha_to_one=False, timestep_spacing="leading")
    # Their step n is our time (n + 1) / 1000. Their last one ends where it starts, at the first level of the table.
    process = processes.FromBetas.scaled_linear(1000, 0.00085, 0.012)
    times = tuple((n + 1) / 1000 for n in range(1000 - 1000 // steps, -1, -(1000 // steps)))
    model = tweed.MixtureDenoiser(denoiser().means, denoiser().values[:, 0], None, process)
    x = expected = random.normal((N, 4), 3, dtype=torch.float64)
    for t in theirs.timesteps:
        eps = model(expected, (int(t) + 1) / 1000).eps
        expected = theirs.step(eps, t, expected).prev_sample
    ours = solvers.PNDM(4, "heun" if skip else "runge-kutta")
    got = ours.integrate(Problem(model, times), x)
    assert (got - x).abs().mean() > 0.3
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-5)
