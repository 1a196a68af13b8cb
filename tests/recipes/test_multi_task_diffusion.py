"""The recipe at its smallest scale, the part that trains at a tiny one, and that wrong ingredients are found out."""

import math

from tweed.core.aggregate import Aggregate
from tweed.core.exact import GaussianModalities
from tweed.core.injection import Injection
from tweed.core.modalities import PlugIn
from tweed.recipes import _multi_task_digits as digits
from tweed.recipes import multi_task_diffusion, silent
from tweed.recipes.registry import reproduce


def failed(rows):
    return {row.quantity for row in rows if row.holds is False}


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("multi-task-diffusion", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert {p.name for p in report.write(tmp_path).iterdir()} == {"modalities.png", "report.json", "report.md"}


def test_shares_and_posteriors_that_are_off_are_found_out(monkeypatch):
    right = Injection.share.fget
    monkeypatch.setattr(Injection, "share", property(lambda self: right(self) * (1 + 1e-9)))
    assert "chain with injections: moments off their recursion" in failed(multi_task_diffusion.chain_rows(0))
    monkeypatch.undo()
    plain = Injection.posterior
    # DDPM's own step: without the injection on the way.
    monkeypatch.setattr(Injection, "posterior", lambda self, z, e, n, z0: plain(Injection(self.betas), z, e, n, z0))
    assert failed(multi_task_diffusion.chain_rows(0)) == {"... posterior off the product of step and marginal"}


def test_samplers_that_are_not_told_are_found_out(monkeypatch):
    known = GaussianModalities.forward
    monkeypatch.setattr(GaussianModalities, "forward", lambda self, x, t, **cond: known(self, x, t))
    assert "Gaussians, x2 given x1, told: mean off, of how far it moves" in failed(multi_task_diffusion.oracle_rows(0))
    monkeypatch.undo()
    monkeypatch.setattr(PlugIn, "forward", lambda self, x, t, **cond: self.denoiser(x, t, **cond))
    assert "two normals, slope of x2 on x1: plug-in rule, off what is derived" in failed(multi_task_diffusion._slopes())


def test_an_aggregate_that_is_not_renormalised_is_found_out(monkeypatch):
    monkeypatch.setattr(Aggregate, "forward", lambda self, entries, present=None: 2.0 * self.partial(entries, present))
    rows = multi_task_diffusion._limits(0)
    assert failed(rows) == {"one modality: loss off plain denoising", "all modalities known: data off their aggregate"}


def test_digits_at_a_tiny_scale(tmp_path):
    sizes = digits.Sizes(12, batch=8, width=8, depth=1, samples=20, sampling=2, judge=2)
    found = digits.measure(sizes, 1, silent)
    rows = digits.rows(found)
    assert all(row.here is None or isinstance(row.here, str) or math.isfinite(row.here) for row in rows)
    assert "judge: held-out digits read" in failed(rows)
    multi_task_diffusion._figure(1, found).savefig(tmp_path / "figure.png")
