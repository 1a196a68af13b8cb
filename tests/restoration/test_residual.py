"""Residual denoising and Resfusion: forward formulas, schedules, targets, and the choice of the objective."""

import math

import pytest
import torch

from tweed import processes, random
from tweed.core import targets
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.exact import GaussianDenoiser, MixturePosterior
from tweed.core.processes import FromBetas, Resfusion, Residual
from tweed.core.processes.resfusion import half_betas, linear_betas
from tweed.errors import IncompatibleError, InputError
from tweed.nets import build
from tweed.restoration.mean_reverting import mrs, remaining_grid, step_times
from tweed.restoration.objective_selection import select_objective
from tweed.restoration.residual import (
    ResidualNoise,
    ResidualNoiseLoss,
    noise_first,
    process_path,
    remove,
    residual_first,
)
from tweed.solvers import DDIM, DDPM, DPMSolver, sample

F64 = torch.float64
BASES = [
    Resfusion.linear(12),
    Resfusion.linear(50),
    Resfusion.cosine(20),
    Resfusion(processes.VP()),
    Resfusion(processes.Cosine()),
]


@pytest.mark.parametrize("process", BASES, ids=lambda p: f"{type(p.base).__name__}-{p.steps}")
def test_resfusion_is_its_base_around_the_residual(process):
    t = torch.linspace(0.0, 1.0, 41, dtype=F64)
    alpha, beta, sigma, kept = process.alpha(t), process.beta(t), process.sigma(t), process.carried(t)
    torch.testing.assert_close(alpha, 2.0 * kept - 1.0, rtol=0, atol=1e-7)
    torch.testing.assert_close(beta, 1.0 - kept, rtol=0, atol=1e-7)
    torch.testing.assert_close(kept**2 + sigma**2, torch.ones(41, dtype=F64))
    assert alpha[-1].item() == 0.0
    assert beta[-1].item() == pytest.approx(0.5)
    inside = t[1:-1]
    torch.testing.assert_close(process.time(process.log_snr(inside)), inside, rtol=0, atol=1e-6)
    start = process.prior((3, 2), 1, y=torch.ones(3, 2, dtype=F64), dtype=F64)
    torch.testing.assert_close(start, 0.5 + math.sqrt(0.75) * random.normal((3, 2), 1, dtype=F64), rtol=0, atol=1e-6)


def test_how_many_steps_are_left():
    assert [Resfusion.linear(n).steps for n in (12, 20, 50, 273)] == [5, 8, 19, 100]
    betas = half_betas(linear_betas(12))
    assert (1.0 - betas).prod().sqrt().item() == pytest.approx(0.5, abs=1e-12)
    torch.testing.assert_close(betas[:-1], linear_betas(12)[:4])


def test_resnoise_and_residual_convert_to_data():
    for process, target in ((Resfusion.linear(12), targets.Resnoise()), (Residual(), targets.DataResidual())):
        x0, y, eps = (random.normal((6, 3), k, dtype=F64) for k in (1, 2, 3))
        for t in (1.0, 0.6, 0.2):
            if isinstance(target, targets.DataResidual) and t == 1.0:
                continue
            x = process.perturb(x0, t, eps, y)
            row = target.row(process, torch.tensor(t, dtype=F64))
            answer = row.data * x0 + row.noise * eps + row.endpoint * y
            estimate = FunctionDenoiser(lambda x, t, y, answer=answer: answer, process, target)(x, t, y=y)
            torch.testing.assert_close(estimate.x0, x0)
            torch.testing.assert_close(estimate.eps, eps)


@pytest.mark.parametrize("process", [Resfusion.linear(50), Residual(), processes.MeanReverting()], ids=repr)
@pytest.mark.parametrize(
    "solver", [DDPM(), DPMSolver(2), DPMSolver(2, eta=1.0), DPMSolver(1, form="noise", eta=1.0)], ids=repr
)
def test_all_samplers_end_in_the_exact_law(process, solver):
    prior = GaussianDenoiser(torch.tensor([0.4]), 0.5, processes.VP())
    model = MixturePosterior(prior, torch.ones(1, 1), 0.5, process)
    n, y = 20000, torch.tensor([[1.0]], dtype=F64)
    mean, covariance = model.moments(y)
    cond = {"measurement": y.expand(n, 1), "y": y.expand(n, 1)}
    # From where alpha is small but not zero, drawn as the process says.
    t = 0.999
    x0 = model.draw(y.expand(n, 1), 1, 5)[0]
    start = process.perturb(x0, t, random.normal((n, 1), 6, dtype=F64), y.expand(n, 1))
    times = torch.linspace(t, process.t_min, 120, dtype=F64).tolist()
    made = sample(model, start, solver=solver, times=times, cond=cond, seed=3)
    level = process.level(times[-1])
    expected = level.alpha * mean + level.beta * y
    variance = level.alpha**2 * covariance[0, 0, 0] + level.sigma**2
    assert made.mean().item() == pytest.approx(expected.item(), abs=0.03)
    assert made.var().item() == pytest.approx(variance.item(), rel=0.08)


