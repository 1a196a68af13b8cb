"""The gap between ODE and SDE: none for an exact score, that of the closed form for a wrong one, and below its bound."""

import pytest
import torch

import tweed as tw
from tweed import processes, targets
from tweed.analysis import gaussian_laws, ode_sde_gap
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.exact import GaussianDenoiser
from tweed.errors import InputError

VP = processes.VP()


@pytest.mark.parametrize("process", [VP, processes.EDM(0.01, 200.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("v0", [0.2, 1.5])
def test_an_exact_score_has_no_gap(process, v0):
    laws = gaussian_laws(process, v0, 0.0)
    level = process.level(process.t_min)
    expected = level.alpha**2 * v0 + level.sigma**2
    assert laws.ode == pytest.approx(expected, rel=2e-3)
    assert laws.sde == pytest.approx(expected, rel=2e-3)
    assert laws.distance < 1e-3


@pytest.mark.parametrize("c", [-0.1, 0.05, 0.2])
def test_the_bound_is_above_the_distance_and_both_grow_with_the_error(c):
    laws, half = gaussian_laws(VP, 0.5, c), gaussian_laws(VP, 0.5, c / 2)
    assert laws.bound >= laws.distance > half.distance > 0.0
    assert laws.bound < 5.0 * laws.distance


@pytest.mark.parametrize("c", [-0.1, 0.05, 0.2])
def test_the_laws_are_those_of_the_integrating_factors(c):
    # d log S = (2 f + g^2 / S) dt: the ODE's variance goes as S^(1+c) alpha^(-2c), the SDE's with M = S^(2+2c) alpha^(-2-4c).
    from scipy.integrate import quad

    def at(t):
        level = VP.level(t)
        return level.alpha, level.alpha**2 * 0.5 + level.sigma**2

    def factor(t):
        alpha, marginal = at(t)
        return marginal ** (2.0 + 2.0 * c) * alpha ** (-2.0 - 4.0 * c)

    def source(t):
        return factor(end) / factor(t) * VP.diffusion(torch.tensor(t, dtype=torch.float64)).item() ** 2

    end, first = VP.t_min, VP.level(1.0).sigma ** 2
    (a0, s0), (a1, s1) = at(end), at(1.0)
    ode = first * (s0 / s1) ** (1.0 + c) * (a0 / a1) ** (-2.0 * c)
    sde = first * factor(end) / factor(1.0) + quad(source, end, 1.0, epsabs=1e-11, epsrel=1e-9, limit=200)[0]
    laws = gaussian_laws(VP, 0.5, c)
    assert laws.ode == pytest.approx(ode, abs=1e-5)
    assert laws.sde == pytest.approx(sde, abs=1e-5)
    assert laws.distance == pytest.approx(abs(ode**0.5 - sde**0.5), abs=1e-5)


def test_samples_have_the_laws_of_the_closed_form():
    exact = GaussianDenoiser(torch.zeros(1), 0.5, VP)
    wrong = FunctionDenoiser(lambda x, t: 1.1 * exact(x, t).score, VP, targets.Score(), event=(1,))
    laws = gaussian_laws(VP, 0.5, 0.1)
    found = ode_sde_gap(wrong, 30_000, 400, data=exact.sample(30_000, 3), seed=1)
    assert found.between**0.5 == pytest.approx(laws.distance, abs=0.012)
    assert found.ode**0.5 == pytest.approx(abs(laws.ode**0.5 - 0.5**0.5), abs=0.015)
    assert found.floor < 1e-3 < found.between


def test_histograms_in_the_plane_agree_with_samples():
    pytest.importorskip("ot")
    exact = GaussianDenoiser(torch.zeros(2), torch.tensor([1.0, 0.3]), VP)
    wrong = FunctionDenoiser(lambda x, t: 1.2 * exact(x, t).score, VP, targets.Score(), event=(2,))
    fine, coarse = (ode_sde_gap(wrong, 600, 100, seed=1, bins=bins) for bins in (0, 24))
    assert coarse.between == pytest.approx(fine.between, rel=0.3)
    assert fine.between > 2.0 * fine.floor


def test_bad_input():
    exact = GaussianDenoiser(torch.zeros(1), 0.5, VP)
    with pytest.raises(InputError, match="n, steps"):
        ode_sde_gap(exact, 1)
    with pytest.raises(InputError, match="bins"):
        ode_sde_gap(exact, 10, 5, bins=8)
    with pytest.raises(InputError, match="event"):
        ode_sde_gap(tw.FunctionDenoiser(lambda x, t: x, VP), 10, 5)
    with pytest.raises(InputError, match="v0"):
        gaussian_laws(VP, 0.0, 0.1)
