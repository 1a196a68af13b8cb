"""Objectives of flow maps: consistency distillation and training, and mean flows.

Each is an `Objective` for `tweed.training.fit`, whose first argument is then the flow map instead of a denoiser. What is
random about a batch (`t`, the later time; `s`, the earlier; `noise`) is addressed by (seed, step, row), or given.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import grids, random, targets
from tweed.core.denoiser import Denoiser
from tweed.core.flow_map import ConsistencyModel, FlowMap, MeanFlow, along
from tweed.core.processes import Process
from tweed.core.time import as_time, left
from tweed.errors import IncompatibleError, InputError, choose
from tweed.solvers import Heun, Problem, Solver
from tweed.training import couplings, times
from tweed.training.couplings import Coupling
from tweed.training.objectives import conditions, draw
from tweed.training.times import TimeSampler

Batch = Mapping[str, Tensor]
_PLACES, _SECOND, _EQUAL = 0x81, 0x82, 0x83  # streams of a seed


def _told(process: Process, batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in conditions(process, batch).items() if name != "s"}


def _given(batch: Batch, t: Tensor | None, s: Tensor | None, noise: Tensor | None) -> dict[str, Tensor]:
    added = {name: value for name, value in (("t", t), ("s", s), ("noise", noise)) if value is not None}
    batch = {**batch, **added}
    if ("t" in batch) != ("s" in batch):
        raise InputError("t, s: one of the two was given; expected both or none")
    return batch


def _uniform(x: Tensor, seed: int, stream: int, first: int) -> Float[Tensor, " b"]:
    u = random.uniform((len(x), 1), random.fold(seed, stream), index=first, dtype=torch.float64, device=x.device)
    return u[:, 0]


@dataclass(frozen=True)
class ConsistencyLoss:
    """Neighbouring states of one trajectory must map to the same data.

    Distillation (Song et al., "Consistency Models", ICML 2023, Algorithm 2): `x_s` is one step of `solver` from `x_t`
    with the `teacher`'s field. Training (Algorithm 3; Song & Dhariwal, "Improved Techniques for Training Consistency
    Models", ICLR 2024): without a teacher, `x_s` has the same data and noise as `x_t`. The loss of a sample is
    `(sqrt(|f(x_t, t) - f(x_s, s)|^2 + c^2) - c) / (l_t - l_s)`, `l = sigma/alpha`, without a gradient through
    `f(x_s, s)`. Times are neighbours on the grid of Karras et al. with N intervals; N doubles from `first` to `last`
    at equal parts of the run.

    Args:
        steps: the length of the run, over which N doubles.
        first, last: N at the beginning, and its bound. `first = last` keeps it.
        density: of the pair: "lognormal" (`log l ~ N(mean, std^2)`, restricted to the grid) or "uniform" (over pairs).
        mean, std: of "lognormal"; as published they go with data of standard deviation 0.5.
        rho: of the grid.
        huber: `c = huber sqrt(dimension)`.
        teacher: any denoiser of the same process; None for consistency training.
        solver: how the teacher makes its step: a deterministic one.
        target: the map that gives `f(x_s, s)`, such as a moving average of the student; None for the student itself.
        t_min: the time of the boundary condition, as the model has it; `process.t_min` where not given.

    Raises:
        InputError: an option is out of its range, or the solver draws noise.
    """

    steps: int = 1000
    first: int = 10
    last: int = 1280
    density: Literal["lognormal", "uniform"] = "lognormal"
    mean: float = -1.1
    std: float = 2.0
    rho: float = 7.0
    huber: float = 0.00054
    teacher: Denoiser | None = field(default=None, repr=False, compare=False)
    solver: Solver = field(default_factory=Heun)
    target: FlowMap | None = field(default=None, repr=False, compare=False)
    t_min: float | None = None

    def __post_init__(self):
        choose("density", self.density, ("lognormal", "uniform"))
        if not (self.steps >= 1 and 1 <= self.first <= self.last):
            raise InputError(
                f"steps, first, last: {self.steps}, {self.first}, {self.last} were given; expected steps >= 1 and "
                "1 <= first <= last"
            )
        if not (self.std > 0.0 and self.rho > 0.0 and self.huber > 0.0):
            raise InputError(
                f"std, rho, huber: {self.std}, {self.rho}, {self.huber} were given; expected them positive"
            )
        if self.solver.stochastic or self.solver.adaptive:
            raise InputError(f"solver: {self.solver} was given; expected a deterministic one of fixed steps")

    def intervals(self, step: int) -> int:
        """N at step `step` of the run, counted from 0 (Song & Dhariwal, 2024, Eq. 12)."""
        doublings = math.ceil(math.log2(self.last / self.first))
        part = max(self.steps // (doublings + 1), 1)
        return min(self.first * 2 ** min(step // part, doublings), self.last)

    def grid(self, process: Process, step: int) -> Float[Tensor, " n+1"]:
        """The times at step `step`, increasing, float64."""
        low = process.t_min if self.t_min is None else self.t_min
        high = process.t_max if math.isinf(process.level(1.0).log_snr) else 1.0
        return grids.karras(process, self.intervals(step), start=high, end=low, rho=self.rho).flip(0)

    def _places(self, process: Process, grid: Tensor, u: Float[Tensor, " b"]) -> Tensor:
        if self.density == "uniform":
            return (u * (len(grid) - 1)).long().clamp_max(len(grid) - 2)
        cdf = torch.special.ndtr((-process.log_snr(grid) - self.mean) / self.std).to(u.device)
        return (torch.searchsorted(cdf, cdf[0] + u * (cdf[-1] - cdf[0]), right=True) - 1).clamp(0, len(grid) - 2)

    def prepare(self, process, batch, *, seed, step, offset=0, total=None):
        """The batch with `t`, `s` (float64, shape (b,)) and `noise` added where they are missing."""
        batch = _given(batch, None, None, None)
        x, total = batch["x"], total or offset + len(batch["x"])
        if "t" not in batch:
            grid = self.grid(process, step).to(x.device)
            place = self._places(process, grid, _uniform(x, seed, _PLACES, step * total + offset))
            batch |= {"t": grid[place + 1], "s": grid[place]}
        independent = couplings.Independent()
        return draw(process, batch, times.Uniform(), independent, seed=seed, step=step, offset=offset, total=total)

    def __call__(
        self,
        flow_map: ConsistencyModel,
        batch: Batch,
        *,
        seed: int = 0,
        step: int = 0,
        t: Float[Tensor, " b"] | None = None,
        s: Float[Tensor, " b"] | None = None,
        noise: Float[Tensor, "b *event"] | None = None,
    ) -> Float[Tensor, " b"]:
        """The loss of each sample, shape (b,).

        Args:
            batch: `x` (b, *event), conditions; `t`, `s`, `noise` if given.
            seed, step: the address of what is random; `step` also sets N.
            t, s, noise: given ones, s < t.

        Raises:
            IncompatibleError: the teacher's process is another one.
            InputError: an entry is missing or of a wrong shape.
        """
        process = flow_map.process
        if self.teacher is not None and self.teacher.process != process:
            raise IncompatibleError(f"teacher: its process is {self.teacher.process}; expected the model's, {process}")
        batch = self.prepare(process, _given(batch, t, s, noise), seed=seed, step=step)
        x0, eps, y, told = batch["x"], batch["noise"], batch.get("y"), _told(process, batch)
        t, s = as_time(batch["t"]), as_time(batch["s"])
        later = process.perturb(x0, t, eps, y)
        with torch.no_grad():
            if self.teacher is None:
                earlier = process.perturb(x0, s, eps, y)
            else:
                problem = Problem(self.teacher.start(), torch.stack((t, s)), told)
                earlier = self.solver.integrate(problem, later).to(later.dtype)
            wanted = (self.target or flow_map)(earlier, s, 0.0, **told)
        error = (flow_map(later, t, 0.0, **told) - wanted).flatten(1)
        c = self.huber * max(error.shape[1], 1) ** 0.5
        gap = (-process.log_snr(t)).exp() - (-process.log_snr(s)).exp()
        return (error.square().sum(1).add(c**2).sqrt() - c) / gap.to(error)


@dataclass(frozen=True)
class MeanFlowLoss:
    """Regression of the average velocity on its own identity, `w = velocity - (t - s) dw/dt`.

    Geng et al., "Mean Flows for One-step Generative Modeling" (NeurIPS 2025), Algorithm 1: the loss of a sample is
    `|w(x_t, t, s) - sg[velocity - (t - s) (velocity . dw/dx + dw/dt)]|^2` with the path's velocity
    `alpha' x_0 + sigma' eps` (of a rectified flow: `eps - x_0`), the derivative taken in forward mode along the tangent
    (velocity, 1, 0) of (x, t, s). Where s = t it is flow matching. Attention kernels must support forward mode; autocast
    is left for the derivative.

    Args:
        times: how each of the two times is drawn; the later is `t`.
        equal: the share of samples with s = t.
        power, offset: each sample is divided by `sg[|error|^2 + offset]^power`; power 0 is the plain square.
        coupling: which noise goes with which sample.
        teacher: a denoiser of the same process whose velocity replaces the path's (distillation); None trains alone.

    Raises:
        InputError: an option is out of its range.
    """

    times: TimeSampler = field(default_factory=lambda: times.LogitNormal(mean=-0.4, std=1.0))
    equal: float = 0.75
    power: float = 1.0
    offset: float = 1e-3
    coupling: Coupling = field(default_factory=couplings.Independent)
    teacher: Denoiser | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if not 0.0 <= self.equal <= 1.0:
            raise InputError(f"equal: {self.equal} was given; expected a share in [0, 1]")
        if not (self.power >= 0.0 and self.offset > 0.0):
            raise InputError(f"power, offset: {self.power}, {self.offset} were given; expected power >= 0, offset > 0")

    def prepare(self, process, batch, *, seed, step, offset=0, total=None):
        """The batch with `t`, `s` (float64, shape (b,)) and `noise` added where they are missing."""
        batch = _given(batch, None, None, None)
        drawn = "t" not in batch
        batch = draw(process, batch, self.times, self.coupling, seed=seed, step=step, offset=offset, total=total)
        if drawn:
            x, total = batch["x"], total or offset + len(batch["x"])
            first = step * total + offset
            # Independent of the first time, which may be spread evenly over the batch.
            other = self.times.quantile(process, _uniform(x, seed, _SECOND, first).cpu())
            other = other.clamp(self.times.low, self.times.high).to(x.device)
            equal = _uniform(x, seed, _EQUAL, first) < self.equal
            later = torch.where(equal, batch["t"], batch["t"].maximum(other))
            batch |= {"t": later, "s": torch.where(equal, later, batch["t"].minimum(other))}
        return batch

    def __call__(
        self,
        flow_map: MeanFlow,
        batch: Batch,
        *,
        seed: int = 0,
        step: int = 0,
        t: Float[Tensor, " b"] | None = None,
        s: Float[Tensor, " b"] | None = None,
        noise: Float[Tensor, "b *event"] | None = None,
    ) -> Float[Tensor, " b"]:
        """The loss of each sample, summed over the event, shape (b,); arguments as for `ConsistencyLoss`, s <= t.

        Raises:
            IncompatibleError: the teacher's process is another one.
            InputError: an entry is missing or of a wrong shape.
        """
        process = flow_map.process
        if self.teacher is not None and self.teacher.process != process:
            raise IncompatibleError(f"teacher: its process is {self.teacher.process}; expected the model's, {process}")
        batch = self.prepare(process, _given(batch, t, s, noise), seed=seed, step=step)
        x0, eps, y, told = batch["x"], batch["noise"], batch.get("y"), _told(process, batch)
        t, s = as_time(batch["t"]), as_time(batch["s"])
        x = process.perturb(x0, t, eps, y)
        if self.teacher is None:
            row = targets.Velocity().row(process, t)
            speed = left(row.data, x) * x0 + left(row.noise, x) * eps
            if y is not None and process.endpoint != "none":
                speed = speed + left(row.endpoint, x) * y
        else:
            with torch.no_grad():
                speed = self.teacher(x, t, **told).velocity
        with torch.autocast(x.device.type, enabled=False):
            value, rate = along(lambda x, t: flow_map.average_velocity(x, t, s, **told), x, t, speed.to(x))
        wanted = (speed - left(t - s, x) * rate).detach()
        square = (value - wanted).flatten(1).square().sum(1)
        return square / (square.detach() + self.offset) ** self.power
