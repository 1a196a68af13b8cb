"""Schrödinger bridges by learning the interpolant: Albergo, Boffi & Vanden-Eijnden (arXiv 2303.08797), Section 3.5.

On `x_t = I(t) + sigma(t) z`, `sigma = sqrt(2 epsilon t (1 - t))`, the noise `epsilon` of the reverse SDE

    dX = u dt + sqrt(2 epsilon) dW,    t from 1 to 0,

has the drift `u = velocity - epsilon score = E[I' + (sigma' + epsilon / sigma) z | x_t]`, the minimiser of

    L(u, I) = E[ |u|^2 / 2 - (I' + (sigma' + epsilon / sigma) z) . u ],

with the value `-E|u|^2 / 2`. Raising that over paths `I` with the same ends lowers the kinetic energy `E int |u|^2 dt`;
what has the least of it is the Schrödinger bridge: of all processes with these ends the nearest to Brownian motion.
Here the ends are exact by construction, `I = (1 - t) x_0 + t x_1 + t (1 - t) N(x_0, x_1, t)`, and the two networks take
turns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random
from tweed.core.time import as_time, left
from tweed.errors import InputError, NumericalError
from tweed.training.parts import learning_rate
from tweed.training.times import uniform_numbers

Network = Callable[..., Tensor]
_NOISE, _DATA, _OTHER, _TIME = 0x81, 0x82, 0x83, 0x84  # streams of a seed


@dataclass(frozen=True)
class BridgePath:
    """The stochastic interpolant `x_t = I(t) + sqrt(2 epsilon t (1 - t)) z` with a learned `I`.

    Args:
        epsilon: the noise of the bridge, so that `dX = u dt + sqrt(2 epsilon) dW`.
        network: `N(x0, t, y=x1)`, shape of `x0`, differentiable in `t` (shape (b,)); None for the straight line.

    Raises:
        InputError: `epsilon` is not positive.
    """

    epsilon: float
    network: Network | None = None

    def __post_init__(self):
        if not 0.0 < self.epsilon < math.inf:
            raise InputError(f"epsilon: {self.epsilon} was given; expected a positive number")

    def mean(
        self, x0: Float[Tensor, "b *event"], x1: Float[Tensor, "b *event"], t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b *event"], Float[Tensor, "b *event"]]:
        """`I` and its time derivative."""
        here = left(t, x0)
        line, slope = (1.0 - here) * x0 + here * x1, x1 - x0
        network = self.network
        if network is None:
            return line, slope
        t = t.to(x0.dtype)
        moved: tuple = torch.func.jvp(lambda time: network(x0, time, y=x1), (t,), (torch.ones_like(t),))
        bend, bend_dot = moved
        return line + here * (1.0 - here) * bend, slope + (1.0 - 2.0 * here) * bend + here * (1.0 - here) * bend_dot

    def sigma(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """The standard deviation of the latent noise, float64."""
        t = as_time(t)
        return (2.0 * self.epsilon * t * (1.0 - t)).sqrt()

    def pull(self, t: Float[Tensor, "*time"]) -> Float[Tensor, "*time"]:
        """`sigma' + epsilon / sigma = sqrt(2 epsilon (1 - t) / t)`, what the noise adds to the drift, float64."""
        t = as_time(t)
        return (2.0 * self.epsilon * (1.0 - t) / t).sqrt()


def bridge_loss(
    path: BridgePath,
    drift: Network,
    x0: Float[Tensor, "b *event"],
    x1: Float[Tensor, "b *event"],
    t: Float[Tensor, " b"],
    noise: Float[Tensor, "b *event"],
) -> Float[Tensor, " b"]:
    """`|u|^2 / 2 - (I' + (sigma' + epsilon / sigma) z) . u` of each sample, summed over the event.

    The mean over `z` and `-z`, which keeps the variance finite at t = 0. To be minimised over `drift(x, t)` and
    maximised over the path; at the minimum minus twice its mean is the kinetic energy.
    """
    mean, speed = path.mean(x0, x1, t)
    sigma, pull = left(path.sigma(t), x0), left(path.pull(t), x0)
    total = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for sign in (1.0, -1.0):
        u = drift(mean + sign * sigma * noise, t.to(x0.dtype))
        total = total + (0.5 * u.square() - (speed + sign * pull * noise) * u).flatten(1).sum(1)
    return 0.5 * total


@dataclass(frozen=True)
class BridgeResult:
    """What `fit_bridge` gives.

    Attributes:
        path: with the learned `I`.
        drift: the learned `u(x, t)`.
        losses: of each drift step, in order; minus twice their mean is about the kinetic energy.
    """

    path: BridgePath
    drift: Network
    losses: tuple[float, ...]

    def sample(
        self, start: Float[Tensor, "b *event"], *, steps: int = 100, seed: int = 0, trajectory: bool = False
    ) -> tuple[Tensor, Float[Tensor, " b"]]:
        """The reverse SDE from `start`, draws of `x_1`, by Euler and Maruyama.

        Returns:
            The states at t = 0, shape (b, *event) (all of them, (steps + 1, b, *event), if `trajectory`), and
            the kinetic energy `int |u|^2 dt` of each, shape (b,).

        Raises:
            InputError: `steps` is not positive.
            NumericalError: a state is not finite.
        """
        if steps < 1:
            raise InputError(f"steps: {steps} was given; expected at least 1")
        h, x = 1.0 / steps, start
        kick = math.sqrt(2.0 * self.path.epsilon * h)
        energy, states = torch.zeros(len(x), dtype=x.dtype, device=x.device), [x]
        with torch.no_grad():
            for i in range(steps):
                t = torch.full((len(x),), 1.0 - i * h, dtype=x.dtype, device=x.device)
                u = self.drift(x, t)
                energy = energy + h * u.square().flatten(1).sum(1)
                z = random.normal(x.shape, seed, draw=i, dtype=x.dtype, device=x.device)
                x = x - h * u + kick * z
                states.append(x)
        if not bool(torch.isfinite(x).all()):
            raise NumericalError("sample: a state of the bridge is not finite; the drift is not, somewhere in between")
        return (torch.stack(states) if trajectory else x), energy


def fit_bridge(
    path: BridgePath,
    drift: nn.Module,
    data: Callable[[int, int, int], Tensor],
    other: Callable[[int, int, int], Tensor],
    *,
    steps: int,
    inner: int = 4,
    warm: int = 200,
    batch_size: int = 512,
    lr: float = 2e-3,
    path_lr: float = 1e-3,
    clip: float = 10.0,
    seed: int = 0,
    report: Callable[[float], None] | None = None,
) -> BridgeResult:
    """Trains path and drift in turns, in place.

    Args:
        path, drift: the networks, modules; `drift(x, t)` answers in the shape of `x`.
        data, other: draws of `x_0` and `x_1`: `sample(n, seed, index) -> (n, *event)`, as densities here have it.
        steps: steps of the path (one drift step more than `inner` for each).
        inner: drift steps before each path step, so that the path follows the gradient of the minimum.
        warm: drift steps before the first path step.
        batch_size, lr, path_lr, clip: of Adam for drift and path, whose rates fall to zero like a half cosine.
        seed: of everything random.
        report: told the share done, now and then.

    Raises:
        InputError: a number is not positive, or the path is not a module that can be trained.
        NumericalError: the loss is not finite.
    """
    for name, value in (("steps", steps), ("inner", inner), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}: {value} was given; expected at least 1")
    if not isinstance(path.network, nn.Module):
        raise InputError("path: its network is no module; expected BridgePath(epsilon, network) with one to train")
    down = torch.optim.Adam(drift.parameters(), lr=lr, betas=(0.5, 0.99))
    up = torch.optim.Adam(path.network.parameters(), lr=path_lr, betas=(0.5, 0.99))
    first = next(drift.parameters())
    losses: list[Tensor] = []
    total = warm + steps * (inner + 1)

    def batch(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index = number * batch_size
        x0, x1 = (
            draw(batch_size, random.fold(seed, stream), index).to(first)
            for draw, stream in ((data, _DATA), (other, _OTHER))
        )
        z = random.normal(x0.shape, random.fold(seed, _NOISE), index=index).to(first)
        t = uniform_numbers("stratified", batch_size, random.fold(seed, _TIME), number).to(first.device)
        return x0, x1, t, z

    def step(number: int, optimizer: torch.optim.Optimizer, module: nn.Module, sign: float, rate: float) -> Tensor:
        module.requires_grad_(True)
        value = bridge_loss(path, drift, *batch(number)).mean()
        optimizer.zero_grad(set_to_none=True)
        (sign * value).backward()
        nn.utils.clip_grad_norm_(module.parameters(), clip)
        share = learning_rate(max(number - warm, 0), total - warm, 1.0, 0, "cosine")
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        optimizer.step()
        module.requires_grad_(False)
        return value.detach()

    drift.requires_grad_(False)
    path.network.requires_grad_(False)
    number = 0
    for i in range(-1, steps):
        for _ in range(warm if i < 0 else inner):
            losses.append(step(number, down, drift, 1.0, lr))
            number += 1
        if i >= 0:
            step(number, up, path.network, -1.0, path_lr)
            number += 1
        if report is not None and i % max(1, steps // 20) == 0:
            report(number / total)
    drift.requires_grad_(True)
    path.network.requires_grad_(True)
    values = torch.stack(losses)
    if not bool(torch.isfinite(values).all()):
        place = int((~torch.isfinite(values)).nonzero()[0, 0])
        raise NumericalError(f"loss: it is not finite at drift step {place + 1}; a smaller lr may help")
    return BridgeResult(path, drift, tuple(values.tolist()))
