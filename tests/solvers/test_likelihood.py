"""Likelihoods against densities in closed form."""

import math

import pytest
import torch

import tweed as tw
from tweed.core.processes import VE, VP, FromBetas, Interpolant, MeanReverting, RectifiedFlow, SubVP
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import AdaptiveRungeKutta, bits_per_dim, log_likelihood

MEAN, VARIANCE = torch.tensor([1.0, -0.5, 0.0, 0.3]), torch.tensor([1.0, 0.25, 0.09, 2.0])


def exact(denoiser, x, result, t_min):
    """The density at `t_min`, plus what the prior N(0, sigma^2) differs from the true marginal at the latent."""
    sigma = denoiser.process.level(1.0).sigma
    prior = torch.distributions.Normal(0.0, sigma).log_prob(result.latent).sum(1)
    return denoiser.log_prob(x, t_min) + prior - denoiser.log_prob(result.latent, 1.0)


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0), SubVP(), RectifiedFlow()])
def test_an_anisotropic_gaussian_to_a_thousandth_of_a_nat(process):
    rotation = torch.linalg.qr(tw.random.normal((4, 4), 5, dtype=torch.float64))[0]
    denoiser = tw.GaussianDenoiser(MEAN, rotation @ VARIANCE.double().diag() @ rotation.T, process)
    x = denoiser.sample(8, 1)
    t_min = 1e-5 if process.level(0.0).sigma == 0 else 0.0
    result = log_likelihood(denoiser, x)
    assert (result.log_prob - exact(denoiser, x, result, t_min)).abs().max() < 1e-3
    # The prior's own mismatch is small, and is all that parts it from the density of the data.
    known = log_likelihood(denoiser, x, prior=lambda z: denoiser.log_prob(z, 1.0))
    assert (known.log_prob - denoiser.log_prob(x, t_min)).abs().max() < 1e-3
    assert (known.log_prob - denoiser.log_prob(x)).abs().max() < 5e-3
    torch.testing.assert_close(result.latent, denoiser.flow(x, t_min, 1.0), rtol=0, atol=2e-2)


def test_a_mixture_to_a_fiftieth_of_a_bit():
    denoiser = tw.MixtureDenoiser(2 * tw.random.normal((4, 3), 2), 0.1, None, VP())
    x = denoiser.sample(32, 3)
    result = log_likelihood(denoiser, x)
    truth = bits_per_dim(denoiser.log_prob(x), 3)
    assert (result.bits_per_dim - truth).abs().max() < 0.02
    assert (result.bits_per_dim.mean() - truth.mean()).abs() < 0.005


@pytest.mark.parametrize("noise", ["rademacher", "normal"])
def test_hutchinson_is_unbiased(noise):
    cov = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 0.5]], dtype=torch.float64)
    denoiser = tw.GaussianDenoiser(torch.zeros(3), cov, VP())
    one = denoiser.sample(1, 4)
    x = one.expand(500, 3)
    truth = log_likelihood(denoiser, one).log_prob
    draws = log_likelihood(denoiser, x, trace="hutchinson", noise=noise).log_prob
    error = draws.std() / 500**0.5
    # A probe's variance is not zero: the matrix is not diagonal.
    assert draws.std() > 0.05
    assert (draws.mean() - truth).abs() < 3 * error
    averaged = log_likelihood(denoiser, x[:100], trace="hutchinson", noise=noise, probes=16).log_prob
    assert averaged.std() == pytest.approx(draws.std().item() / 4, rel=0.35)


def test_probes_belong_to_samples():
    denoiser = tw.MixtureDenoiser(tw.random.normal((3, 4), 2), 0.1, None, VP())
    x = denoiser.sample(4, 1)
    whole = log_likelihood(denoiser, x, trace="hutchinson", method="rk4", steps=60, seed=3)
    part = log_likelihood(denoiser, x[2:], trace="hutchinson", method="rk4", steps=60, seed=3, index=2)
    torch.testing.assert_close(part.log_prob, whole.log_prob[2:])


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_fixed_steps_converge_at_their_order(method, order):
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, RectifiedFlow())
    x = denoiser.sample(4, 1)
    truth = denoiser.log_prob(x, 0.05)
    errors = []
    for steps in (40, 80):
        result = log_likelihood(denoiser, x, method=method, steps=steps, t_min=0.05)
        errors.append((result.log_prob - truth).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)
    # Stages after the first of each step are evaluations too.
    assert result.evaluations == 80 * order


