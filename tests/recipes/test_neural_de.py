"""The recipe `neural-de`: its relations at the smallest scale, its closed forms, and wrong ingredients."""

import math

import pytest
import torch

from tweed.recipes import _neural_de_laws as laws
from tweed.recipes import _neural_de_numerics as numerics
from tweed.recipes import _neural_de_series as series
from tweed.recipes.registry import reproduce


def test_every_relation_holds_and_is_written(tmp_path):
    pytest.importorskip("pyoperon")
    report = reproduce("neural-de", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert sum(row.holds is not None for row in report.rows) >= 30
    names = {path.name for path in report.write(tmp_path).iterdir()}
    assert names == {"report.json", "report.md", "orders.png", "memory.png", "series.png"}


def test_without_the_search_library_the_rest_is_still_measured(monkeypatch):
    def missing(*_, **__):
        raise laws.MissingPackageError("pip install pyoperon")

    monkeypatch.setattr(laws, "recover_field", missing)
    rows, curves = laws.lotka_volterra(0, 2, 50, False)
    assert curves == {}
    assert rows[-1].note == "pip install pyoperon"


def test_a_solver_of_a_lower_order_is_found_out(monkeypatch):
    monkeypatch.setattr(numerics, "SDE_CASES", {"Milstein": ("euler_maruyama", "ito", "diagonal", 1.0)})
    (row,), _ = numerics.sde_orders(0, 300)
    assert row.holds is False
    assert row.here < 0.75


def test_a_diffusion_read_in_the_wrong_calculus_is_found_out(monkeypatch):
    real = numerics.sdeint
    monkeypatch.setattr(numerics, "sdeint", lambda *a, calculus, **k: real(*a, calculus="stratonovich", **k))
    monkeypatch.setattr(numerics, "SDE_CASES", {"Milstein": ("milstein", "ito", "diagonal", 1.0)})
    (row,), _ = numerics.sde_orders(0, 300)
    assert row.holds is False


def test_a_fixed_point_without_the_implicit_gradient_is_found_out(monkeypatch):
    class LastLayer(numerics.DeepEquilibrium):
        def forward(self, x, z0=None):
            with torch.no_grad():
                z = super().forward(x, z0)
            return self.f(z, x)

    monkeypatch.setattr(numerics, "DeepEquilibrium", LastLayer)
    assert numerics.equilibrium(0)[0].holds is False


def test_spirals_turn_the_way_their_label_says_and_keep_their_first_point():
    ts, x, label = series.spirals(400, 0)
    turn = x[:, :-1, 0] * x[:, 1:, 1] - x[:, :-1, 1] * x[:, 1:, 0]
    assert ((turn.mean(1) > 0) == (label == 0)).double().mean() > 0.95
    assert 0.4 < label.double().mean() < 0.6
    gone = series.dropped(x, 0.7, 1)
    assert gone[:, 0].isfinite().all()
    assert gone[:, 1:].isnan().double().mean() == pytest.approx(0.7, abs=0.03)
    features = series.gru_features(ts, gone)
    assert features.isfinite().all()
    assert torch.equal(features[:, :, 2].bool(), gone[:, :, 0].isfinite())


def test_the_process_is_stationary_and_its_evidence_that_of_its_law():
    ts = torch.linspace(0.0, 4.0, 9)
    x = laws.ornstein_uhlenbeck(20_000, ts, 1)[:, :, 0].double()
    total = laws.VARIANCE + laws.ERROR**2
    assert (x.var(0) / total - 1.0).abs().max() < 0.05
    lag = (x[:, 1:] * x[:, :-1]).mean() / laws.VARIANCE
    assert lag.item() == pytest.approx(math.exp(-0.5 * laws.RATE), abs=0.03)
    # The mean log likelihood under the true law is minus its entropy.
    gap = (ts[:, None] - ts).abs().double()
    covariance = laws.VARIANCE * (-laws.RATE * gap).exp() + laws.ERROR**2 * torch.eye(9, dtype=torch.float64)
    entropy = 0.5 * (torch.logdet(covariance) + 9 * (1.0 + math.log(2.0 * math.pi))).item()
    assert laws.evidence(x[:, :, None], ts) == pytest.approx(-entropy, abs=0.1)
