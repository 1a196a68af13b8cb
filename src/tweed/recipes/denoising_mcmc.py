"""Denoising MCMC (Kim & Ye, ICML 2023, arXiv 2209.14593): chains near the data as starts of six integrators.

Frechet distance to handwritten digits smoothed to 60 Gaussians of std 0.14 (64 numbers), with their exact score and the
exact posterior of the level, sigma from 50 to 0.01. The published FID figures need the pretrained NCSN++ networks.
"""

from collections.abc import Callable
from typing import Any

import torch

from tweed.core import grids, random
from tweed.core.denoiser import CountingDenoiser
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser
from tweed.core.processes import EDM
from tweed.metrics import frechet_distance
from tweed.recipes import Progress, Report, Row, at_most, info, less_than
from tweed.recipes._figures import curves
from tweed.solvers import (
    AdaptiveRungeKutta,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ReverseDiffusion,
    Solver,
    sample,
)
from tweed.starts import (
    Chain,
    ChainReport,
    DenoisingMCMC,
    ExactNoiseLevel,
    NoiseLevelClassifier,
    Start,
    fit_noise_levels,
    langevin,
    log_levels,
)

PROCESS = EDM(0.01, 50.0)
STD, COMPONENTS, ETA = 0.14, 60, 0.2
FEW, MORE = (5, 7, 9), (13, 21, 41)
INTEGRATORS: dict[str, tuple[Solver, Callable[[int], int]]] = {
    # The solver, and how many steps of the grid so many evaluations pay for.
    "Euler-Maruyama": (EulerMaruyama(), lambda n: n),
    "reverse diffusion": (ReverseDiffusion(), lambda n: n),
    "predictor-corrector": (PredictorCorrector(), lambda n: n // 2),
    "KAR1 (Heun)": (Heun(), lambda n: (n + 1) // 2),
    "KAR2 (churned Heun)": (
        Heun(churn=80.0, churn_min=0.05, churn_max=1.0, churn_noise=1.007),
        lambda n: (n + 1) // 2,
    ),
}
ADAPTIVE = AdaptiveRungeKutta("bosh3", rtol=0.3, atol=0.3)
PAYS = {"predictor-corrector": FEW, "KAR1 (Heun)": FEW, "KAR2 (churned Heun)": FEW, "reverse diffusion": (5,)}


def run(seed: int, scale: str, progress: Progress) -> Report:
    chains, emissions = {"smoke": (60, 4), "default": (60, 8), "gpu": (200, 32)}[scale]
    world = _World(seed, chains, emissions)
    budgets = FEW if scale == "smoke" else (*FEW, *MORE)
    plain: dict[str, list[float]] = {}
    ours: dict[str, list[float]] = {}
    rows: list[Row] = []
    for number, name in enumerate(INTEGRATORS):
        progress(name, 0.7 * number / len(INTEGRATORS))
        plain[name] = [world.plain(name, n)[0] for n in budgets]
        ours[name] = [world.started(name, n)[0] for n in budgets]
        rows += _compared(name, budgets, plain[name], ours[name])
    progress("adaptive Runge-Kutta", 0.7)
    rows += world.adaptive()
    rows += _mixing(world)
    progress("a classifier of the noise level", 0.8)
    rows += _classifier(world, seed, 400 if scale == "smoke" else 2000)
    progress("invariance on a Gaussian", 0.9)
    rows += _invariance(seed, 100 if scale == "smoke" else 2000)
    return Report(
        slug="denoising-mcmc",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={"eta": ETA, "chains": chains, "emissions": emissions, "components": COMPONENTS, "std": STD},
        figures={"frechet": lambda: _figure(budgets, plain, ours)},
        notes=(
            "With chains a sample costs n_skip evaluations of the chain and those of the integrator, from 3 or 4 of the "
            "chain at 5 on to a half of all beyond 9; the chains' beginning (a run and a burn-in) is shared by all that "
            "they emit and reported apart.",
            "Where plain integrators have converged (KAR1 from about 13 evaluations on) chains no longer pay: few and "
            "correlated chains set a floor that more denoising does not lower. No claim is made there.",
            "The adaptive integrator is only reported: from the prior it needs 15 evaluations, where chains do not pay. "
            "At one step Euler-Maruyama overshoots from any start; from 7 evaluations on it has two or more.",
        ),
    )


class _World:
    """The digits, their denoiser, chains that are burnt in, and what was measured of them."""

    def __init__(self, seed: int, chains: int, emissions: int):
        from tweed.data import Digits

        images = Digits(flat=True).x.double()
        which = torch.randperm(len(images), generator=random.generator(seed, 1))[:COMPONENTS]
        self.denoiser = MixtureDenoiser(images[which], STD**2, None, PROCESS)
        self.posterior = ExactNoiseLevel(self.denoiser, log_levels(0.011, 49.9, 200))
        self.seed, self.n, self.emissions = seed, chains * emissions, emissions
        self.data = self.denoiser.sample(4000, random.fold(seed, 2))
        self.floor = frechet_distance(self.denoiser.sample(self.n, random.fold(seed, 3)), self.data)
        counted = CountingDenoiser(self.denoiser)
        begun = sample(
            counted,
            chains,
            solver=INTEGRATORS["KAR2 (churned Heun)"][0],
            steps=20,
            seed=random.fold(seed, 4),
            dtype=torch.float64,
        )
        kernel = self.kernel(1)
        self.chain = kernel.run(counted, kernel.begin(begun, seed=seed), 20, seed=seed).chain
        self.beginning = counted.evaluations
        self.kept: dict[int, tuple[Start, ChainReport]] = {}

    def kernel(self, n_skip: int) -> DenoisingMCMC:
        return DenoisingMCMC(self.posterior, eta=ETA, n_skip=n_skip)

    def starts(self, n_skip: int) -> tuple[Start, ChainReport]:
        if n_skip not in self.kept:
            emitted = self.kernel(n_skip).run(self.denoiser, self.chain, self.emissions, seed=self.seed)
            self.kept[n_skip] = (emitted.start, emitted.report)
        return self.kept[n_skip]

    def distance(self, solver: Solver, start: int | Start, steps: int | None) -> tuple[float, int]:
        counted, seed = CountingDenoiser(self.denoiser), random.fold(self.seed, 5)
        made = sample(counted, start, solver=solver, steps=steps, grid=grids.karras, seed=seed, dtype=torch.float64)
        return frechet_distance(made, self.data), counted.evaluations

    def plain(self, name: str, evaluations: int) -> tuple[float, int]:
        solver, steps = INTEGRATORS[name]
        return self.distance(solver, self.n, steps(evaluations))

    def started(self, name: str, evaluations: int) -> tuple[float, int]:
        """At equal evaluations: those of the chain between two emissions, and those of the integrator."""
        solver, steps = INTEGRATORS[name]
        # A corrector needs a second evaluation, and at so few is best left with one step.
        inner = 2 if name == "predictor-corrector" and evaluations < 10 else evaluations - max(4, evaluations // 2)
        found, spent = self.distance(solver, self.starts(evaluations - inner)[0], steps(inner))
        assert spent <= inner, (name, evaluations, spent)
        return found, evaluations

    def adaptive(self) -> list[Row]:
        alone, cost = self.distance(ADAPTIVE, self.n, None)
        found, spent = self.distance(ADAPTIVE, self.starts(4)[0], None)
        label = f"adaptive Runge-Kutta: Frechet distance, {spent + 4} evaluations (4 of the chain)"
        return [
            info(label, found, baseline=alone, note=f"baseline: from the prior, {cost} evaluations; none fits in 9")
        ]


def _compared(name: str, budgets: tuple[int, ...], plain: list[float], ours: list[float]) -> list[Row]:
    rows = []
    for evaluations, alone, found in zip(budgets, plain, ours, strict=True):
        label, note = f"{name}: Frechet distance at {evaluations} evaluations", "baseline: from the prior"
        if evaluations in PAYS.get(name, ()):
            rows.append(less_than(label, found, alone, 0.4, note=note))
        else:
            rows.append(info(label, found, baseline=alone, note=note))
    return rows


def _mixing(world: _World) -> list[Row]:
    report = world.starts(4)[1]
    return [
        info("Frechet distance of as many exact draws", world.floor),
        info(
            "effective samples, median of the coordinates",
            report.effective,
            baseline=float(report.samples),
            note="baseline: samples emitted, n_skip = 4",
        ),
        info("... of the slowest coordinate", report.effective_least, baseline=float(report.samples)),
        info(
            "evaluations to begin the chains",
            float(world.beginning),
            note=f"shared by {world.emissions} samples a chain",
        ),
        at_most("median level sigma of the starts (the prior's is 50)", report.levels[1], 1.2),
    ]


def _classifier(world: _World, seed: int, steps: int) -> list[Row]:
    levels = log_levels(0.011, 49.9, 100)
    learned = NoiseLevelClassifier(levels, 64, seed=random.fold(seed, 6), width=192)
    fit_noise_levels(
        learned, world.denoiser.sample(2000, random.fold(seed, 7)), steps=steps, seed=random.fold(seed, 8), lr=2e-3
    )
    true = log_levels(0.3, 10.0, 600)
    clean = world.denoiser.sample(600, random.fold(seed, 9))
    u = clean + true[:, None] * random.normal(clean.shape, seed, draw=9, dtype=torch.float64)
    with torch.no_grad():
        guesses = [levels[q(u).argmax(-1)] for q in (learned, ExactNoiseLevel(world.denoiser, levels))]
    found, exact = ((guess.log() - true.log()).abs().median().item() for guess in guesses)
    note = "baseline: the exact posterior's mode"
    return [
        less_than(
            "noise classifier: median |log sigma| error, sigma in [0.3, 10]",
            found,
            exact,
            3.0 if steps < 1000 else 1.8,
            note=note,
        )
    ]


def _invariance(seed: int, moves: int) -> list[Row]:
    """N(0, 0.5 I) in 32 dimensions: the second moment of u that a long run of the chain keeps."""
    model = GaussianDenoiser(torch.zeros(32), 0.5, PROCESS)
    levels = log_levels(0.3, 1.0, 60)
    rows = []
    for level in ("sample", "argmax"):
        kernel = DenoisingMCMC(ExactNoiseLevel(model, levels), eta=0.01, n_skip=moves, keep="last", level=level)
        s = levels[torch.arange(240) % 60]
        u = (0.5 + s**2).sqrt()[:, None] * random.normal((240, 32), seed, draw=11, dtype=torch.float64)
        end = kernel.run(model, Chain(u, s), 1, seed=random.fold(seed, 12)).chain
        expected = 0.5 + levels.square().mean().item()
        off = abs(end.u.square().mean().item() / expected - 1.0)
        label = f"Gaussian: relative error of E u^2 after {moves} moves, level by {level}"
        rows.append(at_most(label, off, 0.08) if level == "sample" else info(label, off))
    frozen, eta, level = (
        Chain(torch.zeros(2000, 32, dtype=torch.float64), torch.full((2000,), 0.8, dtype=torch.float64)),
        0.3,
        0.8,
    )
    for n in range(60):
        frozen = frozen._replace(u=langevin(model, frozen, eta, seed=seed), moves=n + 1)
    closed = eta / (1.0 - (1.0 - 0.5 * eta / (0.5 + level**2)) ** 2)
    off = abs(frozen.u.var().item() / closed - 1.0)
    return [*rows, at_most("... at a frozen level: error of the stationary variance of the move", off, 0.03)]


def _figure(budgets: tuple[int, ...], plain: dict[str, list[float]], ours: dict[str, list[float]]) -> Any:
    panels = {
        name: {"~from the prior": (budgets, plain[name]), "from the chains": (budgets, ours[name])} for name in plain
    }
    return curves(panels, xlabel="evaluations a sample", ylabel="Frechet distance", ticks=budgets, width=2.7)
