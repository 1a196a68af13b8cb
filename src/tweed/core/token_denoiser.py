"""Denoisers of tokens: logits in, an estimate out."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tweed.core.denoiser import Denoiser
from tweed.core.processes import CategoricalProcess, MaskedProcess
from tweed.core.time import Time
from tweed.errors import IncompatibleError, InputError


class TokenEstimate:
    """What a denoiser says of tokens: the law of each clean token, given all that is seen.

    For the masked process it is read as "SUBS" (Sahoo et al., 2024): the mask has no probability, and a token that is
    seen stays what it is.

    Attributes:
        x: the state, integers of shape (b, length).
        t: its time.
        logits: the network's answer, (b, length, size).
        process: that of the denoiser.
    """

    __slots__ = ("logits", "process", "t", "x")

    def __init__(
        self, x: Int[Tensor, "b length"], t: Time, logits: Float[Tensor, "b length size"], process: CategoricalProcess
    ):
        self.x, self.t, self.logits, self.process = x, t, logits, process

    @property
    def masked(self) -> Bool[Tensor, "b length"]:
        """Which positions hold the mask; none under another process."""
        if isinstance(self.process, MaskedProcess):
            return self.x == self.process.mask
        return torch.zeros_like(self.x, dtype=torch.bool)

    def log_probs(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b length size"]:
        """Log probabilities of each clean token, computed in `dtype`: that of the logits before anything is taken of them."""
        logits = self.logits.to(dtype)
        if not isinstance(self.process, MaskedProcess):
            return logits.log_softmax(-1)
        result = without(logits, self.process.mask).log_softmax(-1)
        # Seen tokens are as they are.
        seen = torch.full_like(result, -math.inf).scatter_(-1, self._within(result)[..., None], 0.0)
        return torch.where(self.masked[..., None], result, seen)

    def probs(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b length size"]:
        """Probabilities of each clean token; see `log_probs`."""
        return self.log_probs(dtype).exp()

    @property
    def x0(self) -> Int[Tensor, "b length"]:
        """The most probable clean token at each position."""
        return self.log_probs().argmax(-1)

    def _within(self, like: Tensor) -> Tensor:
        # The mask may lie beyond the columns that a denoiser answers.
        return self.x.clamp(max=like.shape[-1] - 1)

    def replace(self, logits: Float[Tensor, "b length size"]) -> "TokenEstimate":
        """The same with other logits, as guidance gives it."""
        return TokenEstimate(self.x, self.t, logits, self.process)


def without(logits: Float[Tensor, "*b size"], token: int) -> Float[Tensor, "*b size"]:
    """`logits` with no probability for `token`; as they are where they have no column for it."""
    if token >= logits.shape[-1]:
        return logits
    column = torch.arange(logits.shape[-1], device=logits.device) == token
    return logits.masked_fill(column, -math.inf)


class TokenDenoiser(Denoiser):
    """A network on tokens: `network(x, **cond)` answers the logits of the clean tokens, (b, length, size).

    Args:
        network: a module or a function. With `timed` it is called as `network(x, t, **cond)`, `t` float32 of shape (b,).
        process: a `MaskedProcess` or `UniformProcess`.
        shift: the network answers at position i for i + 1, as models that were made from causal ones do (Dream); the first
            position then reads its own answer.
        timed: whether the network is told the time.
        event: the shape of one sample, (length,), so that `tweed.sample(denoiser, 16)` knows it.

    Attributes:
        tokenizer: what its tokens stand for, where it was trained on text (`tweed.data.TextTokenizer`); kept by `tweed.save`.

    Raises:
        InputError: `process` is no process of tokens, or `event` has more than one dimension.
    """

    process: CategoricalProcess  # type: ignore[assignment]

    def __init__(
        self,
        network: Callable[..., Tensor],
        process: CategoricalProcess,
        *,
        shift: bool = False,
        timed: bool = False,
        event: tuple[int, ...] | None = None,
    ):
        super().__init__()
        if not isinstance(process, CategoricalProcess):
            raise InputError(
                f"process: {process!r} was given; expected a process of tokens, such as tweed.processes.MaskedProcess(0)"
            )
        if event is not None and len(event) != 1:
            raise InputError(f"event: {tuple(event)} was given; expected the length of a sample, (length,)")
        self.network, self.process, self.shift, self.timed = network, process, shift, timed
        self.event = None if event is None else tuple(event)
        self.tokenizer: Any = None

    if TYPE_CHECKING:

        def __call__(self, x: Int[Tensor, "b length"], t: Time = 1.0, **cond: Any) -> TokenEstimate: ...  # type: ignore[override]

    def forward(self, x: Int[Tensor, "b length"], t: Time = 1.0, **cond: Any) -> TokenEstimate:  # type: ignore[override]
        """The estimate at the tokens `x`; the time matters to a timed network alone.

        Raises:
            InputError: `x` are no tokens, or the network's answer has another shape.
        """
        return TokenEstimate(x, t, self.read(x, t=t, **cond), self.process)

    def read(
        self,
        x: Int[Tensor, "b length"],
        span: tuple[int, int] | None = None,
        *,
        evaluate: tuple[int, int] | None = None,
        t: Time = 1.0,
        cache: Any = None,
        **cond: Any,
    ) -> Float[Tensor, "b n size"]:
        """The logits of the positions `span`, all by default, from an evaluation of the positions `evaluate`.

        What lies outside of `evaluate` comes from `cache`, as the network's own `cache(batch, capacity)` makes it: see
        `tweed.nets.KVCache`. With `shift` the evaluation begins one position before the span where it has to.

        Raises:
            InputError: as `forward`; or a part of a sequence is to be evaluated without a cache.
        """
        if not isinstance(x, Tensor) or x.ndim != 2 or x.is_floating_point() or x.dtype is torch.bool:
            got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"x: {got} was given; expected tokens, integers of shape (b, length)")
        length = x.shape[1]
        low, high = (0, length) if span is None else span
        begin, end = (0, length) if evaluate is None else evaluate
        if self.shift:
            begin = min(begin, max(low - 1, 0))
        if not 0 <= begin <= low <= high <= end <= length:
            raise InputError(
                f"span, evaluate: {span}, {evaluate} were given; expected one in the other, within 0 .. {length}"
            )
        options = dict(cond)
        whole = (begin, end) == (0, length)
        if cache is not None:
            options |= {"cache": cache, "first": begin}
        elif not whole:
            raise InputError(
                f"evaluate: {(begin, end)} of {length} positions was given; expected a cache for the others"
            )
        # A network of ours computes the logits that are wanted alone.
        partial = isinstance(self.network, nn.Module) and hasattr(self.network, "cache")
        wanted = (max(low - 1, 0), max(high - 1, min(1, length))) if self.shift else (low, high)
        if partial:
            options["answer"] = wanted
        if self.timed:
            time = torch.as_tensor(t, dtype=torch.float32, device=x.device)
            logits = self.network(x[:, begin:end], time.expand(len(x)) if time.ndim == 0 else time, **options)
        else:
            logits = self.network(x[:, begin:end], **options)
        base = wanted[0] if partial else begin
        shape = (len(x), (wanted[1] - wanted[0]) if partial else end - begin)
        if not isinstance(logits, Tensor) or logits.ndim != 3 or tuple(logits.shape[:2]) != shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"network: its answer is {got}; expected logits of shape {(*shape, 'size')}")
        if not self.shift:
            return logits[:, low - base : high - base]
        shifted = logits[:, max(low - 1, 0) - base : max(high - 1, 0) - base]
        return torch.cat((logits[:, :1], shifted), 1) if low == 0 < high else shifted

    def caching(self, batch: int, capacity: int) -> Any:
        """An empty cache of keys and values for `batch` sequences.

        Raises:
            IncompatibleError: the network has none.
        """
        make = getattr(self.network, "cache", None)
        if make is None or self.timed:
            why = (
                "is told the time, which changes all it has computed"
                if make is not None
                else "keeps no keys and values"
            )
            raise IncompatibleError(f"cache: {type(self.network).__name__} {why}; expected a network with a `cache`")
        return make(batch, capacity)
