"""The recipe `gaussian-teleportation`: its relations at the smallest scale, and a wrong jump."""

import torch

from tweed.core.exact import EmpiricalDenoiser, fit_gaussian
from tweed.data import Digits
from tweed.recipes import gaussian_teleportation as recipe
from tweed.recipes.registry import reproduce
from tweed.starts import Start


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("gaussian-teleportation", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    folder = report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "skips.png", "explained.png"}


def test_a_jump_that_scales_the_noise_alone_is_found_out(monkeypatch):
    monkeypatch.setattr(recipe, "gaussian_jump", lambda gaussian, x, t, **_: Start(x * t, t))
    monkeypatch.setattr(recipe, "SKIPPED", (0, 6, 8))
    data = Digits(flat=True).x.double()
    model = EmpiricalDenoiser(data, recipe.STD, recipe.PROCESS)
    gaussian = fit_gaussian(data, recipe.PROCESS, noise=recipe.STD)
    with torch.no_grad():
        rows, _ = recipe._skips(model, gaussian, 0, 24, lambda *a: None)
    wrong = {row.quantity for row in rows if row.holds is False}
    assert "6 of 18 steps skipped: error" in wrong
    assert "8 skipped: relative error of the state jumped to" in wrong
