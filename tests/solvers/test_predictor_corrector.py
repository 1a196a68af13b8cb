"""Predictor-corrector sampling: what the corrector buys, and how the parts are put together."""

import pytest
import torch

import tweed as tw
from tweed.core.processes import OUVE, VE, VP
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import (
    DDIM,
    DDPM,
    AdaptiveDPM,
    AnnealedLangevin,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)


@pytest.mark.parametrize("first", ["corrector", "predictor"])
def test_a_corrector_is_worth_more_than_twice_the_steps(first):
    """Error of the spread around mixture components: Song et al.'s claim, on an exact score."""
    process = VE(0.01, 20.0)
    plain, half, corrected = 0.0, 0.0, 0.0
    for seed in range(4):
        means = 2 * tw.random.normal((5, 8), seed + 3, dtype=torch.float64)
        denoiser = tw.MixtureDenoiser(means, 0.04, None, process)

        def error(solver, steps, denoiser=denoiser, means=means, seed=seed):
            x = tw.sample(denoiser, 1000, solver=solver, steps=steps, seed=seed).double()
            return (torch.cdist(x, means).amin(1).square().mean() / (8 * 0.04) - 1).item()

        plain += error(ReverseDiffusion(), 30) / 4
        half += error(ReverseDiffusion(), 60) / 4
        corrected += error(PredictorCorrector(first=first), 30) / 4
    assert corrected <= 0.5 * plain
    assert corrected <= 0.9 * half


def test_a_wrong_score_is_partly_repaired():
    means = 2 * tw.random.normal((5, 8), 3, dtype=torch.float64)
    exact = tw.MixtureDenoiser(means, 0.04, None, VE(0.01, 20.0))
    wrong = tw.FunctionDenoiser(lambda x, t: 0.9 * exact(x, t).score, VE(0.01, 20.0), tw.targets.Score(), (8,))

    def error(solver):
        x = tw.sample(wrong, 2000, solver=solver, steps=30).double()
        return (torch.cdist(x, means).amin(1).square().mean() / (8 * 0.04) - 1).item()

    assert error(PredictorCorrector()) < 0.7 * error(ReverseDiffusion())


def test_evaluations_are_those_of_its_parts():
    denoiser = tw.CountingDenoiser(tw.GaussianDenoiser(torch.zeros(3), 1.0, VP()))
    solver = PredictorCorrector(DDIM(), Langevin(steps=2))
    assert solver.evaluations == 3
    tw.sample(denoiser, 2, solver=solver, steps=7)
    assert denoiser.evaluations == 21
    after = tw.CountingDenoiser(tw.GaussianDenoiser(torch.zeros(3), 1.0, VP()))
    tw.sample(after, 2, solver=PredictorCorrector(DDIM(), Langevin(steps=2), first="predictor"), steps=7)
    # The last state, at t = 0, is not corrected.
    assert after.evaluations == 19


def test_without_steps_it_is_the_predictor():
    denoiser = tw.GaussianDenoiser(torch.ones(3), 0.3, VP())
    for predictor in (DDIM(), DDPM(), ReverseDiffusion()):
        solver = PredictorCorrector(predictor, Langevin(steps=0))
        torch.testing.assert_close(
            tw.sample(denoiser, 4, solver=solver, steps=6), tw.sample(denoiser, 4, solver=predictor, steps=6)
        )
        assert solver.stochastic == predictor.stochastic


def test_annealed_langevin_alone_samples_where_alpha_is_one():
    variance = torch.tensor([1.0, 0.5, 0.25])
    denoiser = tw.GaussianDenoiser(torch.zeros(3), variance, VE(0.05, 5.0))
    solver = PredictorCorrector(None, AnnealedLangevin(snr=0.5, steps=8))
    x = tw.sample(denoiser, 4000, solver=solver, steps=60)
    assert ((x.var(0) / (variance + 0.0025) - 1).abs() < 0.2).all()
    with pytest.raises(IncompatibleError, match="alpha"):
        tw.sample(tw.GaussianDenoiser(torch.zeros(3), 1.0, VP()), 2, solver=solver, steps=3)


def test_an_observer_imposes_what_is_known():
    """Inpainting: the unknown coordinate follows the known one through their correlation."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    process = VP()
    denoiser = tw.GaussianDenoiser(torch.zeros(2), covariance, process)
    known = 1.5

    def impose(x, t, i):
        level = process.level(t)
        noise = tw.random.normal((len(x), 1), 11, draw=i)
        return torch.cat((level.alpha * known + level.sigma * noise, x[:, 1:]), 1)

    solver = PredictorCorrector(ReverseDiffusion(), AnnealedLangevin(snr=0.3, steps=2), first="predictor")
    x = tw.sample(denoiser, 2000, solver=solver, steps=150, observer=impose)
    torch.testing.assert_close(x[:, 0], torch.full((2000,), known))
    # The exact conditional mean is 1.35; imposing is an approximation, and near it with a corrector.
    assert x[:, 1].mean() == pytest.approx(1.35, abs=0.15)


def test_each_sample_has_its_class_and_its_times():
    means = torch.tensor([[-3.0, 0.0], [3.0, 0.0]])
    denoiser = tw.MixtureDenoiser(means, 0.1, None, VP(), labels=torch.tensor([0, 1]))
    label = torch.tensor([0, 1, 1, 0])
    x = tw.sample(denoiser, 4, solver=PredictorCorrector(), steps=40, cond={"label": label})
    assert ((x[:, 0] > 0) == label.bool()).all()
    start = tw.starts.noised(VP(), means[label], torch.tensor([0.3, 0.5, 0.7, 0.9]), 1)
    x = tw.sample(denoiser, start, solver=PredictorCorrector(), steps=40, cond={"label": label})
    assert (x - means[label]).norm(dim=1).max() < 2.0


def test_complex_speech_states_have_the_right_second_moments():
    process, n = OUVE(), 3000
    clean, variance = torch.tensor([0.7 - 0.2j, -0.4 + 0.9j]), 0.04
    y = (clean + 0.3).expand(n, 2)

    def data(x, t, y):
        level = process.level(t)
        gain = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
        return clean + gain * (x - level.beta * y - level.alpha * clean)

    denoiser = tw.FunctionDenoiser(data, process, event=(2,))
    exact = clean + variance**0.5 * tw.random.normal((n, 2), 4, dtype=torch.complex64)
    start = process.perturb(exact, 1.0, tw.random.normal((n, 2), 5, dtype=torch.complex64), y)
    for predictor in (tw.solvers.EulerMaruyama(), ReverseDiffusion()):
        solver = PredictorCorrector(predictor, AnnealedLangevin(snr=0.3))
        x = tw.sample(denoiser, start, solver=solver, steps=60, cond={"y": y})
        assert (x.mean(0) - clean).abs().max() < 5 * (variance / n) ** 0.5 + 0.01
        assert ((x - clean).abs().square().mean(0) / variance - 1).abs().max() < 5 * n**-0.5 + 0.1


def test_what_is_no_predictor_or_corrector_is_refused():
    with pytest.raises(IncompatibleError, match="AdaptiveDPM"):
        PredictorCorrector(AdaptiveDPM())
    with pytest.raises(InputError, match="predictor"):
        PredictorCorrector("DDIM")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="corrector"):
        PredictorCorrector(DDIM(), DDIM())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="first"):
        PredictorCorrector(first="last")  # type: ignore[arg-type]
