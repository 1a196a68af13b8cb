"""SDE-GANs: samples by seed, the clipped critic, gradients, and that training moves the right way."""

import pytest
import torch

from tweed.core import random
from tweed.errors import InputError
from tweed.nets import lipschitz_bound
from tweed.science import CDECritic, SDEGANSettings, SDEGenerator, fit_sde_gan, sde_gan

TS = [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_series_is_a_function_of_its_seed_and_index():
    generator = SDEGenerator(2, step=0.25)
    whole = generator(6, TS, 3)
    assert whole.shape == (6, 5, 2)
    torch.testing.assert_close(generator(2, TS, 3, index=4), whole[4:], rtol=1e-5, atol=1e-6)
    assert (generator(6, TS, 4) - whole).abs().max() > 1e-3


def test_the_reversible_gradient_is_that_of_the_steps():
    found = []
    for adjoint in ("direct", "reversible"):
        generator = SDEGenerator(2, step=0.05, adjoint=adjoint).double()
        found.append(torch.autograd.grad(generator(3, TS, 1).square().sum(), list(generator.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_training_separates_and_then_follows_the_data_with_a_clipped_critic():
    generator, critic = sde_gan(1, seed=1, hidden=8, width=8)
    # Far from where the generator begins: it has to move up.
    data = 1.5 + 0.1 * random.normal((256, 5, 1), 2)
    before = generator(256, TS, 9).mean().item()
    settings = SDEGANSettings(steps=40, batch_size=64, critic_steps=2)
    averaged, gaps = fit_sde_gan(generator, critic, TS, data, settings, seed=3)
    after = averaged(256, TS, 9).mean().item()
    assert len(gaps) == 40
    assert abs(after - 1.5) < 0.8 * abs(before - 1.5)
    for field in (critic.field.field, critic.initial):
        assert lipschitz_bound(field.layers) <= 1.0 + 1e-6
    assert critic.readout.weight.abs().max() <= 1.0 / 16 * 2 + 1e-6


def test_the_same_seed_trains_the_same():
    ends = []
    for _ in range(2):
        generator, critic = sde_gan(1, seed=1, hidden=4, width=4)
        data = random.normal((32, 5, 1), 2)
        averaged, _ = fit_sde_gan(generator, critic, TS, data, SDEGANSettings(steps=2, batch_size=8), seed=3)
        ends.append(averaged(2, TS, 0).detach())
    assert torch.equal(*ends)


def test_the_critic_scores_each_series_by_itself():
    critic, y = CDECritic(2), random.normal((4, 5, 2), 1)
    whole = critic(TS, y)
    assert whole.shape == (4,)
    torch.testing.assert_close(critic(TS, y[1:2])[0], whole[1], rtol=1e-5, atol=1e-6)


def test_bad_input():
    generator, critic = sde_gan(1, seed=0, hidden=4, width=4)
    data = random.normal((8, 5, 1), 2)
    with pytest.raises(InputError, match="strictly rise"):
        fit_sde_gan(generator, critic, TS[::-1], data, seed=0)
    with pytest.raises(InputError, match="complete series"):
        fit_sde_gan(generator, critic, TS, data[:0], seed=0)
    with pytest.raises(InputError, match="steps"):
        SDEGANSettings(steps=0)
    with pytest.raises(InputError, match="average_from"):
        SDEGANSettings(average_from=1.0)
