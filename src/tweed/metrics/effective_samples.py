"""The effective sample size of Markov chains: how many independent draws their mean is worth."""

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError


def effective_sample_size(draws: Float[Tensor, "n chains *event"]) -> Float[Tensor, "*event"]:
    """Of each coordinate, from several chains together: at most `n chains log10(n chains)`.

    `n chains / (1 + 2 sum_t rho_t)`, with the autocorrelations of all chains against their joint variance (chains that
    stay in different places lower it too), summed to the first negative pair and made monotone (Geyer 1992; Vehtari,
    Gelman, Simpson, Carpenter & Buerkner, "Rank-normalization, folding, and localization", 2021, Sec. 3.2; no ranks here).

    Raises:
        InputError: fewer than four draws a chain, or no chain.
    """
    if draws.ndim < 2 or len(draws) < 4 or draws.shape[1] < 1:
        raise InputError(f"draws: shape {tuple(draws.shape)} was given; expected (n, chains, *event), n at least 4")
    n, chains = draws.shape[:2]
    x = draws.detach().double().reshape(n, chains, -1)
    centered = x - x.mean(0)
    # Autocovariances by the transform, padded so that nothing wraps around.
    power = torch.fft.rfft(centered, 2 * n, dim=0).abs().square()
    covariance = torch.fft.irfft(power, 2 * n, dim=0)[:n].mean(1) / n
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + (x.mean(0).var(0) if chains > 1 else 0.0)
    rho = 1.0 - (within - covariance * n / (n - 1)) / total.clamp_min(1e-300)
    rho[0] = 1.0
    pairs = rho[: n - n % 2].reshape(n // 2, 2, -1).sum(1)
    going = (pairs > 0).cumprod(0)
    pairs = (pairs * going).cummin(0).values.clamp_min(0.0)
    time = (2.0 * pairs.sum(0) - 1.0).clamp_min(1.0 / torch.tensor(float(n * chains)).log10().item())
    return (n * chains / time).reshape(draws.shape[2:])
