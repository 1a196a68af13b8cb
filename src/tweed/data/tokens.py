"""Tokens as data, and exact worlds of them: joints in a table and Markov chains, whose posteriors are known."""

import math
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tweed.core import random
from tweed.core.processes import MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data.dataset import check_indices, one
from tweed.errors import InputError

F64 = torch.float64


class Tokens:
    """A data set of tokens held in memory: `Tokens(x, fixed=..., ...)`.

    Args:
        x: (n, length), integers.
        **conditions: tensors with n rows. `fixed` (bool, like `x`) says which tokens are never masked nor scored (prompts,
            padding); `segments` (integers, like `x`) which document each is of, where several are packed in a row.

    Raises:
        InputError: `x` are no integers of shape (n, length), or a condition has another number of rows.
    """

    num_classes: int | None = None

    def __init__(self, x: Int[Tensor, "n length"], **conditions: Shaped[Tensor, "n ..."]):
        if x.ndim != 2 or x.is_floating_point() or x.is_complex() or x.dtype is torch.bool:
            raise InputError(f"x: {x.dtype} {tuple(x.shape)} was given; expected tokens, integers of shape (n, length)")
        for name, value in conditions.items():
            if value.ndim == 0 or len(value) != len(x):
                raise InputError(f"{name}: shape {tuple(value.shape)} was given; expected as many rows as x, {len(x)}")
        self.x = x.to(torch.int64)
        self._conditions = dict(conditions)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(self._conditions)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        indices = check_indices(indices, len(self)).to(self.x.device)
        rows = {name: value[indices.to(value.device)] for name, value in self._conditions.items()}
        return {"x": self.x[indices], **rows}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)


