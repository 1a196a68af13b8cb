"""The share of samples between modes."""

import pytest
import torch

from tweed.data import Digits
from tweed.errors import InputError
from tweed.metrics import doubtful_rate, mode_mixture_rate, train_classifier

MODES = torch.tensor([[0.0, 0.0], [4.0, 0.0]])


def test_samples_beyond_the_radius_of_every_mode_count():
    x = torch.tensor([[0.5, 0.0], [2.0, 0.0], [3.2, 0.0], [9.0, 9.0]])
    assert mode_mixture_rate(x, MODES, 1.0) == 0.5
    assert mode_mixture_rate(x, MODES, 0.1) == 1.0
    assert mode_mixture_rate(x, MODES, 100.0) == 0.0


def test_means_of_two_digits_leave_a_classifier_in_doubt():
    digits = Digits(flat=True)
    classifier = train_classifier(digits, steps=150, seed=1)
    x = digits.x[:400]
    assert doubtful_rate(classifier, x) < 0.15
    assert doubtful_rate(classifier, 0.5 * (x + x.flip(0))) > 2 * doubtful_rate(classifier, x)


def test_bad_input():
    with pytest.raises(InputError, match="samples"):
        mode_mixture_rate(torch.zeros(0, 2), MODES, 1.0)
    with pytest.raises(InputError, match="shapes"):
        mode_mixture_rate(torch.zeros(3, 3), MODES, 1.0)
    with pytest.raises(InputError, match="radius"):
        mode_mixture_rate(torch.zeros(3, 2), MODES, 0.0)
    with pytest.raises(InputError, match="confidence"):
        doubtful_rate(None, torch.zeros(3, 2), 0.0)
