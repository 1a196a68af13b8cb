"""The recipes of inverse problems and restoration at the smallest scale, and that wrong ingredients are found out."""

import dataclasses

import pytest
import torch

from tweed.core import targets
from tweed.recipes import (
    ensemble_posterior,
    flow_chef,
    mrs,
    optimal_boundary,
    resfusion,
    residual_denoising,
)
from tweed.recipes.registry import reproduce
from tweed.solvers import table

FIGURES = {
    "red-diff": {"images.png", "steps.png"},
    "ensemble-posterior": {"particles.png"},
    "optimal-boundary": {"scores.png"},
    "flow-chef": {"images.png", "steps.png"},
    "mrs": {"convergence.png"},
    "resfusion": {"images.png", "steps.png"},
    "residual-denoising": {"images.png", "steps.png"},
}


def failed(rows):
    return {row.quantity for row in rows if row.holds is False}


@pytest.mark.parametrize("slug", FIGURES)
def test_every_relation_holds_and_is_written(slug, tmp_path):
    report = reproduce(slug, seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == FIGURES[slug] | {"report.json", "report.md"}


def test_a_wrong_weight_of_the_second_order_is_found_out(monkeypatch):
    right = mrs.mrs
    monkeypatch.setattr(mrs, "mrs", lambda *a, **k: dataclasses.replace(right(*a, **k), solver_type="midpoint"))
    assert len(failed(mrs._formulas(0))) == 2


def test_a_velocity_of_the_wrong_sign_is_found_out(monkeypatch):
    right = mrs._velocity
    monkeypatch.setattr(mrs, "_velocity", lambda *a: -right(*a))
    assert failed(mrs._formulas(0)) == {"a velocity network: off the data network"}


def test_another_ancestral_variance_is_found_out(monkeypatch):
    monkeypatch.setattr(resfusion.Resfusion, "_carried", lambda self, t: torch.ones_like(t))
    # Tables are kept by the process, which is the same value.
    table._cached.cache_clear()
    wrong = failed(resfusion._exact(0))
    table._cached.cache_clear()
    assert wrong == {"the published loop: off the ancestral sampler"}


def test_another_share_of_the_residual_is_found_out(monkeypatch):
    right = resfusion.Resfusion.residual_share
    monkeypatch.setattr(resfusion.Resfusion, "residual_share", lambda self, t: 1.01 * right(self, t))
    targets._convert_number.cache_clear()
    wrong = failed(resfusion._exact(0))
    targets._convert_number.cache_clear()
    assert "the published loop: off the ancestral sampler" in wrong


def test_a_path_that_skips_is_found_out(monkeypatch):
    monkeypatch.setattr(residual_denoising, "remove", lambda model, x, y, path, **options: x)
    assert len(failed(residual_denoising._exact(0))) == 2


def test_particles_without_the_laplacian_are_found_out(monkeypatch):
    from tweed.inverse import ensemble

    right = ensemble._Likelihood.derivatives
    monkeypatch.setattr(ensemble._Likelihood, "derivatives", lambda self, x, seed: (right(self, x, seed)[0] * 0.5, 0.0))
    assert any(text.startswith("no noise") for text in failed(ensemble_posterior._invariances(0)))


def test_a_start_that_is_not_shared_is_found_out(monkeypatch):
    right = optimal_boundary.search_boundary

    def wrong(*arguments, **options):
        found = right(*arguments, **options)
        object.__setattr__(found, "x", -found.x)
        return found

    monkeypatch.setattr(optimal_boundary, "search_boundary", wrong)
    report = optimal_boundary.run(3, "smoke", lambda *a: None)
    assert "the start's own score off its result's" in failed(report.rows)


def test_a_gradient_that_is_not_skipped_as_it_should_is_found_out(monkeypatch):
    right = flow_chef.FlowChef._descent
    monkeypatch.setattr(flow_chef.FlowChef, "_descent", lambda self, *a: 1.1 * right(self, *a))
    assert len(failed(flow_chef._exact(0))) == 2
