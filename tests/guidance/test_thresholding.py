"""Thresholding: what is within the range is left alone, what is beyond is clipped or rescaled."""

import pytest
import torch

import tweed as tw
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.exact import GaussianDenoiser
from tweed.core.random import normal
from tweed.errors import InputError
from tweed.guidance import Thresholding

WILD = FunctionDenoiser(lambda x, t: 3.0 * x, tw.processes.VP(), event=(8,))
X = normal((5, 8), 1)


def test_static_clipping():
    torch.testing.assert_close(Thresholding(WILD)(X, 0.4).x0, (3.0 * X).clamp(-1.0, 1.0))
    torch.testing.assert_close(Thresholding(WILD, 100.0)(X, 0.4).x0, 3.0 * X)


def test_dynamic_thresholds_are_each_samples_own():
    made = Thresholding(WILD, 1.0, 0.9)(X, 0.4).x0
    for row, raw in zip(made, 3.0 * X, strict=True):
        size = max(torch.quantile(raw.abs(), 0.9).item(), 1.0)
        torch.testing.assert_close(row, raw.clamp(-size, size) / size)
    small = Thresholding(FunctionDenoiser(lambda x, t: 0.1 * x, tw.processes.VP(), event=(8,)), 1.0, 0.9)
    torch.testing.assert_close(small(X, 0.4).x0, 0.1 * X)
    assert Thresholding(WILD, 1.0, 0.9)(X[:0], 0.4).x0.shape == (0, 8)


def test_samples_stay_within_and_the_time_limit_is_kept():
    exact = GaussianDenoiser(torch.zeros(8), 4.0, tw.processes.VP())
    assert tw.sample(exact, 50, steps=10).abs().max() > 2.0
    kept = Thresholding(exact)
    assert kept.t_max == exact.t_max
    assert tw.sample(kept, 50, steps=10).abs().max() <= 1.0 + 1e-5


def test_arguments_out_of_range():
    for bad in ({"limit": 0.0}, {"quantile": 0.0}, {"quantile": 1.5}):
        with pytest.raises(InputError, match="limit, quantile"):
            Thresholding(WILD, **bad)