def true_fields(x0, eps, process):
    return ResidualNoise(lambda x, a, y: y - x0, lambda x, b, y: eps, process, event=tuple(x0.shape[1:]))


def test_any_order_of_removal_follows_the_formula():
    process = Residual(noise=0.5)
    x0, y, eps = (random.normal((4, 3), k, dtype=F64) for k in (1, 2, 3))
    model = true_fields(x0, eps, process)
    straight = process_path(process, torch.linspace(1.0, 0.0, 7))
    for path in (straight, noise_first(process, 5), residual_first(process, 6)):
        assert path[-1] == pytest.approx((0.0, 0.0))
        x = y + path[0][1] * eps
        torch.testing.assert_close(remove(model, x, y, path), x0)
        # A path that stops on the way stops at the forward formula there.
        a, b = path[3]
        torch.testing.assert_close(remove(model, x, y, path[:4]), x0 + a * (y - x0) + b * eps)
    for bad in ([(0.5, 0.5), (0.6, 0.1)], [(0.5, 0.5)]):
        with pytest.raises(InputError, match="path"):
            remove(model, x0, y, bad)
    with pytest.raises(InputError, match="eta"):
        remove(model, x0, y, straight, eta=2.0)
    with pytest.raises(IncompatibleError, match="common time"):
        remove(ResidualNoise(model.residual, model.noise, process, told="time"), x0, y, straight)


def test_fresh_noise_keeps_the_marginal():
    process = Residual()
    x0, y = torch.zeros(40000, 1, dtype=F64), torch.ones(40000, 1, dtype=F64)
    eps = random.normal((40000, 1), 1, dtype=F64)
    made = remove(true_fields(x0, eps, process), y + eps, y, [(1.0, 1.0), (0.5, 0.6), (0.2, 0.3)], eta=1.0, seed=4)
    # The true noise is what the first state had: what is drawn anew adds to a share of it.
    assert made.mean().item() == pytest.approx(0.2, abs=0.01)
    kept = remove(true_fields(x0, eps, process), y + eps, y, [(1.0, 1.0), (0.5, 0.6)], eta=1.0, seed=4)
    drawn = (1.0 - 0.6**2) * 0.6**2
    expected = 0.5 + (1.0 - (1.0 - math.sqrt(0.6**2 - drawn))) * eps
    assert (kept - expected).var().item() == pytest.approx(drawn, rel=0.05)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_fresh_noise_is_that_of_ddim(eta):
    # Where the two networks agree with the state, the published step is DDIM's, whose eta is of the deviation.
    process = Residual(noise=0.5)
    y = random.normal((6, 3), 2, dtype=F64)
    weight = random.normal((3, 3), 3, dtype=F64)
    times = [0.9, 0.7, 0.4, 0.1]
    start = process.prior((6, 3), 1, y=y, t=times[0], dtype=F64)

    def data(x, y):
        return torch.tanh(x @ weight + 0.3 * y)

    def noise(x, b, y):
        level = b[:, None] / math.sqrt(0.5)  # the time, as the noise rises in proportion to it
        kept = 1.0 - process.beta(level)
        return (x - kept * data(x, y) - (1.0 - kept) * y) / b[:, None]

    model = ResidualNoise(lambda x, a, y: y - data(x, y), noise, process)
    ours = remove(model, start, y, process_path(process, times), eta=eta, seed=4)
    plain = FunctionDenoiser(lambda x, t, y: data(x, y), process, event=(3,))
    made = sample(plain, start, solver=DDIM(eta=math.sqrt(eta)), times=times, cond={"y": y}, seed=4)
    torch.testing.assert_close(ours, made, rtol=0, atol=1e-12)


