"""Distances of subspaces, energy off them, and the error budget against Gaussians, where all is known."""

import pytest
import torch

import tweed as tw
from tweed.analysis import error_budget, off_support, subspace_distance
from tweed.core import random
from tweed.errors import IncompatibleError, InputError
from tweed.recipes._overview_exact import gaussian_tv, held_chain

F64 = torch.float64
VP = tw.processes.VP()


def test_the_distance_is_that_of_the_projectors():
    a, b = (random.normal((7, k), k, dtype=F64) for k in (2, 3))
    p, q = (m @ torch.linalg.inv(m.T @ m) @ m.T for m in (a, b))
    assert subspace_distance(a, b) == pytest.approx((p - q).square().sum().item())
    turn = random.normal((2, 2), 9, dtype=F64)
    assert subspace_distance(a, a @ turn) < 1e-24  # bases of one subspace
    assert subspace_distance(torch.eye(4)[:, :2], torch.eye(4)[:, 2:]) == pytest.approx(4.0)
    # Tiny angles are not lost: two columns turned by 1e-9.
    near = torch.eye(4, dtype=F64)[:, :1] + 1e-9 * torch.eye(4, dtype=F64)[:, 1:2]
    assert subspace_distance(torch.eye(4, dtype=F64)[:, :1], near) == pytest.approx(2e-18, rel=1e-6)


def test_energy_off_the_support():
    basis = torch.linalg.qr(random.normal((6, 2), 1, dtype=F64)).Q
    z, rest = random.normal((5, 2), 2, dtype=F64), random.normal((5, 6), 3, dtype=F64)
    rest = rest - (rest @ basis) @ basis.T
    x = z @ basis.T + rest
    torch.testing.assert_close(off_support(x.reshape(5, 2, 3), 3.0 * basis), rest.square().sum(1))
    assert off_support(x[:0], basis).shape == (0,)


def test_subspace_errors_name_the_argument():
    with pytest.raises(InputError, match="a, b"):
        subspace_distance(torch.eye(3), torch.eye(4))
    with pytest.raises(InputError, match=r"^b: a column"):
        subspace_distance(torch.eye(3), torch.ones(3, 2))
    with pytest.raises(InputError, match="basis: shape"):
        off_support(torch.zeros(2, 5), torch.eye(4))


@pytest.mark.parametrize("wrong", [0.0, 0.1, -0.2])
@pytest.mark.parametrize("steps", [10, 100])
@pytest.mark.parametrize("variance", [0.3, 4.0])
def test_the_budget_bounds_what_a_wrong_held_score_makes(wrong, steps, variance):
    times = tw.grids.log_snr(VP, steps, start=1.0, end=0.01)

    def spread(t):
        return VP.alpha(t) ** 2 * variance + VP.sigma(t) ** 2

    allowed = error_budget(
        VP, times, second_moment=variance, dimension=1, score_error=lambda t: abs(wrong) * spread(t).rsqrt(),
        lipschitz=lambda t: 1.0 / spread(t),
    )  # fmt: skip
    made = held_chain(variance, wrong, times)
    tv = gaussian_tv(made, spread(torch.tensor(0.01, dtype=F64)).item())
    assert 0.0 < tv < allowed.total
    if wrong == 0.0:
        assert allowed.score == 0.0


def test_each_term_is_its_closed_form():
    # VP: int g^2 dt from t to s is B(s) - B(t) = log(alpha_t^2 / alpha_s^2), the "time" of the unit-rate OU process.
    times = tw.grids.uniform(VP, 400, start=0.9, end=0.1)
    length = 2.0 * (VP.alpha(0.1) / VP.alpha(0.9)).log().item()
    found = error_budget(VP, times, second_moment=3.0, dimension=5, score_error=0.2, lipschitz=1.5)
    assert found.score == pytest.approx(0.5 * 0.2 * length**0.5, rel=1e-5)
    level = VP.level(0.9)
    assert found.prior == pytest.approx(0.5 * 3.0**0.5 * level.alpha / level.sigma)
    # KL(N(alpha x, sigma^2) | N(0, sigma^2)) is below the prior's bound for any Gaussian, and near it for a point.
    assert found.total == found.prior + found.score + found.discretisation
    half = error_budget(
        VP, tw.grids.uniform(VP, 800, start=0.9, end=0.1), second_moment=3.0, dimension=5, lipschitz=1.5
    )
    assert found.discretisation / half.discretisation == pytest.approx(2.0**0.5, rel=1e-3)
    wider = error_budget(VP, times, second_moment=3.0, dimension=20, lipschitz=1.5)
    assert wider.discretisation / found.discretisation == pytest.approx(2.0)


def test_the_steps_term_is_the_path_divergence_of_a_gaussian_to_leading_order():
    # KL of the paths is (1/2) sum int g^2 E|s_t(x_t) - s_k(x_k)|^2 dt; for N(0, v) with s = -x / v_t all is Gaussian.
    variance, times = 2.0, tw.grids.log_snr(VP, 2000, start=0.8, end=0.02)

    def spread(t):
        return VP.alpha(t) ** 2 * variance + VP.sigma(t) ** 2

    middle = (torch.arange(20, dtype=F64) + 0.5) / 20
    t = times[1:, None] + (times[:-1] - times[1:])[:, None] * middle
    start = times[:-1, None]
    # Within a step from `start` down to t: Cov(x_t, x_start) = alpha_start / alpha_t v_t (the forward chain is Markov).
    cross = VP.alpha(start) / VP.alpha(t) * spread(t)
    moved = 1.0 / spread(t) + 1.0 / spread(start) - 2.0 * cross / (spread(t) * spread(start))
    divergence = 0.5 * (VP.diffusion(t) ** 2 * moved * (times[:-1] - times[1:])[:, None] / 20).sum()
    found = error_budget(VP, times, second_moment=variance, dimension=1, lipschitz=lambda s: 1.0 / spread(s))
    assert found.discretisation == pytest.approx((0.5 * divergence).sqrt().item(), rel=0.02)


def test_budget_errors_name_the_argument():
    times, given = [0.9, 0.5, 0.1], {"second_moment": 1.0, "dimension": 2}
    for bad in ([0.5], [0.1, 0.5], [0.5, 0.0], [1.2, 0.5]):
        with pytest.raises(InputError, match=r"^times"):
            error_budget(VP, bad, **given)
    with pytest.raises(InputError, match="score_error"):
        error_budget(VP, times, **given, score_error=-1.0)
    with pytest.raises(InputError, match="second_moment"):
        error_budget(VP, times, second_moment=-1.0, dimension=2)
    with pytest.raises(IncompatibleError, match="endpoint"):
        error_budget(tw.processes.MeanReverting(), times, **given)
