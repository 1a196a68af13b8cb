"""Whether one network is better asked for the residual or for the noise: automatic objective selection.

Liu et al., "Residual Denoising Diffusion Models" (CVPR 2024, arXiv 2308.13712), Section 3.4. On `x = x_0 + a R + b eps`,
`R = y - x_0`, either of R and eps follows from the other:

    b eps = x - y + (1 - a) R.

One output is read as both, and a learnt weight decides which reading it is better at. The release's training then begins anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tweed.core import random
from tweed.core.processes import Residual
from tweed.core.targets import DataResidual, Noise, Target
from tweed.core.time import left
from tweed.errors import InputError


@dataclass(frozen=True)
class Choice:
    """What `select_objective` found: the objective, and the learnt weight by step, from 1/2."""

    objective: Literal["residual", "noise"]
    weights: tuple[float, ...]

    @property
    def target(self) -> Target:
        """What a network is then trained for."""
        return DataResidual() if self.objective == "residual" else Noise()


def select_objective(
    network: nn.Module,
    process: Residual,
    data: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int = 2000,
    rate: float = 8e-5,
    margin: float = 0.01,
    seed: int = 0,
) -> Choice:
    """The objective that suits a network and its data, by a short training.

    The output F is read as `R_hat = l F + (1 - l) R(F)` and `eps_hat = (1 - l) F + l eps(F)`, where R(F) and eps(F) take it for
    the other of the two, and `l |R - R_hat| + (1 - l) |eps - eps_hat|` is minimised in the network and in l, from l = 1/2, until
    l has moved by `margin`. The network is changed; it is then to be made anew and trained for what was chosen.

    Args:
        network: `(x, t, y=y) -> F`, x's shape.
        process: what states are made by.
        data: step -> a batch (x_0, y).
        steps: at most; the side of 1/2 that l is on decides if it has not moved so far.
        rate: of Adam, 8e-5 as published.
        margin: 0.01 as published.
        seed: of times and noise.

    Raises:
        InputError: no steps, or a margin outside (0, 1/2).
    """
    if steps < 1 or not 0.0 < margin < 0.5:
        raise InputError(f"steps, margin: {steps}, {margin} were given; expected at least 1, and within (0, 1/2)")
    device = next(network.parameters()).device
    share = nn.Parameter(torch.tensor(0.5, device=device))
    parameters: list[Any] = [*network.parameters(), share]
    optimiser = torch.optim.Adam(parameters, lr=rate)
    weights = [0.5]
    for step in range(steps):
        x0, y = (part.to(device) for part in data(step))
        # Away from both ends, where one reading says nothing of the other.
        t = 0.02 + 0.96 * random.uniform((len(x0), 1), random.fold(seed, 0), draw=step, dtype=torch.float64)[:, 0]
        t = t.to(device)
        eps = random.normal(x0.shape, random.fold(seed, 1), draw=step, dtype=x0.dtype, device=device)
        kept, b = left(process.alpha(t), x0), left(process.sigma(t), x0)
        residual = y - x0
        x = process.perturb(x0, t, eps, y)
        out = network(x, t.to(x0.dtype), y=y)
        from_noise, from_residual = (b * out - (x - y)) / kept, (x - y + kept * out) / b
        made_residual = share * out + (1.0 - share) * from_noise
        made_noise = (1.0 - share) * out + share * from_residual
        loss = share * (made_residual - residual).abs().mean() + (1.0 - share) * (made_noise - eps).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        weights.append(share.item())
        if abs(weights[-1] - 0.5) >= margin:
            break
    return Choice("residual" if weights[-1] > 0.5 else "noise", tuple(weights))
