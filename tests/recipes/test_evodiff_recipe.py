"""The recipe `evodiff`: its relations at the smallest scale, and that a wrong ingredient is found out."""

from tweed.recipes import evodiff
from tweed.recipes.registry import reproduce
from tweed.solvers import DDIM


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("evodiff", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    folder = report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "errors.png"}


def test_a_first_order_solver_in_its_place_is_found_out(monkeypatch):
    monkeypatch.setitem(evodiff.SOLVERS, "EVODiff", DDIM())
    monkeypatch.setattr(evodiff, "CASES", dict(list(evodiff.CASES.items())[:1]))
    errors = {name: evodiff._errors(make(128, 0), name, lambda *a: None) for name, make in evodiff.CASES.items()}
    assert any(row.holds is False for row in evodiff._compared(errors))
