"""Optimised grids: closer to the converged solution than the fixed ones, on starts that they were not fitted to."""

import math

import pytest
import torch

import tweed
from tweed import processes, random
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.exact import GaussianDenoiser
from tweed.core.starts import Start
from tweed.errors import IncompatibleError, InputError, NumericalError
from tweed.guidance import ClassifierFree
from tweed.solvers import DDIM, AdaptiveDPM, DPMSolver, Heun, UniPC, fit_grid, keep_grid, kept_grids, sample
from tweed.solvers.accuracy import converged
from tweed.solvers.grid_search import INITIAL

EDM = processes.EDM(0.002, 80.0)


def mixture(process=EDM, labels=None):
    means = random.normal((6, 8), 3, dtype=torch.float64)
    return tweed.MixtureDenoiser(means, 0.02, None, process, labels)


def errors(denoiser, solver, times, x, exact, cond=None):
    made = sample(denoiser, x, solver=solver, times=times, cond=cond)
    return (made - exact).square().flatten(1).mean(1).sqrt()


def geometric(errors):
    return errors.log().mean().exp().item()


@pytest.mark.parametrize("process", [EDM, processes.VP()], ids=["EDM", "VP"])
@pytest.mark.parametrize("solver", [DPMSolver(2), UniPC(3)], ids=["2M", "UniPC"])
def test_it_beats_every_fixed_grid_on_other_starts(process, solver):
    denoiser, end, steps = mixture(process), process.t_min, 8
    grid = fit_grid(denoiser, solver, steps, starts=48, seed=1, tries=4)
    x = process.prior((96, 8), 2, dtype=torch.float64)
    exact = converged(denoiser, x, end=end, tolerance=1e-5)
    found = geometric(errors(denoiser, solver, grid(process, steps, end=end), x, exact))
    fixed = [geometric(errors(denoiser, solver, f(process, steps, end=end), x, exact)) for f in INITIAL.values()]
    assert found < 0.8 * min(fixed)
    # What it says of itself is what other starts show.
    assert grid.error == pytest.approx(found, rel=0.35)
    assert grid.error < grid.baseline


def test_a_grid_of_one_half_of_the_starts_serves_the_other():
    denoiser, solver, steps = mixture(), DPMSolver(2), 10
    x = EDM.prior((256, 8), 5, dtype=torch.float64)
    exact = converged(denoiser, x, end=EDM.t_min, tolerance=1e-5)
    halves = (slice(0, 128), slice(128, 256))
    found = [fit_grid(denoiser, solver, steps, starts=x[h], reference=exact[h], tries=3) for h in halves]
    error = {
        (k, j): geometric(errors(denoiser, solver, grid(EDM, steps, end=EDM.t_min), x[h], exact[h]))
        for k, grid in enumerate(found)
        for j, h in enumerate(halves)
    }
    # The halves differ in how hard they are; that cancels.
    assert (error[0, 1] * error[1, 0] / (error[0, 0] * error[1, 1])) ** 0.5 < 1.1


def test_a_jump_in_closed_form_is_found_its_first_level():
    # One Gaussian: the jump is exact wherever it goes, so almost all of the way is jumped.
    model = GaussianDenoiser(torch.zeros(4), torch.tensor([0.1, 0.5, 1.0, 2.0]), EDM)
    solver = DDIM()
    plain = fit_grid(model, solver, 5, starts=16, tries=3)
    jumped = fit_grid(model, solver, 5, starts=16, tries=3, jump=lambda x, t: model.flow(x, 1.0, t))
    assert jumped.jump
    assert not plain.jump
    assert jumped.error < 0.5 * plain.error
    t = jumped.start(EDM)
    assert t < 0.5 * plain.start(EDM)
    x = EDM.prior((16, 4), 9, dtype=torch.float64)
    made = sample(
        model,
        Start(model.flow(x, 1.0, t), t),
        solver=solver,
        steps=5,
        grid=lambda *a, **k: jumped(*a, **k | {"end": EDM.t_min}),
    )
    assert geometric((made - model.flow(x, 1.0, EDM.t_min)).square().mean(1).sqrt()) < 0.5 * plain.error


@pytest.mark.parametrize("process", [processes.Cosine(), processes.RectifiedFlow()], ids=["Cosine", "RectifiedFlow"])
def test_infinite_ends_keep_their_steps(process):
    denoiser = mixture(process)
    grid = fit_grid(denoiser, Heun(form="velocity"), 6, starts=16, end=0.0, tries=2)
    times = grid(process, 6, end=0.0)
    assert len(times) == 7
    assert (times[0].item(), times[-1].item()) == (1.0, 0.0)
    assert grid.error <= grid.baseline


def test_guided_and_conditional_models():
    labels = torch.arange(6) % 2
    guided = ClassifierFree(mixture(processes.VP(), labels), 3.0)
    cond = {"label": torch.arange(32) % 2}
    grid = fit_grid(guided, DPMSolver(2), 8, starts=32, cond=cond, tolerance=1e-2, tries=3)
    assert grid.error < grid.baseline


def test_the_same_seed_finds_the_same_grid_and_two_steps_have_one():
    first, again = (fit_grid(mixture(), DDIM(), 2, starts=8, seed=4, tries=3) for _ in range(2))
    assert first == again
    assert fit_grid(mixture(), DDIM(), 2, starts=8, seed=5, tries=3) != first


def test_it_is_saved_with_a_model_and_found_again(tmp_path):
    network = tweed.nets.build({"name": "mlp", "dim": 2, "width": 8})
    model = tweed.NetworkDenoiser(network, processes.VP(), tweed.targets.Noise(), event=(2,))
    grid = fit_grid(model, DPMSolver(2), 4, starts=4, tolerance=1e-2, tries=2)
    keep_grid(model, grid)
    keep_grid(model, grid)
    loaded = tweed.load(tweed.save(model, tmp_path))
    assert kept_grids(loaded) == [grid]
    assert kept_grids(ClassifierFree(loaded, 2.0)) == [grid]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 1}, InputError, "steps: 1"),
        ({"steps": 0}, InputError, "steps: 0"),
        ({"solver": DDIM(eta=1.0)}, InputError, "solver"),
        ({"solver": AdaptiveDPM()}, InputError, "solver"),
        ({"coefficients": 0}, InputError, "coefficients"),
        ({"denoiser": FunctionDenoiser(lambda x, t: x, processes.Interpolant())}, IncompatibleError, "two-sided"),
        ({"denoiser": FunctionDenoiser(lambda x, t: x, EDM)}, InputError, "shape"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        fit_grid(**{"denoiser": mixture(), "solver": DDIM(), "steps": 4, "starts": 4} | change)


def test_a_model_that_breaks_every_run_is_named():
    def broken(x, t, **cond):
        return x * math.nan

    model = FunctionDenoiser(broken, EDM, event=(2,))
    with pytest.raises(NumericalError, match="solver"):
        fit_grid(model, DDIM(), 4, starts=4, reference=torch.zeros(4, 2))
