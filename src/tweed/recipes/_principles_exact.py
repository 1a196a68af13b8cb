"""The exact part of the recipe `principles`: identities that hold for any model, measured on models in closed form."""

import math

import torch
from torch import Tensor

from tweed import guidance, solvers
from tweed.core import grids, processes, random, targets
from tweed.core.denoiser import Denoiser, FunctionDenoiser
from tweed.core.estimate import Estimate
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser
from tweed.core.flow_map import (
    GaussianFlow,
    eulerian_residual,
    lagrangian_residual,
    mean_flow_residual,
    semigroup_residual,
)
from tweed.core.processes import Process
from tweed.core.targets import Target
from tweed.core.time import left
from tweed.data.mixtures import ring_mixture
from tweed.recipes.report import Row, at_most
from tweed.training import weightings
from tweed.training.objectives import DenoisingLoss
from tweed.training.times import Uniform

F64 = torch.float64
TARGETS: dict[str, Target] = {
    "x0": targets.Data(),
    "eps": targets.Noise(),
    "score": targets.Score(),
    "v": targets.V(),
    "velocity": targets.Velocity(),
    "EDM's F": targets.EDM(data_std=1.0),
}
GAUSSIAN: dict[str, Process] = {
    "VP": processes.VP(),
    "cosine": processes.Cosine(),
    "sub-VP": processes.SubVP(),
    "VE": processes.VE(),
    "EDM": processes.EDM(),
    "rectified flow": processes.RectifiedFlow(),
    "trigonometric": processes.Interpolant("trigonometric", one_sided=True),
    "DDPM's betas": processes.FromBetas.linear(),
}
PAIRED: dict[str, Process] = {
    "mean-reverting": processes.MeanReverting(),
    "OUVE": processes.OUVE(),
    "residual": processes.Residual(),
    "two-sided": processes.Interpolant("trigonometric", "brownian"),
}
_PARTS = 5  # of the samples of the bound, which would take much memory at once
ENDS = (-3.0, 3.0)  # the log-SNR between which trajectories are compared


def mixture(process: Process) -> MixtureDenoiser:
    """Eight Gaussians on a circle, the world of this recipe, under `process`; its label is the component."""
    ring = ring_mixture(8)
    return MixtureDenoiser(ring.means, ring.covariances, ring.weights, process, ring.labels)


def span(process: Process, ends: tuple[float, float] = ENDS) -> tuple[float, float]:
    """The times of the two log-SNRs `ends`."""
    return process.time(ends[0]).item(), process.time(ends[1]).item()


def latents(process: Process, n: int, seed: int) -> Tensor:
    """The same `n` latents for every process: equal in `x / alpha` at the noisy end."""
    spread = math.sqrt(1.0 + math.exp(-2.0 * ENDS[0]))
    return process.alpha(span(process)[0]) * spread * random.normal((n, 2), seed, dtype=F64)


def conversion_errors(seed: int) -> dict[str, Tensor]:
    """By process, the largest relative error of each conversion (given target, wanted target), there and back."""
    found = {}
    for name, process in (GAUSSIAN | PAIRED).items():
        x0, eps, y = (random.normal((64, 3), seed, draw=i, dtype=F64) for i in range(3))
        t = 0.02 + 0.96 * random.uniform((64, 1), seed, draw=3, dtype=F64)[:, 0]
        y = None if process.endpoint == "none" else y
        x = process.perturb(x0, t, eps, y)
        truth = []
        for target in TARGETS.values():
            row = target.row(process, t)
            value = left(row.data, x) * x0 + left(row.noise, x) * eps
            truth.append(value if y is None else value + left(row.endpoint, x) * y)
        errors = torch.zeros(len(TARGETS), len(TARGETS), dtype=F64)
        for i, given in enumerate(TARGETS.values()):
            for j, wanted in enumerate(TARGETS.values()):
                there = Estimate(x, t, truth[i], process, given, y).to(wanted)
                back = Estimate(x, t, there, process, wanted, y).to(given)
                errors[i, j] = max(_relative(there, truth[j]), _relative(back, truth[i]))
        found[name] = errors
    return found


def _relative(value: Tensor, truth: Tensor) -> float:
    return ((value - truth).norm(dim=1) / truth.norm(dim=1)).max().item()


def conversions(errors: dict[str, Tensor]) -> list[Row]:
    """The table of conversions as rows: the largest error of each kind of process."""
    rows = []
    for words, group in (("Gaussian processes", GAUSSIAN), ("processes with an endpoint", PAIRED)):
        worst = max(group, key=lambda name: errors[name].max().item())
        note = f"{len(TARGETS) ** 2} pairs; relative, t in [0.02, 0.98]; the largest: {worst}"
        largest = errors[worst].max().item()
        rows.append(at_most(f"conversions there and back, {len(group)} {words}", largest, 1e-9, note=note))
    return rows


