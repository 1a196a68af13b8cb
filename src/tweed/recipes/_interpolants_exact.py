"""What must be true of interpolants whose fields are known: identities, and transport between mixtures."""

import itertools
import math

import torch
from torch import Tensor

from tweed.core import random, targets
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser, MixtureInterpolantDenoiser
from tweed.core.processes import Interpolant
from tweed.core.time import left
from tweed.metrics import sliced_wasserstein
from tweed.recipes.report import Progress, Row, at_most, less_than
from tweed.solvers import AdaptiveRungeKutta, Euler, InterpolantSDE, sample
from tweed.training import InterpolantLoss

TWO_SIDED = (
    *(Interpolant(p, g) for p, g in itertools.product(("linear", "trigonometric"), ("brownian", "quadratic"))),
    *(Interpolant(p, g) for p, g in itertools.product(("linear", "trigonometric"), ("sine", "sigmoid"))),
    Interpolant("encoder-decoder", "sine"),
)
BARE = (Interpolant("linear"), Interpolant("trigonometric"))
ONE_SIDED = tuple(Interpolant(path, one_sided=True) for path in ("linear", "trigonometric", "vp"))
_START, _TRUTH, _FLOOR = 11, 12, 14  # streams of the seed


def name(process: Interpolant) -> str:
    """Path and latent noise."""
    return process.path if process.one_sided else f"{process.path}, {process.latent}"


def mixtures() -> tuple[MixtureDenoiser, MixtureDenoiser]:
    """Three modes at t = 0 and five at t = 1, with full covariances, in the plane."""
    f64 = torch.float64
    data = MixtureDenoiser(
        torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]], dtype=f64),
        torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.4, -0.2], [-0.2, 0.3]]], dtype=f64),
        torch.tensor([0.3, 0.3, 0.4], dtype=f64),
    )
    means = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0], [0.0, 0.0]], dtype=f64)
    return data, MixtureDenoiser(means, 0.2)


def identities(seed: int) -> list[Row]:
    """The equations that hold to rounding, and the value of the loss at its minimum."""
    data, other = mixtures()
    f64, n = torch.float64, 256
    x0, x1 = data.sample(n, random.fold(seed, 1)), other.sample(n, random.fold(seed, 2))
    z = random.normal((n, 2), random.fold(seed, 3), dtype=f64)
    t = random.uniform((n, 1), random.fold(seed, 4), dtype=f64)[:, 0] * 0.98 + 0.01
    ends = identity = 0.0
    for process in (*TWO_SIDED, *BARE):
        for at, end in ((0.0, x0), (1.0, x1)):
            ends = max(ends, (process.perturb(x0, at, z, x1) - end).abs().max().item())
    for process in TWO_SIDED:
        x = process.perturb(x0, t, z, x1)
        estimate = MixtureInterpolantDenoiser(data, other, process)(x, t)
        speed = _mean_speed(data, other, process, x, t)
        product = left(0.5 * process.variance_dot(t), x) * estimate.score
        scale = 1.0 + estimate.velocity.abs() + product.abs()
        identity = max(identity, ((estimate.velocity - speed + product).abs() / scale).max().item())
    unit = torch.linspace(0.0, 1.0, 101, dtype=f64)
    trigonometric = [p for p in (*TWO_SIDED, *BARE) if p.path == "trigonometric"]
    total = max((p.alpha(unit) ** 2 + p.beta(unit) ** 2 + p.sigma(unit) ** 2 - 1.0).abs().max() for p in trigonometric)
    vp, inside = Interpolant("vp", one_sided=True), torch.linspace(0.01, 0.99, 99, dtype=f64)
    at_one = torch.ones(99, 1, dtype=f64)
    drift = (vp.drift(at_one, inside)[:, 0] / (-0.5 * vp.diffusion(inside) ** 2) - 1.0).abs().max()
    exact = MixtureInterpolantDenoiser(data, other, Interpolant("linear", "brownian"))
    gap, error = _minimum(exact, seed)
    still = sample(exact, x1, solver=InterpolantSDE(0.0), steps=20)
    euler = sample(exact, x1, solver=Euler(), steps=20)
    return [
        at_most("ends x_0 and x_1, 11 two-sided interpolants: largest error", ends, 1e-12),
        at_most("velocity = E[dI/dt] - sigma sigma' score on mixtures: largest relative error", identity, 1e-10),
        at_most("one-sided: data, noise, velocity, score there and back: largest error", _round_trips(seed), 1e-8),
        at_most("trigonometric path: |variance - 1| for unit-variance ends", total, 1e-12),
        at_most("VP path: relative error of drift = -g^2 x / 2", drift, 1e-10),
        at_most("SDE without noise against Euler's method", (still - euler).abs().max(), 1e-12),
        at_most(
            "velocity loss at its minimum: |loss + E|b|^2/2| in standard errors",
            abs(gap) / error,
            5.0,
            note=f"{gap:.1e}",
        ),
    ]


