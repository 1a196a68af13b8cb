"""Classifier guidance on class-conditional mixtures: with the exact p(label | x_t) it is the exact conditional field."""

import pytest
import torch

import tweed as tw
from tweed.guidance.classifier import ClassifierGuidance

MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1])
PROCESSES = [tw.processes.VP(), tw.processes.SubVP(), tw.processes.VE(0.01, 20.0), tw.processes.RectifiedFlow()]
TARGETS = [tw.targets.Data(), tw.targets.Noise(), tw.targets.V(), tw.targets.Velocity(), tw.targets.Score()]
PRIORS = torch.tensor([0.5, 0.5], dtype=torch.float64)


def mixture(process=None) -> tw.MixtureDenoiser:
    return tw.MixtureDenoiser(MEANS, 0.1, torch.tensor([0.5, 0.3, 0.2]), process or tw.processes.VP(), labels=LABELS)


def exact_classifier(model: tw.MixtureDenoiser):
    """log p(label | x_t) = log p_t(x | label) + log p(label) - log p_t(x)."""

    def log_prob(x, t, label):
        return model.log_prob(x, t, label=label) + PRIORS[label].log() - model.log_prob(x, t)

    return log_prob


def states(n: int = 6) -> torch.Tensor:
    return 2.0 * tw.random.normal((n, 2), 3, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9, torch.linspace(0.1, 0.9, 6, dtype=torch.float64)])
def test_the_exact_classifier_makes_the_exact_conditional_score(process, t):
    model, x, label = mixture(process), states(), torch.tensor([0, 1, 0, 1, 1, 0])
    guided = ClassifierGuidance(model, exact_classifier(model))(x, t, label=label)
    exact = model(x, t, label=label)
    for name in ("score", "x0", "eps", "velocity"):
        torch.testing.assert_close(getattr(guided, name), getattr(exact, name), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_the_score_moves_by_the_scaled_gradient_whatever_the_target(target, scale):
    model, x, label = mixture(), states(), torch.tensor([0, 1, 0, 1, 1, 0])
    told = tw.FunctionDenoiser(lambda x, t: model(x, t).to(target), model.process, target)
    guided = ClassifierGuidance(told, exact_classifier(model), scale)(x, 0.3, label=label)
    assert guided.target == target
    gradient = model(x, 0.3, label=label).score - model(x, 0.3).score
    torch.testing.assert_close(guided.score, model(x, 0.3).score + scale * gradient, rtol=1e-8, atol=1e-9)


def test_samples_are_those_of_the_conditional_model():
    model, label = mixture(), torch.tensor([0, 1, 1, 0])
    guided = ClassifierGuidance(model, exact_classifier(model))
    options = {"steps": 12, "cond": {"label": label}, "seed": 1, "dtype": torch.float64}
    torch.testing.assert_close(tw.sample(guided, 4, **options), tw.sample(model, 4, **options), rtol=1e-6, atol=1e-6)


def test_a_linear_measurement_of_a_gaussian_gives_its_posterior():
    # x_0 ~ N(0, v), c = x_0 + noise: p(c | x_t) is Gaussian in closed form, and E[x_0 | x_t, c] by Bayes' rule too.
    process, v, noise, t = tw.processes.VP(), 1.5, 0.4, 0.35
    model = tw.GaussianDenoiser(torch.zeros(1), v, process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    mean_of = lambda x: alpha * v / (alpha**2 * v + sigma**2) * x  # noqa: E731
    spread = v * sigma**2 / (alpha**2 * v + sigma**2) + noise**2

    def log_prob(x, t, vector):
        return -0.5 * ((vector - mean_of(x)) ** 2 / spread).sum(1)

    x, c = states(5)[:, :1], torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)[:, None]
    guided = ClassifierGuidance(model, log_prob, given=("vector",))(x, t, vector=c).x0
    precision = 1 / v + alpha**2 / sigma**2 + 1 / noise**2
    torch.testing.assert_close(guided, (alpha * x / sigma**2 + c / noise**2) / precision, rtol=1e-9, atol=1e-9)


def test_scales_of_each_sample_and_dropped_samples():
    model, x, label = mixture(), states(2), torch.tensor([0, 1])
    classifier = exact_classifier(model)
    guided = ClassifierGuidance(model, classifier, torch.tensor([1.0, 3.0]))(x, 0.5, label=label).x0
    for i, scale in enumerate((1.0, 3.0)):
        alone = ClassifierGuidance(model, classifier, scale)(x[i : i + 1], 0.5, label=label[i : i + 1]).x0
        torch.testing.assert_close(guided[i : i + 1], alone)
    plain = model(x, 0.5).x0
    wrapper = ClassifierGuidance(model, lambda x, t, label, drop: classifier(x, t, label), 2.0)
    dropped = wrapper(x, 0.5, label=label, drop=torch.tensor([True, False])).x0
    torch.testing.assert_close(dropped[0], plain[0])
    assert (dropped[1] - plain[1]).abs().max() > 1e-3
    torch.testing.assert_close(wrapper(x, 0.5).x0, plain)  # without a label there is nothing to guide to


def test_it_works_under_no_grad_and_leaves_no_graph():
    model, label = mixture(), torch.tensor([0, 1])
    with torch.no_grad():
        guided = ClassifierGuidance(model, exact_classifier(model))(states(2).float(), 0.5, label=label)
    assert not guided.x0.requires_grad
    assert guided.x0.dtype is torch.float32


def test_where_alpha_vanishes_and_with_an_empty_batch_the_denoiser_runs_alone():
    model = mixture(tw.processes.RectifiedFlow())
    guided = ClassifierGuidance(model, exact_classifier(model))
    label = torch.tensor([0, 1])
    torch.testing.assert_close(guided(states(2), 1.0, label=label).x0, model(states(2), 1.0).x0)
    assert guided(states(0), 0.5, label=label[:0]).x0.shape == (0, 2)


def test_errors_name_the_argument():
    model = mixture()
    label = torch.tensor([0, 1])
    with pytest.raises(tw.errors.InputError, match="log_prob"):
        ClassifierGuidance(model, "classifier")
    with pytest.raises(tw.errors.InputError, match="log_prob: shape"):
        ClassifierGuidance(model, lambda x, t, label: x)(states(2), 0.5, label=label)
    with pytest.raises(tw.errors.InputError, match="depend"):
        ClassifierGuidance(model, lambda x, t, label: torch.zeros(2))(states(2), 0.5, label=label)
    with pytest.raises(tw.errors.InputError, match="scale"):
        ClassifierGuidance(model, exact_classifier(model), torch.ones(3))(states(2), 0.5, label=label)