def views(seed: int) -> list[Row]:
    """One field: the same samples whatever the process, the target or the name of the solver."""
    ends, read, first = {}, 0.0, 0.0
    for name, process in GAUSSIAN.items():
        model, (high, low) = mixture(process), span(process)
        start = latents(process, 64, seed)
        grid = {"EDM": grids.karras, "VE": grids.uniform}.get(name, grids.quadratic)
        fine, coarse = (grid(process, steps, start=high, end=low) for steps in (200, 15))
        ends[name] = solvers.sample(model, start, solver=solvers.RungeKutta("rk4"), times=fine) / process.alpha(low)
        usual = solvers.sample(model, start, solver=solvers.DPMSolver(), times=coarse)
        for target in TARGETS.values():
            same = solvers.sample(_answering(model, target), start, solver=solvers.DPMSolver(), times=coarse)
            read = max(read, (same - usual).abs().max().item())
        ddim = solvers.sample(model, start, solver=solvers.DDIM(), times=coarse)
        for form in ("data", "noise"):
            other = solvers.sample(model, start, solver=solvers.DPMSolver(order=1, form=form), times=coarse)
            first = max(first, (other - ddim).abs().max().item())
    stacked = torch.stack(list(ends.values()))
    apart = (stacked.max(0).values - stacked.min(0).values).max().item()
    return [
        at_most("flow view: the ODE's samples from equal latents, 8 processes", apart, 1e-4, note="RK4, 200 steps"),
        at_most("the same model answering each of 6 targets, DPM-Solver++ 2M, 8 processes", read, 1e-9),
        at_most("DDIM (eta = 0) against DPM-Solver-1 in both forms, 8 processes", first, 1e-9),
    ]


def _answering(model: Denoiser, target: Target) -> FunctionDenoiser:
    return FunctionDenoiser(lambda x, t, **cond: model(x, t, **cond).to(target), model.process, target, model.event)


def posterior(seed: int) -> list[Row]:
    """The variational and the score view: `q(x_s | x_t, x_0)`, Tweedie's formula, guidance of scale one."""
    zero, marginal, tweedie, guided = 0.0, 0.0, 0.0, 0.0
    for process in GAUSSIAN.values():
        high, low = span(process)
        t = torch.linspace(high, low, 33, dtype=F64)
        (step,) = solvers.DDPM().table(process, torch.stack((t, t))).steps[0]
        zero = max(zero, (torch.as_tensor(step.noise) / process.sigma(t)).abs().max().item())
        (step,) = solvers.DDPM().table(process, torch.stack((t[:-1], t[1:]))).steps[0]
        keep, mean, std = torch.as_tensor(step.state), torch.as_tensor(step.estimates[0]), torch.as_tensor(step.noise)
        alpha, sigma = process.alpha(t), process.sigma(t)
        gap = (keep * alpha[:-1] + mean - alpha[1:]).abs() / alpha[1:]
        spread = ((keep * sigma[:-1]) ** 2 + std**2 - sigma[1:] ** 2).abs() / sigma[1:] ** 2
        marginal = max(marginal, gap.max().item(), spread.max().item())

        model = mixture(process)
        x = process.perturb(model.sample(33, seed), t, random.normal((33, 2), seed, draw=2, dtype=F64)).requires_grad_()
        (score,) = torch.autograd.grad(model.log_prob(x, t).sum(), x)
        x = x.detach()
        data = (x + left(sigma**2, x) * score) / left(alpha, x)
        tweedie = max(tweedie, _relative(model(x, t).score, score), (model(x, t).x0 - data).abs().max().item())
        label = torch.arange(33) % 8
        plain, one = (m(x, t, label=label).x0 for m in (model, guidance.ClassifierFree(model, 1.0)))
        guided = max(guided, (plain - one).abs().max().item())
    return [
        at_most("variational view: std of q(x_s | x_t, x_0) at s = t, in sigma_t", zero, 1e-9),
        at_most("variational view: q(x_s | x_t, x_0) q(x_t | x_0) has the marginal of s", marginal, 1e-9),
        at_most("score view: Tweedie's formula against the gradient of the log density", tweedie, 1e-9),
        at_most("guidance of scale 1 against the conditional model", guided, 1e-9),
    ]


