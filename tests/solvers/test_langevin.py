"""Langevin correctors: step sizes as published, and marginals that they keep."""

import pytest
import torch

import tweed as tw
from tweed.core.processes import VE, VP
from tweed.errors import InputError
from tweed.solvers import AnnealedLangevin, Langevin, Problem

VARIANCE = torch.tensor([1.0, 0.25, 0.5, 2.0])


def chain(corrector, process, t, x, rounds):
    problem = Problem(tw.GaussianDenoiser(torch.zeros(4), VARIANCE, process), (t, 0.0))
    for i in range(rounds):
        x = corrector.correct(problem, x, t, t, i)
    return x


@pytest.mark.parametrize("process", [VP(), VE(0.01, 20.0)])
@pytest.mark.parametrize("corrector", [Langevin(), AnnealedLangevin(snr=0.3)])
def test_a_long_chain_finds_the_marginal_from_elsewhere(corrector, process):
    n, t = 4000, 0.5
    level = process.level(t)
    truth = level.alpha**2 * VARIANCE + level.sigma**2
    start = 2 * truth.sqrt() * tw.random.normal((n, 4), 3)
    x = chain(corrector, process, t, start, 150)
    # Unadjusted: a step h inflates the variance of a direction v by h / (2 v).
    assert ((x.var(0) / truth - 1).abs() < 5 * (2 / n) ** 0.5 + 0.12).all()


def test_sizes_are_the_published_ones():
    score, noise = tw.random.normal((6, 4), 1), tw.random.normal((6, 4), 2)
    ratio = noise.norm(dim=1).mean() / score.norm(dim=1).mean()
    size = Langevin(snr=0.2).size(score, noise, 3.0, 0.7)
    torch.testing.assert_close(size.flatten(), (2 * 0.7 * (0.2 * ratio) ** 2).expand(6))
    each = Langevin(snr=0.2, norm="sample").size(score, noise, 3.0, 0.7)
    torch.testing.assert_close(each.flatten(), 2 * 0.7 * (0.2 * noise.norm(dim=1) / score.norm(dim=1)) ** 2)
    assert AnnealedLangevin(snr=0.2).size(score, noise, 3.0, 0.7) == pytest.approx(2 * 0.7 * (0.2 * 3.0) ** 2)


def test_a_vanishing_score_gives_a_finite_step():
    for norm in ("batch", "sample"):
        size = Langevin(norm=norm).size(torch.zeros(2, 4), torch.ones(2, 4), 3.0, 1.0)
        torch.testing.assert_close(size.flatten(), torch.full((2,), 2 * (0.16 * 3.0) ** 2))


def test_norms_of_each_sample_keep_it_independent_of_the_batch():
    x = tw.random.normal((5, 4), 6)
    alone = chain(Langevin(norm="sample"), VP(), 0.5, x[:2], 3)
    torch.testing.assert_close(chain(Langevin(norm="sample"), VP(), 0.5, x, 3)[:2], alone)
    assert not torch.allclose(chain(Langevin(), VP(), 0.5, x, 3)[:2], chain(Langevin(), VP(), 0.5, x[:2], 3))


@pytest.mark.parametrize("options", [{"snr": 0.0}, {"steps": -1}, {"steps": 1.5}, {"steps": 33}])
def test_options_out_of_range(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Langevin(**options)
