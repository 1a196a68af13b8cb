"""Residual denoising: what its two networks add to the process `Residual`.

Liu et al., "Residual Denoising Diffusion Models" (CVPR 2024, arXiv 2308.13712). The state `x = x_0 + a R + b eps` has a residual
`R = y - x_0` and noise, each on a schedule of its own. One network alone answers a target, `DataResidual` or `Noise`, and every
solver of tweed samples it (see `select_objective` for which of the two). Here are two, one for R and one for eps, told a and b
rather than a common time, so that at test time residual and noise may be taken away along any path of (a, b):

    x <- x - (a - a') R - (b - sqrt(b'^2 - v)) eps + sqrt(v) n,    v = eta (b^2 - b'^2) b'^2 / b^2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random, targets
from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate
from tweed.core.processes import Process, Residual
from tweed.core.time import Time, as_time, left, working_dtype
from tweed.errors import IncompatibleError, InputError, choose
from tweed.training import times as time_samplers
from tweed.training.couplings import Independent
from tweed.training.objectives import Batch, conditions, draw
from tweed.training.times import TimeSampler

Network = Callable[..., Tensor]
"""`(x, level, y=y, **cond) -> answer`, shaped like x, as the networks of `tweed.nets` are; the level has shape (b,)."""
Path = Sequence[tuple[float, float]]
"""Points (a, b) that the state passes: the shares of the residual and of the noise that it still has."""


class ResidualNoise(Denoiser):
    """Two networks: of the residual, told a, and of the noise, told b.

    As a denoiser its estimate is the paper's `x_0 = x - a R - b eps`; `remove` takes residual and noise away as published.

    Args:
        residual, noise: the two networks; modules are trained by `fit` with `ResidualNoiseLoss`.
        told: "levels", as above, or "time", both told t. Then paths other than the process's own are refused.
        event: the shape of one sample.

    Raises:
        IncompatibleError: a process other than `Residual`.
    """

    def __init__(
        self,
        residual: Network,
        noise: Network,
        process: Residual,
        *,
        told: Literal["levels", "time"] = "levels",
        event: tuple[int, ...] | None = None,
    ):
        super().__init__()
        if not isinstance(process, Residual):
            raise IncompatibleError(f"process: ResidualNoise needs Residual; {type(process).__name__} was given")
        self.residual, self.noise, self.process = residual, noise, process
        self.told = choose("told", told, ("levels", "time"))
        self.event = None if event is None else tuple(event)

    def at(self, x: Float[Tensor, "b *event"], t: Time, y: Tensor, **cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual and the noise at time t, by both networks; shape of x."""
        a, b = (t, t) if self.told == "time" else (self.process.beta(t), self.process.sigma(t))
        return ask(self.residual, x, a, y, **cond), ask(self.noise, x, b, y, **cond)

    def forward(self, x, t, **cond):
        y = cond.pop("y", None)
        if y is None:
            raise InputError("y: the process is conditioned on an endpoint; pass y=... to the denoiser")
        x = x.to(working_dtype(x))
        residual, noise = self.at(x, t, y, **cond)
        x0 = x - left(self.process.beta(t), x) * residual - left(self.process.sigma(t), x) * noise
        return Estimate(x, t, x0, self.process, targets.Data(), y)


def ask(
    network: Network, x: Float[Tensor, "b *event"], level: Time, y: Float[Tensor, "b *event"], **cond: Tensor | None
) -> Float[Tensor, "b *event"]:
    """A network's answer, in x's type; it is called in its own, with a level of shape (b,)."""
    held = network.parameters() if isinstance(network, nn.Module) else ()
    dtype = next((p.dtype for p in held if p.dtype.is_floating_point), x.dtype)
    real = dtype.to_real() if dtype.is_complex else dtype
    told = torch.as_tensor(level, dtype=torch.float64).to(x.device, real).expand(len(x))
    return network(x.to(dtype), told, y=y.to(dtype), **cond).to(x.dtype)


