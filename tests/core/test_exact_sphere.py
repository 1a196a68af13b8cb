"""The exact denoiser of a sphere: Bessel ratios, the posterior by quadrature, and its covariance as a derivative."""

import math

import pytest
import torch
from scipy.special import ive

from tweed import processes, random
from tweed.core.exact import SphereDenoiser
from tweed.core.exact.sphere import bessel_ratio
from tweed.errors import IncompatibleError, InputError

F64 = torch.float64
VE = processes.VE(0.01, 1.0)


@pytest.mark.parametrize("p", [2, 3, 6, 11])
def test_the_ratio_of_bessel_functions(p):
    kappa = torch.logspace(-2, 4, 40, dtype=F64)
    exact = torch.from_numpy(ive(p / 2, kappa.numpy()) / ive(p / 2 - 1, kappa.numpy()))
    torch.testing.assert_close(bessel_ratio(p, kappa), exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("process", [VE, processes.VP()], ids=lambda p: type(p).__name__)
def test_the_posterior_mean_on_a_circle_is_that_of_a_quadrature(process):
    model = SphereDenoiser(1, 4, 1.5, process, seed=2)
    angle = torch.arange(4000, dtype=F64) * (2 * math.pi / 4000)
    points = 1.5 * torch.stack((angle.cos(), angle.sin()), 1) @ model.basis.T
    x = random.normal((5, 4), 1, dtype=F64)
    for t in (0.4, 0.8):
        level = process.level(t)
        weight = (-0.5 * torch.cdist(x, level.alpha * points).square() / level.sigma**2).softmax(1)
        torch.testing.assert_close(model(x, t).x0, weight @ points, rtol=1e-6, atol=1e-7)
        mean = weight @ points
        second = torch.einsum("bn,nd,ne->bde", weight, points, points) - mean[:, :, None] * mean[:, None]
        torch.testing.assert_close(model.posterior_covariance(x, t), second, rtol=1e-5, atol=1e-7)


def test_the_covariance_is_the_derivative_of_the_mean():
    model, x, t = SphereDenoiser(3, 6, 1.0, VE, seed=1), random.normal((4, 6), 3, dtype=F64), 0.6
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: model(z[None], t).x0[0], row) for row in x])
    torch.testing.assert_close(jacobian * VE.sigma(t) ** 2, model.posterior_covariance(x, t), rtol=1e-5, atol=1e-8)


def test_samples_lie_on_the_sphere_and_tangents_along_it():
    model = SphereDenoiser(2, 7, 2.0, VE)
    x = model.sample(500, 1)
    torch.testing.assert_close(x.norm(dim=1), torch.full((500,), 2.0, dtype=F64))
    assert torch.linalg.matrix_rank(x).item() == 3
    tangent = model.tangent(x)
    torch.testing.assert_close(tangent @ tangent, tangent, rtol=0, atol=1e-12)
    torch.testing.assert_close((tangent @ x[..., None])[..., 0], torch.zeros_like(x), rtol=0, atol=1e-12)
    assert tangent.diagonal(dim1=1, dim2=2).sum(1).round().unique().tolist() == [2.0]


def test_bad_input():
    for options in ({"dimension": 0}, {"dimension": 5}, {"radius": 0.0}):
        with pytest.raises(InputError, match="dimension"):
            SphereDenoiser(**{"dimension": 1, "ambient": 5} | options)
    with pytest.raises(IncompatibleError, match="endpoint"):
        SphereDenoiser(1, 3, process=processes.MeanReverting())
    with pytest.raises(InputError, match="x: shape"):
        SphereDenoiser(1, 3)(torch.zeros(2, 4), 0.5)
