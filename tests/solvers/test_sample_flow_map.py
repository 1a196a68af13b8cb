"""Sampling with flow maps: composition, fresh noise, invariances, refusals."""

import pytest
import torch

import tweed as tw
from tweed import processes
from tweed.core import random
from tweed.core.flow_map import ConsistencyModel, GaussianFlow, MeanFlow
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.solvers.flow_map import sample_flow_map

F64 = torch.float64
FOUR = (1.0, 0.7, 0.4, 0.1, 0.0)
PROCESSES = [processes.VP(), processes.VE(), processes.EDM(), processes.RectifiedFlow(), processes.Cosine()]


def flow(process):
    return GaussianFlow(tw.GaussianDenoiser(torch.tensor([1.0, -1.0]), torch.tensor([0.25, 2.0]), process))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_composition_of_an_exact_map_is_one_jump(process):
    model = flow(process)
    once = sample_flow_map(model, 16, seed=3, dtype=F64)
    torch.testing.assert_close(sample_flow_map(model, 16, times=FOUR, seed=3, dtype=F64), once, atol=1e-9, rtol=1e-9)
    start = process.prior((16, 2), 3, dtype=F64)
    torch.testing.assert_close(once, model(start, 1.0, 0.0))


@pytest.mark.parametrize("renoise", [0.4, 1.0])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_fresh_noise_keeps_the_distribution(process, renoise):
    # From exact states of time 0.9 an exact map gives exact data, however much of the noise is renewed.
    model, n = flow(process), 40_000
    data = model.exact.sample(n, 5)
    state = process.perturb(data, 0.9, random.normal((n, 2), 6, dtype=F64))
    x = sample_flow_map(model, state, times=(0.9, 0.5, 0.2, 0.0), renoise=renoise, seed=7)
    low = process.level(0.0)  # VE's data carry the noise of t = 0
    variance = torch.tensor([0.25, 2.0], dtype=F64) + low.sigma**2
    error = (variance / n).sqrt()
    assert ((x.mean(0) - torch.tensor([1.0, -1.0])).abs() < 4.5 * error).all()
    assert ((x.var(0) / variance - 1.0).abs() < 4.5 * (2.0 / n) ** 0.5).all()
    # And the noise is fresh: the ends are not those of the composition.
    kept = sample_flow_map(model, state, times=(0.9, 0.5, 0.2, 0.0))
    apart = ((x - kept) ** 2).mean(0) / variance
    assert (apart > 0.01).all()


def test_full_renewal_forgets_the_state_up_to_the_data():
    # By hand: data, noise added up to the level of 0.5, data again.
    process = processes.EDM()
    model = ConsistencyModel(lambda x, t: torch.tanh(x + 0.2), process, data_std=0.5)
    start = process.prior((6, 2), 1)
    x = sample_flow_map(model, start, times=(1.0, 0.5, 0.0), renoise=1.0, seed=4)
    noise = random.normal((6, 2), 4, draw=1)
    again = model(start, 1.0) + (40.0**2 - 0.002**2) ** 0.5 * noise
    torch.testing.assert_close(x, model(again, 0.5), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "process", [processes.MeanReverting(), processes.OUVE(), processes.Residual()], ids=lambda p: type(p).__name__
)
def test_around_an_endpoint(process):
    model = GaussianFlow(tw.GaussianDenoiser(torch.zeros(2), 0.5, process))
    x, y = random.normal((8, 2), 1, dtype=F64), random.normal((8, 2), 2, dtype=F64)
    zero = torch.zeros_like(y)
    for renoise in (0.0, 0.6, 1.0):
        options = {"times": (1.0, 0.5, 0.0), "renoise": renoise, "seed": 1}
        moved = sample_flow_map(model, x + process.beta(1.0) * y, cond={"y": y}, **options)
        torch.testing.assert_close(moved, sample_flow_map(model, x, cond={"y": zero}, **options))


def test_samples_do_not_depend_on_the_batch():
    model = flow(processes.RectifiedFlow())
    options = {"times": FOUR, "renoise": 0.7, "seed": 9}
    whole = sample_flow_map(model, 10, **options)
    parts = [sample_flow_map(model, 3, index=0, **options), sample_flow_map(model, 7, index=3, **options)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, sample_flow_map(model, 10, times=FOUR, renoise=0.7, seed=10))
    assert sample_flow_map(model, 0).shape == (0, 2)
    assert whole.dtype == F64  # the exact map answers so


def test_gradients_only_where_asked():
    scale = torch.nn.Parameter(torch.ones(()))
    model = MeanFlow(lambda x, t, s: scale * x, event=(2,))
    assert not sample_flow_map(model, 2).requires_grad
    sample_flow_map(model, 2, gradients=True).sum().backward()
    assert scale.grad is not None


def test_refusals():
    model = flow(processes.RectifiedFlow())
    for times in ((1.0,), (0.0, 1.0), (1.0, 1.0), (1.5, 0.0), (1.0, -0.1)):
        with pytest.raises(InputError, match="times"):
            sample_flow_map(model, 2, times=times)
    with pytest.raises(InputError, match="renoise"):
        sample_flow_map(model, 2, renoise=1.5)
    with pytest.raises(InputError, match="shape"):
        sample_flow_map(MeanFlow(lambda x, t, s: x), 2)
    two_sided = MeanFlow(lambda x, t, s: x, processes.Interpolant(), event=(2,))
    with pytest.raises(IncompatibleError, match="renoise"):
        sample_flow_map(two_sided, torch.zeros(2, 2), renoise=0.5)
    consistency = ConsistencyModel(lambda x, t: x, processes.EDM(), event=(2,))
    with pytest.raises(IncompatibleError, match="renoise=1"):
        sample_flow_map(consistency, 2, times=(1.0, 0.5, 0.0))
    with pytest.raises(NumericalError, match="MeanFlow"):
        sample_flow_map(MeanFlow(lambda x, t, s: x / 0.0, event=(2,)), 2)