def test_two_networks_are_a_denoiser_and_are_trained_together():
    process = Residual()
    x0, y, eps = (random.normal((4, 3), k, dtype=F64) for k in (1, 2, 3))
    model = true_fields(x0, eps, process)
    x = process.perturb(x0, 0.6, eps, y)
    torch.testing.assert_close(model(x, 0.6, y=y).x0, x0)
    told = []
    asks = ResidualNoise(
        lambda x, a, y: told.append(("a", a)) or x, lambda x, b, y: told.append(("b", b)) or x, process
    )
    asks(x, 0.6, y=y)
    assert told[0][1].tolist() == pytest.approx([process.level(0.6).beta] * 4)
    assert told[1][1].tolist() == pytest.approx([process.level(0.6).sigma] * 4)
    batch = {"x": x0, "y": y, "noise": eps, "t": torch.full((4,), 0.6, dtype=F64)}
    assert float(ResidualNoiseLoss()(model, batch).abs().max()) < 1e-12
    wrong = ResidualNoise(lambda x, a, y: y - x0 + 0.5, lambda x, b, y: eps - 0.25, process)
    assert ResidualNoiseLoss()(wrong, batch).tolist() == pytest.approx([0.75] * 4)
    assert ResidualNoiseLoss("l2")(wrong, batch).tolist() == pytest.approx([0.3125] * 4)
    with pytest.raises(IncompatibleError, match="ResidualNoise"):
        ResidualNoise(model.residual, model.noise, processes.VP())
    with pytest.raises(InputError, match="y:"):
        model(x, 0.6)


def test_the_published_samplers_and_steps_of_mean_reverting():
    process = processes.MeanReverting()
    assert mrs() == DPMSolver(2, solver_type="taylor")
    assert mrs(1, "sde") == DPMSolver(1, solver_type="taylor", eta=1.0)
    times = step_times(process)
    assert times.shape == (101,)
    assert bool((times.diff() > 0).all())
    assert process.alpha(times[:1]).item() == pytest.approx(0.99994, abs=2e-5)
    assert process.alpha(times[-1:]).item() == pytest.approx(process.remainder, rel=1e-9)
    grid = remaining_grid(process, 10)
    torch.testing.assert_close(
        process.alpha(grid)[[0, -1]], torch.tensor([process.remainder, 0.999], dtype=F64), atol=1e-6, rtol=0
    )
    steps = process.log_snr(grid[1:]).diff()
    torch.testing.assert_close(steps, steps[0].expand(len(steps)), rtol=1e-6, atol=1e-6)
    for options in ({"order": 3, "kind": "sde"}, {"kind": "other"}):
        with pytest.raises(InputError):
            mrs(**options)
    with pytest.raises(InputError, match="steps"):
        remaining_grid(process, 0)
    with pytest.raises(InputError, match="schedule"):
        step_times(processes.MeanReverting(schedule="linear"))


@pytest.mark.parametrize(("kind", "expected"), [("shared", "residual"), ("pure", "noise")])
def test_the_easier_objective_is_chosen(kind, expected):
    process = Residual(noise=0.25)

    def data(step):
        x0 = random.normal((64, 8), 7, draw=step)
        if kind == "shared":
            return x0, x0 - 0.5
        # The input says everything of the data: what is left to learn is in reach of either; the residual is large noise.
        return x0, x0 + 4.0 * random.normal((64, 8), 8, draw=step)

    network = build({"name": "mlp", "dim": 8, "width": 64, "depth": 2, "endpoint_channels": 8}, 0)
    found = select_objective(network, process, data, steps=300, rate=1e-3, seed=1)
    assert found.objective == expected
    assert found.weights[0] == 0.5
    assert len(found.weights) <= 301


def test_ddim_on_a_residual_process_is_ddim_of_its_shift():
    # alpha = 1 - a and sigma = b are all that DDIM sees of it.
    process = Residual()
    x, y = random.normal((3, 2), 1, dtype=F64), random.normal((3, 2), 2, dtype=F64)
    model = FunctionDenoiser(lambda x, t, y: 0.3 * y + 0.0 * x, process, event=(2,))
    made = sample(model, x, solver=DDIM(), times=[0.8, 0.3], cond={"y": y})
    here, there = process.level(0.8), process.level(0.3)
    eps = (x - here.alpha * 0.3 * y - here.beta * y) / here.sigma
    torch.testing.assert_close(made, there.alpha * 0.3 * y + there.beta * y + there.sigma * eps)


def test_what_is_refused():
    with pytest.raises(InputError, match="variance-preserving"):
        Resfusion(processes.EDM())
    with pytest.raises(InputError, match="stays above"):
        Resfusion(FromBetas([0.1, 0.1]))
    with pytest.raises(InputError, match="bring alpha"):
        half_betas(torch.tensor([0.1, 0.1]))
    with pytest.raises(InputError, match="steps"):
        linear_betas(2)
    with pytest.raises(IncompatibleError, match="Resnoise"):
        targets.Resnoise().row(processes.VP(), torch.tensor(0.5))
    with pytest.raises(IncompatibleError, match="MeanRevertingV"):
        targets.MeanRevertingV().row(processes.VP(), torch.tensor(0.5))
    with pytest.raises(InputError, match="margin"):
        select_objective(torch.nn.Linear(2, 2), Residual(), lambda step: (torch.zeros(1, 2),) * 2, margin=0.6)
    with pytest.raises(InputError, match="steps"):
        noise_first(Residual(), 1)
