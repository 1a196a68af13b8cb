"""The right-hand side of a differential equation, driven by time alone or by time and noise.

Every method sees `dy = f(t, y) dt + g(t, y) dW` as one increment, `f h + g dW`, so a Runge-Kutta method is written once
for ordinary and for Stratonovich equations.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.errors import InputError

Function = Callable[[Tensor, Tensor], Tensor]
NoiseType = Literal["diagonal", "scalar", "additive", "general"]
Calculus = Literal["ito", "stratonovich"]


class Noise(NamedTuple):
    """What the Brownian motion did in one step: increment `w`, and space-time Levy area `area` where it is asked for."""

    w: Tensor
    area: Tensor | None = None

    def scaled(self, factor: float) -> "Noise":
        return Noise(self.w * factor)


@dataclass(frozen=True)
class Field:
    """`drift(t, y)` of shape (b, *n) and, for a stochastic equation, `diffusion(t, y)`.

    The diffusion has the shape of y for diagonal and scalar noise, (b, n, m) for general noise, either for additive noise.
    """

    drift: Function
    diffusion: Function | None = None
    noise: NoiseType = "diagonal"

    def __call__(self, t: float, y: Float[Tensor, "b *n"]) -> tuple[Tensor, Tensor | None]:
        """Drift and diffusion at time t."""
        return self.slope(t, y), None if self.diffusion is None else self.spread(t, y)

    def slope(self, t: float, y: Float[Tensor, "b *n"]) -> Float[Tensor, "b *n"]:
        """The drift alone.

        Raises:
            InputError: it has not the shape of y.
        """
        f = self.drift(y.new_full((), t), y)
        if not isinstance(f, Tensor) or f.shape != y.shape:
            name, given = "f" if self.diffusion is None else "drift", getattr(f, "shape", type(f).__name__)
            raise InputError(f"{name}: {given} was answered; expected the shape of y, {tuple(y.shape)}")
        return f

    def spread(self, t: float, y: Float[Tensor, "b *n"]) -> Tensor:
        """The diffusion alone, of a stochastic equation."""
        assert self.diffusion is not None
        return self.diffusion(y.new_full((), t), y)

    def product(self, g: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """`g dW` in the shape of y."""
        matrix = self.noise == "general" or (self.noise == "additive" and g.ndim == y.ndim + 1)
        return (g @ w[..., None])[..., 0] if matrix else g * w

    def combine(self, f: Tensor, g: Tensor | None, h: float, noise: Noise | None) -> Tensor:
        """`f h + g dW`."""
        return f * h if g is None or noise is None else f * h + self.product(g, noise.w, f)

    def flow(self, t: float, y: Tensor, h: float, noise: Noise | None) -> Tensor:
        """The increment at (t, y): one evaluation of drift and diffusion."""
        return self.combine(*self(t, y), h, noise)


def parameters(params: Iterable[Tensor] | None, *functions: object) -> tuple[Tensor, ...]:
    """The tensors that gradients go to: `params`, or those of the functions that are modules; each once."""
    if params is None:
        params = [p for f in functions if isinstance(f, nn.Module) for p in f.parameters()]
    found: dict[int, Tensor] = {}
    for p in params:
        if not isinstance(p, Tensor):
            raise InputError(f"params: a {type(p).__name__} was given; expected tensors")
        if p.requires_grad:
            found[id(p)] = p
    return tuple(found.values())


def check_parameters(field: Field, t: float, y: Tensor, params: Sequence[Tensor]) -> None:
    """Raise an `InputError` where the field depends on a tensor with a gradient that is not among `params`.

    An adjoint that rebuilds its steps would leave that gradient out in silence. One evaluation, whose graph is followed
    to its leaves, but not behind a parameter that is itself computed.
    """
    if not torch.is_grad_enabled():
        return
    with torch.enable_grad():
        outputs = [out for out in field(t, y.detach()) if out is not None]
    leaves = {id(p) for p in params}
    ends = {p.grad_fn for p in params if p.grad_fn is not None}
    pending = [out.grad_fn for out in outputs if out.grad_fn is not None]
    pending += [
        None for out in outputs if out.grad_fn is None and out.requires_grad and id(out) not in leaves
    ]  # a bare leaf
    seen = set()
    while pending:
        node = pending.pop()
        if node is not None and (node in ends or node in seen):
            continue
        leaf = getattr(node, "variable", None)
        if node is None or (leaf is not None and id(leaf) not in leaves):
            shape = "" if leaf is None else f" of shape {tuple(leaf.shape)}"
            raise InputError(
                f"params: the equation reads a tensor{shape} that requires a gradient and is not among them; "
                "expected all such tensors, parameters and computed ones (or adjoint='direct')"
            )
        seen.add(node)
        pending += [following for following, _ in node.next_functions if following is not None]
