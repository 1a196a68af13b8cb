"""How noisy is this? The posterior of the noise level given a state: exact for mixtures, or learned by a classifier.

Levels are `s = sigma / alpha`, of the rescaled state `u = (x - beta y) / alpha = x_0 + s eps`, so that one posterior
serves every Gaussian process. The prior is uniform on the levels given: log-uniform where they are spaced evenly in log s
(Kim & Ye, "Denoising MCMC", ICML 2023, Sec. 4).
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random
from tweed.core.exact import MixtureDenoiser
from tweed.errors import InputError


class NoiseLevelPosterior(nn.Module):
    """`log q(s_j | u)` up to a constant, over the `levels` s_1 < s_2 < ... (float64, shape (k,))."""

    levels: Tensor

    def __init__(self, levels: Float[Tensor, " k"]):
        super().__init__()
        levels = torch.as_tensor(levels, dtype=torch.float64)
        if levels.ndim != 1 or not len(levels) or not bool((levels.diff() > 0).all() & (levels[0] > 0)):
            raise InputError(f"levels: shape {tuple(levels.shape)} was given; expected rising positive numbers, (k,)")
        self.register_buffer("levels", levels)

    @abstractmethod
    def forward(self, u: Float[Tensor, "b *event"], **cond: Tensor | None) -> Float[Tensor, "b k"]:
        """The logits of the levels at `u = x / alpha`."""


def log_levels(low: float, high: float, count: int) -> Float[Tensor, " k"]:
    """`count` levels from `low` to `high`, even in their logarithm, float64.

    Raises:
        InputError: not `0 < low < high`, or fewer than two levels.
    """
    if not 0.0 < low < high < math.inf or count < 2:
        raise InputError(f"low, high, count: {low}, {high}, {count} were given; expected 0 < low < high, count >= 2")
    return torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64).exp()


class ExactNoiseLevel(NoiseLevelPosterior):
    """The exact posterior under a mixture: `p(s | u) ~ sum_k w_k N(u; m_k, C_k + s^2 I)`, of any covariances.

    The squared coordinates of `u - m_k` along the axes of `C_k` are formed once and serve all levels.

    Raises:
        InputError: the denoiser is no mixture or Gaussian; take a `NoiseLevelClassifier` for others.
    """

    def __init__(self, denoiser: MixtureDenoiser, levels: Float[Tensor, " k"]):
        super().__init__(levels)
        if not isinstance(denoiser, MixtureDenoiser):
            raise InputError(
                f"denoiser: {type(denoiser).__name__} was given; expected a MixtureDenoiser or GaussianDenoiser (a "
                "NoiseLevelClassifier serves any other)"
            )
        self.denoiser = denoiser

    def forward(self, u, **cond):
        held = self.denoiser
        if tuple(u.shape[1:]) != held.event:
            raise InputError(
                f"u: shape {tuple(u.shape)} was given; expected (batch, {', '.join(map(str, held.event))})"
            )
        d = held.means.shape[1]
        centered = u.double().flatten(1)[:, None] - held.means
        if held.vectors is not None:
            centered = torch.einsum("kde,bkd->bke", held.vectors, centered)
        squared = centered.square()
        if held.values.shape[1] == 1:
            squared = squared.sum(-1, keepdim=True)
        variance = held.values + self.levels.square()[:, None, None]
        volume = variance.log().sum(-1) * (d / held.values.shape[1])
        quadratic = torch.einsum("bkd,jkd->bjk", squared, variance.reciprocal())
        weights = held._restrict(held.log_weights.expand(len(u), -1), cond)
        return (weights[:, None] - 0.5 * (quadratic + volume)).logsumexp(-1)


class NoiseLevelClassifier(NoiseLevelPosterior):
    """A network `(b, *event) -> (b, k)` that says which of `levels` a state carries: `q(s | u)`, learned.

    It is shown `u / sqrt(1 + mean u^2)` flattened, so that its input stays of order one at any level, and the logarithm
    of that root beside it (with four of its octaves), which alone tells the level at high noise.

    Args:
        levels: shape (k,), rising; see `log_levels`.
        dim: numbers in a sample.
        network: `(b, dim + 9) -> (b, k)`; a perceptron of two hidden layers where not given.
        width: of that perceptron.
        seed: of its weights.
    """

    def __init__(
        self,
        levels: Float[Tensor, " k"],
        dim: int,
        network: Callable[[Tensor], Tensor] | None = None,
        *,
        width: int = 128,
        seed: int = 0,
    ):
        super().__init__(levels)
        if dim < 1:
            raise InputError(f"dim: {dim} was given; expected at least 1")
        self.dim = dim
        self.network = network or _perceptron(dim + 9, width, len(self.levels), seed)

    def forward(self, u, **cond):
        flat = u.flatten(1)
        if flat.shape[1] != self.dim:
            raise InputError(f"u: {flat.shape[1]} numbers a sample were given; expected {self.dim}")
        root = (1.0 + flat.double().square().mean(1, keepdim=True)).sqrt()
        waves = root.log() * 2.0 ** torch.arange(4, device=u.device)
        shown = torch.cat((flat / root, root.log(), waves.sin(), waves.cos()), 1).to(torch.float32)
        return self.network(shown).double()


def fit_noise_levels(
    classifier: NoiseLevelClassifier,
    data: Float[Tensor, "n *event"],
    *,
    steps: int = 1000,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
) -> Float[Tensor, " steps"]:
    """Train a classifier on `(x_0 + s_j eps, j)`, j uniform, by cross-entropy and Adam (`lr` falls as a cosine).

    Returns:
        The loss of each step, in nats.

    Raises:
        InputError: no data, or no step.
    """
    if not len(data) or steps < 1:
        raise InputError(f"data, steps: {len(data)} samples, {steps} steps were given; expected at least one of each")
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    levels, losses = classifier.levels, []
    classifier.train()
    for step in range(steps):
        u = random.uniform((batch_size, 2), seed, draw=2 * step, dtype=torch.float64, device=data.device)
        which = (u[:, 0] * len(data)).long().clamp_max(len(data) - 1)
        label = (u[:, 1] * len(levels)).long().clamp_max(len(levels) - 1).to(levels.device)
        x0 = data[which].to(levels.device, torch.float32)
        noise = random.normal(x0.shape, seed, draw=2 * step + 1, device=x0.device)
        level = levels[label].to(torch.float32).reshape(-1, *(1,) * (x0.ndim - 1))
        loss = nn.functional.cross_entropy(classifier(x0 + level * noise).float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    classifier.eval()
    return torch.stack(losses)


def _perceptron(inputs: int, width: int, outputs: int, seed: int) -> nn.Module:
    layers = [nn.Linear(a, b) for a, b in ((inputs, width), (width, width), (width, outputs))]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            # He's initialisation, from the seed alone.
            scale = math.sqrt(2.0 / layer.in_features)
            layer.weight.copy_(scale * random.normal(layer.weight.shape, seed, draw=number))
            layer.bias.zero_()
    return nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
