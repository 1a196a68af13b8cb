"""Grids that were found for a model: their own levels, levels in between, and the way through JSON."""

import json

import pytest
import torch

from tweed import processes
from tweed.core import grids
from tweed.core.fitted_grid import FittedGrid
from tweed.errors import CheckpointError, InputError

LEVELS = (-4.0, -2.5, -0.5, 0.25, 3.0)


def fitted(steps=4, **options):
    return FittedGrid(LEVELS, "DPMSolver", steps, 0.01, 0.02, **options)


@pytest.mark.parametrize(
    "process", [processes.VP(), processes.EDM(), processes.Cosine(), processes.RectifiedFlow()], ids=repr
)
def test_it_gives_its_own_levels_at_its_own_ends(process):
    start, end = process.time(LEVELS[0]).item(), process.time(LEVELS[-1]).item()
    times = fitted()(process, 4, start=start, end=end)
    torch.testing.assert_close(process.log_snr(times), torch.tensor(LEVELS, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 17])
def test_other_numbers_of_steps_follow_the_same_curve(steps):
    process = processes.VP()
    start, end = process.time(LEVELS[0]).item(), process.time(LEVELS[-1]).item()
    times = fitted()(process, steps, start=start, end=end)
    assert len(times) == steps + 1
    assert (times[0].item(), times[-1].item()) == (start, end)
    assert bool((times[1:] < times[:-1]).all())


def test_twice_the_steps_pass_through_the_same_levels():
    process = processes.VP()
    start, end = process.time(LEVELS[0]).item(), process.time(LEVELS[-1]).item()
    times = fitted()(process, 8, start=start, end=end)
    torch.testing.assert_close(
        process.log_snr(times[::2]), torch.tensor(LEVELS, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_equal_levels_are_the_grid_in_log_snr():
    process = processes.VP()
    first, last = (process.level(t).log_snr for t in (1.0, 1e-3))
    levels = torch.linspace(first, last, 7, dtype=torch.float64).tolist()
    for steps in (6, 11):
        times = FittedGrid(tuple(levels), "DDIM", 6, 1.0, 1.0)(process, steps, end=1e-3)
        torch.testing.assert_close(times, grids.log_snr(process, steps, end=1e-3), rtol=0, atol=1e-9)


def test_infinite_ends_are_a_step_away_from_its_own_ends():
    times = fitted(6)(processes.RectifiedFlow(), 6)
    assert (times[0].item(), times[-1].item()) == (1.0, 0.0)
    levels = processes.RectifiedFlow().log_snr(times[1:-1])
    torch.testing.assert_close(levels, torch.tensor(LEVELS, dtype=torch.float64), rtol=0, atol=1e-9)


def test_another_range_keeps_the_proportions():
    process = processes.VP()
    times = fitted()(process, 4, start=0.8, end=0.1)
    found, own = process.log_snr(times), torch.tensor(LEVELS, dtype=torch.float64)
    torch.testing.assert_close((found - found[0]) / (found[-1] - found[0]), (own - own[0]) / 7.0, rtol=0, atol=1e-9)


def test_the_way_through_json_and_back():
    grid = fitted(jump=True)
    assert FittedGrid.from_dict(json.loads(json.dumps(grid.as_dict()))) == grid


@pytest.mark.parametrize(
    "change",
    [{"log_snr": [1.0]}, {"log_snr": [0.0, -1.0]}, {"log_snr": "x"}, {"steps": 40}, {"steps": None}, {"more": 1}],
)
def test_what_is_no_grid_is_refused(change):
    with pytest.raises(CheckpointError, match="grid"):
        FittedGrid.from_dict(fitted().as_dict() | change)


def test_levels_must_rise_and_be_finite():
    for levels in ((0.0,), (1.0, 0.0), (0.0, float("inf"))):
        with pytest.raises(InputError, match="log_snr"):
            FittedGrid(levels, "DDIM", 1, 0.1, 0.1)
