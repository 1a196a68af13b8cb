"""The geometry of sampling trajectories: how flat they are, whether they turn from noise to data, when features appear.

Wang & Vastola, 2023 (arXiv 2303.02490), Sec. 3 and 4. A trajectory from noise to data is nearly two-dimensional, and looks
like a rotation `x_t = alpha_t x_0 + sigma_t x_T` of the start into the result. Flatness alone proves little: the chord from
end to end dominates any path, and most of the variance of a random bridge, too, lies in its first two components. So it is
given with that of a null, the same chord with an isotropic Brownian bridge upon it, as long as the trajectory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.processes import Process
from tweed.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """The shape of each of b trajectories; every field has shape (b,).

    Attributes:
        plane: share of the variance about the trajectory's own mean that lies in the best plane.
        bent: the same of what is left when the straight chord is taken out.
        null_plane, null_bent: the same of the chord with a Brownian bridge of equal length, mean over the draws.
        rotation: R^2 of `x_t = alpha_t x_0 + sigma_t n`, with `n` such that the start is met; nothing is fitted.
        line: R^2 of the chord itself, each state at its nearest point of it.
    """

    plane: Float[Tensor, " b"]
    bent: Float[Tensor, " b"]
    null_plane: Float[Tensor, " b"]
    null_bent: Float[Tensor, " b"]
    rotation: Float[Tensor, " b"]
    line: Float[Tensor, " b"]


def trajectory_geometry(
    process: Process, states: Float[Tensor, "n b *event"], times: Iterable[float], *, draws: int = 4, seed: int = 0
) -> Geometry:
    """The geometry of trajectories, as `tweed.sample(..., trajectory=True)` gives them.

    The rotation is exact for a data set of one point. A direction of variance L is off by the factor
    `(alpha sqrt L + sigma) / sqrt(alpha^2 L + sigma^2)`, at most sqrt 2, which one of L = 1 has under VP at alpha = sigma.

    Args:
        draws: bridges for the null of each trajectory.

    Raises:
        InputError: fewer than three states, times that do not fit, or a two-sided or endpoint-conditioned process.
    """
    times = list(times)
    if len(states) != len(times) or len(times) < 3:
        raise InputError(
            f"states, times: {len(states)} and {len(times)} were given; expected as many, and at least three"
        )
    if process.endpoint != "none" or draws < 1:
        raise InputError(f"process, draws: {process}, {draws} were given; expected a Gaussian process and a draw")
    path = states.double().flatten(2).transpose(0, 1)
    first, last = path[:, :1], path[:, -1:]
    share = torch.linspace(0.0, 1.0, len(times), dtype=torch.float64, device=path.device)[:, None]
    chord = first + share * (last - first)
    null_plane, null_bent = (torch.zeros(len(path), dtype=torch.float64, device=path.device) for _ in range(2))
    for draw in range(draws):
        bridge = _bridge(path, chord, share, seed, draw)
        null_plane += _flatness(bridge) / draws
        null_bent += _flatness(bridge - chord) / draws
    levels = [process.level(t) for t in times]
    alpha, sigma = (
        torch.tensor([getattr(level, name) for level in levels], dtype=torch.float64, device=path.device)[:, None]
        for name in ("alpha", "sigma")
    )
    # Through both ends: x_0 stands for the last state, which has a little noise left where the run ends above 0.
    a, b = alpha[0] / alpha[-1], alpha / alpha[-1]
    s = (sigma - b * sigma[-1]) / (sigma[0] - a * sigma[-1])
    turned = b * last + s * (first - a * last)
    along = last - first
    foot = ((path - first) * along).sum(2, keepdim=True) / along.square().sum(2, keepdim=True).clamp_min(1e-300)
    return Geometry(
        _flatness(path),
        _flatness(path - chord),
        null_plane,
        null_bent,
        _r2(path - turned, path),
        _r2(path - first - foot * along, path),
    )


def endpoint_estimates(
    denoiser: Denoiser,
    states: Float[Tensor, "n b *event"],
    times: Iterable[float],
    cond: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "n b *event"]:
    """What the denoiser expects as the end, `x0hat(x_t, t)`, at every state of a run: one evaluation each.

    Raises:
        InputError: another number of times than of states.
    """
    times = list(times)
    if len(times) != len(states):
        raise InputError(f"times: {len(times)} were given for {len(states)} states; expected as many")
    with torch.no_grad():
        return torch.stack([denoiser(x, t, **(cond or {})).x0 for x, t in zip(states, times, strict=True)])


def order_of_emergence(
    process: Process,
    estimates: Float[Tensor, "n b *event"],
    times: Iterable[float],
    directions: Float[Tensor, "d r"],
    mean: Float[Tensor, "*event"],
    share: float = 0.5,
) -> Float[Tensor, " r"]:
    """The log-SNR at which the endpoint estimates' part along each direction has `share` of its final value.

    The part at a time is its regression on the final one over the samples, `sum xi(t) xi(0) / sum xi(0)^2`; between two
    times it is interpolated in log-SNR. See `emergence` for the closed form. NaN where the share is passed within the first
    of the times or where a level there is infinite.

    Raises:
        InputError: shapes do not fit.
    """
    times = list(times)
    flat = estimates.double().flatten(2)
    if len(times) != len(flat) or directions.shape[0] != flat.shape[2] or mean.numel() != flat.shape[2]:
        raise InputError(
            f"estimates, times, directions, mean: {tuple(estimates.shape)}, {len(times)}, {tuple(directions.shape)}, "
            f"{tuple(mean.shape)} do not fit together"
        )
    xi = (flat - mean.double().reshape(-1)) @ directions.double()
    grown = (xi * xi[-1]).sum(1) / xi[-1].square().sum(0).clamp_min(1e-300)
    levels = torch.tensor([process.level(t).log_snr for t in times], dtype=torch.float64, device=flat.device)
    # The last time below the share, and the next: a direction that swings early emerges when it stays.
    below = (grown < share).double() * torch.arange(1, len(times) + 1, device=flat.device)[:, None]
    after = below.argmax(0).clamp_max(len(times) - 2) + 1
    low, high = (torch.gather(grown, 0, at[None])[0] for at in (after - 1, after))
    part = (share - low) / (high - low)
    crossed = levels[after - 1] + part * (levels[after] - levels[after - 1])
    return crossed.where(below.amax(0) > 0, torch.nan)


def variance_by_time(estimates: Float[Tensor, "n b *event"]) -> Float[Tensor, " n"]:
    """The variance of the endpoint estimates over the samples, as a share of the last ones': what is settled by when.

    Its differences are what each step adds; `settled_variance` is the closed form. At least two samples are needed.

    Raises:
        InputError: fewer than two samples.
    """
    if estimates.ndim < 3 or estimates.shape[1] < 2:
        raise InputError(f"estimates: shape {tuple(estimates.shape)} was given; expected (n, b, *event), b at least 2")
    total = estimates.double().flatten(2).var(1).sum(1)
    return total / total[-1].clamp_min(1e-300)


def _flatness(path: Tensor) -> Tensor:
    """The share of the variance in the best plane, (b,), of paths (b, n, d); 1 where there is none."""
    centered = path - path.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh(centered @ centered.mT).clamp_min(0.0)
    total = values.sum(1)
    return torch.where(total > 0.0, values[:, -2:].sum(1) / total.clamp_min(1e-300), 1.0)


def _r2(error: Tensor, path: Tensor) -> Tensor:
    about = path - path.mean(1, keepdim=True)
    return 1.0 - error.square().sum((1, 2)) / about.square().sum((1, 2)).clamp_min(1e-300)


def _length(path: Tensor) -> Tensor:
    return path.diff(dim=1).norm(dim=2).sum(1)


def _bridge(path: Tensor, chord: Tensor, share: Tensor, seed: int, draw: int) -> Tensor:
    """The chord with a Brownian bridge upon it, of each path's length."""
    b, n, d = path.shape
    walk = random.normal((b, n - 1, d), seed, draw=draw, dtype=torch.float64, device=path.device).cumsum(1)
    walk = torch.cat((torch.zeros_like(walk[:, :1]), walk), 1)
    bridge = walk - share * walk[:, -1:]
    bridge = bridge / _length(bridge).clamp_min(1e-300)[:, None, None]
    wanted = _length(path)
    # The length grows with the bridge's share from that of the chord to beyond the wanted one.
    low, high = torch.zeros_like(wanted), 2.0 * wanted
    for _ in range(40):
        middle = 0.5 * (low + high)
        short = _length(chord + middle[:, None, None] * bridge) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return chord + low[:, None, None] * bridge
