"""A Schrödinger bridge between two Gaussians on the line: the learned interpolant against closed forms."""

import math
from typing import Any

import torch
from torch import Tensor

from tweed.core import random
from tweed.nets import build
from tweed.recipes.report import Progress, Row, at_most, greater_than
from tweed.training.schroedinger_bridge import BridgePath, BridgeResult, fit_bridge

_BRIDGE, _ENDS = 41, 42  # streams of the seed
BRIDGE = {"data": (-0.5, 0.5), "other": (0.5, 1.0), "epsilon": 0.1}
"""Mean and standard deviation of the two Gaussians of the bridge, and its noise."""


def bridged(
    seed: int,
    *,
    steps: int,
    warm: int,
    batch_size: int,
    samples: int,
    sde_steps: int,
    excess: float,
    progress: Progress,
) -> tuple[list[Row], dict[str, Any]]:
    """A learned interpolant between two Gaussians on the line, against the Schrödinger bridge in closed form."""
    epsilon = BRIDGE["epsilon"]
    (m0, s0), (m1, s1) = BRIDGE["data"], BRIDGE["other"]
    net = {"name": "mlp", "dim": 1, "width": 48, "depth": 2, "norm": False, "time_dim": 8, "time_scale": 1.0}
    path = BridgePath(epsilon, build({**net, "endpoint_channels": 1}, random.fold(seed, _BRIDGE)))

    def data(n: int, key: int, index: int) -> Tensor:
        return m0 + s0 * random.normal((n, 1), key, index=index)

    def other(n: int, key: int, index: int) -> Tensor:
        return m1 + s1 * random.normal((n, 1), key, index=index)

    result: BridgeResult = fit_bridge(
        path,
        build(net, random.fold(seed, _BRIDGE, 1)),
        data,
        other,
        steps=steps,
        warm=warm,
        batch_size=batch_size,
        path_lr=2e-3,
        seed=random.fold(seed, _BRIDGE, 2),
        report=lambda share: progress("the Schrödinger bridge", share),
    )
    least, closed = gaussian_energy(), entropic_energy()
    straight, here = path_energy(BridgePath(epsilon)), path_energy(path)
    start = other(4 * samples, random.fold(seed, _ENDS), 0)
    states, spent = result.sample(start, steps=sde_steps, seed=random.fold(seed, _ENDS, 1), trajectory=True)
    x0, x1 = data(256, random.fold(seed, _ENDS, 2), 0), start[:256]
    with torch.no_grad():
        ends = max((path.mean(x0, x1, torch.full((256,), t))[0] - x).abs().max() for t, x in ((0.0, x0), (1.0, x1)))
    rows = [
        at_most("bridge: error of the learned interpolant at its ends", ends, 1e-6),
        at_most(
            "bridge: least energy, by the marginals and by the entropic plan: relative gap",
            abs(least / closed - 1),
            1e-6,
        ),
        at_most(
            "bridge: energy of the learned interpolant / the least",
            here / least,
            1.0 + excess,
            baseline=straight / least,
        ),
        greater_than("bridge: energy of the straight interpolant; of the learned one", straight, here, 1.02),
        at_most(
            "bridge: share left of the straight interpolant's excess",
            (here - least) / (straight - least),
            12.0 * excess,
        ),
        at_most("bridge: |mean| error of its SDE's ends", abs(states[-1].mean().item() - m0), 0.1),
        at_most(
            "bridge: error of their standard deviation / the true one", abs(states[-1].std().item() / s0 - 1), 0.15
        ),
        at_most("bridge: energy its SDE spends / the least", spent.mean().item() / least, 1.1),
    ]
    return rows, {"path": path, "states": states[:, :12, 0]}


def gaussian_energy(covariance: float | None = None) -> float:
    """The kinetic energy of `E|u|^2` on Gaussian ends whose `x_0, x_1` have a covariance; that of the bridge by default.

    `u = m' + (V'/2 + epsilon) / V (x - m)` with `V` the variance of `x_t`.
    """
    epsilon = BRIDGE["epsilon"]
    (m0, s0), (m1, s1) = BRIDGE["data"], BRIDGE["other"]
    c = math.sqrt((s0 * s1) ** 2 + epsilon**2) - epsilon if covariance is None else covariance
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    v = ((1 - t) * s0) ** 2 + (t * s1) ** 2 + 2 * t * (1 - t) * (c + epsilon)
    v_dot = -2 * (1 - t) * s0**2 + 2 * t * s1**2 + 2 * (1 - 2 * t) * (c + epsilon)
    return (m1 - m0) ** 2 + ((0.5 * v_dot + epsilon) ** 2 / v).mean().item()


def entropic_energy() -> float:
    """The same by `4 epsilon KL(plan | x_1 ~ other, x_0 = x_1 + sqrt(2 epsilon) z)` of the entropic plan."""
    epsilon = BRIDGE["epsilon"]
    (m0, s0), (m1, s1) = BRIDGE["data"], BRIDGE["other"]
    c = math.sqrt((s0 * s1) ** 2 + epsilon**2) - epsilon
    square = (m1 - m0) ** 2 + s0**2 + s1**2 - 2 * c
    left_over = s0**2 - (c / s1) ** 2  # the variance of x_0 given x_1
    return square + 2 * epsilon * (math.log(2 * epsilon / left_over) - 1.0)


def path_energy(path: BridgePath, nodes: int = 160, levels: int = 16) -> float:
    """`E int |u|^2 dt` of an interpolant between these Gaussians, `u` its exact drift, by quadrature over the ends."""
    import numpy as np

    (m0, s0), (m1, s1) = BRIDGE["data"], BRIDGE["other"]
    u = torch.linspace(-5.0, 5.0, nodes, dtype=torch.float64)
    log_weight = -0.5 * (u[:, None] ** 2 + u[None] ** 2).flatten()
    x0, x1 = (m.reshape(-1, 1).float() for m in torch.meshgrid(m0 + s0 * u, m1 + s1 * u, indexing="ij"))
    points, weights = np.polynomial.legendre.leggauss(levels)
    total = 0.0
    for t, weight in zip((0.5 * (points + 1)).tolist(), (0.5 * weights).tolist(), strict=True):
        with torch.no_grad():
            mean, speed = (v[:, 0].double() for v in path.mean(x0, x1, torch.full((len(x0),), t)))
        time = torch.tensor(t, dtype=torch.float64)
        sigma, pull = path.sigma(time), path.pull(time)
        centre = (1 - t) * m0 + t * m1
        x = torch.linspace(centre - 5.5, centre + 5.5, 81, dtype=torch.float64)
        z = (x[:, None] - mean) / sigma
        kernel = (log_weight - 0.5 * z**2).exp()
        mass = kernel.sum(1)
        drift = (kernel * (speed + pull * z)).sum(1) / mass.clamp_min(1e-300)
        total += weight * ((mass * drift**2).sum() / mass.sum()).item()
    return total
