"""What is exact in `overview_statistics`: the split of the score, rewards in closed form, guidance, optimisation, the budget."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.analysis import error_budget, off_support
from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.exact import (
    GaussianDenoiser,
    MixtureDenoiser,
    MixturePosterior,
    PrincipalGaussian,
    SubspaceDenoiser,
    fit_gaussian,
)
from tweed.core.processes import VE, VP, Process
from tweed.guidance import ClassifierFree, ClassifierGuidance, LookAheadGuidance, Optimized, optimize
from tweed.recipes import Row, at_least, at_most, check, info, within
from tweed.recipes._overview_trained import AMBIENT, NU, PROCESS, SD, SPREAD, T0, frame, labelled, reward_world
from tweed.solvers import DDIM, DDPM, DPMSolver, Solver

F64 = torch.float64
TARGETS = (0.5, 1.0, 2.0, 4.0, 8.0)
FACTOR = 1.0 - NU**2 / (SD**2 + NU**2)


def decomposition(seed: int) -> list[Row]:
    """The split score against the gradient of a density in the whole space, and Tweedie's mean on the subspace."""
    a = frame(12, 3, random.fold(seed, 1))
    root = random.normal((4, 3, 3), random.fold(seed, 2), dtype=F64)
    covariances = 0.1 * root @ root.mT + 0.05 * torch.eye(3, dtype=F64)
    means = random.normal((4, 3), random.fold(seed, 3), dtype=F64)
    x = random.normal((16, 12), random.fold(seed, 4), dtype=F64)
    processes: tuple[Process, ...] = (VP(), VE(0.01, 20.0), tw.processes.RectifiedFlow())
    worst, outside = 0.0, 0.0
    for process in processes:
        split = SubspaceDenoiser(MixtureDenoiser(means, covariances, None, process), a)
        whole = MixtureDenoiser(means @ a.T, a @ covariances @ a.T, None, process)
        for t in (0.1, 0.5, 0.9):
            state = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(whole.log_prob(state, t).sum(), state)
            made = split(x, t)
            worst = max(worst, ((made.score - slope).norm() / slope.norm()).item())
            outside = max(outside, off_support(made.x0, a).max().item())
    return [
        at_most("score of a mixture on a subspace, split, off the gradient of its density, relative", worst, 1e-6),
        at_most("... energy of E[x_0 | x_t] off the subspace", outside, 1e-20),
    ]


def rewards(seed: int) -> list[Row]:
    """Gaussian data, linear reward: conditional means in closed form, with the true reward and with ridge's."""
    world = reward_world(seed)
    covariance = (world.basis * SPREAD) @ world.basis.T
    data = GaussianDenoiser(torch.zeros(AMBIENT, dtype=F64), covariance, PROCESS)
    wanted = torch.tensor(TARGETS, dtype=F64)
    mean, spread = MixturePosterior(data, world.theta[None], NU).moments(wanted[:, None])
    off = off_support(mean, world.basis) + (covariance_off(spread, world.basis))
    rows = [
        at_most(
            "reward given y = a: mean off a (1 - nu^2 / v)",
            (mean @ world.theta - FACTOR * wanted).abs().max(),
            1e-9,
        ),
        at_most("... energy off the subspace, all a", off.abs().max(), 1e-9),
    ]
    for n, tolerance in ((200, 0.05), (2000, 0.025)):
        seen = world.draw(5000, random.fold(seed, 5))
        estimated = GaussianDenoiser(torch.zeros(AMBIENT, dtype=F64), seen.T @ seen / len(seen), PROCESS)
        theta = labelled(world, n, seed, world.basis)
        found = MixturePosterior(estimated, theta[None], NU).moments(wanted[:, None])[0] @ world.theta
        text = "mean reward at " + ", ".join(f"{a:g}: {r:.2f}" for a, r in zip(TARGETS, found.tolist(), strict=True))
        name = f"... {n} labels and the data's covariance: mean reward / a"
        rows.append(within(name, (found / wanted).mean(), FACTOR, tolerance, note=text))
    flat = uniform_reward(world, torch.tensor([0.25, 0.5, 1.0, 4.0, 8.0], dtype=F64))
    top = (world.basis.T @ world.theta).abs().sum().item()
    rise = bool((flat.diff() > 0).all()) and flat[-1].item() < top
    rows += [
        check("latent uniform on [-1, 1]^d: mean reward given y rises with a, below the largest", rise, "monotone, bounded"),
        at_most("... its share of the wanted 8", flat[-1] / 8.0, 0.35, note=f"largest reward {top:.2f}"),
        at_least("... its share of the largest reward", flat[-1] / top, 0.85),
    ]  # fmt: skip
    return rows


