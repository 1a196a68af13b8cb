"""The recipes `gauge-freedom` and `wgf-matching` at the smallest scale, and that wrong ingredients are found out."""

import torch

from tweed.recipes import gauge_freedom, wgf_matching
from tweed.recipes.registry import reproduce


def test_gauge_freedom_holds_and_is_written(tmp_path):
    report = reproduce("gauge-freedom", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == {"report.json", "report.md", "survival.png"}


def test_wgf_matching_holds_and_is_written(tmp_path):
    report = reproduce("wgf-matching", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == {"report.json", "report.md", "networks.png"}


def test_a_turn_that_is_no_gauge_is_found_out(monkeypatch):
    monkeypatch.setattr(gauge_freedom, "_skew", lambda d, seed: torch.eye(d, dtype=torch.float64))
    assert any(row.holds is False for row in gauge_freedom._parts(0))


def test_a_field_with_curl_in_the_place_of_the_exact_score_is_found_out(monkeypatch):
    from tweed.analysis import Conservativity

    monkeypatch.setattr(wgf_matching, "conservativity", lambda *a, **k: [Conservativity(0.1, 0.2, 1.0, 0.3)])
    ring = wgf_matching.ring_mixture(8, 1.4, 0.1)
    truth = wgf_matching.MixtureDenoiser(ring.means, ring.covariances, None, wgf_matching.PROCESS)
    assert sum(row.holds is False for row in wgf_matching._identities(truth, 0)) == 2
