"""The arguments of `sample` and `invert`, and what they say when something is wrong."""

from functools import partial

import pytest
import torch

import tweed as tw
from tweed.core.processes import VP, Interpolant, RectifiedFlow
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.solvers import DDIM, DDPM, AdaptiveRungeKutta, PredictorCorrector

GAUSSIAN = tw.GaussianDenoiser(torch.tensor([1.0, -1.0]), 0.5, VP())
START = tw.random.normal((4, 2), 1)


def labelled():
    return tw.MixtureDenoiser(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.1, None, VP(), torch.tensor([0, 1]))


@pytest.mark.parametrize("times", [(1.0, 0.5, 0.5, 0.0), (0.2, 0.8), torch.tensor([[1.0, 1.0], [0.5, 1.0]])])
def test_times_must_fall(times):
    with pytest.raises(InputError, match=r"times\[\d\] is not below times\[\d\]"):
        tw.sample(GAUSSIAN, START[:2], times=times)


@pytest.mark.parametrize("times", [(1.2, 0.5), (1.0, -0.1)])
def test_times_must_lie_in_the_unit_interval(times):
    with pytest.raises(InputError, match=r"expected times in \[0, 1\]"):
        tw.sample(GAUSSIAN, START, times=times)


def test_times_and_steps_exclude_each_other_and_are_counted():
    with pytest.raises(InputError, match="either times, or steps"):
        tw.sample(GAUSSIAN, START, times=(1.0, 0.0), steps=3)
    with pytest.raises(InputError, match="at least two times"):
        tw.sample(GAUSSIAN, START, times=(1.0,))
    for steps in (0, -1, 2.5):
        with pytest.raises(InputError, match="steps"):
            tw.sample(GAUSSIAN, START, steps=steps)
    with pytest.raises(InputError, match="grid for 3 samples"):
        tw.sample(GAUSSIAN, START, times=torch.tensor([[1.0] * 3, [0.5] * 3]))


def test_what_is_no_solver_denoiser_or_start_is_named():
    with pytest.raises(InputError, match=r"solver: 'DDIM'"):
        tw.sample(GAUSSIAN, 2, solver="DDIM")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="solver"):
        tw.sample(GAUSSIAN, 2, solver=DDIM)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="NetworkDenoiser"):
        tw.sample(torch.nn.Identity(), 2)  # type: ignore[arg-type]
    for start in (-1, 2.0, True, None):
        with pytest.raises(InputError, match="n_or_start"):
            tw.sample(GAUSSIAN, start)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shape"):
        tw.sample(tw.FunctionDenoiser(lambda x, t: x, VP()), 2)


