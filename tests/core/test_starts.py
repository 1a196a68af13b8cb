"""Starts: states with the time they belong to."""

import pytest
import torch
from process_cases import LINEAR

import tweed as tw
from tweed import processes, starts
from tweed.errors import InputError


@pytest.mark.parametrize("process", LINEAR.values(), ids=LINEAR.keys())
@pytest.mark.parametrize("t", [0.4, torch.tensor(0.4), torch.full((20000,), 0.4)])
def test_noised_has_the_marginal(process, t):
    n = 20000
    x0, y = torch.full((n, 2), 1.5, dtype=torch.float64), torch.full((n, 2), -0.5, dtype=torch.float64)
    start = starts.noised(process, x0, t, seed=9, y=None if process.endpoint == "none" else y)
    level = process.level(0.4)
    mean = level.alpha * 1.5 + level.beta * -0.5
    if isinstance(t, torch.Tensor) and t.ndim == 0:
        t = t.item()
        assert start.t == t
    else:
        assert start.t is t
    # torch.tensor(0.4) is a float32: the marginal at its own value.
    assert start.x.mean().item() == pytest.approx(mean, abs=5 * level.sigma / (2 * n) ** 0.5 + 1e-6)
    assert start.x.std().item() == pytest.approx(level.sigma, rel=0.02)


def test_noised_is_addressed_by_seed_and_index():
    process, x0 = processes.VP(), torch.randn(10, 3)
    whole = starts.noised(process, x0, 0.5, seed=4, index=100).x
    assert torch.equal(starts.noised(process, x0[3:5], 0.5, seed=4, index=103).x, whole[3:5])
    assert not torch.equal(starts.noised(process, x0, 0.5, seed=5, index=100).x, whole)
    times = torch.linspace(0.1, 1.0, 10)
    mixed = starts.noised(process, x0, times, seed=4, index=100).x
    one = starts.noised(process, x0[2:3], times[2].item(), seed=4, index=102).x
    torch.testing.assert_close(mixed[2:3], one)
    assert torch.equal(starts.noised(process, x0, 0.0).x, x0)


def test_noised_works_in_float32_or_better():
    process = processes.VP()
    assert starts.noised(process, torch.zeros(3, 2).bfloat16(), 0.5).x.dtype == torch.float32
    pictures = starts.noised(process, torch.full((1000, 4), 7, dtype=torch.uint8), 0.5).x
    level = process.level(0.5)
    assert pictures.dtype == torch.float32
    assert pictures.std().item() == pytest.approx(level.sigma, rel=0.05)
    assert starts.noised(process, torch.zeros(0, 2), 0.5).x.shape == (0, 2)


def test_stack_keeps_each_time():
    a = tw.Start(torch.zeros(2, 3), 0.5)
    b = starts.noised(processes.VP(), torch.ones(3, 3), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    both = starts.stack(a, b)
    assert both.t.tolist() == [0.5, 0.5, 0.1, 0.2, 0.3]
    assert torch.equal(both.x, torch.cat([a.x, b.x]))
    assert starts.stack(a).t.tolist() == [0.5, 0.5]


def test_bad_input_is_named():
    x = torch.zeros(4, 2)
    for t in (torch.rand(3), torch.rand(4, 2)):
        with pytest.raises(InputError, match="t: shape"):
            starts.noised(processes.VP(), x, t)
    with pytest.raises(InputError, match=r"t: 1\.5"):
        starts.noised(processes.VP(), x, 1.5)
    with pytest.raises(InputError, match="y: OUVE"):
        starts.noised(processes.OUVE(), x, 0.5)
    with pytest.raises(InputError, match="starts: none"):
        starts.stack()
