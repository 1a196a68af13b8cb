"""One transformer that represents and generates: an encoder of visible patches, a decoder of all, two heads.

"Unified Auto-Encoding with Masked Diffusion" (2024, arXiv 2406.17688), after He et al., "Masked Autoencoders Are Scalable
Vision Learners" (2022) and Peebles & Xie, "Scalable Diffusion Models with Transformers" (2023).
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tweed.errors import InputError, choose
from tweed.nets.dit import Block
from tweed.nets.embeddings import (
    Conditioning,
    TimeEmbedding,
    TimeFeatures,
    batch_times,
    float_dtype,
    grid_positions,
    sincos_positions,
)
from tweed.nets.registry import fill, register, zero


class Heads(NamedTuple):
    """What the network says: the clean image and the noise, both (b, c, h, w), and the representation (b, d)."""

    data: Tensor
    noise: Tensor
    representation: Tensor


@register("masked-autoencoder")
class MaskedAutoencoder(nn.Module):
    """Encoder and decoder of patches on (b, in_channels, height, width); hidden patches never reach the encoder.

    The representation is the mean of the encoder's class tokens, and the only thing besides the visible patches that the
    decoder sees. Time 0 means "no noise": it has an embedding of its own besides that of the time, so that a clean image is
    not taken for a hardly noised one. The network must be told the time of the process, in [0, 1] (`time="time"`).

    The class tokens start at small random numbers: at zero, as published, they would stay equal to one another. A linear layer
    more than published leads the representation to the decoder.

    Args:
        in_channels: channels of the image.
        patch: side of a patch.
        hidden: features of a token, a multiple of 4.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        heads: attention heads.
        mlp_ratio: size of the MLP's inner layer, as a multiple of `hidden`.
        class_tokens: of the encoder.
        num_classes: number of labels, 0 for none.
        time_dim, time_features, time_scale: see `TimeEmbedding`.
        head: what a plain call answers, "noise" or "data".

    Raises:
        InputError: an option is out of its range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        patch: int = 2,
        hidden: int = 384,
        depth: int = 8,
        decoder_depth: int = 4,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        class_tokens: int = 4,
        num_classes: int = 0,
        time_dim: int = 256,
        time_features: TimeFeatures = "sinusoidal",
        time_scale: float | None = None,
        head: Literal["noise", "data"] = "noise",
    ) -> None:
        super().__init__()
        choose("head", head, ("noise", "data"))
        if patch < 1 or class_tokens < 1 or hidden % 4:
            raise InputError(
                f"patch, class_tokens, hidden: {patch}, {class_tokens}, {hidden} were given; expected at least 1, at least 1, "
                "and a multiple of 4"
            )
        self.in_channels, self.patch, self.hidden, self.head = in_channels, patch, hidden, head
        self.time = TimeEmbedding(time_dim, hidden, time_features, time_scale)
        self.condition = Conditioning(hidden, num_classes)
        self.activation = nn.SiLU()
        self.clean = nn.Parameter(torch.zeros(hidden))
        self.class_tokens = nn.Parameter(torch.zeros(class_tokens, hidden))
        self.hidden_token = nn.Parameter(torch.zeros(hidden))
        self.input = nn.Linear(in_channels * patch**2, hidden)
        self.encoder = nn.ModuleList(Block(hidden, heads, mlp_ratio, 0, False, 0.0, "sdpa") for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.bridge = nn.Linear(hidden, hidden)
        self.decoder = nn.ModuleList(
            Block(hidden, heads, mlp_ratio, 0, False, 0.0, "sdpa") for _ in range(decoder_depth)
        )
        self.modulation = zero(nn.Linear(hidden, 2 * hidden))
        self.last_norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.output = nn.Linear(hidden, 2 * in_channels * patch**2)

    def reset(self, draws: torch.Generator) -> None:
        """Draws the tokens that are learned."""
        for token in (self.class_tokens, self.hidden_token, self.clean):
            fill(token, torch.randn(token.shape, generator=draws, device="cpu") * 0.02)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        label: Int[Tensor, " b"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The answer of `head` where every patch is visible, in the dtype of `x`."""
        heads = self.heads(x, t, label=label, drop=drop)
        return heads.noise if self.head == "noise" else heads.data

    def tokens(self, x: Float[Tensor, "b c h w"]) -> int:
        """How many patches an image has.

        Raises:
            InputError: the shape does not fit.
        """
        p = self.patch
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % p or x.shape[3] % p or 0 in x.shape[2:]:
            raise InputError(
                f"x: shape {tuple(x.shape)} was given; expected (b, {self.in_channels}, height, width), multiples of {p}"
            )
        return (x.shape[2] // p) * (x.shape[3] // p)

    def represent(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"] | float = 0.0,
        visible: Int[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """The representation of images, clean ones by default, in the precision of the weights."""
        return self._encoded(x, *self._told(x, t, None, None), visible)[0]

    def heads(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"] | float,
        visible: Int[Tensor, "b k"] | None = None,
        label: Int[Tensor, " b"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
    ) -> Heads:
        """Both heads and the representation.

        Args:
            x: images at time `t`, noise and all; of hidden patches nothing is read.
            t: in [0, 1]; 0 for clean images.
            visible: numbers of the patches that are seen, in row-major order; all where not given.
            label, drop: the class, and the samples whose class is to be ignored.

        Raises:
            InputError: a shape does not fit, or a label was given that the network was not built for.
        """
        count = self.tokens(x)
        embedding, positions = self._told(x, t, label, drop)
        representation, seen = self._encoded(x, embedding, positions, visible)
        if visible is None:
            h = seen
        else:
            place = visible[..., None].expand(-1, -1, self.hidden)
            h = self.hidden_token.to(seen.dtype).expand(len(x), count, -1).scatter(1, place, seen)
        h = torch.cat((self.bridge(representation)[:, None], h + positions), dim=1)
        for block in self.decoder:
            h = block(h, embedding, None, None)
        shift, scale = self.modulation(embedding).chunk(2, dim=-1)
        out = self.output(torch.addcmul(shift, self.last_norm(h[:, 1:]), 1 + scale))
        data, noise = self._image(out, x).to(x.dtype).chunk(2, dim=1)
        return Heads(data, noise, representation)

    def _patches(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n f"]:
        b, c, h, w = x.shape
        p = self.patch
        return x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // p**2, c * p**2)

    def _image(self, tokens: Float[Tensor, "b n f"], like: Tensor) -> Float[Tensor, "b c2 h w"]:
        b, c, h, w = like.shape
        p = self.patch
        return tokens.reshape(b, h // p, w // p, 2 * c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, 2 * c, h, w)

    def _told(self, x: Tensor, t: Tensor | float, label: Tensor | None, drop: Tensor | None) -> tuple[Tensor, Tensor]:
        times = batch_times(torch.as_tensor(t, dtype=torch.float32, device=x.device), len(x))[:, None]
        embedding = self.time(times) + torch.where(times == 0.0, 1.0, 0.0)[..., None].to(self.clean.dtype) * self.clean
        told, _ = self.condition(x, label, None, None, drop)
        embedding = self.activation(embedding if told is None else embedding + told[:, None])
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        positions = sincos_positions(grid_positions(grid, x.device), self.hidden)
        return embedding, positions.to(float_dtype(self))

    def _encoded(
        self, x: Tensor, embedding: Tensor, positions: Tensor, visible: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        self.tokens(x)
        h = self.input(self._patches(x.to(float_dtype(self)))) + positions
        if visible is not None:
            h = h.gather(1, visible[..., None].expand(-1, -1, self.hidden))
        own = self.class_tokens.expand(len(x), -1, -1)
        h = torch.cat((own, h), dim=1)
        for block in self.encoder:
            h = block(h, embedding, None, None)
        h = self.norm(h)
        n = own.shape[1]
        return h[:, :n].mean(1), h[:, n:]
