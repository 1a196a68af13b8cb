"""The two parts of a field, where both are known; dimensions of spheres; the gradient flow of the free energy."""

import math

import pytest
import torch

import tweed as tw
from tweed import processes, random
from tweed.analysis import (
    decompose,
    free_energy,
    gauge_residual,
    gaussian_variance,
    intrinsic_dimension,
    jko_step,
    linear_gaussian,
    relative_fisher,
    wgf_velocity,
)
from tweed.core.exact import GaussianDenoiser, PrincipalGaussian, SphereDenoiser
from tweed.errors import IncompatibleError, InputError, NumericalError

F64 = torch.float64
VE = processes.VE(0.01, 1.0)


def test_the_linear_parts_are_what_they_must_be():
    root = random.normal((4, 4), 1, dtype=F64)
    covariance = root @ root.T + torch.eye(4, dtype=F64)
    a = random.normal((4, 4), 2, dtype=F64)
    m, r = linear_gaussian(a, covariance)
    inverse = torch.linalg.inv(covariance)
    torch.testing.assert_close(m + r, a)
    torch.testing.assert_close(m, m.T)
    torch.testing.assert_close(inverse @ r, -(inverse @ r).T, rtol=1e-9, atol=1e-9)
    # Orthogonal under the Gaussian.
    assert torch.trace(m.T @ r @ covariance).item() == pytest.approx(0.0, abs=1e-9)


def features(x):
    return torch.stack((x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2), 1)


def test_the_fit_on_samples_finds_the_linear_parts():
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
    a = torch.tensor([[-1.0, 0.8], [-0.2, -2.0]], dtype=F64)
    x = GaussianDenoiser(torch.zeros(2), covariance, VE).sample(60_000, 1)
    found = decompose(x @ a.T, x, features)
    m, _ = linear_gaussian(a, covariance)
    worst = (found.conservative - x @ m.T).square().mean().sqrt() / x.square().mean().sqrt()
    assert worst.item() < 0.02
    assert found.weak < 0.02
    assert 0.5 < found.held_out < 1.0
    torch.testing.assert_close(found.conservative + found.gauge, x @ a.T)


def test_a_gradient_in_the_span_leaves_nothing():
    x = random.normal((400, 2), 3, dtype=F64)
    found = decompose(torch.stack((2.0 * x[:, 0] + x[:, 1], x[:, 0] - 6.0 * x[:, 1]), 1), x, features)
    assert found.gauge.abs().max().item() < 1e-9
    assert found.held_out == pytest.approx(1.0)


def test_the_gauge_condition_of_a_turned_score():
    mixture = tw.MixtureDenoiser(random.normal((3, 2), 1, dtype=F64), 0.4, None, VE)
    x, turn = random.normal((20, 2), 2, dtype=F64), torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
    score = mixture(x, 0.3).score
    zero = torch.zeros(20, dtype=F64)
    torch.testing.assert_close(gauge_residual(score @ turn.T, zero, score), zero, rtol=0, atol=1e-12)
    assert gauge_residual(score, zero, score).min().item() > 0.0


@pytest.mark.parametrize("dimension", [1, 4])
def test_the_dimension_of_a_sphere_and_of_a_subspace(dimension):
    end = VE.time(-torch.tensor(0.03, dtype=F64).log()).item()
    sphere = SphereDenoiser(dimension, 8, 1.0, VE, seed=1)
    axes = torch.linalg.qr(random.normal((8, 8), 5, dtype=F64)).Q[:, :dimension]
    flat = PrincipalGaussian(torch.zeros(8), torch.ones(dimension), axes, 0.0, VE)
    on_flat = random.normal((6, dimension), 2, dtype=F64) @ axes.T
    for model, x0 in ((sphere, sphere.sample(6, 1)), (flat, on_flat)):
        x = VE.perturb(x0, 1.0, random.normal((6, 8), 3, dtype=F64))
        found = intrinsic_dimension(model, x, 1.0, end, 60)
        assert found.flow.tolist() == [dimension] * 6
        assert found.static.tolist() == [dimension] * 6
        assert found.slopes[:, dimension + 1 :].min().item() > 0.9


def test_the_flow_arrives_where_the_exact_one_does():
    model = PrincipalGaussian(torch.zeros(3), torch.tensor([1.0, 0.5]), torch.eye(3)[:, :2], 0.0, VE)
    x = random.normal((4, 3), 1, dtype=F64)
    found = intrinsic_dimension(model, x, 1.0, 0.2, 400)
    torch.testing.assert_close(found.x, model.flow(x, 1.0, 0.2), rtol=1e-4, atol=1e-4)


def test_the_gradient_flow_of_the_free_energy():
    vp = processes.VP()
    model, x = GaussianDenoiser(torch.zeros(2), torch.tensor([4.0, 0.25]), vp), random.normal((8, 2), 1, dtype=F64)
    estimate = model(x, 0.3)
    torch.testing.assert_close(wgf_velocity(vp, x, 0.3, estimate.score), estimate.velocity, rtol=1e-9, atol=1e-9)
    assert free_energy(torch.zeros(2), torch.eye(2)) == pytest.approx(0.0)
    found = free_energy(torch.tensor([1.0, 0.0]), torch.diag(torch.tensor([2.0, 1.0])))
    assert found == pytest.approx(0.5 * (1.0 + 3.0 - 2.0 - math.log(2.0)))
    assert gaussian_variance(4.0, 0.0) == 4.0
    assert gaussian_variance(4.0, 50.0) == pytest.approx(1.0)
    std = torch.tensor([2.0, 0.5], dtype=F64)
    tau = 0.3
    step = jko_step(std, tau)
    # The derivative of F + W2^2 / (2 tau) vanishes there.
    torch.testing.assert_close(step - 1.0 / step + (step - std) / tau, torch.zeros(2, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(jko_step(torch.ones(2, dtype=F64), tau), torch.ones(2, dtype=F64))
    assert relative_fisher(x, -x) == 0.0


def test_bad_input():
    with pytest.raises(InputError, match="a, covariance"):
        linear_gaussian(torch.zeros(2, 3), torch.eye(2))
    with pytest.raises(NumericalError, match="singular"):
        linear_gaussian(torch.zeros(2, 2), torch.diag(torch.tensor([1.0, 0.0])))
    with pytest.raises(InputError, match="field, x"):
        decompose(torch.zeros(3, 2), torch.zeros(4, 2), features)
    with pytest.raises(InputError, match="two a feature"):
        decompose(torch.zeros(8, 2), torch.zeros(8, 2), features)
    with pytest.raises(InputError, match="steps, start"):
        intrinsic_dimension(SphereDenoiser(1, 3, process=VE), torch.zeros(1, 3), 0.5, 0.6)
    with pytest.raises(InputError, match="std, tau"):
        jko_step(torch.ones(2), 0.0)
    with pytest.raises(NumericalError, match="covariance"):
        free_energy(torch.zeros(2), torch.zeros(2, 2))
    with pytest.raises(IncompatibleError, match="endpoint"):
        wgf_velocity(processes.MeanReverting(), torch.zeros(1, 2), 0.5, torch.zeros(1, 2))