def covariance_off(spread: Tensor, basis: Tensor) -> Tensor:
    """The trace of covariances (b, D, D) off the span of `basis`."""
    return spread.diagonal(dim1=1, dim2=2).sum(1) - (basis.T @ spread @ basis).diagonal(dim1=1, dim2=2).sum(1)


def uniform_reward(world: Any, a: Tensor) -> Tensor:
    """`E[f | y = a]` for latents uniform on the cube: the density of f from its characteristic function, then Bayes' rule."""
    w = world.basis.T @ world.theta
    top = w.abs().sum()
    f = torch.linspace(-1.0, 1.0, 2001, dtype=F64) * top
    k = (torch.arange(4000, dtype=F64) + 0.5) * (200.0 / top) / 4000
    wave = torch.sinc(k[:, None] * w / math.pi).prod(1)
    density = ((k[:, None] * f).cos() * wave[:, None]).sum(0).clamp_min(0.0)
    log = density.log() - 0.5 * ((a[:, None] - f) / NU).square()
    return log.softmax(1) @ f


def mixture_guidance(points: int) -> tuple[list[Row], dict[float, tuple[float, float, float]]]:
    """Two unit Gaussians at +-1.5, guided with (1 + w) s(x, y) - w s(x): confidence, variance, mean, from quantiles of noise."""
    mu = 1.5
    means, labels = torch.tensor([[-mu], [mu]], dtype=F64), torch.tensor([0, 1])
    both = MixtureDenoiser(means, 1.0, None, PROCESS, labels)
    level = (torch.arange(points, dtype=F64) + 0.5) / points
    start = PROCESS.level(1.0).sigma * torch.special.ndtri(level)[:, None]
    found = {}
    for w in (0.0, 1.0, 3.0):
        cond = {"label": torch.ones(points, dtype=torch.long)}
        made = tw.sample(
            ClassifierFree(both, 1.0 + w), start, solver=DPMSolver(2), steps=60, grid=tw.grids.log_snr, cond=cond
        )
        sure = (2.0 * mu * made[:, 0]).sigmoid().mean().item()
        found[w] = (sure, made.var().item(), made.mean().item())
    (p0, v0, m0), (p1, v1, m1), (p3, v3, m3) = found.values()
    return [
        within("guided mixture, w = 0: mean", m0, mu, 0.02 * mu),
        check("... E p(y | x) at w = 0, 1, 3", p0 < p1 < p3, "rises", here=f"{p0:.4f}, {p1:.4f}, {p3:.4f}"),
        check("... variance", v0 > v1 > v3, "falls", here=f"{v0:.3f}, {v1:.3f}, {v3:.3f}"),
        check("... mean, beyond that of the class", mu * 1.02 < m1 < m3, "> 1.5", here=f"{m1:.3f}, {m3:.3f}"),
    ], found


def gaussian(basis: Tensor, mean: Tensor | None = None) -> PrincipalGaussian:
    """N(0, SPREAD) on the subspace."""
    return PrincipalGaussian(torch.zeros(len(basis), dtype=F64), SPREAD, basis, 0.0, PROCESS)


def exactness(seed: int) -> list[Row]:
    """Look-ahead guidance of Gaussian data against the score of the posterior."""
    world = reward_world(seed)
    data = GaussianDenoiser(torch.zeros(AMBIENT, dtype=F64), (world.basis * SPREAD) @ world.basis.T, PROCESS)
    posterior = MixturePosterior(data, world.theta[None], NU)
    x = random.normal((8, AMBIENT), random.fold(seed, 1), dtype=F64)
    given = torch.full((8, 1), 1.7, dtype=F64)
    guided = LookAheadGuidance(gaussian(world.basis), world.theta, 1.7, NU)
    worst = max(
        ((guided(x, t).x0 - posterior(x, t, measurement=given).x0).norm() / x.norm()).item() for t in (0.05, 0.4, 0.95)
    )
    low = LookAheadGuidance(gaussian(world.basis), world.theta, -3.0, NU)
    plain = gaussian(world.basis)(x, 0.4).x0 @ world.theta
    moved = low(x, 0.4).x0 @ world.theta - plain
    return [
        at_most("look-ahead guidance of a Gaussian: off its posterior's data estimate, relative", worst, 1e-9),
        check("... a value below the foretold one", bool((moved[plain > -3.0] < 0).all()), "pushes down"),
    ]


