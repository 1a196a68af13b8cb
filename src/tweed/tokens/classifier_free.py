"""Classifier-free guidance of tokens: away from what the model would write without the prompt."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.denoiser import Wrapper
from tweed.core.token_denoiser import TokenDenoiser, TokenEstimate
from tweed.errors import IncompatibleError, InputError


class TokenClassifierFree(Wrapper):
    """Logits `u + scale (c - u)`: c those of the prompt, u those with the prompt masked (Nie et al., "Scaling up Masked Diffusion
    Models on Text", 2024, Section 3.2, whose w is `scale - 1`). Both are evaluated in one batch of twice the rows.

    Args:
        denoiser: a `TokenDenoiser` of the masked process.
        scale: 1 is the plain model, 0 the one without the prompt.
        prompt: the length of the prompt, from the first position on.

    Raises:
        InputError: `prompt` is not positive.
        IncompatibleError: the denoiser is none of masked tokens.
    """

    def __init__(self, denoiser: TokenDenoiser, scale: float, prompt: int):
        super().__init__(denoiser)
        if not isinstance(denoiser, TokenDenoiser) or not hasattr(denoiser.process, "mask"):
            raise IncompatibleError(
                f"denoiser: {type(denoiser).__name__} was given; expected a TokenDenoiser with a mask"
            )
        if prompt < 1:
            raise InputError(f"prompt: {prompt} was given; expected the length of the prompt, at least 1")
        self.scale, self.prompt = float(scale), prompt
        self.shift = denoiser.shift

    def forward(self, x: Int[Tensor, "b length"], t: Any = 1.0, **cond: Any) -> TokenEstimate:  # type: ignore[override]
        """The guided estimate."""
        return TokenEstimate(x, t, self.read(x, t=t, **cond), self.process)  # type: ignore[arg-type]

    def read(
        self,
        x: Int[Tensor, "b length"],
        span: tuple[int, int] | None = None,
        *,
        evaluate: tuple[int, int] | None = None,
        t: Any = 1.0,
        cache: Any = None,
        **cond: Any,
    ) -> Float[Tensor, "b n size"]:
        """The guided logits of a part; see `TokenDenoiser.read`. A cache is one of twice the rows, as `caching` makes it."""
        inner: Any = self.denoiser
        alone = x.clone()
        alone[:, : self.prompt] = inner.process.mask
        both = {name: torch.cat((value, value)) for name, value in cond.items()}
        time = torch.cat((t, t)) if isinstance(t, Tensor) and t.ndim else t
        given, free = inner.read(torch.cat((x, alone)), span, evaluate=evaluate, t=time, cache=cache, **both).chunk(2)
        if self.scale == 0.0:
            return free
        # What both exclude, -inf, stays excluded.
        return torch.where(given == free, given, free + self.scale * (given - free))

    def caching(self, batch: int, capacity: int) -> Any:
        """An empty cache of keys and values, for twice as many sequences."""
        inner: Any = self.denoiser
        return inner.caching(2 * batch, capacity)
