"""Masked Fourier measurements: unitarity, adjoints, singular values with real samples, and the sampling patterns."""

import math

import pytest
import torch

from tweed.core import random
from tweed.errors import InputError
from tweed.inverse.operators import adjoint_error
from tweed.inverse.operators.fourier import MaskedFourier, cartesian_mask, poisson_disc_mask, radial_mask

F64, C128 = torch.float64, torch.complex128


@pytest.fixture(params=[(8, 8), (8, 12), (7, 9), (6, 5)], ids=str)
def shape(request):
    return request.param


@pytest.fixture
def mask(shape):
    return random.uniform((1, *shape), 5)[0] < 0.45


def complex_normal(shape, seed):
    return torch.view_as_complex(random.normal((*shape, 2), seed, dtype=F64))


def test_the_adjoint_is_one(shape, mask):
    operator = MaskedFourier((2, *shape), mask)
    assert adjoint_error(operator, 1) < 1e-13
    assert adjoint_error(operator, 1, torch.float32) < 1e-6
    x, y = complex_normal((3, 2, *shape), 1), complex_normal((3, 2, *shape), 2)
    operator = MaskedFourier((2, *shape), mask, real=False)
    torch.testing.assert_close((operator(x) * y.conj()).sum(), (x * operator.adjoint(y).conj()).sum())


def test_a_full_mask_is_unitary_and_centred(shape):
    operator = MaskedFourier((1, *shape), torch.ones(shape, dtype=torch.bool))
    x = random.normal((3, 1, *shape), 1, dtype=F64)
    torch.testing.assert_close(operator.adjoint(operator(x)), x)
    torch.testing.assert_close(operator(x).abs().square().sum(), x.square().sum())
    middle = (..., shape[0] // 2, shape[1] // 2)
    torch.testing.assert_close(operator(x)[middle].real, x.sum((-2, -1)) / math.prod(shape) ** 0.5)
    # A point in the middle has no phase.
    point = torch.zeros(1, 1, *shape, dtype=F64)
    point[middle] = 1.0
    torch.testing.assert_close(operator(point), torch.full_like(operator(point), math.prod(shape) ** -0.5))


@pytest.mark.parametrize("real", [True, False])
def test_the_decomposition_is_one(shape, mask, real):
    operator = MaskedFourier((2, *shape), mask, real=real)
    spectrum = operator.spectrum
    x = random.normal((4, 2, *shape), 1, dtype=F64) if real else complex_normal((4, 2, *shape), 1)
    y, c = operator(x), spectrum.coefficients(x)
    torch.testing.assert_close(spectrum.event(c), x)
    torch.testing.assert_close(c.abs().square().sum(1), x.abs().square().flatten(1).sum(1))
    torch.testing.assert_close(spectrum.observed(y), spectrum.values * c)
    torch.testing.assert_close((spectrum.values * c).abs().square().sum(1), y.abs().square().flatten(1).sum(1))
    torch.testing.assert_close(operator.normal(x), spectrum.event(spectrum.values**2 * c))
    # Whatever is measured, noise too, the adjoint is V s U^* of it.
    other = complex_normal((4, 2, *shape), 2)
    torch.testing.assert_close(spectrum.event(spectrum.values * spectrum.observed(other)), operator.adjoint(other))
    torch.testing.assert_close(operator(operator.pseudo_inverse(y)), y)
    if real:
        singular = torch.linalg.svdvals(operator.matrix())
        torch.testing.assert_close(singular, spectrum.values.sort(descending=True).values, atol=1e-7, rtol=0)


def test_noise_is_white_in_the_measured_coefficients():
    shape = (8, 8)
    mask = cartesian_mask(shape, 2.0, 0.3, seed=4)
    spectrum = MaskedFourier((1, *shape), mask).spectrum
    c = spectrum.observed(complex_normal((20000, 1, *shape), 3)).abs().square().mean(0)
    assert (c[spectrum.values > 0.0] - 1.0).abs().max() < 0.06


def test_columns():
    mask = cartesian_mask((10, 40), 4.0, 0.15, seed=3)
    assert torch.equal(mask, mask[:1].expand_as(mask))
    assert int(mask[0].sum()) == 10
    assert bool(mask[0, 17:24].all())
    assert torch.equal(mask, cartesian_mask((10, 40), 4.0, 0.15, seed=3))
    assert not torch.equal(mask, cartesian_mask((10, 40), 4.0, 0.15, seed=4))
    assert bool(cartesian_mask((3, 9), 1.0).all())


def test_spokes():
    mask = radial_mask((32, 32), 4)
    assert bool(mask[16].all())
    assert bool(mask[:, 16].all())
    assert bool(mask.diagonal().all())
    torch.testing.assert_close(mask, mask.flip(0, 1).roll((1, 1), (0, 1)) | mask)
    assert int(radial_mask((32, 32), 1).sum()) == 32
    assert int(radial_mask((33, 33), 40).sum()) > int(radial_mask((33, 33), 10).sum())


@pytest.mark.parametrize("acceleration", [2.0, 4.0, 8.0])
def test_points_that_keep_apart(acceleration):
    shape = (48, 40)
    mask = poisson_disc_mask(shape, acceleration, 0.2, seed=1)
    assert float(mask.double().mean()) == pytest.approx(1.0 / acceleration, rel=0.05)
    rows, columns = torch.meshgrid(torch.arange(48) - 24, torch.arange(40) - 20, indexing="ij")
    assert bool(mask[torch.hypot(rows.double(), columns.double()) <= 4.0].all())
    # Far out the nearest neighbours are further apart than near the middle.
    points = mask.nonzero().double()
    apart = torch.cdist(points, points).fill_diagonal_(math.inf).min(1).values
    far = torch.hypot((points[:, 0] - 24) / 24, (points[:, 1] - 20) / 20) > 0.8
    assert apart[far].min() >= apart[~far].min()
    assert apart[far].mean() > 1.1 * apart[~far].mean()
    assert torch.equal(mask, poisson_disc_mask(shape, acceleration, 0.2, seed=1))
    assert not torch.equal(mask, poisson_disc_mask(shape, acceleration, 0.2, seed=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedFourier((1, 4, 4), torch.ones(4, 5, dtype=torch.bool)), "mask"),
        (lambda: MaskedFourier((4,), torch.ones(4, dtype=torch.bool)), "mask"),
        (lambda: cartesian_mask((4, 4), 0.5), "acceleration"),
        (lambda: poisson_disc_mask((4, 4), 0.5), "acceleration"),
        (lambda: radial_mask((4, 4), 0), "spokes"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()
