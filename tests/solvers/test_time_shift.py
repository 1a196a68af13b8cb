"""The time shift: nothing where nothing is shifted, the right label where one is known, and each sample by itself."""

import math
from itertools import pairwise

import pytest
import torch
from solver_cases import mixture

import tweed as tw
from tweed import processes, random
from tweed.core import grids, targets
from tweed.core.denoiser import CountingDenoiser, FunctionDenoiser, NetworkDenoiser
from tweed.core.exact import GaussianDenoiser
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import DDIM, DDPM, PNDM, DPMSolver, EpsilonScaling, Euler, Heun, Problem, TimeShift, sample
from tweed.solvers.time_shift import _exact

F64 = torch.float64
VP, EDM = processes.VP(), processes.EDM(0.002, 80.0)
D = 4096


def model(process=VP, variance=0.05):
    return GaussianDenoiser(torch.zeros(D), variance, process)


@pytest.mark.parametrize("base", [DDIM(), DDPM(), PNDM(2, "euler"), DPMSolver(2), Heun()], ids=repr)
@pytest.mark.parametrize("option", [{"window": 0.0}, {"cutoff": 1.0}])
def test_without_a_window_it_is_the_base(base, option):
    x = random.normal((3, 2), 1, dtype=F64)
    plain = sample(mixture(), x, solver=base, steps=8, seed=4)
    assert torch.equal(sample(mixture(), x, solver=TimeShift(base, **option), steps=8, seed=4), plain)


