"""The recipe `time-shift-sampler`: its relations at the smallest scale, and that a wrong ingredient is found out."""

from dataclasses import replace

from tweed.recipes import time_shift_sampler
from tweed.recipes.registry import reproduce


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("time-shift-sampler", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    folder = report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "variance.png"}


def test_the_images_have_the_variance_and_the_spectrum_that_they_state():
    images = time_shift_sampler.Images()
    assert abs(images.power.sum().item() / 32**2 - time_shift_sampler.V0) < 1e-12
    assert images.power[0].item() == 0.0


def test_a_shift_that_shifts_nothing_is_found_out(monkeypatch):
    right = time_shift_sampler._shift
    monkeypatch.setattr(time_shift_sampler, "_shift", lambda *a, **k: replace(right(*a, **k), window=0.0))
    rows, _ = time_shift_sampler._case(time_shift_sampler.Images(), 0.02, 10, "DDIM", 64, 0)
    assert any(row.holds is False for row in rows)