def test_conditions_have_one_row_a_sample():
    with pytest.raises(InputError, match=r"'label'.*expected 4 rows"):
        tw.sample(labelled(), 4, cond={"label": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(InputError, match="'label'"):
        tw.sample(labelled(), 4, cond={"label": torch.tensor(1)})
    with pytest.raises(InputError, match="'label' is a int"):
        tw.sample(labelled(), 4, cond={"label": 1})  # type: ignore[dict-item]
    one = tw.sample(labelled(), 4, cond={"label": torch.tensor([1])})
    torch.testing.assert_close(one, tw.sample(labelled(), 4, cond={"label": torch.ones(4, dtype=torch.int64)}))
    torch.testing.assert_close(tw.sample(labelled(), 4, cond={"label": None}), tw.sample(labelled(), 4))  # type: ignore[dict-item]


def test_inversion_needs_a_deterministic_solver():
    for solver in (DDPM(), PredictorCorrector()):
        with pytest.raises(InputError, match="deterministic"):
            tw.invert(GAUSSIAN, START, solver=solver)


def test_inversion_returns_on_the_same_times():
    times = torch.linspace(1.0, 0.01, 400)
    # First order, 400 steps.
    there = tw.invert(GAUSSIAN, START.double(), times=times)
    torch.testing.assert_close(tw.sample(GAUSSIAN, there, times=times), START.double(), rtol=0, atol=0.03)
    # Without times, inversion of clean data begins at t_min: the state is finite.
    assert tw.invert(GAUSSIAN, START, steps=5).isfinite().all()


def test_a_two_sided_process_is_refused_by_gaussian_solvers():
    mixture = tw.MixtureDenoiser(torch.zeros(1, 2), 1.0)
    denoiser = tw.MixtureInterpolantDenoiser(mixture, mixture, Interpolant(latent="sine"))
    for run in (tw.sample, tw.invert):
        with pytest.raises(IncompatibleError, match=r"DDIM.*two-sided"):
            run(denoiser, START, solver=DDIM())


def test_a_network_that_breaks_is_named_with_its_step():
    def network(x, t):
        return torch.where(t.reshape(-1, 1) < 0.55, torch.nan, x)

    denoiser = tw.NetworkDenoiser(network, VP(), tw.targets.Noise(), event=(2,))
    with pytest.raises(NumericalError, match=r"step 5 of 10 \(to t = 0\.4"):
        tw.sample(denoiser, 3, steps=10)
    bad = START.clone()
    bad[2, 0] = torch.inf
    with pytest.raises(NumericalError, match=r"its start.*\[2\]"):
        tw.sample(GAUSSIAN, bad)


def test_a_network_of_the_wrong_shape_is_named():
    denoiser = tw.NetworkDenoiser(lambda x, t: x[:, :1], VP(), tw.targets.Noise(), event=(2,))
    with pytest.raises(InputError, match=r"network.*\(3, 1\).*\(3, 2\)"):
        tw.sample(denoiser, 3)


def test_numbers_of_samples_seeds_and_indices():
    six = tw.sample(GAUSSIAN, 6, solver=DDPM(), steps=4, seed=7)
    torch.testing.assert_close(tw.sample(GAUSSIAN, 2, solver=DDPM(), steps=4, seed=7, index=3), six[3:5])
    assert not torch.allclose(tw.sample(GAUSSIAN, 6, solver=DDPM(), steps=4, seed=8), six)
    assert tw.sample(GAUSSIAN, 0).shape == (0, 2)
    assert tw.sample(GAUSSIAN, 1, steps=1).shape == (1, 2)


def test_the_trajectory_has_every_state_the_observer_saw():
    seen = []

    def observer(x, t, i):
        seen.append((t, i))
        return x.clamp(-1, 1)

    path = tw.sample(GAUSSIAN, START, times=(1.0, 0.6, 0.2, 0.0), trajectory=True, observer=observer)
    assert path.shape == (4, 4, 2)
    assert seen == [(0.6, 0), (0.2, 1), (0.0, 2)]
    torch.testing.assert_close(path[0], START)
    assert path[1:].abs().max() <= 1
    quiet = tw.sample(GAUSSIAN, START, times=(1.0, 0.6, 0.2, 0.0), observer=lambda x, t, i: None)
    torch.testing.assert_close(quiet, tw.sample(GAUSSIAN, START, times=(1.0, 0.6, 0.2, 0.0)))


def test_starts_bring_their_times():
    x0 = torch.tensor([[1.0, -1.0]]).expand(4, 2)
    one = tw.starts.noised(VP(), x0, 0.4, 1)
    torch.testing.assert_close(
        tw.sample(GAUSSIAN, one, steps=5), tw.sample(GAUSSIAN, one.x, times=torch.linspace(0.4, 0, 6))
    )
    own = tw.starts.noised(VP(), x0, torch.tensor([0.2, 0.4, 0.6, 0.8]), 1)
    many = tw.sample(GAUSSIAN, own, steps=5)
    alone = tw.starts.Start(own.x[2:3], 0.6)
    torch.testing.assert_close(many[2:3], tw.sample(GAUSSIAN, alone, steps=5), rtol=1e-5, atol=1e-5)


def test_gradients_flow_only_where_asked():
    start = START.clone().requires_grad_()
    assert not tw.sample(GAUSSIAN, start, steps=3).requires_grad
    (gradient,) = torch.autograd.grad(tw.sample(GAUSSIAN, start, steps=3, gradients=True).sum(), start)
    assert gradient.abs().min() > 0


def test_grids_with_options_and_adaptive_solvers():
    grid = partial(tw.grids.uniform, shift=3.0)
    flow = tw.GaussianDenoiser(torch.tensor([1.0, -1.0]), 0.5, RectifiedFlow())
    times = grid(RectifiedFlow(), 6)
    torch.testing.assert_close(tw.sample(flow, START, steps=6, grid=grid), tw.sample(flow, START, times=times))
    x = tw.sample(flow, START.double(), solver=AdaptiveRungeKutta(), trajectory=True, progress=True)
    assert x.shape == (2, 4, 2)
    assert (x[-1] - flow.flow(START, 1.0, 0.0)).abs().max() < 0.01
