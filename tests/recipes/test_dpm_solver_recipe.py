"""The recipe `dpm-solver`: its relations at the smallest scale, and the closed forms that it measures against."""

import math

import pytest
import torch

from tweed.core import grids, random
from tweed.core.exact import GaussianDenoiser
from tweed.recipes import dpm_solver
from tweed.recipes.registry import reproduce
from tweed.solvers import DDIM, DPMSolver, sample


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("dpm-solver", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert sum(row.holds is not None for row in report.rows) >= 30
    folder = report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "errors.png", "orders.png"}


def test_the_same_seed_gives_the_same_rows():
    a, b = (dpm_solver._identities(5) for _ in range(2))
    assert a == b
    assert a != dpm_solver._identities(6)


@pytest.mark.parametrize("order", [1, 2])
def test_the_variance_by_recursion_is_that_of_samples(order):
    solver, n = DPMSolver(order, eta=1.0), 60_000
    model = GaussianDenoiser(torch.zeros(1), torch.ones(1), dpm_solver.PROCESS)
    x = random.normal((n, 1), 1, dtype=torch.float64)
    times = grids.log_snr(dpm_solver.PROCESS, 12, end=dpm_solver.END)
    found = sample(model, x, solver=solver, times=times, seed=2).var().item()
    expected = dpm_solver._variance(solver, 12)
    assert abs(found / expected - 1.0) < 5.0 * math.sqrt(2.0 / n)


def test_the_variance_of_the_ode_is_the_square_of_its_gain():
    times = grids.log_snr(dpm_solver.PROCESS, 5, end=dpm_solver.END)
    model = GaussianDenoiser(torch.zeros(1), torch.ones(1), dpm_solver.PROCESS)
    gain = sample(model, torch.ones(1, 1, dtype=torch.float64), solver=DDIM(), times=times).item()
    assert dpm_solver._variance(DDIM(), 5) == pytest.approx(gain**2, rel=1e-12)


def test_a_solver_of_a_lower_order_is_found_out(monkeypatch):
    monkeypatch.setattr(
        dpm_solver, "ORDERED", {"multistep 3": DPMSolver(3, solver_type="midpoint", start="singlestep")}
    )
    (row,), _ = dpm_solver._orders(0, (80, 160, 320))
    assert row.holds is False
    assert row.here < 2.5