def leaving(seed: int, n: int, steps: int) -> tuple[list[Row], dict[str, dict[float, float]]]:
    """Energy off the subspace over that without guidance, by the gain of reward, of look-ahead and naive guidance.

    The direction is drawn evenly from the whole space, so that 15 of 16 parts of its square are off the subspace.
    """
    basis = frame(AMBIENT, len(SPREAD), random.fold(seed, 1))
    g = random.normal((1, AMBIENT), random.fold(seed, 2), dtype=F64)[0]
    inner = basis.T @ g
    beside = g - basis @ inner
    # The same shares for every seed.
    g = basis @ inner / (SPREAD * inner.square()).sum().sqrt() + beside / beside.norm() * 15.0**0.5
    data, solvers = gaussian(basis), {"ODE": DDIM(), "SDE": DDPM()}
    times = tw.grids.log_snr(PROCESS, steps, start=1.0, end=T0)

    def drawn(model: Denoiser, solver: Solver) -> tuple[float, float]:
        with torch.no_grad():
            made = tw.sample(
                model, n, solver=solver, times=times, seed=random.fold(seed, 3), dtype=F64
            )  # fmt: skip
        return (made @ basis @ (basis.T @ g)).mean().item(), off_support(made, basis).mean().item()

    found: dict[str, dict[float, float]] = {}
    gains = (2.0, 4.0, 6.0)
    for kind, solver in solvers.items():
        before, floor = drawn(data, solver)
        ahead = {gain: drawn(LookAheadGuidance(data, g, before + gain * (1.0 + NU**2), NU), solver) for gain in gains}
        # Everything is linear: the strength for a gain follows from one run.
        unit = drawn(ClassifierGuidance(data, lambda x, t: x @ g, 1.0, given=()), solver)[0] - before
        found[f"look-ahead, {kind}"] = {gain: energy / floor for gain, (_, energy) in ahead.items()}
        found[f"naive, {kind}"] = {
            gain: drawn(ClassifierGuidance(data, lambda x, t: x @ g, (r - before) / unit, given=()), solver)[1] / floor
            for gain, (r, _) in ahead.items()
        }
        found[f"reward, {kind}"] = {gain: r - before for gain, (r, _) in ahead.items()}
    ahead = max(v for kind in solvers for v in found[f"look-ahead, {kind}"].values())
    return [
        within("gain of look-ahead guidance asked for 6 sd, ODE", found["reward, ODE"][6.0], 6.0, 0.3),
        at_most("... energy off the subspace over that unguided, most of all runs", ahead, 1.05),
        at_least("... of naive guidance with the same gain, ODE", found["naive, ODE"][6.0], 5.0),
        info("... SDE", found["naive, SDE"][6.0], note="fresh noise forgets the push: it is left with sigma^2 c g"),
    ], {name: each for name, each in found.items() if not name.startswith("reward")}