def _mean_speed(data: MixtureDenoiser, other: MixtureDenoiser, process: Interpolant, x: Tensor, t: Tensor) -> Tensor:
    """`alpha' E[x_0 | x] + beta' E[x_1 | x]` by conditioning in each pair of components."""
    a, b, da, db, s = (
        c(t)[:, None, None] for c in (process.alpha, process.beta, process.alpha_dot, process.beta_dot, process.sigma)
    )
    covariances = [
        torch.einsum("kde,ke,kfe->kdf", m.vectors, m.values, m.vectors)
        if m.vectors is not None
        else torch.diag_embed(m.values.expand(m.means.shape))
        for m in (data, other)
    ]
    eye, parts, logs = torch.eye(2, dtype=x.dtype), [], []
    for i, j in itertools.product(range(len(data.means)), range(len(other.means))):
        c, d = covariances[0][i], covariances[1][j]
        v = a**2 * c + b**2 * d + s**2 * eye
        off = x[..., None] - a * data.means[i][:, None] - b * other.means[j][:, None]
        solved = torch.linalg.solve(v, off)
        first, second = data.means[i][:, None] + a * (c @ solved), other.means[j][:, None] + b * (d @ solved)
        parts.append((da * first + db * second)[..., 0])
        logs.append(data.log_weights[i] + other.log_weights[j] - 0.5 * ((off * solved).sum((1, 2)) + torch.logdet(v)))
    return torch.einsum("kb,kbd->bd", torch.stack(logs).softmax(0), torch.stack(parts))


def _round_trips(seed: int) -> float:
    kinds = (targets.Data(), targets.Noise(), targets.Velocity(), targets.Score())
    x = random.normal((64, 2), random.fold(seed, 5), dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, 64, dtype=torch.float64)
    worst = 0.0
    for process in ONE_SIDED:
        estimate = GaussianDenoiser(torch.tensor([0.5, -1.0]), 0.3, process)(x, t)
        for first, second in itertools.permutations(kinds, 2):
            there = estimate.replace(first, estimate.to(first)).to(second)
            back = estimate.replace(second, there).to(first)
            worst = max(worst, (back - estimate.to(first)).abs().max().item())
    return worst


def _minimum(exact: MixtureInterpolantDenoiser, seed: int, n: int = 4096) -> tuple[float, float]:
    """Mean of `loss + |b|^2/2` of the exact velocity, and its standard error."""
    x0, x1 = exact.data.sample(n, random.fold(seed, 6)), exact.other.sample(n, random.fold(seed, 7))
    z = random.normal((n, 2), random.fold(seed, 8), dtype=torch.float64)
    t = 0.05 + 0.9 * random.uniform((n, 1), random.fold(seed, 9), dtype=torch.float64)[:, 0]
    loss = InterpolantLoss("velocity", antithetic=False)(exact, {"x": x0, "y": x1}, t=t, noise=z)
    field = exact(exact.process.perturb(x0, t, z, x1), t).velocity
    gap = loss + 0.5 * field.square().mean(1)
    return gap.mean().item(), (gap.std() / n**0.5).item()


