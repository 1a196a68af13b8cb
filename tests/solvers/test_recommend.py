"""What `recommend` says: within the budget, from evidence of the like, and a model's own fitted grid first."""

import math

import pytest
import torch

import tweed as tw
from tweed import processes
from tweed.core.denoiser import CountingDenoiser, FunctionDenoiser
from tweed.core.exact import GaussianDenoiser
from tweed.errors import InputError
from tweed.guidance import ClassifierFree
from tweed.solvers import FittedGrid, keep_grid, recommend
from tweed.solvers.grid_search import INITIAL
from tweed.solvers.recommend import _nearest, evidence
from tweed.solvers.registry import parse

PROCESSES = [processes.VP(), processes.Cosine(), processes.EDM(), processes.VE(), processes.RectifiedFlow()]


def exact(process):
    return GaussianDenoiser(torch.zeros(3), torch.tensor([1.0, 0.3, 0.1]), process)


def network(process, target=None):
    made = tw.nets.build({"name": "mlp", "dim": 3, "width": 8})
    return tw.NetworkDenoiser(made, process, target or tw.targets.V(), event=(3,))


@pytest.mark.parametrize("budget", [1, 2, 5, 10, 13, 50])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("make", [exact, network])
def test_it_runs_within_the_budget(make, process, budget):
    counter = CountingDenoiser(make(process))
    advice = recommend(counter, budget)
    made = tw.sample(counter, 2, solver=advice.solver, steps=advice.steps, grid=advice.grid)
    assert bool(torch.isfinite(made).all())
    assert 1 <= counter.evaluations <= budget == advice.evaluations
    assert len(advice.why) > 20


def test_it_rests_on_evidence_of_the_like():
    case, entry = _nearest(exact(processes.EDM()), 11)
    assert (case["field"], case["family"], case["guided"]) == ("exact score", "EDM", False)
    assert entry["budget"] == 10
    case, entry = _nearest(ClassifierFree(network(processes.VP()), 2.0), 24)
    assert (case["field"], case["guided"], entry["budget"]) == ("network", True, 20)
    assert _nearest(network(processes.Cosine()), 5)[0]["family"] == "VP"


def test_the_advice_is_the_first_of_that_evidence():
    case, entry = _nearest(exact(processes.EDM()), 10)
    advice = recommend(exact(processes.EDM()), 10)
    assert advice.solver == parse(entry["rows"][0]["solver"])
    assert advice.error == entry["rows"][0]["error"]
    assert case["name"] in advice.why
    assert "10 evaluations" in advice.why


def test_a_grid_of_the_models_own_goes_first():
    model = network(processes.VP())
    levels = tuple(torch.linspace(-4.0, 4.0, 9).tolist())
    for error in (0.02, 0.01):
        keep_grid(model, FittedGrid(levels, "UniPC" if error == 0.01 else "DPMSolver", 8, error, 0.05))
    keep_grid(model, FittedGrid(levels, "DDIM", 8, 0.001, 0.05, jump=True))
    advice = recommend(ClassifierFree(model, 1.5), 8)
    assert (type(advice.solver).__name__, advice.error, advice.steps) == ("UniPC", 0.01, 8)
    assert isinstance(advice.grid, FittedGrid)
    assert "fitted to this model" in advice.why
    assert not isinstance(recommend(model, 9).grid, FittedGrid)


def test_a_two_sided_interpolant_gets_a_rule_that_says_so():
    advice = recommend(FunctionDenoiser(lambda x, t: x, processes.Interpolant(), tw.targets.Velocity()), 9)
    assert (advice.steps * advice.solver.evaluations, advice.error) == (8, None)
    assert "rule" in advice.why


def test_the_evidence_is_whole():
    cases = evidence()["cases"]
    assert len({(c["name"], c["process"], c["guided"]) for c in cases}) == len(cases) >= 4
    for case in cases:
        for entry in case["budgets"]:
            errors = [row["error"] for row in entry["rows"]]
            assert errors == sorted(errors)
            assert all(
                math.isfinite(e) and row["grid"] in INITIAL for e, row in zip(errors, entry["rows"], strict=True)
            )
            assert all(tw.solvers.registry.describe(parse(row["solver"])) == row["solver"] for row in entry["rows"])


def test_bad_input():
    with pytest.raises(InputError, match="denoiser"):
        recommend(lambda x, t: x)
    for steps in (0, 2.5, True):
        with pytest.raises(InputError, match="steps"):
            recommend(exact(processes.VP()), steps)