def weights(seed: int) -> list[Row]:
    """The table of weights: each target's squared error over that of the noise, against derivatives by autograd."""
    table, library = 0.0, 0.0
    d = 1.0
    for process in GAUSSIAN.values():
        t = 0.02 + 0.96 * random.uniform((64, 1), seed, draw=5, dtype=F64)[:, 0]
        a, s = process.alpha(t), process.sigma(t)
        rate = process.alpha_dot(t) * s - a * process.sigma_dot(t)
        expected = {
            "x0": (s / a) ** 2,
            "eps": torch.ones_like(t),
            "score": s**-2,
            "v": ((a**2 + s**2) / a) ** 2,
            "velocity": (rate / a) ** 2,
            "EDM's F": (s / a) ** 2 * ((s / a) ** 2 + d**2) / (s / a * d) ** 2,
        }
        x, eps = (random.normal((64, 2), seed, draw=i, dtype=F64) for i in (6, 7))
        error = random.normal((64, 2), seed, draw=8, dtype=F64)
        for name, target in TARGETS.items():
            answer = eps.clone().requires_grad_()
            value = Estimate(x, t, answer, process, targets.Noise()).to(target)
            (pulled,) = torch.autograd.grad((value * error).sum(), answer)
            ratio = pulled.square().sum(1) / error.square().sum(1)
            table = max(table, (ratio / expected[name] - 1.0).abs().max().item())
            weight = weightings.Uniform(on="Noise").weight(process, target, t)
            library = max(library, (ratio * weight - 1.0).abs().max().item())
    return [
        at_most(
            "weights table: squared errors by autograd against closed forms, 6 targets", table, 1e-9, note="relative"
        ),
        at_most("weights table: the training room's weights against autograd", library, 1e-9, note="relative"),
    ]


def bound(seed: int, n: int) -> list[Row]:
    """The likelihood bound between two noise levels, by the training objective itself: invariant to the schedule."""
    chosen = {name: GAUSSIAN[name] for name in ("VP", "cosine")}
    ends = (-2.0, 2.0)
    snr_low, snr_high = (math.exp(2.0 * end) for end in ends)
    variance = 1.0

    def nats(model: MixtureDenoiser) -> float:
        high, low = span(model.process, ends)
        objective = DenoisingLoss(targets.Noise(), weightings.Likelihood(), Uniform("stratified", low, high))
        parts, size = [], n // _PARTS
        for part in range(_PARTS):
            key = random.fold(seed, part)
            noise = random.normal((size, 2), key, draw=2, dtype=F64)  # 0 and 1 are the draws of the data
            batch = {"x": model.sample(size, key), "noise": noise}
            parts.append(objective(model, batch, seed=key).mean().item())
        return sum(parts) / _PARTS * (high - low)  # half of the sum over two dimensions is their mean

    ring = [nats(mixture(process)) for process in chosen.values()]
    ball = [nats(GaussianDenoiser(torch.zeros(2), variance, process)) for process in chosen.values()]
    exact = math.log((snr_high * variance + 1.0) / (snr_low * variance + 1.0))
    apart = abs(ring[0] / ring[1] - 1.0)
    wrong = max(abs(value / exact - 1.0) for value in ball)
    note = f"{ring[0]:.4g} and {ring[1]:.4g} nats, log-SNR from {ends[0]:g} to {ends[1]:g}"
    return [
        at_most("variational bound, VP against cosine: relative difference", apart, 0.01, note=note),
        at_most("variational bound of a Gaussian against its information in closed form", wrong, 0.01, note="relative"),
    ]


def flow_maps(seed: int) -> list[Row]:
    """The identities of flow maps, by automatic derivatives, on the closed-form flow of a Gaussian."""
    factor = random.normal((3, 3), seed, draw=9, dtype=F64)
    worst: dict[str, float] = {}
    for process in GAUSSIAN.values():
        model = GaussianDenoiser(torch.tensor([1.0, -1.0, 0.5]), factor @ factor.T + 0.1 * torch.eye(3), process)
        flow = GaussianFlow(model)
        high, low = span(process)
        t = torch.linspace(0.2, 1.0, 16, dtype=F64) * (high - low) + low
        s, r = low + 0.6 * (t - low), low + 0.2 * (t - low)
        x = process.perturb(model.sample(16, seed), t, random.normal((16, 3), seed, draw=2, dtype=F64))

        def velocity(x: Tensor, t: Tensor, model: GaussianDenoiser = model) -> Tensor:
            return model(x, t).velocity

        def average(x: Tensor, t: Tensor, s: Tensor, flow: GaussianFlow = flow) -> Tensor:
            return (x - flow(x, t, s)) / left(t - s, x)

        residuals = {
            "semigroup": semigroup_residual(flow, x, t, s, r),
            "Eulerian": eulerian_residual(flow, velocity, x, t, s),
            "Lagrangian": lagrangian_residual(flow, velocity, x, t, s),
            "mean-flow": mean_flow_residual(average, velocity, x, t, s),
        }
        for name, value in residuals.items():
            worst[name] = max(worst.get(name, 0.0), value.abs().max().item())
    return [at_most(f"flow map: {name} residual, 8 processes", value, 1e-8) for name, value in worst.items()]
