"""The recipe `fokker-planck-gap` at the smallest scale, and that wrong ingredients are found out."""

import dataclasses

import torch

from tweed.core.exact import MixtureDenoiser
from tweed.recipes import fokker_planck_gap as recipe
from tweed.recipes.registry import reproduce


def truth():
    means, weights = torch.tensor(recipe.MEANS)[:, None], torch.tensor(recipe.WEIGHTS)
    return MixtureDenoiser(means, torch.tensor(recipe.VARIANCES), weights, recipe.PROCESS)


def wrong():
    return {row.quantity for row in recipe._oracles(truth(), 0) if row.holds is False}


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("fokker-planck-gap", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == {"report.json", "report.md", "tradeoff.png"}


def test_a_density_that_runs_backwards_in_time_is_found_out(monkeypatch):
    right = recipe.log_fp_residual
    monkeypatch.setattr(
        recipe,
        "log_fp_residual",
        lambda phi, process, x, t, **k: right(lambda x, t: phi(x, 1.0 - t), process, x, t, **k),
    )
    assert wrong() == {"residual of an exact log density"}


def test_a_wrong_law_and_a_bound_that_is_none_are_found_out(monkeypatch):
    right = recipe.gaussian_laws

    def laws(process, v0, c):
        found = right(process, v0, c)
        return dataclasses.replace(found, distance=found.distance + 2e-4, bound=0.9 * found.distance)

    monkeypatch.setattr(recipe, "gaussian_laws", laws)
    assert wrong() == {
        "N(0, 0.5), exact score: W2 of ODE and SDE",
        "... W2 off the closed form by",
        "... bound on W2, over W2",
    }


def test_training_without_the_residual_is_found_out(monkeypatch):
    right = recipe.FokkerPlanck
    monkeypatch.setattr(recipe, "FokkerPlanck", lambda weight, **options: right(weight=0.0, **options))
    _, rows = recipe._trained(truth(), 0, 150, 60, 200, lambda *a: None, "smoke")
    assert {row.quantity for row in rows if row.holds is False} == {
        "weight 0.1: mean squared residual, against none",
        "weight 10: mean squared residual",
    }
