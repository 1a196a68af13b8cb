"""Denoising MCMC: its kernel against closed forms, its starts with every integrator, and what it refuses."""

import pytest
import torch

import tweed as tw
from tweed import grids, processes, random, solvers
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.starts import Chain, DenoisingMCMC, ExactNoiseLevel, langevin, log_levels, tweedie

EDM = processes.EDM(0.01, 50.0)
F64 = torch.float64
INTEGRATORS = [
    solvers.EulerMaruyama(),
    solvers.ReverseDiffusion(),
    solvers.PredictorCorrector(corrector=solvers.AnnealedLangevin()),
    solvers.Heun(),
    solvers.Heun(churn=80.0, churn_min=0.05, churn_max=1.0, churn_noise=1.007),
    solvers.AdaptiveRungeKutta(),
]


def gaussian(process=EDM, d=2, variance=0.5):
    return tw.GaussianDenoiser(torch.zeros(d), variance, process)


def chain_of(model, low=0.05, high=45.0, count=80, **options):
    return DenoisingMCMC(ExactNoiseLevel(model, log_levels(low, high, count)), **options)


@pytest.mark.parametrize("process", [EDM, processes.VP(), processes.RectifiedFlow()], ids=str)
def test_at_a_frozen_level_the_move_has_the_variance_of_its_autoregression(process):
    model, eta, s = gaussian(process), 0.3, 0.8
    chain = Chain(torch.zeros(4000, 2, dtype=F64), torch.full((4000,), s, dtype=F64))
    for n in range(40):
        chain = chain._replace(u=langevin(model, chain, eta, seed=3), moves=n + 1)
    keep = 1.0 - 0.5 * eta / (0.5 + s**2)
    assert chain.u.var().item() == pytest.approx(eta / (1.0 - keep**2), rel=0.05)


def test_sampled_levels_leave_the_joint_law_invariant():
    model = gaussian()
    kernel = chain_of(model, eta=0.01, low=0.3, high=1.5, n_skip=1, level="sample", keep="last")
    n = 4000
    which = (random.uniform((n, 1), 5, dtype=F64)[:, 0] * 80).long()
    s = kernel.posterior.levels[which]
    u = (0.5 + s**2).sqrt()[:, None] * random.normal((n, 2), 6, dtype=F64)
    end = kernel.run(model, Chain(u, s), 60, seed=7).chain
    expected = 0.5 + kernel.posterior.levels.square().mean().item()
    assert end.u.square().mean().item() == pytest.approx(expected, rel=0.06)
    assert end.s.log().mean().item() == pytest.approx(kernel.posterior.levels.log().mean().item(), abs=0.03)


@pytest.mark.parametrize("solver", INTEGRATORS, ids=str)
def test_every_integrator_goes_on_from_a_time_of_each_sample(solver):
    model = gaussian(d=16)
    kernel = chain_of(model)
    emitted = kernel.run(model, kernel.begin(model.sample(20, 1), seed=2), 2, seed=2)
    assert emitted.start.t.shape == (40,)
    assert emitted.start.t.unique().numel() > 3
    x = tw.sample(model, emitted.start, solver=solver, steps=None if solver.adaptive else 40, grid=grids.karras, seed=4)
    assert 0.3 < x.var().item() < 0.75


def test_a_chain_and_its_samples_do_not_depend_on_company():
    model = gaussian()
    kernel = chain_of(model, level="sample")
    many = kernel.run(model, kernel.begin(model.sample(6, 1), seed=2), 3, seed=2)
    one = kernel.run(model, kernel.begin(model.sample(1, 1), seed=2), 3, seed=2)
    torch.testing.assert_close(many.start.x.reshape(3, 6, 2)[:, :1].flatten(0, 1), one.start.x)
    again = kernel.run(model, kernel.begin(model.sample(6, 1), seed=2), 1, seed=2)
    again = kernel.run(model, again.chain, 2, seed=2)
    assert torch.equal(again.chain.u, many.chain.u)


def test_evaluations_are_counted_and_the_smallest_level_is_kept():
    model = gaussian(d=8)
    counted = tw.CountingDenoiser(model)
    start = Chain(model.sample(30, 1), torch.full((30,), 1.0, dtype=F64))
    low = chain_of(model, n_skip=5).run(counted, start, 4, seed=1)
    assert counted.evaluations == 20 == low.report.evaluations
    assert low.report.samples == 120
    last = chain_of(model, n_skip=5, keep="last").run(model, start, 4, seed=1)
    assert torch.equal(low.chain.u, last.chain.u)
    assert (low.start.t <= last.start.t).all()
    assert (low.start.t < last.start.t).any()
    torch.testing.assert_close(last.start.t[-30:], EDM.time(-last.chain.s.log()))
    assert 0.0 < low.report.effective_least <= low.report.effective


def test_the_tweedie_step_is_the_posterior_mean():
    model, t = gaussian(), torch.tensor([0.01, 0.2], dtype=F64)
    x = random.normal((2, 2), 1, dtype=F64)
    expected = x * (0.5 / (0.5 + EDM.sigma(t) ** 2))[:, None]
    torch.testing.assert_close(tweedie(model, tw.Start(x, t)), expected)


def test_an_endpoint_and_no_chain():
    process = processes.MeanReverting()
    model = tw.GaussianDenoiser(torch.zeros(3), 0.5, process)
    y = random.normal((4, 3), 2, dtype=F64)
    kernel = chain_of(model, low=0.2, high=5.0)
    emitted = kernel.run(model, kernel.begin(model.sample(4, 1)), 2, cond={"y": y})
    u = (emitted.start.x - process.beta(emitted.start.t)[:, None] * y.repeat(2, 1)) / process.alpha(emitted.start.t)[
        :, None
    ]
    torch.testing.assert_close(u[-4:].isfinite().all(), torch.tensor(True))
    model = gaussian()
    kernel = chain_of(model)
    none = kernel.run(model, kernel.begin(torch.zeros(0, 2)), 2)
    assert none.start.x.shape == (0, 2)
    assert none.report.samples == 0


def test_a_chain_that_diverges_is_named():
    model = gaussian()
    kernel = chain_of(model, low=0.01, high=0.02, eta=1.0, floor=0.0, n_skip=4)
    with pytest.raises(NumericalError, match=r"chain diverged.*iteration \d+.*chains \[0"):
        kernel.run(tw.GaussianDenoiser(torch.zeros(2), 1e-8, EDM), kernel.begin(torch.ones(3, 2)), 40)


def test_bad_input():
    model = gaussian()
    for name, bad in (
        ("eta", 0.0),
        ("n_skip", 0),
        ("keep", "max"),
        ("level", "mean"),
        ("floor", -1.0),
        ("floor", 99.0),
    ):
        with pytest.raises(InputError, match=name):
            chain_of(model, **{name: bad})
    with pytest.raises(InputError, match="posterior"):
        DenoisingMCMC(model)
    with pytest.raises(InputError, match="emissions"):
        chain_of(model).run(model, Chain(torch.zeros(1, 2), torch.ones(1)), 0)
    two_sided = tw.InterpolantDenoiser(lambda x, t: x, None, processes.Interpolant())
    with pytest.raises(IncompatibleError, match="two-sided"):
        chain_of(model).run(two_sided, Chain(torch.zeros(1, 2), torch.ones(1)))
