"""Classifier-free guidance: Ho & Salimans, "Classifier-Free Diffusion Guidance" (2022).

The guided estimate is `u + scale (c - u)`, with `c` the conditional and `u` the unconditional answer: `scale = 1` is the
plain conditional model, `scale = 0` the unconditional one. (The paper's own weight is `scale - 1`.)
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.estimate import Estimate
from tweed.core.time import left
from tweed.errors import IncompatibleError, InputError


class ClassifierFree(Wrapper):
    """Guides a conditional denoiser away from its own unconditional answer; both are made in one doubled batch.

    Args:
        denoiser: conditional; trained with dropped conditions.
        scale: a number, or one for each sample, shape (b,).
        null: the conditions that stand for "none", by name, one row each; where not given, the denoiser is told by the
            condition `drop`, a mask of the samples whose conditions it is to ignore.
        interval: times within which guidance applies; outside it the conditional model runs alone (Kynkaanniemi et
            al., "Applying Guidance in a Limited Interval", 2024). Times of one number only.

    Raises:
        InputError: the scale's shape does not fit, or the interval is not one within [0, 1].
        IncompatibleError: an interval is used with a time for each sample.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Float[Tensor, " b"] = 1.0,
        null: Mapping[str, Tensor] | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__(denoiser)
        if not 0.0 <= interval[0] < interval[1] <= 1.0:
            raise InputError(f"interval: {interval} was given; expected two rising times in [0, 1]")
        self.scale, self.null, self.interval = scale, null, interval

    def forward(self, x, t, **cond):
        cond = {name: value for name, value in cond.items() if value is not None}
        if set(cond) <= {"y"} or not self._applies(t):
            return self.denoiser(x, t, **cond)
        if isinstance(self.scale, Tensor) and self.scale.shape not in ((), (len(x),)):
            raise InputError(f"scale: shape {tuple(self.scale.shape)} was given; expected () or ({len(x)},)")
        both = self.denoiser(torch.cat((x, x)), self._twice(t, len(x)), **self._conditions(cond, len(x)))
        conditional, unconditional = both.answer.chunk(2)
        # Answers are combined as they are: at one state and time every target is an affine function of every other.
        scale = left(self.scale, conditional) if isinstance(self.scale, Tensor) else self.scale
        answer = unconditional + scale * (conditional - unconditional)
        return Estimate(x.to(both.x.dtype), t, answer, self.process, both.target, cond.get("y"))

    def _applies(self, t: float | Tensor) -> bool:
        if self.interval == (0.0, 1.0):
            return True
        if isinstance(t, Tensor):
            raise IncompatibleError("interval: a guidance interval needs one time for the batch, given as a number")
        return self.interval[0] <= t <= self.interval[1]

    def _twice(self, t: float | Tensor, batch: int) -> float | Tensor:
        if not isinstance(t, Tensor) or t.ndim == 0:
            return t
        return torch.cat((t, t)) if len(t) == batch else t

    def _conditions(self, cond: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        doubled = {}
        for name, value in cond.items():
            other = value
            if self.null is not None and name in self.null:
                other = self.null[name].to(value).expand(value.shape)
            doubled[name] = torch.cat((value, other))
        if self.null is None:
            device = next(iter(cond.values())).device
            dropped = cond.get("drop", torch.zeros(batch, dtype=torch.bool, device=device))
            doubled["drop"] = torch.cat((dropped, torch.ones_like(dropped)))
        return doubled