@pytest.mark.parametrize("base", [DDIM(), DDPM(), PNDM(2, "euler"), DPMSolver(2), Heun()], ids=repr)
@pytest.mark.parametrize("process", [VP, EDM, processes.RectifiedFlow()], ids=lambda p: type(p).__name__)
def test_a_tiny_window_hardly_matters(base, process):
    # The exact path of per-sample coefficients, and the one of labels alone, both meet the base.
    x = process.prior((3, D), 1, dtype=F64)
    plain = sample(model(process), x, solver=base, steps=8, seed=4)
    shifted = sample(model(process), x, solver=TimeShift(base, window=1e-9, cutoff=0.01), steps=8, seed=4)
    torch.testing.assert_close(shifted, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("v0", [None, 0.05])
@pytest.mark.parametrize("process", [VP, EDM], ids=lambda p: type(p).__name__)
def test_a_wrong_label_is_found_out(process, v0):
    t, v = 0.6, 0.0 if v0 is None else v0
    data = model(process, v).sample(40, 1)
    x = process.perturb(data, t, random.normal(data.shape, 2, dtype=F64))
    shift = TimeShift(window=0.2, data_variance=v0)
    problem = Problem(model(process), (1.0, 0.5))
    found = shift.label(problem, x, 0.55)
    # The sample variance of d normals spreads by sqrt(2 / (d - 1)).
    level = process.level(t)
    total = level.sigma**2 + level.alpha**2 * v
    slope = process.variance_dot(t).item() + 2 * level.alpha * level.alpha_dot * v
    predicted = total * math.sqrt(2.0 / (D - 1)) / slope
    assert (found - t).square().mean().sqrt().item() < 1.3 * predicted
    assert abs((found - t).mean().item()) < 4.0 * predicted / math.sqrt(40)


def test_it_is_the_nearest_of_all_labels_in_the_window_ends_included():
    process, shift = VP, TimeShift(window=0.1, data_variance=0.1)
    x = process.perturb(model(process, 0.1).sample(64, 3), 0.5, random.normal((64, D), 4, dtype=F64))
    x = x * torch.linspace(0.5, 1.3, 64, dtype=F64)[:, None]
    found = shift.label(Problem(model(), (1.0, 0.5)), x, 0.5)
    labels = torch.linspace(0.45, 0.55, 1025, dtype=F64)
    known = process.sigma(labels) ** 2 + 0.1 * process.alpha(labels) ** 2
    brute = labels[(x.var(1)[:, None] - known).abs().argmin(1)]
    torch.testing.assert_close(found, brute, rtol=0, atol=1e-12)
    assert found.min().item() == pytest.approx(0.45)
    assert found.max().item() == pytest.approx(0.55)


def test_scaling_to_another_levels_noise_moves_the_label_there():
    shift, problem = TimeShift(window=0.5), Problem(model(VP, 0.0), (1.0, 0.5))
    x = VP.level(0.5).sigma * random.normal((1, 200_000), 1, dtype=F64)
    for t in (0.4, 0.6):
        moved = shift.label(problem, x * VP.level(t).sigma / VP.level(0.5).sigma, 0.5)
        assert moved.item() == pytest.approx(t, abs=1e-2)


def test_the_rule_written_out_for_ddim():
    grid, window, cutoff = [1.0, 0.8, 0.6, 0.4, 0.2], 0.1, 0.3
    x = random.normal((4, D), 1, dtype=F64)
    field = FunctionDenoiser(lambda x, t: 1.03 * model()(x, t).eps, VP, targets.Noise())
    state, label = x, None
    for t, u in pairwise(grid):
        here = torch.full((4,), t, dtype=F64) if label is None else label
        a, s = (c[:, None] for c in (VP.alpha(here), VP.sigma(here)))
        eps = field(state, here).eps
        state = VP.level(u).alpha * (state - s * eps) / a + VP.level(u).sigma * eps
        label = None
        if u > cutoff:
            v = state.var(1).clamp(max=1 - 1e-9)
            label = VP.time(0.5 * ((1 - v) / v).log()).clamp(u - window / 2, u + window / 2)
            label = torch.linspace(u - window / 2, u + window / 2, 1025, dtype=F64)[
                ((label - u + window / 2) * 1024 / window).round().long()
            ]
    made = sample(field, x, solver=TimeShift(window=window, cutoff=cutoff), times=grid)
    torch.testing.assert_close(made, state, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("base", [DDIM(), DDPM(), PNDM(2, "euler")], ids=repr)
def test_samples_do_not_see_one_another(base):
    solver = TimeShift(base, window=0.1, data_variance=0.05)
    x = random.normal((5, D), 1, dtype=F64)
    whole = sample(model(), x, solver=solver, steps=6, seed=2)
    one = sample(model(), x[3:4], solver=solver, steps=6, seed=2, index=3)
    torch.testing.assert_close(one, whole[3:4], rtol=1e-9, atol=1e-9)
    assert sample(model(), x[:0], solver=solver, steps=6).shape == (0, D)


@pytest.mark.parametrize(("base", "each"), [(DDIM(), 1), (PNDM(2, "euler"), 1), (Heun(), 2)])
def test_it_costs_no_evaluation(base, each):
    counter = CountingDenoiser(model())
    sample(counter, random.normal((2, D), 1, dtype=F64), solver=TimeShift(base), times=[1.0, 0.8, 0.6, 0.4])
    assert counter.evaluations == 3 * each == 3 * TimeShift(base).evaluations


def test_an_endpoint_is_taken_off_before_the_variance():
    process, y = processes.MeanReverting(), 3.0 * random.normal((6, D), 5, dtype=F64)
    x = process.perturb(torch.zeros_like(y), 0.5, random.normal((6, D), 6, dtype=F64), y)
    found = TimeShift(window=0.4).label(Problem(model(process), (1.0, 0.5), {"y": y}), x, 0.5)
    torch.testing.assert_close(found, torch.full((6,), 0.5, dtype=F64), rtol=0, atol=0.02)
    start = process.prior((6, D), 1, y=y, dtype=F64)
    made = sample(model(process), start, solver=TimeShift(DDIM(), window=1e-9, cutoff=0.01), steps=5, cond={"y": y})
    torch.testing.assert_close(
        made, sample(model(process), start, solver=DDIM(), steps=5, cond={"y": y}), rtol=1e-5, atol=1e-5
    )


def test_only_the_target_is_shifted_in_the_released_variant():
    told = []

    def field(x, t):
        told.append(t)
        return model()(x, t).x0

    x = random.normal((3, D), 1, dtype=F64)
    solver = TimeShift(DDIM(), window=0.1, cutoff=0.3, variant="target-only")
    made = sample(FunctionDenoiser(field, VP), x, solver=solver, times=[1.0, 0.75, 0.5, 0.25])
    assert [t.unique().item() if isinstance(t, torch.Tensor) else t for t in told] == [1.0, 0.75, 0.5]
    # The first step is exact; the second ends at the window's upper edge, since the state still has the noise of its start.
    first = sample(model(), x, solver=DDIM(), times=[1.0, 0.75])
    second = sample(model(), first, solver=DDIM(), times=[0.75, 0.55])
    estimate = model()(second, 0.5)
    expected = VP.level(0.25).alpha * estimate.x0 + VP.level(0.25).sigma * estimate.eps
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)


def test_which_bases_step_exactly():
    assert all(_exact(base, VP) for base in (DDIM(), DDPM(), Euler("noise")))
    assert not any(_exact(base, VP) for base in (DPMSolver(2), PNDM(2, "euler"), Heun()))


def test_epsilon_scaling():
    inner, x = mixture(), random.normal((4, 2), 1, dtype=F64)
    assert EpsilonScaling(inner, 1.0)(x, 0.4).x0 is not None
    torch.testing.assert_close(EpsilonScaling(inner, 1.0)(x, 0.4).eps, inner(x, 0.4).eps, rtol=0, atol=0)
    torch.testing.assert_close(EpsilonScaling(inner, 1.25)(x, 0.4).eps, inner(x, 0.4).eps / 1.25)
    with pytest.raises(InputError, match="factor"):
        EpsilonScaling(inner, 0.0)


def test_a_network_gets_the_labels():
    seen = []

    def network(x, t):
        seen.append(t)
        return x

    denoiser = NetworkDenoiser(network, VP, targets.Noise(), event=(D,))
    tw.sample(denoiser, 3, solver=TimeShift(window=0.1), times=[1.0, 0.7, 0.4])
    assert seen[0].tolist() == [1.0] * 3
    assert len(set(seen[1].tolist())) > 1
    assert bool((seen[1] >= 0.65 - 1e-6).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": -0.1}, "window"),
        ({"cutoff": 2.0}, "cutoff"),
        ({"data_variance": -1.0}, "data_variance"),
        ({"variant": "other"}, "variant"),
        ({"base": TimeShift()}, "base"),
        ({"base": tw.solvers.AdaptiveDPM()}, "base"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        TimeShift(**options)


def test_what_does_not_fit_is_refused():
    x = random.normal((2, D), 1)
    with pytest.raises(IncompatibleError, match="data_variance"):
        sample(model(), x, solver=TimeShift(data_variance=1.5), steps=4)
    with pytest.raises(IncompatibleError, match="falling"):
        tw.invert(model(), x, solver=TimeShift(), steps=4)
    with pytest.raises(IncompatibleError, match="each sample"):
        sample(model(), x, solver=TimeShift(), times=torch.tensor([[1.0, 1.0], [0.1, 0.2]]))
    with pytest.raises(IncompatibleError, match="two-sided"):
        sample(
            FunctionDenoiser(lambda x, t: x, processes.Interpolant()), x, solver=TimeShift(Euler("velocity")), steps=3
        )
    with pytest.raises(InputError, match="two elements"):
        sample(mixture(), random.normal((2, 1), 1), solver=TimeShift(), times=grids.uniform(VP, 3))
