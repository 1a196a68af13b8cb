"""Commitment: its time on a path whose responsibilities are known, and that it is the last time that counts."""

import math

import pytest
import torch

from tweed import processes
from tweed.analysis import commitment
from tweed.core.exact import MixtureDenoiser
from tweed.errors import InputError

EDM = processes.EDM(0.002, 80.0)
MIX = MixtureDenoiser(torch.tensor([[1.0], [-1.0]]), 0.0, process=EDM)
SIGMAS = [8.0, 4.0, 2.0, 1.0, 0.5, 0.25]
TIMES = [s / 80.0 for s in SIGMAS]


def test_the_time_is_where_the_matched_filter_says():
    # At x = 1 the log odds are 2 x / sigma^2: .95 is passed below sigma^2 = 2 / log 19.
    states = torch.ones(6, 1, 1)
    bound = math.sqrt(2.0 / math.log(19.0))
    found = commitment(MIX, states, TIMES)
    assert found.component.tolist() == [0]
    assert found.time.item() == max(t for t, s in zip(TIMES, SIGMAS, strict=True) if s < bound)
    later = commitment(MIX, states, TIMES, level=0.9999)
    assert later.time.item() < found.time.item()


def test_a_run_that_turns_round_commits_when_it_stays_and_one_in_the_middle_never():
    states = torch.tensor([-1.0, -9.0, 1.0, 1.0, -1.0, -1.0]).reshape(6, 1, 1)
    middle = torch.zeros(6, 1, 1)
    found = commitment(MIX, torch.cat((states, middle), 1), TIMES)
    assert found.component[0].item() == 1
    assert found.time[0].item() == TIMES[4]
    assert found.time[1].isnan().item()


def test_each_run_by_itself_and_no_runs():
    states = torch.randn(6, 4, 1, generator=torch.Generator().manual_seed(0))
    whole = commitment(MIX, states, TIMES)
    assert torch.equal(whole.time[2:3].nan_to_num(-1), commitment(MIX, states[:, 2:3], TIMES).time.nan_to_num(-1))
    assert commitment(MIX, states[:, :0], TIMES).time.shape == (0,)


def test_bad_input():
    with pytest.raises(InputError, match="times"):
        commitment(MIX, torch.zeros(3, 1, 1), TIMES)
    with pytest.raises(InputError, match="level"):
        commitment(MIX, torch.zeros(6, 1, 1), TIMES, level=1.0)
