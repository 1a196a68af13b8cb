"""Rounds of gradient-guided sampling on a Gaussian, where each is a step of a fixed-point iteration; and ridge's reward."""

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.core.exact import fit_gaussian
from tweed.errors import InputError
from tweed.guidance import optimize, pseudo_labels, ridge

F64 = torch.float64
MU, S = torch.tensor([0.5, -0.5, 0.0], dtype=F64), torch.tensor([1.0, 0.5, 0.25], dtype=F64)
BEST = torch.tensor([2.0, 1.0, -1.0], dtype=F64)


def solve(rounds, **options):
    settings = {"n": 4000, "noise": 1.0, "solver": tw.solvers.DPMSolver(2), "steps": 10, "grid": tw.grids.log_snr}
    return optimize(
        tw.GaussianDenoiser(MU, S), lambda x: BEST - x, rounds=rounds, dtype=F64, **{**settings, **options}
    )  # fmt: skip


def test_one_round_moves_the_mean_by_the_covariance_times_the_gradient():
    found = solve(1, regularisation=2.0, seed=1)
    torch.testing.assert_close(found.points[0], MU, atol=0.05, rtol=0)
    torch.testing.assert_close(found.points[1], MU + S * (BEST - MU) / 2.0, atol=0.07, rtol=0)
    torch.testing.assert_close(found.samples.mean(0), found.points[1])


@pytest.mark.parametrize(("regularisation", "step"), [(2.0, 1.0), (1.0, 0.6)])
def test_rounds_converge_to_the_regularised_optimum(regularisation, step):
    # argmax -|x - best|^2 / 2 - (lambda / 2) (x - mu) S^-1 (x - mu)
    expected = (BEST + regularisation * MU / S) / (1.0 + regularisation / S)
    found = solve(10, regularisation=regularisation, step=step)
    torch.testing.assert_close(found.points[-1], expected, atol=0.07, rtol=0)


def test_refitting_goes_on_to_the_maximiser_and_sees_all_samples():
    seen = []

    def refit(drawn):
        seen.append(drawn.shape)
        return fit_gaussian(drawn[0] - drawn[0].mean(0) + drawn[-1].mean(0))

    found = solve(14, regularisation=2.0, refit=refit, n=1000)
    assert (found.points[-1] - BEST).norm() < 0.15 * (MU - BEST).norm()
    assert seen == [(k + 2, 1000, 3) for k in range(14)]
    torch.testing.assert_close(found.denoiser.mean, found.samples.mean(0))


def test_the_same_seed_gives_the_same_rounds():
    assert torch.equal(solve(2, n=50).samples, solve(2, n=50).samples)
    assert not torch.equal(solve(2, n=50).samples, solve(2, n=50, seed=1).samples)


def test_optimize_errors_name_the_argument():
    for bad in ({"rounds": 0}, {"rounds": 1, "n": 1}, {"rounds": 1, "step": 0.0}, {"rounds": 1, "regularisation": 0.0}):
        with pytest.raises(InputError, match=list(bad)[-1]):
            solve(**bad)


def test_ridge_is_least_squares_without_a_penalty_and_nothing_with_a_large_one():
    x, y = random.normal((30, 2, 2), 1, dtype=F64), random.normal((30, 1), 2, dtype=F64)[:, 0]
    flat = x.flatten(1)
    torch.testing.assert_close(ridge(x, y, 0.0), torch.linalg.lstsq(flat, y[:, None]).solution[:, 0])
    assert ridge(x, y, 1e12).norm() < 1e-9
    theta = ridge(x, y, 3.0)
    # Stationary point of |y - X theta|^2 + penalty |theta|^2.
    torch.testing.assert_close(flat.T @ (y - flat @ theta), 3.0 * theta)
    assert ridge(x[:0], y[:0], 1.0).abs().max() == 0.0


def test_within_a_basis_only_what_the_data_identify_is_fitted():
    basis = torch.linalg.qr(random.normal((6, 2), 3, dtype=F64)).Q
    theta = basis @ torch.tensor([1.0, -2.0], dtype=F64)
    x = random.normal((2000, 2), 4, dtype=F64) @ basis.T + 1e-3 * random.normal((2000, 6), 5, dtype=F64)
    y = pseudo_labels(x, theta, 0.1, seed=6)
    loose, tight = ridge(x, y, 1e-6), ridge(x, y, 1e-6, basis)
    assert (tight - theta).norm() < 0.01
    assert (loose - theta).norm() > 5.0 * (tight - theta).norm()
    torch.testing.assert_close(basis @ (basis.T @ tight), tight)


def test_pseudo_labels_have_their_noise():
    x, theta = random.normal((20000, 3), 1, dtype=F64), torch.tensor([1.0, 0.0, -1.0], dtype=F64)
    rest = pseudo_labels(x, theta, 0.5, seed=2) - x @ theta
    assert rest.std().item() == pytest.approx(0.5, rel=0.03)
    assert abs((rest * (x @ theta)).mean().item()) < 0.02
    torch.testing.assert_close(pseudo_labels(x, theta, 0.0), x @ theta)


def test_reward_errors_name_the_argument():
    x, y = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(InputError, match="x, y, penalty"):
        ridge(x, y[:2])
    with pytest.raises(InputError, match=r"^basis"):
        ridge(x, y, 1.0, torch.eye(3))
    with pytest.raises(InputError, match=r"^penalty: 0.0"):
        ridge(x, y, 0.0)
    with pytest.raises(InputError, match="theta, noise"):
        pseudo_labels(x, torch.zeros(3), 0.1)
