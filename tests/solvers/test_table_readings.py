"""How the engine combines estimates: unconverted, in fewer operations, with the result of converting first."""

import pytest
import torch

import tweed
from tweed import processes, random, targets
from tweed.core.denoiser import FunctionDenoiser, NetworkDenoiser
from tweed.core.estimate import Estimate, value_of
from tweed.solvers import DDIM, DPMSolver, Heun, Problem, State, UniPC

VP = processes.VP()
TIMES = (0.9, 0.7, 0.5, 0.3, 0.1)
X = random.normal((4, 3), 0, dtype=torch.float64)
SOLVERS = [DDIM(), DPMSolver(2), DPMSolver(3, form="noise"), DPMSolver(2, kind="singlestep"), UniPC(3), Heun()]


def network(x, t, **cond):
    return (x * (1.0 + t.to(x)[:, None])).tanh()


def converted(denoiser):
    """The same denoiser, whose estimates are data already, so that nothing is left to convert."""
    return FunctionDenoiser(lambda x, t, **cond: denoiser(x, t, **cond).x0, denoiser.process, targets.Data())


@pytest.mark.parametrize("target", [targets.Noise(), targets.Data(), targets.V(), targets.Velocity()], ids=repr)
@pytest.mark.parametrize("wanted", [targets.Noise(), targets.Data(), targets.Velocity()], ids=repr)
def test_a_reading_stands_for_the_conversion(target, wanted):
    estimate = Estimate(X, 0.4, X.sin(), VP, target)
    torch.testing.assert_close(value_of(estimate.reading(wanted)), estimate.to(wanted), rtol=0, atol=1e-14)


def test_readings_are_in_float32_or_better_and_work_with_a_time_a_sample():
    half = Estimate(X.float(), 0.4, X.sin().half(), VP, targets.Noise())
    assert value_of(half.reading(targets.Data())).dtype == torch.float32
    each = Estimate(X, torch.tensor([0.1, 0.2, 0.3, 0.4]), X.sin(), VP, targets.Noise())
    torch.testing.assert_close(value_of(each.reading(targets.Data())), each.x0, rtol=0, atol=0)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("target", [targets.Noise(), targets.V()], ids=repr)
def test_the_target_of_the_network_does_not_matter(solver, target):
    denoiser = NetworkDenoiser(network, VP, target)
    a, b = (solver.integrate(Problem(d, TIMES), X) for d in (denoiser, converted(denoiser)))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_state_put_back_is_not_taken_for_the_present_one(solver):
    """An observer that returns the very tensor of an earlier step, of which an estimate is remembered."""
    denoiser, first = NetworkDenoiser(network, VP, targets.Noise()), X.clone()

    def run(d, back):
        problem = Problem(d, TIMES)
        state = solver.step(problem, solver.init(problem, first), 0)
        state = State(back, state.memory)
        for i in (1, 2, 3):
            state = solver.step(problem, state, i)
        return state.x

    expected = run(denoiser, first.clone())
    torch.testing.assert_close(run(denoiser, first), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(run(converted(denoiser), first), expected, rtol=0, atol=1e-12)


class TestLabels:
    def test_a_network_that_writes_into_its_time_spoils_nothing(self):
        def rude(x, t, **cond):
            t *= 1000.0
            return x * t[:, None]

        denoiser = NetworkDenoiser(rude, VP, targets.Data())
        first, second = (denoiser(X, 0.5).x0 for _ in range(2))
        torch.testing.assert_close(first, 500.0 * X)
        torch.testing.assert_close(second, first)

    @pytest.mark.parametrize("order", [(4, 0, 4), (1, 4, 2), (0, 1)])
    def test_batches_of_any_size_one_after_another(self, order):
        denoiser = NetworkDenoiser(lambda x, t: x * t[:, None], VP, targets.Data())
        for n in order:
            torch.testing.assert_close(denoiser(X[:n], 0.25).x0, 0.25 * X[:n])

    def test_made_in_inference_mode_it_can_be_trained_through(self):
        layer = torch.nn.Linear(1, 3).double()
        denoiser = NetworkDenoiser(lambda x, t: layer(t.double()[:, None]), VP, targets.Data())
        with torch.inference_mode():
            denoiser(X, 0.5)
        denoiser(X, 0.5).x0.sum().backward()
        assert layer.weight.grad.abs().sum() > 0


def test_hooks_on_a_denoiser_are_called_in_a_run():
    denoiser, calls = NetworkDenoiser(network, VP, targets.Noise()), []
    handle = denoiser.register_forward_hook(lambda *_: calls.append(1))
    tweed.sample(denoiser, X, solver=DPMSolver(2), times=TIMES)
    assert len(calls) == 4
    handle.remove()
    tweed.sample(denoiser, X, solver=DPMSolver(2), times=TIMES)
    assert len(calls) == 4
