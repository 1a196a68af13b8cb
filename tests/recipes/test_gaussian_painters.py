"""The recipe `gaussian-painters`: its relations at the smallest scale, and ingredients that are wrong on purpose."""

import torch

from tweed.analysis import Geometry
from tweed.core.exact import PrincipalGaussian, fit_gaussian
from tweed.recipes import _painters_exact as exact
from tweed.recipes.registry import reproduce


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("gaussian-painters", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert sum(row.holds is not None for row in report.rows) >= 28
    folder = report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "curves.png", "film.png"}


def test_a_flow_that_scales_by_standard_deviations_is_found_out(monkeypatch):
    right = PrincipalGaussian.flow

    def wrong(self, x, t, s, y=None):
        other = PrincipalGaussian(self.mean, self.variances.sqrt(), self.directions, self.remainder, self.process)
        return right(other, x, t, s, y)

    monkeypatch.setattr(PrincipalGaussian, "flow", wrong)
    rows = [row for row in exact.closed_form(0) if "solver" in row.quantity]
    assert [row.holds for row in rows] == [False, False]


def test_a_gaussian_of_other_data_is_found_out(monkeypatch):
    monkeypatch.setattr(
        exact, "fit_gaussian", lambda data, *a, **k: fit_gaussian(data.flip(1).roll(5, 1) * 0.5, *a, **k)
    )
    rows, _ = exact.digits(0, 48, 24)
    assert [row.holds for row in rows[:2]] == [False, False]


def test_walks_at_random_are_not_flat_and_no_rotation():
    half = torch.full((3,), 0.5)
    rows = exact.shape_of(Geometry(half, half, half, half, half, half), "walks", 0.9)
    assert [row.holds for row in rows] == [False, False, False]


def test_the_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    a, b = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]), torch.tensor([9.0, 2.0, 8.0, 7.0, 1.0])
    assert abs(exact.spearman(a, b) - spearmanr(a.numpy(), b.numpy()).statistic) < 1e-12
