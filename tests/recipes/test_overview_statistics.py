"""overview-statistics at its smallest scale, its trained parts at tiny settings, and wrong ingredients that are found out."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tweed.core.estimate import Estimate
from tweed.core.exact import SubspaceDenoiser
from tweed.core.targets import Data
from tweed.guidance import ClassifierFree, ClassifierGuidance, optimize, ridge
from tweed.recipes import _overview_exact as exact
from tweed.recipes import _overview_trained as trained
from tweed.recipes import overview_statistics as recipe
from tweed.recipes import silent
from tweed.recipes.registry import reproduce

TINY = trained.Sizes(
    dims=(4, 6), data=100, steps=3, batch=16, width=8, drawn=50, sweep=(40, 80), sweep_steps=3, reward_steps=3
)


def failed(rows):
    return {row.quantity for row in rows if row.holds is False}


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("overview-statistics", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == {"overview.png", "report.json", "report.md"}


def test_the_trained_part_runs_and_untrained_networks_are_found_out(tmp_path, monkeypatch):
    monkeypatch.setitem(trained.SIZES, "default", TINY)
    for name, value in (("optimisation", ([], {})), ("leaving", ([], {}))):
        monkeypatch.setattr(exact, name, lambda *args, value=value: value)
    report = recipe.run(1, "default", silent)
    assert {
        "... |VV^T - AA^T|^2, all D",
        "network told of the reward, |a| <= 2 sd: off a (1 - nu^2 / v), relative",
        "|VV^T - AA^T|^2 with noise off the subspace: log-log slope in samples",
    } <= failed(report.rows)
    report.write(tmp_path)


def test_an_estimate_off_the_subspace_is_found_out(monkeypatch):
    class Off(SubspaceDenoiser):
        def forward(self, x, t, **cond):
            made = super().forward(x, t, **cond)
            return Estimate(x, t, made.x0 + 1e-4 * x, self.process, Data())

    monkeypatch.setattr(exact, "SubspaceDenoiser", Off)
    assert len(failed(exact.decomposition(0))) == 2


def test_guidance_that_does_not_look_ahead_is_found_out(monkeypatch):
    def naive(denoiser, g, value, noise):
        return ClassifierGuidance(
            denoiser, lambda x, t: -0.5 * (value - x @ g).square() / (1 + noise**2), 1.0, given=()
        )

    monkeypatch.setattr(exact, "LookAheadGuidance", naive)
    assert "look-ahead guidance of a Gaussian: off its posterior's data estimate, relative" in failed(
        exact.exactness(0)
    )
    assert "... energy off the subspace over that unguided, most of all runs" in failed(exact.leaving(0, 50, 20)[0])


def test_another_convention_of_the_scale_is_found_out(monkeypatch):
    monkeypatch.setattr(exact, "ClassifierFree", lambda denoiser, scale: ClassifierFree(denoiser, scale - 1.0))
    assert "guided mixture, w = 0: mean" in failed(exact.mixture_guidance(201)[0])


def test_a_reward_that_is_shrunk_is_found_out(monkeypatch):
    monkeypatch.setattr(trained, "ridge", lambda x, y, penalty, basis: ridge(x, y, 1e3, basis))
    assert any("200 labels" in name for name in failed(exact.rewards(0)))


def test_another_regularisation_is_found_out(monkeypatch):
    monkeypatch.setattr(exact, "optimize", partial(optimize, regularisation=1.5))
    rows = exact.optimisation(0, 1000, 12)[0]
    assert "12 rounds, frozen score: off argmax f - |x|^2_S^-1 / 2, relative" in failed(rows)


def test_a_target_that_a_network_ignores_is_found_out():
    a = [m * recipe.DEVIATION for m in recipe.MULTIPLES]
    right = {x: trained.Conditioned(min(x, 4.0) * exact.FACTOR, 0.0, 3.0 + x**2) for x in a}
    assert failed(recipe._reward_rows(right)) == set()
    ignored = {x: replace(each, reward=0.0) for x, each in right.items()}
    assert len(failed(recipe._reward_rows(ignored))) == 1
    boundless = {x: replace(each, reward=x * exact.FACTOR) for x, each in right.items()}
    assert len(failed(recipe._reward_rows(boundless))) == 1


def test_a_network_that_feels_the_dimension_is_found_out():
    good, bad = trained.Fitted(0.1, 1e-6, 1e-6), trained.Fitted(0.3, 1.0, 0.5)
    found = {name: {8: good, 128: good} for name in (trained.SUBSPACE, trained.PLAIN)}
    found[trained.NOISE] = {8: good, 128: bad}
    assert failed(recipe._dimension_rows(found)) == set()
    assert len(failed(recipe._dimension_rows({**found, trained.SUBSPACE: {8: good, 128: bad}}))) == 3


def test_total_variation_of_gaussians_is_that_of_a_quadrature():
    x = torch.linspace(-30.0, 30.0, 200001, dtype=torch.float64)
    for a, b in ((1.0, 1.3), (2.0, 0.4)):
        one, other = (torch.exp(-0.5 * x**2 / v) / (2 * torch.pi * v) ** 0.5 for v in (a, b))
        whole = 0.5 * torch.trapezoid((one - other).abs(), x).item()
        assert exact.gaussian_tv(a, b) == pytest.approx(whole, rel=1e-6)
    assert exact.gaussian_tv(1.0, 1.0) == 0.0