def test_a_network_of_its_own_type_and_chunks_of_the_jacobian():
    network = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3))
    for i, parameter in enumerate(network.parameters()):
        parameter.data = 0.3 * tw.random.normal((1, *parameter.shape), 1, draw=i)[0]
    process = RectifiedFlow()
    denoiser = tw.NetworkDenoiser(lambda x, t: network(x.float()), process, tw.targets.Velocity(), event=(3,))
    x = tw.random.normal((5, 3), 7)
    result = log_likelihood(denoiser, x, rtol=1e-7, atol=1e-7)
    # The change of variables by brute force: the Jacobian of the whole flow.
    solver = AdaptiveRungeKutta(rtol=1e-7, atol=1e-7)
    wide = network.double()
    denoiser = tw.NetworkDenoiser(lambda x, t: wide(x.double()), process, tw.targets.Velocity(), event=(3,))

    def flow(x0):
        return tw.invert(denoiser, x0[None], solver=solver, times=(1.0, 1e-5), gradients=True)[0]

    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(flow, x[i].double())
        latent = flow(x[i].double())
        brute = torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum() + torch.linalg.slogdet(jacobian)[1]
        assert (result.log_prob[i] - brute).abs() < 1e-4
    rows = log_likelihood(denoiser, x, rtol=1e-7, atol=1e-7, chunk=2)
    torch.testing.assert_close(rows.log_prob, log_likelihood(denoiser, x, rtol=1e-7, atol=1e-7).log_prob)


def test_two_sided_interpolants_and_endpoints():
    data = tw.GaussianDenoiser(torch.tensor([2.0, 0.0]), torch.tensor([0.3, 1.0]))
    other = tw.GaussianDenoiser(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.2]))
    denoiser = tw.MixtureInterpolantDenoiser(data, other, Interpolant("linear", "quadratic"))
    x = data.sample(6, 1)
    with pytest.raises(IncompatibleError, match="prior"):
        log_likelihood(denoiser, x)
    result = log_likelihood(denoiser, x, prior=other.log_prob)
    assert (result.log_prob - data.log_prob(x)).abs().max() < 1e-3
    process = MeanReverting()
    shifted = tw.GaussianDenoiser(torch.tensor([1.0, 0.0]), 0.2, process)
    y = tw.random.normal((6, 2), 9, dtype=torch.float64)
    x = shifted.sample(6, 2)
    known = log_likelihood(shifted, x, cond={"y": y}, prior=lambda z: shifted.log_prob(z, 1.0, y=y))
    assert (known.log_prob - shifted.log_prob(x, 1e-5, y=y)).abs().max() < 1e-3


def test_bits_offsets_and_where_discrete_processes_begin():
    # Uniform on the 256 levels: 8 bits, on either scale.
    assert bits_per_dim(torch.zeros(1, dtype=torch.float64), 10, 8.0).item() == pytest.approx(8.0)
    half = torch.full((1,), -10 * math.log(2.0), dtype=torch.float64)
    assert bits_per_dim(half, 10, 7.0).item() == pytest.approx(8.0)
    process = FromBetas.linear(100)
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, process)
    x = denoiser.sample(4, 1)
    result = log_likelihood(denoiser, x, offset=7.0, prior=lambda z: denoiser.log_prob(z, 1.0))
    assert (result.log_prob - denoiser.log_prob(x, 0.01)).abs().max() < 1e-3
    torch.testing.assert_close(result.bits_per_dim, bits_per_dim(result.log_prob, 4, 7.0))
    assert log_likelihood(denoiser, x[:0]).log_prob.shape == (0,)


def test_arguments_that_do_not_fit():
    denoiser = tw.GaussianDenoiser(MEAN, VARIANCE, VP())
    x = denoiser.sample(2)
    for match, options in (
        ("trace", {"trace": "exat"}),
        ("noise", {"noise": "gauss"}),
        ("method", {"method": "euler"}),
        ("steps", {"steps": 5}),
        ("steps", {"method": "rk4"}),
        ("rtol", {"rtol": 0.0}),
        ("probes", {"probes": 0}),
        ("t_min", {"t_min": 1.0}),
    ):
        with pytest.raises(InputError, match=match):
            log_likelihood(denoiser, x, **options)
    with pytest.raises(InputError, match="x0"):
        log_likelihood(denoiser, x.to(torch.complex64))
