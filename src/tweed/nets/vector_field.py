"""A perceptron `f(t, y)`: the right-hand side of a neural differential equation."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.errors import InputError, choose
from tweed.nets.lipschitz import LipSwish
from tweed.nets.registry import register

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "lipswish": LipSwish,
}


@register("vector_field")
class VectorField(nn.Module):
    """`f(t, y)` on flat states; smooth, as the order of a solver needs it, and without normalisation.

    Args:
        dim: numbers in a state. out_dim: numbers in an answer; None for `dim`.
        width, depth: size and number of the hidden layers; depth 0 is an affine map.
        activation: `"tanh"`, `"softplus"`, `"silu"` or `"lipswish"`.
        bounded: a final tanh, which keeps the field (and a CDE's growth) bounded.
        time: whether the field reads t, as one more input.
        context_dim: numbers of a context that `forward` is given besides.

    Raises:
        InputError: an option is out of its range.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        *,
        width: int = 64,
        depth: int = 2,
        activation: Literal["tanh", "softplus", "silu", "lipswish"] = "softplus",
        bounded: bool = False,
        time: bool = True,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        choose("activation", activation, _ACTIVATIONS)
        for name, value, least in (
            ("dim", dim, 1),
            ("width", width, 1),
            ("depth", depth, 0),
            ("context_dim", context_dim, 0),
        ):
            if value < least:
                raise InputError(f"{name}: {value} was given; expected at least {least}")
        self.dim, self.out_dim, self.time, self.context_dim = (
            dim,
            dim if out_dim is None else out_dim,
            time,
            context_dim,
        )
        layers: list[nn.Module] = []
        before = dim + time + context_dim
        for _ in range(depth):
            layers += [nn.Linear(before, width), _ACTIVATIONS[activation]()]
            before = width
        layers.append(nn.Linear(before, self.out_dim))
        if bounded:
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)

    def forward(
        self, t: Float[Tensor, ""], y: Float[Tensor, "b n"], context: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b out"]:
        """The field at time t.

        Raises:
            InputError: y or the context is not of the size that the network was built for.
        """
        if y.ndim != 2 or y.shape[1] != self.dim:
            raise InputError(f"y: shape {tuple(y.shape)} was given; expected (b, {self.dim})")
        if (0 if context is None else context.shape[-1]) != self.context_dim:
            given = None if context is None else tuple(context.shape)
            raise InputError(f"context: {given} was given; expected {self.context_dim} numbers a sample")
        parts = [y] if not self.time else [t.to(y).expand(y.shape[0], 1), y]
        if context is not None:
            parts.append(context)
        return self.layers(torch.cat(parts, 1) if len(parts) > 1 else y)
