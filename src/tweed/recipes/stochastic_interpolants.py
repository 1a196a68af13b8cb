"""Recipe of "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions" (2023), and of SiT (2024).

Two distributions are joined by `x_t = alpha x_0 + beta x_1 + sigma z`, and the ODE and SDEs of any noise carry one to
the other: with exact fields between mixtures, with wrong ones (where the SDE forgives what the ODE carries on), with
learned ones from eight Gaussians to a checkerboard. At last the interpolant itself is learned: a Schrödinger bridge.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser, InterpolantDenoiser, NetworkDenoiser
from tweed.core.processes import Interpolant
from tweed.data import DENSITIES
from tweed.data.dataset import Tensors
from tweed.metrics import energy_distance, sliced_wasserstein
from tweed.nets import build
from tweed.recipes import _interpolants_exact as exact
from tweed.recipes import _interpolants_figures as figures
from tweed.recipes._interpolants_bridge import BRIDGE, bridged
from tweed.recipes._interpolants_wrong import wrong_fields
from tweed.recipes.report import Progress, Report, Row, at_least, at_most, info, less_than, span
from tweed.solvers import Heun, InterpolantSDE, sample
from tweed.solvers.interpolant_sde import PROFILES
from tweed.training import InterpolantLoss, fit, flow_matching, times
from tweed.training.objectives import Objective

_DATA, _OTHER, _TRUTH, _SECOND, _START, _LATENT = range(21, 27)  # streams of the seed


@dataclass(frozen=True)
class Settings:
    """Sizes at one scale."""

    exact_samples: int
    exact_steps: int
    tolerance: float
    interpolants: tuple[Interpolant, ...]
    histogram_samples: int
    histogram_steps: int
    likelihoods: int
    training_steps: int
    width: int
    batch_size: int
    samples: int
    sde_steps: int
    bridge_steps: int
    bridge_warm: int
    bridge_batch: int
    lr: float = 2e-3
    ema: float = 0.99
    data: int = 50_000
    near: float = 0.45  # of the distance between the ends, what the learned fields may leave
    excess: float = 0.03  # of the least energy, by which that of the learned interpolant may be larger


SCALES = {
    "smoke": Settings(
        exact_samples=600,
        exact_steps=50,
        tolerance=1e-3,
        interpolants=(exact.BARE[0], exact.TWO_SIDED[0], exact.TWO_SIDED[3], exact.TWO_SIDED[-1]),
        histogram_samples=3000,
        histogram_steps=50,
        likelihoods=100,
        training_steps=200,
        width=64,
        batch_size=256,
        samples=3000,
        sde_steps=45,
        bridge_steps=60,
        bridge_warm=100,
        bridge_batch=192,
        near=0.8,
        excess=0.06,
    ),
    "default": Settings(
        exact_samples=3000,
        exact_steps=200,
        tolerance=1e-4,
        interpolants=(*exact.BARE, *exact.TWO_SIDED),
        histogram_samples=15_000,
        histogram_steps=125,
        likelihoods=1000,
        training_steps=2500,
        width=96,
        batch_size=512,
        samples=5000,
        sde_steps=150,
        bridge_steps=250,
        bridge_warm=150,
        bridge_batch=256,
    ),
    "gpu": Settings(
        exact_samples=5000,
        exact_steps=500,
        tolerance=1e-6,
        interpolants=(*exact.BARE, *exact.TWO_SIDED),
        histogram_samples=100_000,
        histogram_steps=250,
        likelihoods=5000,
        training_steps=20_000,
        width=256,
        batch_size=2048,
        samples=20_000,
        sde_steps=250,
        bridge_steps=2000,
        bridge_warm=300,
        bridge_batch=2048,
    ),
}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """The report; raises nothing of its own."""
    s = SCALES[scale]
    progress("identities", 0.0)
    rows = exact.identities(seed)
    rows += exact.transports(
        seed, s.exact_samples, s.exact_steps, s.tolerance, s.interpolants, span(progress, 0.02, 0.3)
    )
    more, divergences = wrong_fields(
        seed, s.histogram_samples, s.histogram_steps, s.likelihoods, span(progress, 0.3, 0.4)
    )
    rows += more
    more, clouds = learned(seed, s, span(progress, 0.4, 0.75))
    rows += more
    more, bridge = bridged(
        seed,
        steps=s.bridge_steps,
        warm=s.bridge_warm,
        batch_size=s.bridge_batch,
        samples=s.samples,
        sde_steps=s.sde_steps,
        excess=s.excess,
        progress=span(progress, 0.75, 1.0),
    )
    told = {key: value for key, value in vars(s).items() if key != "interpolants"}
    return Report(
        slug="stochastic-interpolants",
        rows=rows + more,
        seed=seed,
        scale=scale,
        settings={**told, "interpolants": [exact.name(p) for p in s.interpolants], "bridge": BRIDGE},
        figures={
            "densities": figures.densities,
            "trajectories": lambda: figures.trajectories(seed),
            "divergence": lambda: figures.divergence(divergences),
            "learned": lambda: figures.learned(clouds),
            "bridge": lambda: figures.bridge(bridge, BRIDGE, seed),
        },
        notes=(
            "Times run from data (0) to the other end (1), against the paper's; generation follows them down.",
            "A ratio to the distance of two true samples scatters by some 40 % for one interpolant, so the relation is "
            "on the root mean square over all, each with draws of its own.",
            "Girsanov's bound is 1/(4 epsilon) int E|error of the drift|^2 dt under the true marginals, for which the "
            "SDE is run between 1e-3 and 1 - 1e-3 with an epsilon that nothing limits.",
            "Learned fields: while they are rough the SDE is nearer to the checkerboard than the ODE, as with wrong "
            "fields; at the default scale the two are equal within a few per cent, so the relation is a bound. For the "
            "one-sided interpolant, whose score is converted from its velocity, no noise profile differs from the ODE "
            "by much more than chance; SiT's gain of the SDE (ImageNet) is not to be seen in the plane.",
            "The bridge joins Gaussians whose means are near: with means 4 apart the straight interpolant is "
            "within half a per cent of the least energy, as the mean's motion is most of it, and nothing would be shown.",
        ),
    )


def learned(seed: int, s: Settings, progress: Progress) -> tuple[list[Row], dict[str, tuple[Tensor, float]]]:
    """Eight Gaussians to a checkerboard by learned velocity and noise; a one-sided interpolant; clouds for a figure."""
    board, ring = DENSITIES["checkerboard"], DENSITIES["eight_gaussians"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, y = board.sample(s.data, random.fold(seed, _DATA)), ring.sample(s.data, random.fold(seed, _OTHER))
    truth, second = (board.sample(s.samples, random.fold(seed, stream)) for stream in (_TRUTH, _SECOND))
    start = ring.sample(s.samples, random.fold(seed, _START))
    net = {"name": "mlp", "dim": 2, "width": s.width, "depth": 3, "norm": False, "time_dim": 32, "time_scale": 10.0}

    def train(model: Any, data: Tensors, objective: Objective, place: float, text: str) -> Any:
        calls = iter(range(1, 11))

        def told(_: Denoiser) -> None:
            progress(text, place + 0.4 * min(next(calls, 10) / 10, 1.0))

        progress(text, place)
        return fit(
            model,
            data,
            steps=s.training_steps,
            objective=objective,
            batch_size=s.batch_size,
            lr=s.lr,
            schedule="cosine",
            ema=s.ema,
            seed=seed,
            device=device,
            sample_every=math.ceil(s.training_steps / 10),
            sampler=cast(Any, told),
            progress=False,
        ).denoiser

    path = Interpolant("linear", "brownian")
    fields = InterpolantDenoiser(build(net, seed), build(net, seed + 1), path)
    two = train(fields, Tensors(x, y=y), InterpolantLoss("both"), 0.0, "velocity and noise")
    plain, paired = (gradient_variance(two, x, y, antithetic, seed) for antithetic in (False, True))
    one_path = Interpolant("linear", one_sided=True)
    one = NetworkDenoiser(build(net, seed + 2), one_path, targets.Velocity(), event=(2,))
    one = train(one, Tensors(x), flow_matching(), 0.5, "one-sided velocity")
    progress("sampling", 0.9)
    clouds = {"eight Gaussians": start, "checkerboard": second}
    clouds["ODE"] = sample(two, start.to(device), solver=Heun(form="velocity"), steps=s.sde_steps // 3)
    for epsilon in (0.25, 1.0):
        solver = InterpolantSDE(epsilon)
        clouds[f"SDE, epsilon = {epsilon:g}"] = sample(
            two, start.to(device), solver=solver, steps=s.sde_steps, seed=seed
        )
    latent = random.normal((s.samples, 2), random.fold(seed, _LATENT)).to(device)
    singles = {"ODE": sample(one, latent, solver=Heun(form="velocity"), steps=s.sde_steps // 3)}
    for profile in PROFILES:
        singles[profile] = sample(one, latent, solver=InterpolantSDE(profile), steps=s.sde_steps, seed=seed)

    def distance(cloud: Tensor) -> float:
        return sliced_wasserstein(cloud.cpu(), truth, 64, seed=seed)

    def energy(cloud: Tensor) -> float:
        return energy_distance(cloud[:2000].cpu(), truth[:2000], unbiased=True)

    away = {name: distance(cloud) for name, cloud in clouds.items()}
    apart = {name: energy(cloud) for name, cloud in clouds.items()}
    alone = {name: distance(cloud) for name, cloud in singles.items()}
    divergence = {name: board_divergence(cloud.cpu()) for name, cloud in clouds.items()}
    base, ode, sde = away["eight Gaussians"], away["ODE"], away["SDE, epsilon = 0.25"]
    noisiest = max(PROFILES, key=lambda profile: alone[profile])
    rows = [
        at_least("gradient variance of the velocity loss at t < 0.02: plain / antithetic", plain / paired, 5.0),
        info("the same at equal evaluations", plain / paired / 2.0),
        info("sliced W2: two samples of the checkerboard", away["checkerboard"]),
        less_than("sliced W2: learned ODE; the eight Gaussians", ode, base, s.near),
        less_than("sliced W2: learned SDE, epsilon = 0.25; the eight Gaussians", sde, base, 0.75 * s.near),
        less_than(
            "sliced W2: learned SDE, epsilon = 1; the eight Gaussians", away["SDE, epsilon = 1"], base, 0.75 * s.near
        ),
        less_than(
            "energy distance: learned SDE, epsilon = 0.25; the eight Gaussians",
            apart["SDE, epsilon = 0.25"],
            apart["eight Gaussians"],
            0.2,
        ),
        info("KL of the checkerboard from a histogram of a true sample", divergence["checkerboard"]),
        less_than(
            "KL of the checkerboard: learned SDE, epsilon = 0.25; learned ODE",
            divergence["SDE, epsilon = 0.25"],
            divergence["ODE"],
            1.5,
            published="the SDE is better",
            note="better while the fields are rough, equal within a few per cent once they are learned well",
        ),
        *(info(f"sliced W2, one-sided: {name}", value) for name, value in alone.items()),
        at_most("sliced W2, one-sided: worst noise profile / ODE", alone[noisiest] / alone["ODE"], 2.0, note=noisiest),
    ]
    return rows, {name: (cloud[:3000].cpu(), away[name]) for name, cloud in clouds.items()}


def board_divergence(x: Tensor, cells: int = 16) -> float:
    """KL of the checkerboard from a histogram of `x` on its `cells` x `cells` cells, half a count more in each, nats."""
    place = ((x.double().clamp(-1.9999, 1.9999) + 2.0) * (cells / 4)).long()
    inside = (x.abs() < 2.0).all(1)
    counts = torch.bincount((place[:, 0] * cells + place[:, 1])[inside], minlength=cells**2).double() + 0.5
    centre = (torch.arange(cells, dtype=torch.float64) + 0.5) * (4 / cells) - 2.0
    log_prob = DENSITIES["checkerboard"].log_prob(torch.cartesian_prod(centre, centre))
    black = log_prob > -math.inf
    share = counts[black] / (len(x) + 0.5 * cells**2)
    return -(share * black.sum()).log().mean().item()


def gradient_variance(
    model: InterpolantDenoiser, x: Tensor, y: Tensor, antithetic: bool, seed: int, batches: int = 128, size: int = 16
) -> float:
    """The trace of the covariance of the velocity loss's gradient, over small batches with times below 0.02."""
    loss = InterpolantLoss("velocity", antithetic, times.Uniform(spread="independent", high=0.02))
    parameters = [p.requires_grad_() for p in cast(torch.nn.Module, model.velocity).parameters()]
    gradients = []
    for k in range(batches):
        rows = slice(k * size, (k + 1) * size)
        batch = {"x": x[rows].to(parameters[0].device), "y": y[rows].to(parameters[0].device)}
        value = loss(model, batch, seed=random.fold(seed, 31), step=k).mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]).cpu())
    return torch.stack(gradients).var(0).sum().item()