def optimisation(seed: int, n: int, rounds: int) -> tuple[list[Row], Mapping[str, list[float]]]:
    """`f(x) = -|x - x*|^2`, x* off the subspace: with a frozen score, and with a Gaussian moved to the samples each round."""
    ambient = 16
    basis = frame(ambient, len(SPREAD), random.fold(seed, 1))
    inner = random.normal((1, len(SPREAD)), random.fold(seed, 2), dtype=F64)[0]
    inner = 3.0 * inner / inner.norm()
    beside = random.normal((1, ambient), random.fold(seed, 3), dtype=F64)[0]
    best = basis @ inner + beside - basis @ (basis.T @ beside)
    regular = 2.0 * inner / (2.0 + 1.0 / SPREAD)

    def value(z: Tensor) -> Tensor:
        return -(z - inner).square().sum(-1)

    def solve(rounds: int, n: int, **options: Any) -> Optimized:
        with torch.no_grad():
            return optimize(
                gaussian(basis), lambda x: 2.0 * (best - x), rounds=rounds, n=n, noise=1.0, seed=random.fold(seed, 4),
                solver=DPMSolver(2), steps=8, grid=tw.grids.log_snr, dtype=F64, **options,
            )  # fmt: skip

    def moved(drawn: Tensor) -> Denoiser:
        # The mean of the last round; the covariance of the data, since that of guided samples shrinks along g.
        return fit_gaussian(drawn[0] - drawn[0].mean(0) + drawn[-1].mean(0), PROCESS, rank=len(SPREAD))

    frozen = solve(rounds, n, step=0.5)
    fresh = solve(rounds // 2, n // 4, step=0.5, refit=moved)
    found = {name: each.points @ basis for name, each in (("frozen score", frozen), ("refitted", fresh))}
    error = (found["frozen score"][-1] - regular).norm() / regular.norm()
    gain = 1.0 - value(found["refitted"][-1]) / value(found["refitted"][0])
    kept = 1.0 - value(found["frozen score"][-1]) / value(found["frozen score"][0])
    outside = max(off_support(each.samples, basis).max().item() for each in (frozen, fresh))
    return [
        at_most(f"{rounds} rounds, frozen score: off argmax f - |x|^2_S^-1 / 2, relative", error, 0.05),
        info("... share of the largest gain on the subspace", kept),
        at_least(f"{rounds // 2} rounds, refitted: share of the largest gain on the subspace", gain, 0.9),
        at_most("... energy off the subspace, most of all samples", outside, 1e-6),
    ], {name: (-value(each)).tolist() for name, each in found.items()} | {"regular": [-value(regular).item()]}


def budget() -> list[Row]:
    """One Gaussian, a score wrong by 5 %, and a grid: the variance that is made, against what the budget allows."""
    variance, wrong = 2.0, 0.05
    times = tw.grids.log_snr(PROCESS, 60, start=1.0, end=T0)
    made, target = held_chain(variance, wrong, times), _noised(variance, T0)
    allowed = error_budget(
        PROCESS, times, second_moment=variance, dimension=1,
        score_error=lambda t: wrong * _spread(variance, t).rsqrt(), lipschitz=lambda t: 1.0 / _spread(variance, t),
    )  # fmt: skip
    text = f"prior {allowed.prior:.3g}, score {allowed.score:.3g}, steps {allowed.discretisation:.3g}"
    return [
        at_most("budget: total variation of a held, wrong score", gaussian_tv(made, target), allowed.total, note=text),
    ]


def _spread(variance: float, t: Tensor) -> Tensor:
    return PROCESS.alpha(t).square() * variance + PROCESS.sigma(t).square()


def _noised(variance: float, t: float) -> float:
    return _spread(variance, torch.tensor(t, dtype=F64)).item()


def held_chain(variance: float, wrong: float, times: Tensor) -> float:
    """The variance that the reverse SDE ends with for N(0, variance), its score times `1 + wrong` held for each step.

    In `x / alpha` the rest is exact: `u <- u + score int g^2 / alpha dt + sqrt(int g^2 / alpha^2 dt) z`.
    """
    alpha, sigma = PROCESS.alpha(times), PROCESS.sigma(times)
    now = sigma[0].square()
    middle = (torch.arange(200, dtype=F64) + 0.5) / 200
    for k in range(len(times) - 1):
        t = times[k + 1] + (times[k] - times[k + 1]) * middle
        push = (PROCESS.diffusion(t).square() / PROCESS.alpha(t)).mean() * (times[k] - times[k + 1])
        fresh = (sigma[k] / alpha[k]).square() - (sigma[k + 1] / alpha[k + 1]).square()
        score = -(1.0 + wrong) / _spread(variance, times[k])
        now = ((1.0 / alpha[k] + push * score).square() * now + fresh) * alpha[k + 1].square()
    return now.item()


def gaussian_tv(a: float, b: float) -> float:
    """Total variation of N(0, a) and N(0, b)."""
    if a == b:
        return 0.0
    low, high = min(a, b), max(a, b)
    edge = (low * high / (high - low) * math.log(high / low)) ** 0.5
    return math.erf(edge / (2.0 * low) ** 0.5) - math.erf(edge / (2.0 * high) ** 0.5)
