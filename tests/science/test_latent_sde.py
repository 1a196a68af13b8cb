"""Latent SDEs: the divergence and the bound in closed form, the grid, adjoints, and what is refused."""

import math

import pytest
import torch

from tweed.core import random
from tweed.errors import InputError
from tweed.science import LatentSDE, posterior_path
from tweed.science.latent_sde import refined

F64 = torch.float64
THETA, SIGMA = 1.3, 0.7


def prior(t, z):
    return -THETA * z


def diffusion(t, z):
    return torch.full_like(z, SIGMA)


def path(posterior, z0, seed=1, step=0.01, ts=(0.0, 0.5, 1.0), **options):
    options = {"calculus": "ito", "method": "euler_maruyama"} | options
    return posterior_path(posterior, prior, diffusion, z0, ts, seed=seed, step=step, **options)


def test_a_constant_control_costs_half_its_square_times_time():
    z0 = random.normal((4, 2), 0, dtype=F64)
    _, rate = path(lambda t, z: prior(t, z) + 0.4, z0)
    elapsed = torch.tensor([0.0, 0.5, 1.0], dtype=F64)[:, None].expand(3, 4)
    torch.testing.assert_close(rate, 0.5 * 2 * (0.4 / SIGMA) ** 2 * elapsed)
    _, nothing = path(prior, z0)
    assert nothing.abs().max() == 0.0


@pytest.mark.parametrize("method", ["euler_maruyama", "heun", "reversible_heun"])
def test_the_divergence_of_two_linear_equations(method):
    # Posterior -k z: E z^2 is known, and so is the integral of (k - theta)^2 E z^2 / (2 sigma^2).
    k, n = 2.0, 20_000
    _, rate = path(
        lambda t, z: -k * z,
        torch.full((n, 1), 1.5, dtype=F64),
        method=method,
        calculus="ito" if method == "euler_maruyama" else "stratonovich",
        step=0.02,
    )
    still = SIGMA**2 / (2.0 * k)
    square = still + (1.5**2 - still) * (1.0 - math.exp(-2.0 * k)) / (2.0 * k)
    exact = (k - THETA) ** 2 / (2.0 * SIGMA**2) * square
    error = rate[-1].std().item() / math.sqrt(n)
    # Equal steps of the Euler scheme are biased by their first order.
    bias = 0.03 * exact if method == "euler_maruyama" else 0.003 * exact
    assert abs(rate[-1].mean().item() - exact) < 4.0 * error + bias


def test_the_bound_is_the_evidence_at_the_exact_posterior_and_below_it_elsewhere():
    # Observed at time 1 with noise: Doob's transform of the linear equation is the exact posterior.
    z, x, noise, n = 0.8, 1.1, 0.3, 20_000
    mean, variance = z * math.exp(-THETA), SIGMA**2 * (1.0 - math.exp(-2.0 * THETA)) / (2.0 * THETA)
    evidence = -0.5 * ((x - mean) ** 2 / (variance + noise**2) + math.log(2.0 * math.pi * (variance + noise**2)))

    def guided(gain):
        def drift(t, z):
            left = 1.0 - t
            decay = torch.exp(-THETA * left)
            spread = SIGMA**2 * (1.0 - decay**2) / (2.0 * THETA) + noise**2
            return prior(t, z) + gain * SIGMA**2 * decay * (x - decay * z) / spread

        return drift

    def bound(gain):
        ends, rate = path(
            guided(gain), torch.full((n, 1), z, dtype=F64), method="heun", calculus="stratonovich", step=0.01
        )
        seen = -0.5 * ((x - ends[-1, :, 0]) ** 2 / noise**2 + math.log(2.0 * math.pi * noise**2))
        value = seen - rate[-1]
        return value.mean().item(), value.std().item() / math.sqrt(n)

    value, error = bound(1.0)
    assert abs(value - evidence) < 4.0 * error + 0.02
    for gain in (0.0, 0.5, 1.6):
        assert bound(gain)[0] < evidence - 0.05


def test_the_grid_is_halved_before_each_observation():
    fine, keep = refined([0.0, 1.0, 1.5], 0.5, 2)
    assert fine == [0.0, 0.5, 0.75, 0.875, 1.0, 1.25, 1.375, 1.5]
    assert [fine[i] for i in keep] == [0.0, 1.0, 1.5]
    assert refined([0.0, 1.0], None, 0) == ([0.0, 1.0], [0, 1])
    with pytest.raises(InputError, match="halvings"):
        refined([0.0, 1.0], None, -1)


def model(**options):
    return LatentSDE(2, 3, context=4, width=8, step=0.25, seed=2, **options).double()


def test_the_guide_is_the_gradient_of_the_log_likelihood_of_a_brownian_motion():
    m = model()
    z, x, wait = random.normal((4, 3), 1, dtype=F64), random.normal((4, 2), 2, dtype=F64), torch.tensor(0.3, dtype=F64)
    z.requires_grad_()
    d, g, r = m.decoder.weight, m.log_diffusion.exp(), (2.0 * m.log_noise).exp()
    law = torch.distributions.MultivariateNormal(m.decoder(z), wait * (d * g) @ (d * g).T + torch.diag(r))
    gradient = torch.autograd.grad(law.log_prob(x).sum(), z)[0]
    torch.testing.assert_close(m.guide(wait, z, x), g * gradient)


@pytest.mark.parametrize(("method", "adjoint"), [("heun", "checkpoint"), ("reversible_heun", "reversible")])
def test_adjoints_agree_in_every_parameter(method, adjoint):
    ts, x = [0.0, 0.4, 1.0], random.normal((3, 3, 2), 3, dtype=F64)
    found = []
    for how in ("direct", adjoint):
        m = model(method=method, adjoint=how)
        m.elbo(ts, x, 5).sum().backward()
        found.append({name: p.grad for name, p in m.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-8, atol=1e-9)


def test_each_series_by_itself_and_by_its_seed():
    m, ts = model(), [0.0, 0.4, 1.0]
    x = random.normal((3, 3, 2), 3, dtype=F64)
    torch.testing.assert_close(m.elbo(ts, x, 5)[:1], m.elbo(ts, x[:1], 5))
    assert (m.elbo(ts, x, 5) - m.elbo(ts, x, 6)).abs().max() > 1e-6
    assert m.sample(4, ts, 1).shape == (4, 3, 2)
    assert torch.equal(m.sample(4, ts, 1)[:2], m.sample(2, ts, 1))


def test_bad_input():
    m = model()
    x = random.normal((3, 3, 2), 3, dtype=F64)
    with pytest.raises(InputError, match="strictly rise"):
        m.elbo([0.0, 1.0, 0.5], x, 0)
    with pytest.raises(InputError, match="NaN"):
        m.elbo([0.0, 0.5, 1.0], x.masked_fill(x > 1.0, float("nan")), 0)
    with pytest.raises(InputError, match="noise"):
        LatentSDE(1, 1, noise=0.0)
