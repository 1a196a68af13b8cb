"""Starts by transport: of the right law, the same in any batch, and next to a mode from the first step on."""

import pytest
import torch

import tweed as tw
from tweed import processes, random
from tweed.core.exact import EmpiricalDenoiser
from tweed.data import grid_mixture
from tweed.errors import IncompatibleError, InputError
from tweed.metrics import mode_mixture_rate
from tweed.starts import transport

F64 = torch.float64
VE = processes.VE(0.01, 10.0)
MODES = grid_mixture(3, 1.0, 0.05).means
DATA = MODES.repeat(6, 1) + 0.05 * random.normal((54, 2), 4, dtype=F64)


@pytest.fixture(scope="module")
def found():
    t = VE.time(-torch.tensor(0.15, dtype=F64).log()).item()
    return transport(VE, DATA, t, seed=1, steps=400)


def test_stored_starts_are_the_noised_points_and_fresh_ones_their_density(found):
    stored = found.start(400, seed=2, dtype=F64).x
    assert torch.cdist(stored, found.map.targets).amin(1).max().item() < 1e-6
    fresh = found.start(20_000, seed=2, noise="fresh", dtype=F64).x
    sigma = VE.sigma(found.t).item()
    expected = found.clean.var(0, correction=0) + sigma**2
    torch.testing.assert_close(fresh.var(0), expected, rtol=0.05, atol=0.0)
    assert (found.map.targets - found.clean).std().item() == pytest.approx(sigma, rel=0.25)


@pytest.mark.parametrize("noise", ["stored", "fresh"])
def test_start_i_is_the_same_in_any_batch(found, noise):
    whole = found.start(6, 3, noise=noise)
    assert torch.equal(whole.x[4:], found.start(2, 3, index=4, noise=noise).x)
    assert found.start(0, noise=noise).x.shape == (0, 2)
    assert whole.t == found.t


def test_few_steps_leave_less_between_the_modes_and_reach_them_all(found):
    model = tw.MixtureDenoiser(MODES, 0.05**2, None, VE)
    ours = tw.sample(model, found.start(900, dtype=F64), solver=tw.solvers.DDIM(), steps=5)
    plain = tw.sample(model, 900, solver=tw.solvers.DDIM(), steps=5, dtype=F64)
    rates = [mode_mixture_rate(x, MODES, 0.2) for x in (ours, plain)]
    assert rates[0] < 0.2 * rates[1]
    assert len(torch.cdist(ours, MODES).argmin(1).unique()) == 9


@pytest.mark.parametrize("process", [processes.VP(), processes.RectifiedFlow()], ids=lambda p: type(p).__name__)
def test_any_gaussian_process(process):
    made = transport(process, DATA, 0.2, steps=200)
    model = EmpiricalDenoiser(DATA, 0.05, process)
    x = tw.sample(model, made.start(50, dtype=F64), solver=tw.solvers.DPMSolver(2), steps=8)
    assert torch.cdist(x, DATA).amin(1).median().item() < 0.2


def test_bad_input(found):
    with pytest.raises(IncompatibleError, match="endpoint"):
        transport(processes.MeanReverting(), DATA, 0.2)
    with pytest.raises(InputError, match="t: 1"):
        transport(VE, DATA, 1.0)
    with pytest.raises(InputError, match="data"):
        transport(VE, DATA[:0], 0.2)
    with pytest.raises(InputError, match="noise"):
        found.start(2, noise="other")
