"""The posterior of the noise level: the exact one against the density itself, the classifier against the truth."""

import pytest
import torch

import tweed as tw
from tweed import processes, random
from tweed.errors import InputError
from tweed.starts import ExactNoiseLevel, NoiseLevelClassifier, fit_noise_levels, log_levels

LEVELS = log_levels(0.02, 40.0, 60)
MEANS = random.normal((4, 3), 0, dtype=torch.float64)
FULL = torch.eye(3, dtype=torch.float64) * 0.3 + 0.1


@pytest.mark.parametrize(
    "covariances", [torch.full((4,), 0.2), torch.rand(4, 3, generator=random.generator(1)) + 0.1, FULL.expand(4, 3, 3)]
)
@pytest.mark.parametrize("process", [processes.EDM(0.01, 50.0), processes.VP()], ids=str)
def test_the_exact_posterior_is_the_density_of_the_rescaled_state(covariances, process):
    model = tw.MixtureDenoiser(
        MEANS, covariances, torch.tensor([1.0, 2.0, 3.0, 4.0]), process, torch.tensor([0, 0, 1, 1])
    )
    u = 2.0 * random.normal((5, 3), 2, dtype=torch.float64)
    label = torch.tensor([0, 1, 1, 0, 1])
    found = ExactNoiseLevel(model, LEVELS)(u, label=label).log_softmax(-1)
    t = process.time(-LEVELS.log())
    direct = torch.stack(
        [model.log_prob(process.alpha(s) * u, s, label=label) + 3 * process.alpha(s).log() for s in t], 1
    )
    torch.testing.assert_close(found, direct.log_softmax(-1), rtol=1e-6, atol=1e-6)
    assert ExactNoiseLevel(model, LEVELS)(u[:0]).shape == (0, 60)


def test_a_trained_classifier_reads_the_level():
    levels, d = log_levels(0.02, 40.0, 40), 32
    std = torch.tensor([1.0] * 4 + [0.05] * (d - 4))
    data = random.normal((500, d), 3) * std
    classifier = NoiseLevelClassifier(levels, d, seed=1)
    losses = fit_noise_levels(classifier, data, steps=600, lr=3e-3, seed=2)
    assert losses[-20:].mean() < 0.6 * losses[:5].mean()
    true = log_levels(0.3, 10.0, 200)
    u = random.normal((200, d), 4) * std + true[:, None] * random.normal((200, d), 5)
    with torch.no_grad():
        found = levels[classifier(u).argmax(-1)]
    assert (found.log() - true.log()).abs().median() < 0.15


def test_bad_input():
    with pytest.raises(InputError, match="levels"):
        NoiseLevelClassifier(torch.tensor([1.0, 0.5]), 3)
    with pytest.raises(InputError, match="low, high"):
        log_levels(0.0, 1.0, 5)
    with pytest.raises(InputError, match="denoiser"):
        ExactNoiseLevel(torch.nn.Identity(), LEVELS)
    with pytest.raises(InputError, match="dim"):
        NoiseLevelClassifier(LEVELS, 0)
    with pytest.raises(InputError, match="expected 3"):
        NoiseLevelClassifier(LEVELS, 3)(torch.zeros(2, 4))
    with pytest.raises(InputError, match="data, steps"):
        fit_noise_levels(NoiseLevelClassifier(LEVELS, 3), torch.zeros(0, 3))
