"""Pairs: what `sample` and `invert` return and take for solvers whose runs can be undone."""

import pytest
import torch
from solver_cases import mixture, noisy

import tweed as tw
from tweed import processes
from tweed.core import grids
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.solvers import BDIA, DDIM, EDICT, Pair

VP = processes.VP()
X0 = noisy(VP, 1e-3)


def inverted(solver=None, **options):
    return tw.invert(mixture(), X0, solver=solver or BDIA(), **(options or {"steps": 8}))


def test_a_pair_brings_its_solver_and_its_grid():
    pair = inverted()
    assert isinstance(pair, Pair)
    assert (pair.end, len(pair.times), pair.solver, pair.process) == ("noise", 9, BDIA(), VP)
    for same in ({}, {"steps": 8}, {"solver": BDIA()}, {"times": pair.times}, {"grid": grids.uniform, "steps": 8}):
        torch.testing.assert_close(tw.sample(mixture(), pair, **same), X0, rtol=0, atol=1e-12)


def test_a_pair_of_another_run_is_refused():
    pair, denoiser = inverted(), mixture()
    for solver in (BDIA(0.9), BDIA(float64=False), EDICT(), DDIM()):
        with pytest.raises(IncompatibleError, match=r"solver: .*made by BDIA"):
            tw.sample(denoiser, pair, solver=solver)
    with pytest.raises(InputError, match=r"steps: 9 was given; the pair was made in 8"):
        tw.sample(denoiser, pair, steps=9)
    with pytest.raises(InputError, match="another grid"):
        tw.sample(denoiser, pair, times=torch.linspace(1.0, 0.0, 9))
    with pytest.raises(InputError, match="another grid"):
        tw.sample(denoiser, pair, grid=grids.log_snr)
    with pytest.raises(IncompatibleError, match="process"):
        tw.sample(mixture(processes.EDM()), pair)
    with pytest.raises(InputError, match=r"at the noise end.*tweed\.sample"):
        tw.invert(denoiser, pair)
    with pytest.raises(InputError, match=r"at the data end.*tweed\.invert"):
        tw.sample(denoiser, tw.sample(denoiser, 2, solver=BDIA(), steps=4, return_pair=True))
    with pytest.raises(InputError, match="NetworkDenoiser"):
        tw.sample(torch.nn.Identity(), pair)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="partner"):
        Pair(X0, X0[:2], "noise", (1.0, 0.0), BDIA(), VP)


def test_only_solvers_with_pairs_return_them():
    with pytest.raises(IncompatibleError, match="DDIM carries no pair"):
        tw.sample(mixture(), 2, solver=DDIM(), steps=3, return_pair=True)
    with pytest.raises(InputError, match="either return_pair or trajectory"):
        tw.sample(mixture(), 2, solver=BDIA(), steps=3, return_pair=True, trajectory=True)
    assert isinstance(tw.invert(mixture(), X0, solver=DDIM(), steps=3), torch.Tensor)
    assert isinstance(tw.sample(mixture(), 2, solver=BDIA(), steps=3), torch.Tensor)


@pytest.mark.parametrize("solver", [BDIA(0.9), EDICT()], ids=repr)
def test_samples_are_the_states_of_their_pair(solver):
    pair = tw.sample(mixture(), 3, solver=solver, steps=6, seed=4, return_pair=True)
    assert torch.equal(tw.sample(mixture(), 3, solver=solver, steps=6, seed=4), pair.states)
    assert pair.states.dtype == torch.float32
    start = VP.prior((3, 2), 4)
    torch.testing.assert_close(tw.invert(mixture(), pair).states, start, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", [BDIA(), EDICT()], ids=repr)
def test_part_of_a_batch_goes_on_alone(solver):
    pair = inverted(solver)
    part = pair.select([1, 4])
    assert (len(pair), len(part)) == (8, 2)
    torch.testing.assert_close(tw.sample(mixture(), part), X0[[1, 4]], rtol=0, atol=1e-12)
    moved = pair.to("cpu")
    torch.testing.assert_close(tw.sample(mixture(), moved), X0, rtol=0, atol=1e-12)
    own = torch.stack([torch.linspace(1.0, low, 5, dtype=torch.float64) for low in (0.1, 0.2, 0.3)], 1)
    each = tw.invert(mixture(), X0[:3], solver=solver, times=own).select(slice(1, 2))
    torch.testing.assert_close(tw.sample(mixture(), each), X0[1:2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [BDIA(), EDICT()], ids=repr)
def test_trajectories_run_through_the_same_states(solver):
    up = tw.invert(mixture(), X0, solver=solver, steps=7, trajectory=True)
    down = tw.sample(mixture(), inverted(solver, steps=7), trajectory=True)
    assert up.shape == down.shape == (8, *X0.shape)
    torch.testing.assert_close(down, up.flip(0), rtol=0, atol=1e-10)


def test_an_inversion_may_stop_on_the_way():
    times = grids.uniform(VP, 6, start=0.5, end=1e-3)
    pair = inverted(times=times)
    assert pair.times[0] == 0.5
    torch.testing.assert_close(tw.sample(mixture(), pair), X0, rtol=0, atol=1e-12)


def test_the_step_that_breaks_is_named_from_a_pair_too():
    def network(x, t):
        return torch.where(t.reshape(-1, 1) < 0.55, torch.nan, 0.5 * x)

    broken = tw.NetworkDenoiser(network, VP, tw.targets.Noise(), event=(2,))
    with pytest.raises(NumericalError, match=r"BDIA.*step \d of 8"):
        tw.sample(broken, inverted())


def test_names_and_descriptions():
    from tweed.solvers.registry import describe, parse

    solver = parse("BDIA(gamma=0.9, increment=Heun, back=extrapolated)")
    assert solver == BDIA(0.9, tw.solvers.Heun(), "extrapolated")
    assert parse(describe(solver)) == solver
