"""A classifier of noisy states, `p(label | x_t)`, for classifier guidance (Song et al., ICLR 2021, Appendix I.1)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.core import random
from tweed.core.processes import Process
from tweed.core.time import left
from tweed.data.dataset import Tensors
from tweed.nets import build
from tweed.training.times import Uniform


class NoisyClassifier(nn.Module):
    """`log p(label | x_t)`, as `tweed.guidance.ClassifierGuidance` wants it.

    The network sees `x / sqrt(alpha^2 data_std^2 + sigma^2)` and `log(sigma / alpha) / 4`, so that any Gaussian process
    will do.
    """

    def __init__(self, network: nn.Module, process: Process, data_std: float):
        super().__init__()
        self.network, self.process, self.data_std = network, process, data_std

    def logits(self, x: Float[Tensor, "b *event"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """Unnormalised log probabilities of all classes."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        scaled = x * left((alpha**2 * self.data_std**2 + sigma**2).rsqrt(), x)
        level = -0.25 * self.process.log_snr(t).clamp(-12.0, 12.0)
        return self.network(scaled.float(), level.float().to(x.device))

    def forward(
        self, x: Float[Tensor, "b *event"], t: Float[Tensor, " b"], label: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        return self.logits(x, t).double().log_softmax(1).gather(1, label[:, None])[:, 0]


def train_noisy_classifier(
    process: Process,
    data: Tensors,
    *,
    steps: int,
    seed: int,
    width: int = 128,
    depth: int = 2,
    batch_size: int = 256,
    lr: float = 2e-3,
    data_std: float = 0.75,
    dropout: float = 0.2,
    device: torch.device | str = "cpu",
) -> NoisyClassifier:
    """A classifier of `data` noised by `process` to uniform times, by cross-entropy and AdamW with a cosine rate."""
    size = math.prod(data.shape)
    shape = {"name": "mlp", "dim": size, "out_dim": data.num_classes, "width": width, "depth": depth}
    model = NoisyClassifier(build(shape, random.fold(seed, 0)), process, data_std).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    times, noises, picks, drops = Uniform(), *(random.fold(seed, stream) for stream in (1, 2, 3))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        draws = random.uniform((batch_size, 1), picks, index=step * batch_size, dtype=torch.float64)[:, 0]
        batch = data.batch((draws * len(data)).long())
        x, label = batch["x"].to(device), batch["label"].to(device)
        noise = random.normal(x.shape, noises, index=step * batch_size, device=device)
        # Pixels left out at random: 1400 digits are few for a classifier of clean ones.
        keep = random.uniform(x.shape, drops, index=step * batch_size, device=device) >= dropout
        t = times(process, batch_size, seed, step).to(device)
        loss = F.cross_entropy(model.logits(process.perturb(x * keep - ~keep * 1.0, t, noise), t), label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)
