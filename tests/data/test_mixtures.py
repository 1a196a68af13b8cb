import math

import pytest
import torch
from scipy import stats

from tweed.data import Digits, Mixture, digits_mixture, grid_mixture, random_mixture, ring_mixture
from tweed.errors import InputError


def test_log_prob_agrees_with_scipy():
    mixture = random_mixture(4, 3, seed=7)
    x = mixture.sample(50, seed=1)
    expected = sum(
        w * stats.multivariate_normal(m.numpy(), c.numpy()).pdf(x.numpy())
        for w, m, c in zip(mixture.weights.tolist(), mixture.means, mixture.covariances, strict=True)
    )
    assert torch.allclose(mixture.log_prob(x), torch.as_tensor(expected).log(), atol=1e-10, rtol=0)


def test_the_three_forms_of_a_covariance_agree():
    base = random_mixture(3, 4, seed=2, isotropic=True)
    diagonal = base.covariances[:, None].expand(-1, 4)
    others = [Mixture(base.means, c, base.weights) for c in (diagonal, torch.diag_embed(diagonal))]
    x = base.sample(30, seed=3)
    for other in others:
        assert torch.allclose(other.log_prob(x), base.log_prob(x), atol=1e-12, rtol=0)
        assert torch.allclose(other.sample(30, seed=3), x, atol=1e-12, rtol=0)
        assert torch.allclose(other.covariance, base.covariance, atol=1e-12, rtol=0)


def test_moments_of_samples_are_those_of_the_mixture():
    mixture = random_mixture(5, 3, seed=0)
    x = mixture.sample(100_000, seed=4)
    sd = mixture.covariance.diagonal().sqrt()
    assert ((x.mean(0) - mixture.mean).abs() < 5 * sd / math.sqrt(len(x))).all()
    assert float((torch.cov(x.T) - mixture.covariance).abs().max()) < 0.03 * float(mixture.covariance.abs().max())
    counts = torch.bincount(mixture.choose(len(x), seed=4), minlength=5)
    assert stats.chisquare(counts.numpy(), (mixture.weights * len(x)).numpy()).pvalue > 1e-4


def test_samples_are_addressed_by_index_and_know_their_component():
    mixture = ring_mixture(6, radius=3.0, std=0.05)
    whole = mixture.sample(30, seed=1, index=10)
    assert torch.equal(whole[4:9], mixture.sample(5, seed=1, index=14))
    assert torch.equal(whole[[2, 20]], mixture.sample(2, seed=1, index=torch.tensor([12, 30])))
    nearest = torch.cdist(whole, mixture.means).argmin(1)
    assert torch.equal(nearest, mixture.choose(30, seed=1, index=10))
    assert torch.equal(nearest, mixture.log_joint(whole).argmax(1))


def test_rings_and_grids_lie_where_they_say():
    ring = ring_mixture(5, radius=2.0, std=0.1, dim=3)
    assert torch.allclose(ring.means.norm(dim=1), torch.full((5,), 2.0, dtype=torch.float64))
    assert torch.allclose(ring.means[0], torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64))
    for dim in (1, 2, 3):
        grid = grid_mixture(3, spacing=0.5, dim=dim)
        assert grid.means.shape == (3**dim, dim)
        assert torch.allclose(grid.mean, torch.zeros(dim, dtype=torch.float64), atol=1e-15)
        if dim > 1:
            apart = torch.cdist(grid.means, grid.means).fill_diagonal_(9.0)
            assert float(apart.min()) == pytest.approx(0.5)


def test_random_mixture_keeps_its_scales():
    mixture = random_mixture(200, 6, seed=1, spread=3.0, std=0.2)
    assert float(mixture.means.std()) == pytest.approx(3.0, rel=0.1)
    # The geometric mean of the standard deviations is `std` in every component.
    assert torch.allclose(torch.linalg.det(mixture.covariances), torch.full((200,), 0.2**12, dtype=torch.float64))
    assert float(mixture.weights.min()) > 0.5 / 200 / 2
    assert torch.equal(mixture.means, random_mixture(200, 6, seed=1, spread=3.0).means)


def test_digits_mixture_has_a_component_an_image():
    mixture = digits_mixture(0.15, "test")
    digits = Digits("test", flat=True)
    assert mixture.means.shape == (len(digits), 64)
    x = mixture.sample(20, seed=0)
    k = mixture.choose(20, seed=0)
    residual = (x - digits.x.double()[k]) / 0.15
    assert float(residual.std()) == pytest.approx(1.0, abs=0.08)
    assert torch.equal(mixture.labels, digits.batch(torch.arange(len(digits)))["label"])
    assert (mixture.log_prob(x) > mixture.log_prob(torch.randn(20, 64, generator=torch.Generator()))).all()


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("means", (torch.zeros(3), torch.ones(3))),
        ("covariances", (torch.zeros(3, 2), torch.ones(2))),
        ("covariances", (torch.zeros(3, 2), torch.tensor([1.0, 0.0, 1.0]))),
        ("covariances", (torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]))),
        ("weights", (torch.zeros(3, 2), torch.ones(3), torch.tensor([1.0, 0.0, 1.0]))),
        ("labels", (torch.zeros(3, 2), torch.ones(3), None, torch.zeros(2, dtype=torch.int64))),
    ],
)
def test_what_does_not_fit_is_named(argument, arguments):
    with pytest.raises(InputError, match=argument):
        Mixture(*arguments)
    with pytest.raises(InputError, match="x"):
        ring_mixture().log_prob(torch.zeros(3, 5))
