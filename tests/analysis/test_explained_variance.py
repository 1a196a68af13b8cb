"""Explained variance: one for the field itself, the closed form for two Gaussians, none for a field of another sign."""

import pytest
import torch

from tweed import processes
from tweed.analysis import explained_variance
from tweed.core import targets
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.exact import GaussianDenoiser
from tweed.errors import InputError

EDM = processes.EDM(0.002, 80.0)
TRUE = GaussianDenoiser(torch.zeros(2), torch.tensor([4.0, 0.25]), EDM)
ROUND = GaussianDenoiser(torch.zeros(2), 1.0, EDM)
DATA = TRUE.sample(60_000, 1)


def test_a_field_explains_itself():
    (found,) = explained_variance(TRUE, TRUE, DATA[:8], [0.01])
    assert (found.score, found.data) == (1.0, 1.0)


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_the_closed_form_of_two_gaussians(sigma):
    (found,) = explained_variance(TRUE, ROUND, DATA, [sigma / 80.0], directions=torch.eye(2, dtype=torch.float64))
    v = torch.tensor([4.0, 0.25], dtype=torch.float64)
    total = v + sigma**2
    # E s^2 = 1 / total; the difference of the scores is x (1 / total - 1 / (1 + sigma^2)).
    missed = total * (1 / total - 1 / (1 + sigma**2)) ** 2
    assert found.score == pytest.approx(1 - (missed.sum() / (1 / total).sum()).item(), abs=0.02)
    torch.testing.assert_close(found.directions, 1 - missed * total, rtol=0, atol=0.03)
    gain, other = v / total, 1 / (1 + sigma**2)
    data = 1 - ((gain - other) ** 2 * total).sum() / (gain**2 * total).sum()
    assert found.data == pytest.approx(data.item(), abs=0.02)


def test_a_field_of_the_other_sign_is_below_none():
    wrong = FunctionDenoiser(lambda x, t: -TRUE(x, t).score, EDM, targets.Score())
    (found,) = explained_variance(TRUE, wrong, DATA[:500], [0.01])
    assert found.score == pytest.approx(-3.0)


def test_bad_input():
    with pytest.raises(InputError, match="approximation"):
        explained_variance(TRUE, GaussianDenoiser(torch.zeros(2), 1.0), DATA[:4], [0.1])
    with pytest.raises(InputError, match="data"):
        explained_variance(TRUE, ROUND, DATA[:1], [0.1])
