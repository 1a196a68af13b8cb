"""The recipe `bdia`: its relations at the smallest scale, and ingredients that are wrong on purpose."""

from functools import partial

import pytest
import torch

from tweed.core.processes import VP
from tweed.recipes import _bdia_exact as exact
from tweed.recipes.registry import reproduce
from tweed.solvers import BDIA, bdia


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("bdia", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert sum(row.holds is not None for row in report.rows) >= 55
    folder = report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "errors.png", "edits.png"}


def test_the_mixture_has_six_digits_of_each_class_and_depends_on_the_seed():
    model = exact.digits(1, VP())
    assert model.labels is not None
    assert torch.equal(model.labels.bincount(), torch.full((10,), 6))
    assert not torch.equal(model.means, exact.digits(2, VP()).means)


def test_an_inverse_that_is_slightly_wrong_is_found_out(monkeypatch):
    right = bdia._line

    def wrong(form, rows, back, onward, behind, before):
        return right(form, rows, back, onward * (1.0 + 1e-5), behind, before)

    bdia_lines = BDIA.lines

    def lines(self, process, times):
        if times[0] < times[-1]:
            monkeypatch.setattr(bdia, "_line", wrong)
        found = bdia_lines(self, process, times)
        monkeypatch.setattr(bdia, "_line", right)
        return found

    monkeypatch.setattr(BDIA, "lines", lines)
    # Coefficients are cached by solver, process and grid: these have not been asked for before.
    monkeypatch.setattr(exact, "VP", partial(VP, beta_max=19.0))
    rows = [row for row in exact.round_trips(0, 8) if "BDIA" in row.quantity]
    assert [row.holds for row in rows] == [False] * 6


@pytest.mark.parametrize("gamma", [0.7])
def test_a_lower_order_is_found_out(monkeypatch, gamma):
    monkeypatch.setattr(exact, "BDIA", lambda *options: BDIA(*options) if options else BDIA(gamma))
    _, rows = exact.orders(0, (40, 80, 160))
    assert [row.holds for row in rows] == [True, True, False, True, True]
