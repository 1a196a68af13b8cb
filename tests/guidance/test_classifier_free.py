"""Classifier-free guidance on class-conditional mixtures, whose conditional and unconditional fields are exact."""

import pytest
import torch

import tweed as tw

MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1])


def mixture() -> tw.MixtureDenoiser:
    return tw.MixtureDenoiser(MEANS, 0.1, torch.tensor([0.5, 0.3, 0.2]), tw.processes.VP(), labels=LABELS)


def states(n: int = 6) -> torch.Tensor:
    return tw.random.normal((n, 2), 3, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("t", [0.4, torch.linspace(0.1, 0.9, 6, dtype=torch.float64)])
def test_guided_score_is_the_combination_of_exact_scores(scale, t):
    model, x = mixture(), states()
    label = torch.tensor([0, 1, 0, 1, 1, 0])
    guided = tw.guidance.ClassifierFree(model, scale)(x, t, label=label)
    conditional, unconditional = model(x, t, label=label), model(x, t)
    expected = unconditional.score + scale * (conditional.score - unconditional.score)
    torch.testing.assert_close(guided.score, expected, rtol=1e-10, atol=1e-12)


def test_scale_one_samples_like_the_conditional_model():
    model = mixture()
    cond = {"label": torch.tensor([0, 1, 1])}
    plain = tw.sample(model, 3, steps=8, cond=cond, seed=1)
    guided = tw.sample(tw.guidance.ClassifierFree(model, 1.0), 3, steps=8, cond=cond, seed=1)
    torch.testing.assert_close(guided, plain)


def test_a_scale_for_each_sample_and_explicit_nulls():
    model, x = mixture(), states(2)
    label = torch.tensor([0, 1])
    scales = torch.tensor([1.0, 3.0])
    guided = tw.guidance.ClassifierFree(model, scales)(x, 0.5, label=label).x0
    for i, scale in enumerate(scales.tolist()):
        one = tw.guidance.ClassifierFree(model, scale)(x[i : i + 1], 0.5, label=label[i : i + 1]).x0
        torch.testing.assert_close(guided[i : i + 1], one)

    # With a null given, "none" is another label: class 1 against class 0.
    against = tw.guidance.ClassifierFree(model, 2.0, null={"label": torch.tensor([0])})(
        x, 0.5, label=torch.tensor([1, 1])
    )
    ones, zeros = model(x, 0.5, label=torch.tensor([1, 1])).x0, model(x, 0.5, label=torch.tensor([0, 0])).x0
    torch.testing.assert_close(against.x0, zeros + 2.0 * (ones - zeros))


def test_outside_the_interval_the_conditional_model_runs_alone_and_costs_one_row():
    counter = tw.CountingDenoiser(mixture())
    guided = tw.guidance.ClassifierFree(counter, 3.0, interval=(0.3, 0.6))
    label = torch.tensor([0, 1])
    outside = guided(states(2), 0.9, label=label).x0
    assert counter.samples == 2
    torch.testing.assert_close(outside, mixture()(states(2), 0.9, label=label).x0)
    guided(states(2), 0.5, label=label)
    assert counter.samples == 6


def test_guidance_moves_samples_towards_their_class():
    model = mixture()
    label = torch.zeros(256, dtype=torch.int64)
    distance = {}
    for scale in (0.0, 1.0, 3.0):
        x = tw.sample(tw.guidance.ClassifierFree(model, scale), 256, steps=20, cond={"label": label}, seed=5)
        distance[scale] = (model.responsibilities(x, 0.05)[:, 0] > 0.5).double().mean().item()
    assert distance[1.0] > 0.99
    assert distance[3.0] > 0.99
    assert abs(distance[0.0] - 0.5) < 0.12


def test_errors_name_the_argument():
    with pytest.raises(tw.errors.InputError, match="interval"):
        tw.guidance.ClassifierFree(mixture(), 1.0, interval=(0.5, 0.2))
    with pytest.raises(tw.errors.InputError, match="scale"):
        tw.guidance.ClassifierFree(mixture(), torch.ones(3))(states(2), 0.5, label=torch.tensor([0, 1]))
    with pytest.raises(tw.errors.InputError, match="denoiser"):
        tw.guidance.ClassifierFree(lambda x, t: x, 1.0)
