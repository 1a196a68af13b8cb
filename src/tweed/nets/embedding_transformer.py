"""A transformer on embeddings of tokens, each with a noise level of its own, given a source sentence."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.errors import InputError
from tweed.nets.embeddings import TimeEmbedding
from tweed.nets.registry import register
from tweed.nets.text_transformer import TextBlock, rotations


@register("embedding-transformer")
class EmbeddingTransformer(nn.Module):
    """Noisy embeddings and their levels to clean embeddings, and from these to words and to the next levels.

    Words are embedded by a table of unit variance (`sqrt(dim)` times a row of length 1), which is also the output layer. Source
    and target stand in one sequence, which attends to itself both ways.

    Args:
        vocab: words of the target.
        source_vocab: words of the source; 0 for no source.
        dim: of the embeddings.
        width, depth, heads: of the transformer.
        levels: the number of noise levels, of which the predictor answers one.

    Raises:
        InputError: an option is out of its range.
    """

    def __init__(
        self,
        vocab: int,
        source_vocab: int = 0,
        *,
        dim: int = 32,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        levels: int = 100,
    ) -> None:
        super().__init__()
        for name, value in (("vocab", vocab), ("dim", dim), ("width", width), ("depth", depth), ("levels", levels - 1)):
            if value < 1:
                raise InputError(f"{name}: {value} was given; expected at least 1")
        if width % heads or (width // heads) % 2:
            raise InputError(
                f"heads: {heads} was given; expected a divisor of {width} that leaves an even number of features"
            )
        self.dim, self.levels, self.head_dim = dim, levels, width // heads
        self.table = nn.Embedding(vocab, dim)
        self.source = nn.Embedding(source_vocab, width) if source_vocab else None
        self.input = nn.Linear(2 * dim, width)
        self.level = TimeEmbedding(64, width)
        hidden = 8 * (-(-8 * width // 24))
        self.blocks = nn.ModuleList(
            TextBlock(width, heads, heads, width // heads, hidden, True, 1e-5) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.output = nn.Linear(width, dim)
        self.predictor_input = nn.Linear(dim, width)
        self.predictor = TextBlock(width, heads, heads, width // heads, hidden, True, 1e-5)
        self.predictor_norm = nn.RMSNorm(width, eps=1e-5)
        self.predictor_output = nn.Linear(width, 1)

    def embed(self, words: Int[Tensor, "b length"]) -> Float[Tensor, "b length dim"]:
        """The clean state: rows of the table, brought to unit variance."""
        return F.normalize(self.table(words), dim=-1) * math.sqrt(self.dim)

    def logits(self, x0: Float[Tensor, "b length dim"]) -> Float[Tensor, "b length vocab"]:
        """Words of clean embeddings, by the same table."""
        return x0 @ F.normalize(self.table.weight, dim=-1).T

    def forward(
        self,
        x: Float[Tensor, "b length dim"],
        t: Float[Tensor, "b *length"],
        source: Int[Tensor, "b m"] | None = None,
        previous: Float[Tensor, "b length dim"] | None = None,
    ) -> Float[Tensor, "b length dim"]:
        """The clean embeddings.

        Args:
            t: levels in [0, 1], one a token, or one a sentence.
            previous: an earlier answer (self-conditioning), zeros where there is none.
        """
        previous = torch.zeros_like(x) if previous is None else previous
        time = self.level(t)
        time = time[:, None] if t.ndim == 1 else time
        # Noise may be large: the network is told the level, and sees the direction.
        seen = x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        h = self.input(torch.cat((seen, previous), -1)) + time
        h = self._through(list(self.blocks), h, source)
        return self.output(self.norm(h))

    def next_levels(
        self, x0: Float[Tensor, "b length dim"], t: Float[Tensor, " b"], source: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b length"]:
        """The level that each token is to have at time `t`, in 0 .. `levels - 1`, from the clean embeddings as now thought."""
        h = self.predictor_input(x0) + self.level(t)[:, None]
        h = self._through([self.predictor], h, source)
        return torch.sigmoid(self.predictor_output(self.predictor_norm(h))[..., 0]) * (self.levels - 1)

    def _through(self, blocks: list, h: Tensor, source: Tensor | None) -> Tensor:
        if (source is None) != (self.source is None):
            raise InputError(
                f"source: {'nothing' if source is None else 'a tensor'} was given; the network was built otherwise"
            )
        length = h.shape[1]
        if source is not None and self.source is not None:
            h = torch.cat((self.source(source) * math.sqrt(h.shape[-1]), h), 1)
        rotation = rotations(0, h.shape[1], self.head_dim, 100.0, h.device)
        for block in blocks:
            h = block(h, rotation)
        return h[:, -length:] if length else h[:, :0]


def real_tokens(x: Int[Tensor, "b length"], pad: int | None) -> Bool[Tensor, "b length"]:
    """Which positions are no padding."""
    return torch.ones_like(x, dtype=torch.bool) if pad is None else x != pad
