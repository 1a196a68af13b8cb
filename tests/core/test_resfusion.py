"""Resfusion's process: its chain, the release's number of steps, and the posterior of a step."""

import math

import pytest
import torch

import tweed as tw
from tweed import random
from tweed.core import targets
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.processes import VP, FromBetas, Resfusion
from tweed.core.processes.resfusion import half_betas, linear_betas
from tweed.solvers import DDPM

F64 = torch.float64


def released_steps(count):
    """The release: the first sqrt(abar) <= 1/2 is set to 1/2 if it is off by more than 0.01; T' is the nearest's place."""
    bar, roots = 1.0, []
    for beta in linear_betas(count).tolist():
        bar *= 1.0 - beta
        roots.append(math.sqrt(max(bar, 0.0)))
        if roots[-1] <= 0.5:
            break
    if 0.5 - roots[-1] > 0.01:
        roots[-1] = 0.5
    return min(range(len(roots)), key=lambda k: abs(roots[k] - 0.5)) + 1


def test_as_many_steps_are_left_as_in_the_release():
    for count in range(3, 300):
        assert len(half_betas(linear_betas(count))) == released_steps(count), count


@pytest.mark.parametrize("process", [Resfusion.linear(12), Resfusion.cosine(30)], ids=lambda p: str(p.steps))
def test_the_chain_has_the_marginals_of_the_process(process):
    x0, y = 0.3, -1.2
    mean, variance = x0, 0.0
    for k, beta in enumerate(process.base.betas):
        kept = math.sqrt(1.0 - beta)
        mean, variance = kept * mean + (1.0 - kept) * (y - x0), kept**2 * variance + beta
        level = process.level((k + 1) / process.steps)
        assert mean == pytest.approx(level.alpha * x0 + level.beta * y, abs=1e-12)
        assert variance == pytest.approx(level.sigma**2, abs=1e-12)
    assert process.level(1.0).alpha == 0.0


def test_a_step_with_the_true_answer_is_the_posterior_of_the_chain():
    process = Resfusion.linear(12)
    n, betas = process.steps, torch.tensor(process.base.betas, dtype=F64)
    bar = (1.0 - betas).cumprod(0)
    x0, y, x = (random.normal((5, 3), k, dtype=F64) for k in (1, 2, 3))
    residual = y - x0
    for k in range(n - 1, 0, -1):
        t = (k + 1) / n
        level = process.level(t)
        share = float((1.0 - (1.0 - betas[k]).sqrt()) * (1.0 - bar[k]).sqrt() / betas[k])
        answer = (x - level.alpha * x0 - level.beta * y) / level.sigma + share * residual
        model = FunctionDenoiser(lambda x, t, y, a=answer: a, process, targets.Resnoise(), event=(3,))
        row = DDPM().table(process, (t, k / n)).steps[0][0]
        made = tw.sample(model, x, solver=DDPM(), times=[t, k / n], cond={"y": y}, seed=4)
        mean = (1.0 - betas[k]).sqrt() * (1.0 - bar[k - 1]) * (x - residual)
        mean = (mean + bar[k - 1].sqrt() * betas[k] * (x0 - residual)) / (1.0 - bar[k]) + residual
        std = ((1.0 - bar[k - 1]) / (1.0 - bar[k]) * betas[k]).sqrt()
        assert float(row.noise) == pytest.approx(std.item(), rel=1e-9)
        drawn = std * random.normal(x.shape, 4, draw=1, dtype=F64)
        # The last step of a run draws nothing, or draws as it says.
        error = min((made - mean).abs().max(), (made - mean - drawn).abs().max())
        assert error < 1e-9


def test_an_input_that_is_not_degraded_leaves_the_base_process_and_its_noise():
    process = Resfusion(VP())
    t = torch.linspace(0.0, 1.0, 9, dtype=F64)[1:]
    x0, eps = (random.normal((8, 3), k, dtype=F64) for k in (1, 2))
    end = process.base.time(math.log(0.5 / math.sqrt(0.75)))
    plain = process.base.perturb(x0, end * t, eps)
    torch.testing.assert_close(process.perturb(x0, t, eps, x0), plain, rtol=0, atol=1e-6)
    row = targets.Resnoise().row(process, t)
    assert (row.data + row.endpoint).abs().max() == 0.0
    # With ever finer betas, the share of the residual is half of sigma.
    fine = Resfusion(FromBetas(half_betas(linear_betas(5000))))
    torch.testing.assert_close(fine.residual_share(t), 0.5 * fine.sigma(t), rtol=2e-3, atol=0)
    assert torch.equal(process.residual_share(t), 0.5 * process.sigma(t))
