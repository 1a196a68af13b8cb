import pytest
import torch

import tweed as tw
from tweed.errors import InputError
from tweed.training import EMA, PowerEMA, reconstruct, reconstruct_weights
from tweed.training.ema import update


def follow(average, values):
    held = [torch.zeros_like(values[0])]
    for step, value in enumerate(values, 1):
        update(held, [value], average.at(step))
    return held[0]


def test_constant_decay_is_the_geometric_sum():
    values = [tw.random.normal((4,), i, dtype=torch.float64) for i in range(30)]
    expected = sum(0.1 * 0.9 ** (29 - i) * v for i, v in enumerate(values))
    torch.testing.assert_close(follow(EMA(0.9, warmup=False), values), expected)


def test_warm_up_forgets_the_start_and_reaches_the_decay():
    assert EMA(0.999).at(1) == pytest.approx(0.1)
    assert EMA(0.999).at(10**6) == 0.999
    assert EMA(0.5).at(100) == 0.5
    with pytest.raises(InputError, match="decay"):
        EMA(1.0)


@pytest.mark.parametrize("width", [0.03, 0.1, 0.2])
def test_power_profile_is_the_telescoping_sum_and_has_its_width(width):
    average, n = PowerEMA(width), 4000
    values = list(torch.eye(8, dtype=torch.float64)) * (n // 8)
    g = average.gamma + 1.0
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    weights = (steps[1:] ** g) - (steps[:-1] ** g)
    expected = sum(weights[i::8].sum() * torch.eye(8, dtype=torch.float64)[i] for i in range(8))
    torch.testing.assert_close(follow(average, values), expected, rtol=1e-9, atol=1e-12)
    middle = steps[1:]
    mean = (weights * middle).sum()
    assert (weights * (middle - mean) ** 2).sum().sqrt().item() == pytest.approx(width, rel=2e-3)


def test_reconstruction_of_any_profile_from_two():
    # Weights that drift and wander, as in training.
    n = 1000
    path = torch.stack([tw.random.normal((16,), i, dtype=torch.float64) for i in range(n)]).cumsum(0) / n**0.5
    averages = (PowerEMA(0.05), PowerEMA(0.1))
    stored, held = [], [[torch.zeros(16, dtype=torch.float64)] for _ in averages]
    truth = {width: [torch.zeros(16, dtype=torch.float64)] for width in (0.04, 0.07, 0.12, 0.05)}
    for step in range(1, n + 1):
        for average, value in zip(averages, held, strict=True):
            update(value, [path[step - 1]], average.at(step))
        for width, value in truth.items():
            update(value, [path[step - 1]], PowerEMA(width).at(step))
        if step % 50 == 0:
            stored += [(step, a.gamma, {"w": v[0].clone()}) for a, v in zip(averages, held, strict=True)]
    for width, value in truth.items():
        made = reconstruct(stored, (n, PowerEMA(width).gamma))["w"]
        error = (made - value[0]).norm() / (path[-1] - value[0]).norm()
        assert error < (1e-3 if width == 0.05 else 0.02), (width, error)


def test_a_stored_profile_is_reproduced_exactly():
    stored = [(step, gamma) for step in (100, 200, 300) for gamma in (6.94, 16.97)]
    for i, wanted in enumerate(stored):
        weights = reconstruct_weights(stored, wanted)
        torch.testing.assert_close(weights, torch.eye(6, dtype=torch.float64)[i], rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="step 400"):
        reconstruct_weights(stored, (400, 6.94))
    with pytest.raises(InputError, match="stored"):
        reconstruct_weights([], (400, 6.94))
    with pytest.raises(InputError, match="width"):
        PowerEMA(0.3)
