import math

import pytest
import torch

import tweed as tw
from tweed.errors import InputError
from tweed.training import times

P = tw.processes.VP()


def test_low_discrepancy_covers_every_interval():
    for batch in (1, 7, 64):
        for step in range(20):
            t = times.Uniform("low-discrepancy")(P, batch, 3, step)
            assert t.shape == (batch,)
            assert sorted((t * batch).floor().long().tolist()) == list(range(batch))
            gaps = t.sort().values.diff()
            torch.testing.assert_close(gaps, torch.full_like(gaps, 1.0 / batch))


def test_stratified_covers_every_interval_independently():
    t = times.Uniform("stratified")(P, 64, 3, 5)
    assert (t * 64).floor().long().tolist() == list(range(64))
    assert (t.diff() - 1 / 64).abs().max() > 1e-3


@pytest.mark.parametrize("spread", ["independent", "low-discrepancy", "stratified"])
def test_each_time_is_uniform_over_steps(spread):
    draws = torch.cat([times.Uniform(spread)(P, 8, 0, step) for step in range(500)]).sort().values
    n = len(draws)
    distance = (draws - (torch.arange(n) + 0.5) / n).abs().max()
    assert distance < 1.63 / math.sqrt(n if spread == "independent" else 500)  # Kolmogorov-Smirnov at 1 %


def test_evenly_spread_times_have_a_smaller_variance():
    def spread_of_means(spread):
        return torch.stack([times.Uniform(spread)(P, 32, 0, s).exp().mean() for s in range(200)]).var()

    # For a smooth function 1 / batch^2 and 1 / batch^3 against 1 / batch.
    assert spread_of_means("low-discrepancy") < 0.1 * spread_of_means("independent")
    assert spread_of_means("stratified") < 0.01 * spread_of_means("independent")


@pytest.mark.parametrize("process", [tw.processes.EDM(), tw.processes.VP(), tw.processes.RectifiedFlow()], ids=repr)
def test_log_normal_is_normal_in_log_noise_level(process):
    t = times.LogNormal("stratified", mean=-1.2, std=0.8)(process, 20000, 0, 0)
    level = -process.log_snr(t)
    assert abs(level.mean() + 1.2) < 0.005
    assert abs(level.std() - 0.8) < 0.005


def test_logit_normal_and_log_snr_and_discrete():
    t = times.LogitNormal("stratified", mean=0.5, std=1.5)(P, 20000, 0, 0)
    assert abs(torch.logit(t).mean() - 0.5) < 0.01
    assert abs(torch.logit(t).std() - 1.5) < 0.01
    level = P.log_snr(times.LogSNR("stratified", least=-3.0, most=4.0)(P, 20000, 0, 0))
    assert level.min() > -3.0001
    assert level.max() < 4.0001
    assert abs(level.mean() - 0.5) < 0.01
    n = times.Discrete("stratified", steps=10)(P, 1000, 0, 0) * 10
    counts = torch.bincount(n.round().long(), minlength=11)
    assert counts[0] == 0
    assert (counts[1:] == 100).all()


def test_a_time_is_a_function_of_its_address():
    sampler = times.LogitNormal("independent")
    torch.manual_seed(1)
    first = sampler(P, 16, 7, 3)
    torch.rand(5)
    assert torch.equal(first, sampler(P, 16, 7, 3))
    assert not torch.equal(first, sampler(P, 16, 7, 4))
    assert not torch.equal(first, sampler(P, 16, 8, 3))


def test_range_and_bad_options():
    t = times.Uniform(low=0.2, high=0.3)(P, 100, 0)
    assert 0.2 <= t.min() <= t.max() <= 0.3
    assert times.Uniform()(P, 0, 0).shape == (0,)
    for options in ({"low": 0.5, "high": 0.5}, {"high": 1.5}, {"spread": "even"}):
        with pytest.raises(InputError):
            times.Uniform(**options)
    with pytest.raises(InputError, match="std"):
        times.LogNormal(std=0.0)
