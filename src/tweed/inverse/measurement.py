"""A measurement, and what a method makes of it."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import IncompatibleError, InputError
from tweed.inverse.operators.base import LinearOperator, Operator, as_operator, check_adjoint, real_parts


@dataclass(frozen=True, eq=False)
class Measurement:
    """`y = A(x_0) + noise n`, n standard normal.

    Args:
        operator: an `Operator`, or an object with `A` and `A_adjoint` wrapped as `Physics`.
        y: measurements, shape (b, *measured), each of another sample.
        noise: the standard deviation; 0 for an exact measurement.
        check: whether the adjoint of a linear operator is tested (one application each way).

    Raises:
        InputError: `y` has not the operator's shape or is not finite, is complex where the operator is real, or a
            negative noise.
        IncompatibleError: what is given as the adjoint is not one.
    """

    operator: Operator
    y: Float[Tensor, "b *measured"]
    noise: float = 0.0
    check: bool = True

    def __post_init__(self):
        object.__setattr__(self, "operator", as_operator(self.operator))
        if not isinstance(self.y, Tensor) or tuple(self.y.shape[1:]) != self.operator.measured:
            shape = tuple(self.y.shape) if isinstance(self.y, Tensor) else type(self.y).__name__
            raise InputError(
                f"y: {shape} was given; expected (batch, {', '.join(map(str, self.operator.measured))}), what "
                f"{type(self.operator).__name__} gives"
            )
        if not 0.0 <= self.noise < math.inf:
            raise InputError(f"noise: {self.noise} was given; expected a standard deviation, at least 0")
        if not bool(torch.isfinite(real_parts(self.y)).all()):
            raise InputError("y: some values are not finite")
        if self.y.is_complex() != self.operator(torch.zeros(1, *self.operator.event, dtype=torch.float64)).is_complex():
            kind = "real" if self.y.is_complex() else "complex"
            raise InputError(f"y: {self.y.dtype} was given; {type(self.operator).__name__} gives {kind} measurements")
        if self.check and isinstance(self.operator, LinearOperator):
            check_adjoint(self.operator)

    @property
    def linear(self) -> LinearOperator:
        """The operator, where it is linear.

        Raises:
            IncompatibleError: it is not.
        """
        if not isinstance(self.operator, LinearOperator):
            raise IncompatibleError(
                f"operator: {type(self.operator).__name__} is not linear, as the method needs; DPS, REDDiff and FlowChef "
                "take any operator that can be differentiated"
            )
        return self.operator

    @cached_property
    def deviation(self) -> float:
        """The noise, but not less than the rounding of `y`: where singular values are smaller still, nothing is measured."""
        values = real_parts(self.y)
        largest = values.abs().max().item() if values.numel() else 0.0
        return max(self.noise, torch.finfo(values.dtype).eps * largest)

    def residual(self, x0: Float[Tensor, "b *event"]) -> Float[Tensor, "b *measured"]:
        """`y - A(x_0)`."""
        return self.y.to(x0.device) - self.operator(x0)

    def squared(self, x0: Float[Tensor, "b *event"]) -> Float[Tensor, " b"]:
        """`|y - A(x_0)|^2` of each sample."""
        return real_parts(self.residual(x0)).square().sum(1)

    def misfit(self, x0: Float[Tensor, "b *event"]) -> Float[Tensor, " b"]:
        """The root mean square of `y - A(x_0)` over the measurement's elements."""
        return (self.squared(x0) / max(math.prod(self.operator.measured), 1)).sqrt()

    def repeat(self, n: int, dtype: torch.dtype | None = None) -> "Measurement":
        """`n` copies of the batch, one after another, shape (n b, *measured); in the type of states of `dtype`."""
        y = self.y.repeat(n, *(1,) * (self.y.ndim - 1))
        if dtype is not None:
            y = y.to(dtype.to_complex() if y.is_complex() else dtype)
        return Measurement(self.operator, y, self.noise, check=False)


@dataclass(frozen=True, eq=False)
class Solution:
    """What a method made of a measurement.

    Attributes:
        samples: shape (n, b, *event): n of each measurement.
        misfit: the root mean square of `y - A(x_0)` by step, shape (steps, n, b): of the estimate at the step's start, the
            last of the result.
        evaluations: calls of the denoiser.
        log_weights: shape (n, b), normalised over n, where samples are weighted.
        log_evidence: `log p(y)` up to the likelihood's constant as said by the method, shape (b,), where it is estimated.
        effective: the effective sample size by step, shape (steps, b), where samples are weighted.
        ancestors: of which of the first particles each sample descends, shape (n, b), where they are resampled.
    """

    samples: Float[Tensor, "n b *event"]
    misfit: Float[Tensor, "steps n b"]
    evaluations: int
    log_weights: Float[Tensor, "n b"] | None = None
    log_evidence: Float[Tensor, " b"] | None = None
    effective: Float[Tensor, "steps b"] | None = None
    ancestors: Tensor | None = None

    @property
    def x(self) -> Float[Tensor, "b *event"]:
        """The first sample of each measurement; the heaviest one, where they are weighted."""
        if self.log_weights is None:
            return self.samples[0]
        return self.samples[self.log_weights.argmax(0), torch.arange(self.samples.shape[1])]

    @property
    def weights(self) -> Float[Tensor, "n b"]:
        """Of each sample, summing to 1 over n."""
        n, b = self.samples.shape[:2]
        if self.log_weights is None:
            return torch.full((n, b), 1.0 / n, dtype=torch.float64, device=self.samples.device)
        return self.log_weights.softmax(0)

    @property
    def mean(self) -> Float[Tensor, "b *event"]:
        """The (weighted) mean, float64."""
        return torch.einsum("nb,nb...->b...", self.weights, self.samples.double())

    @property
    def variance(self) -> Float[Tensor, "b *event"]:
        """The (weighted) variance of each element, float64; of the n samples as they are, not of what they are drawn from."""
        return torch.einsum("nb,nb...->b...", self.weights, (self.samples.double() - self.mean).square())
