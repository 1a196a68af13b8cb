"""The chain with an injected signal: its marginals and posteriors against the recursion and products of Gaussians."""

import pytest
import torch

from tweed.core import random
from tweed.core.injection import Injection
from tweed.core.processes import FromBetas
from tweed.errors import InputError

F64 = torch.float64
BETAS = (0.02, 0.3, 0.15, 0.4, 0.05)
WEIGHTS = (0.7, 0.0, 0.4, 1.3, 0.2)


def draws(k, n=4):
    return random.normal((n, 3), 5, draw=k, dtype=F64)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_marginals_are_those_of_the_recursion(weights):
    chain = Injection(BETAS, weights)
    e, z0 = draws(0), draws(1)
    mean, variance = z0, 0.0
    assert chain.marginal(e, 0, z0)[1] == 0.0
    for n, (beta, weight) in enumerate(zip(chain.betas, chain.weights, strict=True), 1):
        mean, variance = (1 - beta) ** 0.5 * (mean + weight * e), (1 - beta) * variance + beta
        found, spread = chain.marginal(e, n, z0)
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-12)
        assert spread == pytest.approx(variance, abs=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_posterior_is_the_conditional_of_the_joint_gaussian(weights, n):
    chain = Injection(BETAS, weights)
    e, z0, z = draws(0), draws(1), draws(2)
    beta, weight = chain.betas[n - 1], chain.weights[n - 1]
    before, variance = chain.marginal(e, n - 1, z0)
    root = (1 - beta) ** 0.5
    # (z_{n-1}, z_n) is Gaussian: covariance `root variance`, variance of z_n `root^2 variance + beta`.
    gain = root * variance / (root**2 * variance + beta)
    mean, spread = chain.posterior(z, e, n, z0)
    torch.testing.assert_close(mean, before + gain * (z - root * (before + weight * e)), rtol=0, atol=1e-12)
    assert spread == pytest.approx(variance - gain * root * variance, abs=1e-12)


def test_all_at_the_start_is_the_process_of_the_betas():
    chain, process = Injection(BETAS), FromBetas(BETAS)
    t = torch.arange(1, 6, dtype=F64) / 5
    torch.testing.assert_close(chain.share[1:], process.alpha(t), rtol=0, atol=1e-12)
    torch.testing.assert_close(1 - chain.kept[1:], process.sigma(t) ** 2, rtol=0, atol=1e-12)


def test_going_back_with_the_signal_known_keeps_the_marginals():
    chain = Injection(BETAS, WEIGHTS)
    e = draws(0, 1)
    mean, variance = chain.marginal(e, 5)
    for n in range(5, 1, -1):
        # The posterior's mean is affine in z: its slope and offset, and so the moments one step before.
        offset, spread = chain.posterior(torch.zeros_like(e), e, n)
        slope = (chain.posterior(torch.ones_like(e), e, n)[0] - offset)[0, 0].item()
        mean, variance = offset + slope * mean, slope**2 * variance + spread
        torch.testing.assert_close(mean, chain.marginal(e, n - 1)[0], rtol=0, atol=1e-12)
        assert variance == pytest.approx(chain.marginal(e, n - 1)[1], abs=1e-12)


def test_wrong_numbers_are_refused():
    for betas, weights in (((), None), ((1.0,), None), ((0.1,), (-1.0,)), ((0.1, 0.2), (1.0,))):
        with pytest.raises(InputError, match=r"were given; expected"):
            Injection(betas, weights)
    for call in (lambda c: c.marginal(draws(0), 6), lambda c: c.posterior(draws(0), draws(1), 0)):
        with pytest.raises(InputError, match="n: "):
            call(Injection(BETAS))