@dataclass(frozen=True, eq=False)
class TabularJoint:
    """All probabilities of short sequences in one table; the mask of its denoiser is the token `size`.

    Args:
        table: (size,) * length, not negative, not all zero; normalised on the way in.

    Raises:
        InputError: the table is not that.
    """

    table: Float[Tensor, "*sizes"]

    def __post_init__(self):
        table = self.table
        if table.ndim < 1 or len(set(table.shape)) != 1 or not bool((table >= 0).all()) or not float(table.sum()) > 0:
            raise InputError(f"table: shape {tuple(table.shape)} was given; expected (size, ..., size), probabilities")
        object.__setattr__(self, "table", table.to(F64) / table.to(F64).sum())

    @classmethod
    def random(cls, size: int, length: int, *, spread: float = 2.5, seed: int = 0) -> "TabularJoint":
        """A softmax of normals of standard deviation `spread`."""
        logits = spread * random.normal((1, size**length), seed, dtype=F64)[0]
        return cls(logits.softmax(0).reshape((size,) * length))

    @property
    def size(self) -> int:
        """The number of tokens."""
        return self.table.shape[0]

    @property
    def length(self) -> int:
        """The number of positions."""
        return self.table.ndim

    @cached_property
    def states(self) -> Int[Tensor, "states length"]:
        """Every sequence, in the order of the table's entries."""
        return torch.cartesian_prod(*[torch.arange(self.size)] * self.length).reshape(-1, self.length)

    def index(self, x: Int[Tensor, "n length"]) -> Int[Tensor, " n"]:
        """Where each sequence is in the table."""
        powers = self.size ** torch.arange(self.length - 1, -1, -1)
        return (x * powers).sum(-1)

    def histogram(self, x: Int[Tensor, "n length"]) -> Float[Tensor, "*sizes"]:
        """The shares of sequences `x`, a table like its own."""
        counts = torch.bincount(self.index(x), minlength=self.table.numel())
        return (counts.to(F64) / max(len(x), 1)).reshape(self.table.shape)

    def sample(self, n: int, seed: int = 0) -> Int[Tensor, "n length"]:
        """Independent sequences."""
        u = random.uniform((n, 1), seed, dtype=F64)[:, 0]
        at = torch.searchsorted(self.table.flatten().cumsum(0), u).clamp_max(self.table.numel() - 1)
        return self.states[at]

    def marginals(self, x: Int[Tensor, "b length"]) -> Float[Tensor, "b length size"]:
        """The law of each token given those of `x` that are seen (below `size`), float64."""
        seen = x < self.size
        fits = ((self.states[None] == x[:, None]) | ~seen[:, None]).all(-1)
        return self._marginals(fits * self.table.flatten())

    def _marginals(self, weights: Float[Tensor, "b states"]) -> Float[Tensor, "b length size"]:
        each = [
            torch.zeros(len(weights), self.size, dtype=F64).index_add_(1, self.states[:, i], weights)
            for i in range(self.length)
        ]
        result = torch.stack(each, 1)
        return result / result.sum(-1, keepdim=True)

    def denoiser(self, process: MaskedProcess | UniformProcess | None = None) -> TokenDenoiser:
        """The exact denoiser of the masked process, or of a uniform one, which is told the time."""
        process = MaskedProcess(self.size) if process is None else process
        if isinstance(process, UniformProcess):
            return TokenDenoiser(partial(self._uniform, process), process, timed=True, event=(self.length,))
        return TokenDenoiser(lambda x: self.marginals(x).log(), process, event=(self.length,))

    def _uniform(
        self, process: UniformProcess, x: Int[Tensor, "b length"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b length size"]:
        # p(x_0 | x_t) is the table, weighted with each token's chance to have become what it is.
        alpha = process.alpha(t)[:, None, None]
        chances = alpha * (self.states[None] == x[:, None]) + (1.0 - alpha) / self.size
        return self._marginals(chances.prod(-1) * self.table.flatten()).log()


@dataclass(frozen=True, eq=False)
class MarkovChain:
    """A homogeneous chain; posteriors by the forward-backward recursion. The mask of its denoiser is the token `size`.

    Args:
        initial: (size,), the law of the first token.
        transition: (size, size), rows the law of the next token.

    Raises:
        InputError: shapes do not fit, or rows do not sum to 1.
    """

    initial: Float[Tensor, " size"]
    transition: Float[Tensor, "size size"]

    def __post_init__(self):
        initial, transition = self.initial.to(F64), self.transition.to(F64)
        if initial.ndim != 1 or transition.shape != (len(initial), len(initial)):
            raise InputError(
                f"initial, transition: {tuple(initial.shape)}, {tuple(transition.shape)} were given; expected (size,), "
                "(size, size)"
            )
        sums = torch.cat((initial.sum()[None], transition.sum(1)))
        if bool((initial < 0).any() | (transition < 0).any()) or not torch.allclose(sums, torch.ones_like(sums)):
            raise InputError("initial, transition: expected probabilities, each row with the sum 1")
        object.__setattr__(self, "initial", initial)
        object.__setattr__(self, "transition", transition)

    @classmethod
    def random(cls, size: int, *, spread: float = 3.0, seed: int = 0) -> "MarkovChain":
        """Rows are softmaxes of normals of standard deviation `spread`; the first token is uniform."""
        logits = spread * random.normal((size, size), seed, dtype=F64)
        return cls(torch.full((size,), 1.0 / size, dtype=F64), logits.softmax(1))

    @classmethod
    def stepping(cls, size: int = 6, steps: tuple[int, ...] = (1, 2), rest: float = 0.03) -> "MarkovChain":
        """From i to i + one of `steps` (modulo `size`), equally likely, or with probability `rest` to any other token."""
        others = size - len(steps)
        transition = torch.full((size, size), rest / max(others, 1), dtype=F64)
        for step in steps:
            rows = torch.arange(size)
            transition[rows, (rows + step) % size] = (1.0 - (rest if others else 0.0)) / len(steps)
        return cls(torch.full((size,), 1.0 / size, dtype=F64), transition)

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.initial)

    def sample(self, n: int, length: int, seed: int = 0) -> Int[Tensor, "n length"]:
        """Independent sequences."""
        u = random.uniform((n, length), seed, dtype=F64)
        x = torch.zeros(n, length, dtype=torch.int64)
        for i in range(length):
            law = self.initial.expand(n, -1) if i == 0 else self.transition[x[:, i - 1]]
            x[:, i] = torch.searchsorted(law.cumsum(1), u[:, i : i + 1].contiguous())[:, 0].clamp_max(self.size - 1)
        return x

    def log_prob(self, x: Int[Tensor, "n length"]) -> Float[Tensor, " n"]:
        """The log probability of whole sequences, nats, float64."""
        return self.initial.log()[x[:, 0]] + self.transition.log()[x[:, :-1], x[:, 1:]].sum(1)

    def marginals(self, x: Int[Tensor, "b length"]) -> Float[Tensor, "b length size"]:
        """The law of each token given those of `x` that are seen (below `size`), float64.

        Rows whose seen tokens are impossible together come out as NaN.
        """
        length = x.shape[1]
        x = x.cpu()
        fits = torch.ones(*x.shape, self.size, dtype=F64)
        seen = x < self.size
        fits[seen] = torch.nn.functional.one_hot(x[seen], self.size).to(F64)
        forward = [self.initial * fits[:, 0]] if length else []
        for i in range(1, length):
            step = (forward[-1] @ self.transition) * fits[:, i]
            forward.append(step / step.sum(1, keepdim=True))
        backward = torch.ones(len(x), self.size, dtype=F64)
        result = torch.zeros(len(x), length, self.size, dtype=F64)
        for i in range(length - 1, -1, -1):
            both = forward[i] * backward
            result[:, i] = both / both.sum(1, keepdim=True)
            backward = (fits[:, i] * backward) @ self.transition.T
            backward = backward / backward.sum(1, keepdim=True)
        return result

    def denoiser(self, length: int | None = None) -> TokenDenoiser:
        """The exact denoiser of the masked process, for any length."""
        event = None if length is None else (length,)
        return TokenDenoiser(lambda x: self.marginals(x).log().to(x.device), MaskedProcess(self.size), event=event)

    def next_log_probs(self, x: Int[Tensor, "b length"]) -> Float[Tensor, "b length size"]:
        """The law of the token after each of `x`, as a causal network answers it; the mask is followed by the initial law."""
        rows = torch.cat((self.transition, self.initial[None])).log()
        return rows[x.clamp_max(self.size)]


def entropy_rate(chain: MarkovChain) -> float:
    """The entropy of a token given the one before it, in the stationary law, nats."""
    values, vectors = torch.linalg.eig(chain.transition.T)
    law = vectors[:, (values - 1.0).abs().argmin()].real
    law = law / law.sum()
    rows = -torch.special.xlogy(chain.transition, chain.transition).sum(1)
    return math.fsum((law * rows).tolist())
