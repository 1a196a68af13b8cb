import math

import pytest
import torch

from tweed.core.random import normal
from tweed.errors import InputError
from tweed.metrics import Moments, frechet_distance, frechet_distance_of_moments


def _z(n, d, seed):
    return normal((n, d), seed, dtype=torch.float64)


def _covariance(d, seed):
    root = _z(d, d, seed)
    return root @ root.T / d


def test_commuting_covariances_have_a_closed_form():
    axes = torch.linalg.qr(_z(5, 5, 0)).Q
    a, b = _z(5, 1, 1)[:, 0].exp(), _z(5, 1, 2)[:, 0].exp()
    mean = _z(5, 1, 3)[:, 0]
    expected = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    zero = torch.zeros(5)
    value = frechet_distance_of_moments(zero, axes @ a.diag() @ axes.T, mean, axes @ b.diag() @ axes.T)
    assert value == pytest.approx(expected, rel=1e-12)


def test_two_by_two_has_a_closed_form():
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for a 2 x 2 matrix with positive eigenvalues.
    a, b = _covariance(2, 0), _covariance(2, 1)
    root = math.sqrt(float((a @ b).trace()) + 2.0 * math.sqrt(float(torch.linalg.det(a @ b))))
    zero = torch.zeros(2)
    assert frechet_distance_of_moments(zero, a, zero, b) == pytest.approx(float((a + b).trace()) - 2 * root, rel=1e-10)


def test_it_agrees_with_scipy_sqrtm():
    from scipy.linalg import sqrtm

    a, b = _covariance(8, 0), _covariance(8, 1)
    expected = float((a + b).trace()) - 2.0 * sqrtm((a @ b).numpy()).real.trace()
    assert frechet_distance_of_moments(torch.zeros(8), a, torch.zeros(8), b) == pytest.approx(expected, rel=1e-9)


def test_an_affine_image_of_the_same_samples():
    x = _z(200, 6, 0)
    shift = torch.arange(6, dtype=torch.float64) * 0.1
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-12)
    variance = float(x.var(0).sum())
    assert frechet_distance(x, 3.0 * x) == pytest.approx(
        4.0 * variance + 4.0 * float(x.mean(0).square().sum()), rel=1e-10
    )
    turn = torch.linalg.qr(_z(6, 6, 9)).Q
    y = _z(150, 6, 1) * torch.arange(1, 7)
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(frechet_distance(x, y), rel=1e-10)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-10)


def test_fewer_samples_than_dimensions_lose_no_digits():
    x = _z(10, 64, 0)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(x, 2.0 * x) == pytest.approx(float(x.var(0).sum() + x.mean(0).square().sum()), rel=1e-10)
    # Singular covariances in orthogonal subspaces: nothing overlaps.
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    a[0, 0], b[1, 1] = 4.0, 9.0
    zero = torch.zeros(4)
    assert frechet_distance_of_moments(zero, a, zero, b) == pytest.approx(13.0)
    assert frechet_distance_of_moments(zero, a * 0, zero, b) == pytest.approx(9.0)
    # Nearly the same, nearly singular.
    a = torch.diag(torch.tensor([1.0, 1e-12], dtype=torch.float64))
    assert frechet_distance_of_moments(torch.zeros(2), a, torch.zeros(2), a) == pytest.approx(0.0, abs=1e-14)


def test_moments_stream_and_merge():
    x = 1e3 + _z(103, 4, 0)  # far from 0, where sums of squares would cancel
    whole = Moments.of(x)
    stream = Moments.empty(4)
    for part in x.split(10):
        stream = stream.update(part.reshape(-1, 2, 2))
    left, right = Moments.of(x[:20]).merge(Moments.of(x[20:50])), Moments.of(x[50:])
    other = Moments.of(x[:20]).merge(Moments.of(x[20:50]).merge(right))
    for moments in (stream, left.merge(right), other, right.merge(left), whole.update(x[:0])):
        assert moments.count == 103
        assert torch.allclose(moments.mean, x.mean(0), rtol=1e-14, atol=0)
        assert torch.allclose(moments.covariance, torch.cov(x.T), rtol=1e-10, atol=1e-10)
        assert frechet_distance(moments, x) == pytest.approx(0.0, abs=1e-8)
    assert Moments.empty(2).merge(Moments.empty(2)).count == 0


def test_bad_input_is_named():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    zero, eye = torch.zeros(3), torch.eye(3)
    for call, argument in [
        (lambda: frechet_distance(x[:1], x), "features_x"),
        (lambda: frechet_distance(x, x[:1]), "features_y"),
        (lambda: frechet_distance(x, x[:, :2]), "features_y"),
        (lambda: frechet_distance(Moments.of(x[:1]), x), "count"),
        (lambda: frechet_distance(Moments.empty(3), x), "count"),
        (lambda: frechet_distance_of_moments(zero, -eye, zero, eye), "covariance_x"),
        (lambda: frechet_distance_of_moments(zero, eye, zero, eye[:2]), "covariance_y"),
        (lambda: frechet_distance_of_moments(zero, eye, zero[:2], eye[:2, :2]), "mean_y"),
        (lambda: Moments.of(x[:0]), "batch"),
        (lambda: Moments.of(x).merge(Moments.empty(2)), "other"),
    ]:
        with pytest.raises(InputError, match=f"^{argument}"):
            call()
