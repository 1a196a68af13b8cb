"""A residual multilayer perceptron on flat data, for toy densities, policies' states and low-dimensional science."""

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tweed.errors import InputError, choose
from tweed.nets.embeddings import Conditioning, TimeEmbedding, TimeFeatures, batch_times, float_dtype, with_endpoint
from tweed.nets.registry import register, zero

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


class Block(nn.Module):
    """`h + W_2 act(W_1 norm(h) + W_e e)`: one residual step at the embedding `e` of time and conditions."""

    def __init__(self, width: int, activation: str, norm: bool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.expand = nn.Linear(width, width)
        self.embedding = nn.Linear(width, width)
        self.activation = _ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.project = nn.Linear(width, width)

    def forward(self, h: Float[Tensor, "b w"], embedding: Float[Tensor, "b w"]) -> Float[Tensor, "b w"]:
        """The next state of the residual stream."""
        inner = self.expand(self.norm(h)) + self.embedding(embedding)
        return h + self.project(self.dropout(self.activation(inner)))


@register("mlp")
class MLP(nn.Module):
    """Residual MLP with Fourier features of time.

    The input may have any event shape of `dim` numbers: it is flattened, and the output has the shape of the input
    (or (b, out_dim) where `out_dim` differs from `dim`).

    Args:
        dim: numbers in one sample.
        out_dim: numbers in one output; None for `dim`.
        width: size of the hidden layers.
        depth: number of residual blocks.
        activation: `"silu"`, `"gelu"`, `"relu"`, `"tanh"` or `"softplus"`.
        norm: layer normalisation in the blocks and before the last layer.
        dropout: probability within the blocks.
        num_classes: number of labels, 0 for no label condition.
        vector_dim: size of the vector condition, 0 for none.
        endpoint_channels: size of the endpoint `y`, concatenated to the flattened input; 0 for none.
        time_dim: number of Fourier features of time, even.
        time_features: `"sinusoidal"` or `"gaussian"`.
        time_scale: see `TimeEmbedding`.
        zero_init: start with a zero output.

    Raises:
        InputError: an option is out of its range.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        *,
        width: int = 256,
        depth: int = 4,
        activation: Literal["silu", "gelu", "relu", "tanh", "softplus"] = "silu",
        norm: bool = True,
        dropout: float = 0.0,
        num_classes: int = 0,
        vector_dim: int = 0,
        endpoint_channels: int = 0,
        time_dim: int = 64,
        time_features: TimeFeatures = "sinusoidal",
        time_scale: float | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        choose("activation", activation, _ACTIVATIONS)
        for name, value, least in (("dim", dim, 1), ("width", width, 1), ("depth", depth, 0)):
            if value < least:
                raise InputError(f"{name}: {value} was given; expected at least {least}")
        self.dim, self.out_dim = dim, dim if out_dim is None else out_dim
        self.endpoint_channels = endpoint_channels
        self.time = TimeEmbedding(time_dim, width, time_features, time_scale)
        self.condition = Conditioning(width, num_classes, vector_dim)
        self.activation = nn.SiLU()
        self.input = nn.Linear(dim + endpoint_channels, width)
        self.blocks = nn.ModuleList(Block(width, activation, norm, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.output = nn.Linear(width, self.out_dim)
        if zero_init:
            zero(self.output)

    def forward(
        self,
        x: Float[Tensor, "b *event"],
        t: Float[Tensor, " b"],
        label: Int[Tensor, " b"] | None = None,
        vector: Float[Tensor, "b v"] | None = None,
        tokens: Float[Tensor, "b n d"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
        y: Float[Tensor, "b *event"] | None = None,
    ) -> Float[Tensor, "b *out"]:
        """The network's answer at `x` and `t`, in the dtype of `x`.

        Raises:
            InputError: a shape does not fit, or a condition was given that the network was not built for.
        """
        shape, batch = x.shape, x.shape[0]
        if x.ndim < 2 or x[:1].numel() != self.dim * min(batch, 1):
            raise InputError(
                f"x: shape {tuple(shape)} was given; expected (b, *event) with {self.dim} numbers a sample"
            )
        embedding, _ = self.condition(x, label, vector, tokens, drop)
        time = self.time(batch_times(t, batch))
        embedding = self.activation(time if embedding is None else time + embedding)
        h = x.reshape(batch, self.dim).to(float_dtype(self))
        h = self.input(with_endpoint(h, None if y is None else y.flatten(1), self.endpoint_channels, 1))
        for block in self.blocks:
            h = block(h, embedding)
        out = self.output(self.norm(h)).to(x.dtype)
        return out.reshape(shape) if self.out_dim == self.dim else out
