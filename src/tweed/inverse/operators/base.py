"""What a measurement operator is: `y = A(x)`, sample by sample; a linear one brings its adjoint.

A sample is an event, shape `event`; a measurement has shape `measured`. Everything takes a batch before these. For a real
event and complex measurements the adjoint is that of the real inner product `Re <A x, y>`, and is real.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.errors import IncompatibleError, InputError
from tweed.inverse.linear_algebra import conjugate_gradient

_MATRIX_ENTRIES = 2**28


class Operator(ABC):
    """A measurement operator, possibly nonlinear; differentiable where gradient methods are to use it.

    Attributes:
        event: the shape of a sample.
        measured: the shape of its measurement.
    """

    event: tuple[int, ...]
    measured: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Float[Tensor, "b *event"]) -> Float[Tensor, "b *measured"]:
        """`A(x)`, shape (b, *measured)."""

    def __call__(self, x: Float[Tensor, "b *event"]) -> Float[Tensor, "b *measured"]:
        if tuple(x.shape[1:]) != self.event:
            raise InputError(
                f"x: shape {tuple(x.shape)} was given; expected (batch, {', '.join(map(str, self.event))})"
            )
        return self.forward(x)


@dataclass(frozen=True)
class Spectrum:
    """A singular value decomposition `A = U diag(values) V^*` by its three maps; coefficients have shape (b, d).

    Attributes:
        values: singular values, float64, shape (d,), none below 0; 0 for directions that are not measured.
        coefficients: `V^* x`, (b, *event) -> (b, d); unitary, complex where a Fourier basis is.
        event: its inverse, `V c`, (b, d) -> (b, *event).
        observed: `U^* y`, (b, *measured) -> (b, d); whatever it has where the value is 0 must not be used.
    """

    values: Tensor
    coefficients: Callable[[Tensor], Tensor]
    event: Callable[[Tensor], Tensor]
    observed: Callable[[Tensor], Tensor]

    def filtered(self, y: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
        """`V gain(s) U^* y`, where `gain(s)` is not used at s = 0."""
        s = self.values.to(y.device)
        scale = torch.where(s > 0.0, gain(s), 0.0).to(y.real.dtype)
        return self.event(torch.where(s > 0.0, scale * self.observed(y), 0.0))


class LinearOperator(Operator):
    """An operator with an adjoint; `spectrum` where a singular value decomposition is cheap."""

    @abstractmethod
    def adjoint(self, y: Float[Tensor, "b *measured"]) -> Float[Tensor, "b *event"]:
        """`A^* y`, shape (b, *event)."""

    @property
    def spectrum(self) -> Spectrum | None:
        """The singular value decomposition, where it has a closed form or is small."""
        return None

    def normal(self, x: Float[Tensor, "b *event"]) -> Float[Tensor, "b *event"]:
        """`A^* A x`."""
        return self.adjoint(self(x))

    def pseudo_inverse(
        self, y: Float[Tensor, "b *measured"], *, floor: float = 1e-6, iterations: int = 50
    ) -> Float[Tensor, "b *event"]:
        """The least-squares solution of least norm: by the spectrum above `floor` times its largest value, or by conjugate
        gradients on the normal equations from zero, `iterations` of them."""
        spectrum = self.spectrum
        if spectrum is None:
            return conjugate_gradient(self.normal, self.adjoint(y), iterations=iterations)
        bound = floor * float(spectrum.values.max()) if len(spectrum.values) else 0.0
        return spectrum.filtered(y, lambda s: torch.where(s > bound, 1.0 / s, 0.0))

    def norm(self, iterations: int = 60, seed: int = 0) -> float:
        """The largest singular value, by the spectrum or by power iteration."""
        if self.spectrum is not None:
            return float(self.spectrum.values.max())
        x = random.normal((1, *self.event), seed, dtype=torch.float64)
        value = 0.0
        for _ in range(iterations):
            x = self.normal(x / x.norm())
            value = float(x.norm())
            if value == 0.0:
                return 0.0
        return math.sqrt(value)

    def matrix(self) -> Float[Tensor, "m d"]:
        """`A` as a dense matrix on flattened events and (real and imaginary parts of) measurements, float64.

        Raises:
            InputError: it would have more than 2^28 entries.
        """
        d = math.prod(self.event)
        if d * math.prod(self.measured) > _MATRIX_ENTRIES:
            raise InputError(f"operator: a dense matrix of {math.prod(self.measured)} x {d} was asked for; too large")
        columns = self(torch.eye(d, dtype=torch.float64).reshape(d, *self.event))
        return real_parts(columns).T.contiguous()


def real_parts(y: Tensor) -> Float[Tensor, "b m"]:
    """A batch of measurements, flat; complex ones as real and imaginary parts side by side."""
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


def inner(a: Tensor, b: Tensor) -> Float[Tensor, " b"]:
    """The real inner product of each sample, float64."""
    return (real_parts(a).double() * real_parts(b).double()).sum(1)


def adjoint_error(operator: LinearOperator, seed: int = 0, dtype: torch.dtype = torch.float64) -> float:
    """`|<A x, y> - <x, A^* y>|` for random x and y, relative to `|A x| |y|`: rounding alone, for a true adjoint."""
    x = random.normal((1, *operator.event), seed, dtype=dtype)
    y = operator(x)
    other = random.normal((1, *operator.measured, 2), seed, draw=1, dtype=dtype)
    probe = torch.view_as_complex(other) if y.is_complex() else other[..., 0]
    # A measurement that is zero everywhere, such as one from which everything is masked, is its own adjoint's proof.
    scale = (real_parts(y).double().norm() * real_parts(probe).double().norm()).clamp_min(1e-30)
    back = operator.adjoint(probe.to(y.dtype))
    if tuple(back.shape) != tuple(x.shape):
        raise IncompatibleError(
            f"operator: the adjoint of {type(operator).__name__} gives shape {tuple(back.shape[1:])}; expected "
            f"{operator.event}"
        )
    return float((inner(y, probe) - inner(x, back)).abs().max() / scale)


def check_adjoint(operator: LinearOperator, tolerance: float = 1e-3) -> None:
    """Raise where `adjoint` is not the adjoint of `forward` to `tolerance` (float32 networks of operators included).

    Raises:
        IncompatibleError: naming the operator, and how far off it is.
    """
    error = adjoint_error(operator, dtype=getattr(operator, "dtype", torch.float64))
    if not error <= tolerance:
        raise IncompatibleError(
            f"operator: the adjoint of {type(operator).__name__} is not that of its forward map: <A x, y> and <x, A* y> "
            f"differ by {error:.2g} of |A x| |y|"
        )


class Physics(LinearOperator):
    """Any object with `A(x)` and `A_adjoint(y)` (the physics of DeepInverse, for one) as an operator, as it is.

    Args:
        physics: the object.
        event: the shape of a sample.
        dtype: the type that it computes in; float32 as most do.
    """

    def __init__(self, physics: Any, event: tuple[int, ...], dtype: torch.dtype = torch.float32):
        self.physics, self.event, self.dtype = physics, tuple(event), dtype
        self.measured = tuple(physics.A(torch.zeros(1, *self.event, dtype=dtype)).shape[1:])

    def forward(self, x):
        return self.physics.A(x)

    def adjoint(self, y):
        return self.physics.A_adjoint(y)


def as_operator(operator: Any, event: tuple[int, ...] | None = None) -> Operator:
    """An `Operator` as it is; anything with `A` and `A_adjoint` wrapped as `Physics`.

    Raises:
        InputError: neither, or no shape of a sample to wrap it for.
    """
    if isinstance(operator, Operator):
        return operator
    if callable(getattr(operator, "A", None)) and callable(getattr(operator, "A_adjoint", None)):
        if event is None:
            raise InputError("operator: it does not say the shape of a sample; pass Physics(operator, event)")
        return Physics(operator, event)
    raise InputError(f"operator: {type(operator).__name__} was given; expected a tweed Operator, or A and A_adjoint")
