"""Text as embeddings whose tokens are denoised each at its own pace (NeoDiff, ACL 2025, arXiv 2505.22165).

A denoiser of embeddings is an ordinary one, on an ordinary process, told a level for each token: so with one level for all any
solver runs on it. `NonSimultaneous` gives each token the level that a predictor asks for.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tweed.core import random
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.processes import Process
from tweed.core.time import as_time
from tweed.errors import IncompatibleError, InputError, choose
from tweed.nets.embedding_transformer import EmbeddingTransformer, real_tokens
from tweed.solvers.base import Observer, Problem, Solver, State
from tweed.tokens.poisson_levels import PoissonTokenSchedule
from tweed.training.objectives import Batch

_LEVELS, _NOISE = 0x6C766C, 0x6E6F69  # streams of a seed
_SMALL = 1e-4

LevelRule = Literal["predicted", "poisson", "simultaneous"]


@dataclass(frozen=True)
class SqrtProcess(Process):
    """`alpha^2 = 1 - sqrt(t + 1e-4)`, `sigma = noise sqrt(1 - alpha^2)` (Li et al., Diffusion-LM, 2022, Appendix A).

    Args:
        noise: the factor of the noise; 6.5 is published for training: words lie far apart.
    """

    noise: float = 1.0

    @property
    def t_max(self) -> float:
        return 1.0 - 1e-3

    def _kept(self, t: Tensor) -> Tensor:
        return (1.0 - (t + _SMALL).sqrt()).clamp_min(1e-8)

    def _kept_dot(self, t: Tensor) -> Tensor:
        return torch.where(1.0 - (t + _SMALL).sqrt() > 1e-8, -0.5 / (t + _SMALL).sqrt(), torch.zeros_like(t))

    def _alpha(self, t: Tensor) -> Tensor:
        return self._kept(t).sqrt()

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self._kept_dot(t) / self._alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.noise * (1.0 - self._kept(t)).sqrt()

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return -0.5 * self.noise * self._kept_dot(t) / (1.0 - self._kept(t)).sqrt()

    def _time(self, log_snr: Tensor) -> Tensor:
        # (alpha / sigma)^2 = kept / (noise^2 (1 - kept)).
        odds = self.noise**2 * (2.0 * log_snr).exp()
        share = 1.0 / (1.0 + odds)
        return (share.square() - _SMALL).clamp(0.0, 1.0)


def embedding_denoiser(network: EmbeddingTransformer, length: int, process: Process | None = None) -> NetworkDenoiser:
    """The network as a denoiser of embeddings, (length, dim) a sentence; `SqrtProcess(6.5)` by default."""
    from tweed.core import targets

    process = SqrtProcess(6.5) if process is None else process
    return NetworkDenoiser(network, process, targets.Data(), time="time", event=(length, network.dim))


@dataclass(frozen=True)
class NonSimultaneousLoss:
    """The sum of the published losses, a number a sentence: `|x_0 - answer|^2`, cross-entropy of the words that the answer
    is (so that embeddings do not collapse), and the squared error of the predicted levels, over `tau_max`.

    Batches hold words `x` (b, length) and a `source`. Self-conditioning: with probability 1/2 the network sees its own first
    answer. The predictor learns from detached answers, and does not shape the denoiser.

    Args:
        schedule: of the levels; `PoissonTokenSchedule(spread="none")` is simultaneous diffusion.
        smoothing: of the labels of the cross-entropy.
        predictor: whether the predictor of levels is trained.
        pad: a word that does not count.
    """

    schedule: PoissonTokenSchedule = field(default_factory=PoissonTokenSchedule)
    smoothing: float = 0.1
    predictor: bool = True
    pad: int | None = None

    def prepare(
        self, process: Process, batch: Batch, *, seed: int, step: int, offset: int = 0, total: int | None = None
    ) -> dict[str, Tensor]:
        """The batch with the time of each sentence, the level of each word, and whether it sees its first answer."""
        x = batch["x"]
        n, first = len(x), step * (total or offset + len(x)) + offset
        u = random.uniform((n, x.shape[1] + 2), random.fold(seed, _LEVELS), index=first, dtype=torch.float64)
        t = u[:, -1]
        level = self.schedule.sample(t, u[:, :-2])
        row = first + torch.arange(n)
        drawn = {"t": t, "level": level, "again": u[:, -2] < 0.5, "row": row}
        return {**batch, **{name: value.to(x.device) for name, value in drawn.items()}}

    def __call__(self, denoiser: Denoiser, batch: Batch, *, seed: int = 0, step: int = 0) -> Float[Tensor, " b"]:
        """The loss of each sentence.

        Raises:
            IncompatibleError: the denoiser has no `EmbeddingTransformer`.
        """
        network = _network(denoiser)
        if "level" not in batch:
            batch = self.prepare(denoiser.process, batch, seed=seed, step=step)
        words, t, level = batch["x"], batch["t"], batch["level"]
        told = {"source": batch["source"]} if "source" in batch else {}
        real = real_tokens(words, self.pad)
        count = real.sum(1).clamp_min(1)
        x0 = network.embed(words)
        stream = random.fold(seed, _NOISE)
        noise = random.normal(x0.shape, stream, index=batch["row"], dtype=x0.dtype, device=x0.device)
        tau = (level / self.schedule.top).to(x0.dtype)
        x = denoiser.process.perturb(x0, tau, noise)
        with torch.no_grad():
            first = denoiser(x, tau, **told).x0
        previous = torch.where(batch["again"][:, None, None], first, torch.zeros_like(first))
        answer = denoiser(x, tau, previous=previous, **told).x0
        squares = (answer - x0).square().mean(-1)
        losses = F.cross_entropy(
            network.logits(answer).transpose(1, 2), words, reduction="none", label_smoothing=self.smoothing
        )
        total = ((squares + losses) * real).sum(1) / count
        if self.predictor:
            plain = F.cross_entropy(network.logits(answer.detach()).transpose(1, 2), words, reduction="none").detach()
            labels = self.schedule.labels((squares.detach() + plain).double(), real, t)
            levels = network.next_levels(answer.detach(), t.to(x0.dtype), **told)
            off = ((levels - labels.to(levels)) / self.schedule.top).square()
            total = total + (off * real).sum(1) / count
        return total


@dataclass(frozen=True)
class NonSimultaneous(Solver):
    """From noise to words, each word noised again to the level that it is to have at the next time.

    The state is re-made from the answer at each step, `x = alpha(tau') x0 + sigma(tau') z`, with fresh noise; levels may rise.
    The result is the last answer; `words` reads it. Through `tw.sample(denoiser, n, solver=..., steps=S, cond={"source": ...})`.

    Args:
        schedule: of the levels.
        levels: "predicted" by the network; "poisson" drawn as in training; "simultaneous" the time itself.
        noise: the factor of the noise in decoding (published: 1, where training has 6.5).
    """

    schedule: PoissonTokenSchedule = field(default_factory=PoissonTokenSchedule)
    levels: LevelRule = "predicted"
    noise: float = 1.0

    def __post_init__(self):
        choose("levels", self.levels, ("predicted", "poisson", "simultaneous"))
        if not self.noise > 0.0:
            raise InputError(f"noise: {self.noise} was given; expected a positive factor")

    @property
    def evaluations(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, problem: Problem, state: State, i: int) -> State:
        """One evaluation, and new levels; the memory is the last answer and the present levels."""
        answer, level = state.memory
        told = dict(problem.cond)
        estimate = problem.denoiser(state.x, level / self.schedule.top, previous=answer, **told)
        x0 = estimate.x0
        if i == problem.steps - 1:
            return State(x0, (x0, level))
        t = torch.full((len(x0),), float(problem.times[i + 1]), dtype=torch.float64, device=x0.device)
        level = self._next(problem, x0, t, i).to(x0.dtype)
        tau = as_time(level / self.schedule.top)
        process = problem.process
        alpha, sigma = (c.to(x0)[..., None] for c in (process.alpha(tau), process.sigma(tau)))
        share = self.noise / getattr(process, "noise", 1.0)
        return State(alpha * x0 + share * sigma * problem.noise(x0, i), (x0, level))

    def init(self, problem: Problem, x: Float[Tensor, "b length dim"]) -> State:
        """Noise, every word at the top."""
        share = self.noise / getattr(problem.process, "noise", 1.0)
        level = torch.full(x.shape[:2], float(self.schedule.top), dtype=x.dtype, device=x.device)
        return State(share * x, (torch.zeros_like(x), level))

    def integrate(self, problem: Problem, x: Float[Tensor, "b length dim"], observer: Observer | None = None) -> Tensor:
        """The whole run.

        Raises:
            IncompatibleError: the denoiser has no `EmbeddingTransformer`, or each sentence has times of its own.
        """
        if isinstance(problem.times, Tensor):
            raise IncompatibleError("times: a grid for each sample was given; expected one for all")
        _network(problem.denoiser)
        return super().integrate(problem, x, observer)

    def _next(self, problem: Problem, x0: Tensor, t: Tensor, i: int) -> Float[Tensor, "b length"]:
        if self.levels == "simultaneous":
            return (t * self.schedule.top)[:, None].expand(x0.shape[:2])
        if self.levels == "poisson":
            u = random.uniform(x0.shape[:2], problem.seed, index=problem.index, draw=1_000_000 + i, dtype=torch.float64)
            return self.schedule.sample(t.cpu(), u).to(x0.device)
        network = _network(problem.denoiser)
        source = problem.cond.get("source")
        levels = network.next_levels(x0, t.to(x0.dtype), source).clamp(0, self.schedule.top)
        return levels


def words(denoiser: Denoiser, x0: Float[Tensor, "b length dim"]) -> Tensor:
    """The most probable words of embeddings, (b, length)."""
    return _network(denoiser).logits(x0).argmax(-1)


def _network(denoiser: Any) -> EmbeddingTransformer:
    inner = denoiser
    while not isinstance(inner, NetworkDenoiser) and hasattr(inner, "denoiser"):
        inner = inner.denoiser
    network = getattr(inner, "network", None)
    if not isinstance(network, EmbeddingTransformer):
        raise IncompatibleError(
            f"denoiser: {type(denoiser).__name__} was given; expected one with an EmbeddingTransformer"
        )
    return network
