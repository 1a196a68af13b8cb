"""The recipe `principles`: its exact part holds and would notice a mistake; its trained part at the smallest scale."""

import dataclasses

import pytest
import torch

from tweed.core import processes, targets
from tweed.recipes import _principles_exact as exact
from tweed.recipes import principles, registry


def test_the_exact_part_holds():
    errors = exact.conversion_errors(3)
    rows = exact.conversions(errors) + exact.posterior(3) + exact.weights(3) + exact.flow_maps(3)
    assert [row.quantity for row in rows if not row.holds] == []
    assert len(rows) == 12
    assert set(errors) == set(exact.GAUSSIAN | exact.PAIRED)


def test_one_field_whatever_the_process_and_the_target():
    rows = exact.views(8)  # a seed with latents close to the line between two Gaussians
    assert [row.quantity for row in rows if not row.holds] == []


class Tilted(targets.Noise):
    """A row that is wrong by one part in ten thousand away from its inverse."""

    def row(self, process, t):
        row = super().row(process, t)
        return row._replace(noise=row.noise * (1.0 + 1e-4 * t))


def test_a_wrong_weight_or_path_is_noticed(monkeypatch):
    monkeypatch.setitem(exact.TARGETS, "eps", Tilted())
    assert not all(row.holds for row in exact.weights(3))
    monkeypatch.undo()

    class Wrong(processes.VP):
        def _sigma_dot(self, t):
            return super()._sigma_dot(t) * (1.0 + 1e-3)

    monkeypatch.setitem(exact.GAUSSIAN, "VP", Wrong())
    assert not all(row.holds for row in exact.flow_maps(3))


def test_the_bound_is_noticed_to_depend_on_the_weight(monkeypatch):
    assert all(row.holds for row in exact.bound(3, 100_000))
    monkeypatch.setattr(exact.weightings, "Likelihood", exact.weightings.SNR)
    assert not any(row.holds for row in exact.bound(3, 20_000))


def test_rotations_keep_the_shares():
    ring = principles.ring_mixture(8)
    points = principles._turned(ring.sample(50, 1).float())
    assert points.shape == (400, 2)
    nearest = torch.cdist(points.double(), ring.means).argmin(1)
    assert torch.bincount(nearest).tolist() == [50] * 8
    torch.testing.assert_close(points.norm(dim=1).reshape(50, 8).std(1), torch.zeros(50), atol=1e-5, rtol=0.0)


def test_the_report_is_written_whole(tmp_path, monkeypatch):
    few = dataclasses.replace(
        principles.SCALES["smoke"], steps=3, consistency_steps=4, width=16, depth=1, samples=256, bound_samples=2000
    )
    monkeypatch.setitem(principles.SCALES, "smoke", few)
    monkeypatch.setattr(exact, "views", lambda seed: [])
    heard = []
    report = registry.reproduce("principles", seed=5, scale="smoke", progress=lambda text, f=None: heard.append(f))
    assert report.settings["width"] == 16
    assert heard == sorted(heard)
    assert 0.0 <= heard[0] <= heard[-1] <= 1.0
    assert "Principles of Diffusion" in report.title
    folder = report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "samples.png", "conversions.png"}


@pytest.mark.slow
def test_every_relation_holds():
    report = registry.reproduce("principles", seed=13, scale="smoke")
    assert [row.quantity for row in report.failed] == []
