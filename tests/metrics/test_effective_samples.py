"""Effective sample size: that of independent draws and of a first-order autoregression, in closed form."""

import pytest
import torch

from tweed import random
from tweed.errors import InputError
from tweed.metrics import effective_sample_size


@pytest.mark.parametrize("keep", [0.0, 0.6, 0.9])
def test_an_autoregression_has_the_size_of_its_closed_form(keep):
    n, chains, d = 2000, 8, 3
    z = random.normal((n, chains, d), 1, dtype=torch.float64)
    x = [z[0]]
    for step in z[1:]:
        x.append(keep * x[-1] + (1.0 - keep**2) ** 0.5 * step)
    found = effective_sample_size(torch.stack(x))
    expected = torch.full((d,), n * chains * (1.0 - keep) / (1.0 + keep), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.0)


def test_chains_that_stay_in_different_places_count_for_little():
    x = random.normal((200, 4, 1), 2, dtype=torch.float64) + 10.0 * torch.arange(4.0)[:, None]
    assert effective_sample_size(x).item() < 20.0


def test_bad_input():
    with pytest.raises(InputError, match="draws"):
        effective_sample_size(torch.zeros(3, 2))
