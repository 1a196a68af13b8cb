"""A network for data on an unknown linear subspace: encode, denoise in few dimensions, decode.

Where `x_0 = A z` with orthonormal columns A (D x d), noise off the subspace says nothing of z, so that
`E[x_0 | x_t] = A E[z | A^T x_t]`, and the score splits into

    grad log p_t(x) = A grad log p_t^z(A^T x) - (I - A A^T) x / sigma^2,

p_t^z the density of the noised latent (Chen et al., "Score Approximation, Estimation and Distribution Recovery of Diffusion
Models on Low-Dimensional Data", ICML 2023, Lemma 1; in the survey arXiv 2404.07771). They match it by
`s(x, t) = (V f(V^T x, t) - x) / sigma^2`, V with orthonormal columns. By Tweedie's formula `alpha x_0 = x + sigma^2 s`, this is

    x_0 = V g(V^T x, t),   f = alpha g:

the answer to the target `Data`, with no coefficient of a process in it. So the same network serves any Gaussian process, the
factor 1 / sigma^2 is applied by the conversion between targets in float64, and the part of the score off span(V) is exact from
the first step on. V is found up to a rotation of the latent only: compare projectors, `tweed.analysis.subspace_distance`.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tweed.errors import InputError
from tweed.nets.embeddings import TimeFeatures
from tweed.nets.mlp import MLP
from tweed.nets.registry import fill, register


class Frame(nn.Module):
    """A learned matrix with orthonormal columns: the factor Q of `weight = Q R` with a positive diagonal of R.

    With that sign Q depends smoothly on the weight wherever its columns are independent (LAPACK's own sign jumps).
    """

    def __init__(self, dim: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, columns))

    def reset(self, draws: torch.Generator) -> None:
        """A subspace drawn evenly."""
        d = len(self.weight)
        fill(self.weight, torch.randn(self.weight.shape, generator=draws, device="cpu") / math.sqrt(d))

    def forward(self) -> Float[Tensor, "dim columns"]:
        """The columns, in float32 or better."""
        q, r = torch.linalg.qr(self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)))
        return q * r.diagonal().sign()


@register("subspace")
class SubspaceNet(nn.Module):
    """`V g(V^T x, t, conditions)`: g a residual MLP on R^latent_dim, V (dim x latent_dim) learned with orthonormal columns.

    For the target `Data`; data should have mean zero, or a dimension more. The input may have any event shape of `dim`
    numbers.

    Args:
        dim: numbers in one sample, D.
        latent_dim: dimension of the subspace, d.
        width, depth, activation, norm, num_classes, vector_dim, time_dim, time_features, time_scale, zero_init: of g, as for
            `MLP`.

    Raises:
        InputError: an option is out of its range, or `latent_dim` is not in 1 .. dim.
    """

    def __init__(
        self,
        dim: int,
        latent_dim: int,
        *,
        width: int = 128,
        depth: int = 2,
        activation: Literal["silu", "gelu", "relu", "tanh", "softplus"] = "silu",
        norm: bool = True,
        num_classes: int = 0,
        vector_dim: int = 0,
        time_dim: int = 64,
        time_features: TimeFeatures = "sinusoidal",
        time_scale: float | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= latent_dim <= dim:
            raise InputError(f"latent_dim: {latent_dim} was given; expected from 1 to dim = {dim}")
        self.dim = dim
        self.frame = Frame(dim, latent_dim)
        self.latent = MLP(
            latent_dim, width=width, depth=depth, activation=activation, norm=norm, num_classes=num_classes,
            vector_dim=vector_dim, time_dim=time_dim, time_features=time_features, time_scale=time_scale,
            zero_init=zero_init,
        )  # fmt: skip

    @property
    def basis(self) -> Float[Tensor, "dim latent"]:
        """V, without a graph."""
        with torch.no_grad():
            return self.frame()

    def forward(
        self,
        x: Float[Tensor, "b *event"],
        t: Float[Tensor, " b"],
        label: Int[Tensor, " b"] | None = None,
        vector: Float[Tensor, "b v"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b *event"]:
        """The estimate of the data at `x` and `t`, in span(V), in the dtype of `x`.

        Raises:
            InputError: a shape does not fit, or a condition was given that the network was not built for.
        """
        batch = x.shape[0]
        if x.ndim < 2 or x[:1].numel() != self.dim * min(batch, 1):
            raise InputError(
                f"x: shape {tuple(x.shape)} was given; expected (b, *event) with {self.dim} numbers a sample"
            )
        basis = self.frame()
        z = x.reshape(batch, self.dim).to(basis.dtype) @ basis
        made = self.latent(z, t, label=label, vector=vector, drop=drop)
        return (made.to(basis.dtype) @ basis.T).reshape(x.shape).to(x.dtype)