def transports(
    seed: int, n: int, steps: int, tolerance: float, processes: tuple[Interpolant, ...], progress: Progress
) -> list[Row]:
    """Three modes from five: the ODE and two SDEs, at t = 1/2 and at t = 0, every combination with its own start."""
    data, other = mixtures()
    solvers = {"ODE": None, "SDE, epsilon = 0.25": 0.25, "SDE, epsilon = 1": 1.0}
    ratios: dict[tuple[str, float], dict[str, float]] = {(s, t): {} for s in solvers for t in (0.5, 0.0)}

    def ends(*stream: int) -> tuple[Tensor, Tensor, Tensor]:
        key = random.fold(seed, *stream)
        z = random.normal((n, 2), random.fold(key, 3), dtype=torch.float64)
        return data.sample(n, random.fold(key, 1)), other.sample(n, random.fold(key, 2)), z

    def distance(x: Tensor, y: Tensor) -> float:
        return sliced_wasserstein(x, y, 32, seed=seed)

    for k, process in enumerate(processes):
        exact = MixtureInterpolantDenoiser(data, other, process)
        pairs = [(ends(_FLOOR, k, 2 * i), ends(_FLOOR, k, 2 * i + 1)) for i in range(8)]
        floor = {
            t: _rms([distance(*(process.perturb(a, t, z, b) for a, b, z in pair)) for pair in pairs])
            for t in (0.5, 0.0)
        }
        for j, (solver, epsilon) in enumerate(solvers.items()):
            if epsilon is not None and process.latent == "none":
                continue
            progress(f"transport, {name(process)}, {solver}", (k + j / 3) / len(processes))
            a, b, z = ends(_TRUTH, k, j)
            start = other.sample(n, random.fold(seed, _START, k, j)).float()
            if epsilon is None:
                kind, times = AdaptiveRungeKutta(rtol=tolerance, atol=tolerance), (1.0, 0.5, 0.0)
            else:
                kind, times = InterpolantSDE(epsilon), torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
            path = sample(exact, start, solver=kind, times=times, trajectory=True, seed=random.fold(seed, _START, k))
            for t, x in ((0.5, path[(len(path) - 1) // 2]), (0.0, path[-1])):
                ratios[solver, t][name(process)] = distance(x, process.perturb(a, t, z, b)) / floor[t]
    rows = []
    every = _rms([v for each in ratios.values() for v in each.values()])
    rows.append(at_most("sliced W2 / that of two true samples: rms of all transports, at t = 1/2 and 0", every, 1.5))
    for solver in solvers:
        half, end = ratios[solver, 0.5], ratios[solver, 0.0]
        rows.append(
            at_most(
                f"the same: {solver}, {len(end)} interpolants",
                _rms([*half.values(), *end.values()]),
                1.5 if len(end) > 8 else 2.0,
                note=f"t = 1/2: {_rms([*half.values()]):.2f}, t = 0: {_rms([*end.values()]):.2f}",
            )
        )
    value, where = max((v, f"{key}, {solver}, t = {t:g}") for (solver, t), e in ratios.items() for key, v in e.items())
    rows.append(at_most("the same: the largest", value, 3.5, note=where))
    smooth, rough = (_roughness(data, other, Interpolant("linear", latent), seed) for latent in ("brownian", "none"))
    rows.append(
        less_than(
            "mean square of the velocity's Jacobian at t = 1/2: with latent noise; without",
            smooth,
            rough,
            0.5,
            published="the latent noise smooths the velocity",
        )
    )
    return rows


def _rms(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))


def _roughness(data: MixtureDenoiser, other: MixtureDenoiser, process: Interpolant, seed: int, n: int = 1000) -> float:
    z = random.normal((n, 2), random.fold(seed, 10), dtype=torch.float64)
    x = process.perturb(data.sample(n, random.fold(seed, 11)), 0.5, z, other.sample(n, random.fold(seed, 12)))
    x.requires_grad_()
    velocity = MixtureInterpolantDenoiser(data, other, process)(x, 0.5).velocity
    total = torch.zeros(n, dtype=torch.float64)
    for i in range(2):
        total += torch.autograd.grad(velocity[:, i].sum(), x, retain_graph=True)[0].square().sum(1)
    return total.mean().item()
