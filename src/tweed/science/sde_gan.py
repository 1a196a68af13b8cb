"""Neural SDEs as the generators of a Wasserstein GAN, with a neural CDE as the critic.

Kidger, Foster, Li, Oberhauser & Lyons, "Neural SDEs as infinite-dimensional GANs" (ICML 2021, arXiv 2102.03657), and
"Efficient and accurate gradients for neural SDEs" (NeurIPS 2021, arXiv 2105.13493), whose reversible Heun method and
clipping replace the adjoint method and the gradient penalty of the former.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random
from tweed.errors import InputError
from tweed.nets.lipschitz import clip_linear
from tweed.nets.registry import initialise, without_draws
from tweed.nets.vector_field import VectorField
from tweed.science.controls import check_knots, linear, with_time
from tweed.science.neural_cde import MatrixField, cdeint
from tweed.solvers.differential import sdeint


class SDEGenerator(nn.Module):
    """`X_0 = zeta(V)`, `dX = mu(t, X) dt + sigma(t, X) o dW`, `Y = A X + b`, with V and W standard normal.

    Args:
        data_dim: numbers in an observation. hidden: size of X. noise_dim: size of W. start_dim: size of V.
        width, depth: of the networks.
        step: of the integration; None for one step from time to time.
        adjoint: "reversible" (memory of one step), "direct" or "checkpoint".
        seed: of the weights.
    """

    def __init__(
        self,
        data_dim: int,
        *,
        hidden: int = 16,
        noise_dim: int = 3,
        start_dim: int = 4,
        width: int = 16,
        depth: int = 1,
        step: float | None = None,
        adjoint: str = "reversible",
        seed: int = 0,
    ) -> None:
        super().__init__()
        with without_draws():
            self.start_dim, self.noise_dim, self.hidden = start_dim, noise_dim, hidden
            shape: dict[str, Any] = {"width": width, "depth": depth, "activation": "lipswish"}
            self.initial = VectorField(start_dim, hidden, time=False, **shape)
            self.drift = VectorField(hidden, bounded=True, **shape)
            self.spread = VectorField(hidden, hidden * noise_dim, bounded=True, **shape)
            self.readout = nn.Linear(hidden, data_dim)
            self.options: dict[str, Any] = {"step": step, "adjoint": adjoint, "method": "reversible_heun"}
        initialise(self, seed)

    def diffusion(self, t: Float[Tensor, ""], x: Float[Tensor, "b h"]) -> Float[Tensor, "b h m"]:
        """sigma, for general noise."""
        return self.spread(t, x).reshape(-1, self.hidden, self.noise_dim)

    def forward(
        self, count: int, ts: Sequence[float] | Float[Tensor, " t"], seed: int, index: int = 0
    ) -> Float[Tensor, "b t d"]:
        """Series at `ts`, a function of (seed, index): sample `index + i` does not depend on the batch."""
        like = self.readout.weight
        v = random.normal((count, self.start_dim), seed, index=index, dtype=like.dtype, device=like.device)
        times = torch.as_tensor(ts, dtype=torch.float64)
        x0 = self.initial(times[0].to(v), v)
        path = sdeint(
            self.drift,
            self.diffusion,
            x0,
            times,
            noise="general",
            calculus="stratonovich",
            params=[*self.drift.parameters(), *self.spread.parameters()],
            **self._noise(times, count, seed, index, like),
            **self.options,
        )
        return self.readout(path).transpose(0, 1)

    def _noise(self, times: Tensor, count: int, seed: int, index: int, like: Tensor) -> dict[str, Any]:
        from tweed.solvers.differential import BrownianInterval

        span = float(times[0]), max(float(times[-1]), float(times[0]) + 1e-12)
        shape, kind = (count, self.noise_dim), {"dtype": like.dtype, "device": like.device}
        return {"brownian": BrownianInterval(*span, shape, random.fold(seed, 1), index=index, **kind)}


class CDECritic(nn.Module):
    """`H_0 = xi(Y_0)`, `dH = f(H) d(t, Y)`, score `m . H_T`: a function of the whole series.

    The vector field is made of LipSwish and linear layers, which `clip_linear` keeps of Lipschitz constant one.

    Args:
        data_dim: numbers in an observation. hidden: size of H. width, depth: of the networks.
        method, adjoint: of the integration, one step from observation to observation.
        seed: of the weights.
    """

    def __init__(
        self,
        data_dim: int,
        *,
        hidden: int = 16,
        width: int = 16,
        depth: int = 1,
        method: str = "heun",
        adjoint: str = "direct",
        seed: int = 0,
    ) -> None:
        super().__init__()
        with without_draws():
            shape: dict[str, Any] = {"width": width, "depth": depth, "activation": "lipswish", "time": False}
            self.initial = VectorField(data_dim + 1, hidden, **shape)
            self.field = MatrixField(hidden, data_dim + 1, bounded=True, **shape)
            self.readout = nn.Linear(hidden, 1)
            self.options: dict[str, Any] = {"method": method, "adjoint": adjoint}
        initialise(self, seed)

    def forward(self, ts: Sequence[float] | Float[Tensor, " t"], y: Float[Tensor, "b t d"]) -> Float[Tensor, " b"]:
        """The score of each series."""
        control = linear(ts, with_time(ts, y))
        first = control.knots[0]
        h0 = self.initial(first.to(y), control.value(first))
        return self.readout(cdeint(control, self.field, h0, None, **self.options)[-1])[:, 0]


@dataclass(frozen=True)
class SDEGANSettings:
    """How `fit_sde_gan` trains.

    Args:
        steps: updates of the generator. batch_size: series in a batch.
        critic_steps: updates of the critic for each of them.
        generator_lr, critic_lr: of Adadelta, which has no momentum (the papers' choice).
        average_from: the fraction of the steps after which the generator's weights are averaged.
    """

    steps: int = 500
    batch_size: int = 128
    critic_steps: int = 1
    generator_lr: float = 1.0
    critic_lr: float = 1.0
    average_from: float = 0.5

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "critic_steps", "generator_lr", "critic_lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: {getattr(self, name)} was given; expected a positive number")
        if not 0.0 <= self.average_from < 1.0:
            raise InputError(f"average_from: {self.average_from} was given; expected a number in [0, 1)")


def fit_sde_gan(
    generator: SDEGenerator,
    critic: CDECritic,
    ts: Sequence[float] | Float[Tensor, " t"],
    data: Float[Tensor, "n t d"],
    settings: SDEGANSettings = SDEGANSettings(),
    *,
    seed: int,
) -> tuple[SDEGenerator, list[float]]:
    """Trains both in place: the critic to tell `data` from the generator's series, the generator against it.

    The critic maximises the difference of mean scores and is clipped after every step, so that it stays Lipschitz and the
    difference is a multiple of a Wasserstein distance at most.

    Returns:
        A copy of the generator with averaged weights, and the difference of scores at each step.

    Raises:
        InputError: bad shapes or times, or data that are not finite.
    """
    check_knots(ts, data)
    if not len(data) or bool(data.isnan().any()):
        raise InputError(f"data: {tuple(data.shape)} with NaN or without series was given; expected complete series")
    optimise = torch.optim.Adadelta(generator.parameters(), lr=settings.generator_lr)
    judge = torch.optim.Adadelta(critic.parameters(), lr=settings.critic_lr)
    averaged, averages, gaps = copy.deepcopy(generator), 0, []
    clip_linear(critic)
    draws = _batches(data, settings.batch_size, seed)
    for step in range(settings.steps):
        for k in range(settings.critic_steps):
            real = next(draws)
            with torch.no_grad():
                fake = generator(len(real), ts, random.fold(seed, 2 * step, k))
            gap = critic(ts, real).mean() - critic(ts, fake).mean()
            judge.zero_grad()
            (-gap).backward()
            judge.step()
            clip_linear(critic)
        gaps.append(gap.detach())
        optimise.zero_grad()
        (-critic(ts, generator(settings.batch_size, ts, random.fold(seed, 2 * step + 1))).mean()).backward()
        optimise.step()
        if step >= settings.average_from * settings.steps:
            averages += 1
            with torch.no_grad():
                for mean, now in zip(averaged.parameters(), generator.parameters(), strict=True):
                    mean.lerp_(now, 1.0 / averages)
    return averaged, torch.stack(gaps).tolist()


def _batches(data: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Batches of series, drawn with replacement."""
    step = 0
    while True:
        u = random.uniform((size,), seed, draw=step + 1, dtype=torch.float64)
        yield data[(u * len(data)).long().clamp(max=len(data) - 1).to(data.device)]
        step += 1


def sde_gan(data_dim: int, *, seed: int, **options: Any) -> tuple[SDEGenerator, CDECritic]:
    """A generator and a critic of equal sizes with weights drawn from `seed`; `options` are those both take."""
    first, second = random.fold(seed, 0), random.fold(seed, 1)
    return SDEGenerator(data_dim, seed=first, **options), CDECritic(data_dim, seed=second, **options)