@dataclass(frozen=True)
class ResidualNoiseLoss:
    """`|R - R_hat| + |eps - eps_hat|` of a `ResidualNoise`, averaged over the event, with equal weights.

    Args:
        loss: "l1", as published for restoration, or "l2", for generation.
        times: how training times are drawn; both networks see the same state.
    """

    loss: Literal["l1", "l2"] = "l1"
    times: TimeSampler = field(default_factory=time_samplers.Uniform)

    def __post_init__(self):
        choose("loss", self.loss, ("l1", "l2"))

    def prepare(self, process, batch, *, seed, step, offset=0, total=None):
        """The batch with times and noise, addressed by (seed, step, row)."""
        return draw(process, batch, self.times, Independent(), seed=seed, step=step, offset=offset, total=total)

    def __call__(self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0) -> Float[Tensor, " b"]:
        """The loss of each sample, shape (b,).

        Raises:
            IncompatibleError: another denoiser.
        """
        if not isinstance(denoiser, ResidualNoise):
            raise IncompatibleError(f"denoiser: {type(denoiser).__name__} was given; expected ResidualNoise")
        process = denoiser.process
        batch = self.prepare(process, batch, seed=seed, step=step)
        x0, eps, y, t = batch["x"], batch["noise"], batch["y"], as_time(batch["t"])
        given = {name: value for name, value in conditions(process, batch).items() if name != "y"}
        residual, noise = denoiser.at(process.perturb(x0, t, eps, y), t, y, **given)
        errors = (residual - (y - x0)).abs(), (noise - eps).abs()
        return sum((e if self.loss == "l1" else e.square()).flatten(1).mean(1) for e in errors)  # type: ignore[return-value]


@torch.no_grad()
def remove(
    model: ResidualNoise,
    x: Float[Tensor, "b *event"],
    y: Float[Tensor, "b *event"],
    path: Path,
    *,
    eta: float = 0.0,
    seed: int = 0,
) -> Float[Tensor, "b *event"]:
    """The state carried along a path of (a, b), from that of `x` to the last; each network is asked at most once a step.

    Args:
        model: the two networks.
        x: the state at the path's first point; `y + b n` at (1, b).
        y: the degraded sample.
        path: falling in a and b, or level in either; (0, 0) is clean.
        eta: the share of the ancestral variance that is drawn anew, in [0, 1]: the paper's, in which the *variance* is shared
            out (`DDIM(eta)` shares the standard deviation).
        seed: of the noise, with a row of numbers for each sample.

    Raises:
        InputError: a path of fewer than two points, or one that rises, or an eta outside [0, 1].
        IncompatibleError: networks that are told a common time.
    """
    steps = list(pairwise(path))
    if not steps or any(c > a or d > b for (a, b), (c, d) in steps):
        raise InputError(f"path: {list(path)} was given; expected at least two points, falling in a and b")
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"eta: {eta} was given; expected a number in [0, 1]")
    if model.told != "levels":
        raise IncompatibleError("model: its networks are told a common time; a path needs networks told a and b")
    for i, ((a, b), (c, d)) in enumerate(steps):
        # A network that would take nothing away is not asked.
        moved = x
        if c < a:
            moved = moved - (a - c) * ask(model.residual, x, a, y)
        if d < b:
            drawn = eta * (b**2 - d**2) * d**2 / b**2
            moved = moved - (b - (d**2 - drawn) ** 0.5) * ask(model.noise, x, b, y)
            if drawn > 0.0:
                fresh = random.normal(x.shape, seed, draw=1 + 64 * i, dtype=x.dtype, device=x.device)
                moved = moved + drawn**0.5 * fresh
        x = moved
    return x


def process_path(process: Process, times: Sequence[float] | Float[Tensor, " n"]) -> list[tuple[float, float]]:
    """The points (1 - alpha, sigma) of a process at falling times.

    On `Residual` they are its own schedules. On a variance-preserving process they are the coefficients by which DDIM is a
    special case, with y = 0 and so R = -x_0 (the paper's "coefficient transformation"): a pretrained noise model is `noise`,
    and `-x_0` by it `residual`.
    """
    return [(1.0 - level.alpha, level.sigma) for level in (process.level(float(t)) for t in times)]


def noise_first(process: Residual, steps: int) -> list[tuple[float, float]]:
    """All the noise is taken away first, then the residual, on even steps; half of the steps each."""
    begin, half = _begin(process, steps), max(steps // 2, 1)
    down = [(begin[0], begin[1] * (1.0 - k / half)) for k in range(half + 1)]
    rest = max(steps - half, 1)
    return down + [(begin[0] * (1.0 - k / rest), 0.0) for k in range(1, rest + 1)]


def residual_first(process: Residual, steps: int) -> list[tuple[float, float]]:
    """All the residual is taken away first, then the noise, on even steps; half of the steps each."""
    begin, half = _begin(process, steps), max(steps // 2, 1)
    down = [(begin[0] * (1.0 - k / half), begin[1]) for k in range(half + 1)]
    rest = max(steps - half, 1)
    return down + [(0.0, begin[1] * (1.0 - k / rest)) for k in range(1, rest + 1)]


def _begin(process: Residual, steps: int) -> tuple[float, float]:
    if steps < 2:
        raise InputError(f"steps: {steps} was given; expected at least 2, one for each part")
    level = process.level(1.0)
    return level.beta, level.sigma
