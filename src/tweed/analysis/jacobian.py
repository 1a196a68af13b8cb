"""Jacobians of a denoiser's score at one time: exact, on some coordinates, and as an asymmetry by random probes.

`|J - J^T|_F^2 = E |J z - J^T z|^2` for random signs z (Hutchinson): one product with J and one with its transpose. The score
of a density has a symmetric Jacobian; that of a network need not.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.time import Time, as_time
from tweed.errors import InputError


def score_jacobian(
    denoiser: Denoiser,
    x: Float[Tensor, "b *event"],
    t: float,
    coordinates: Sequence[int] | Tensor | None = None,
    **cond: Tensor,
) -> Float[Tensor, "b k k"]:
    """The Jacobian of the score, or its block on some coordinates of the flattened event; by reverse mode, k passes.

    An exact denoiser with a posterior covariance gives it in closed form, `(alpha^2 Cov / sigma^2 - I) / sigma^2`.

    Raises:
        InputError: a coordinate that there is not.
    """
    d = x[0].numel()
    chosen = list(range(d)) if coordinates is None else [int(k) for k in coordinates]
    if not chosen or not all(0 <= k < d for k in chosen):
        raise InputError(f"coordinates: {chosen[:8]} were given; expected numbers from 0 to {d - 1}")
    known = getattr(denoiser, "posterior_covariance", None)
    if known is not None and coordinates is None:
        level = denoiser.process.level(t)
        covariance = known(x, t, **cond)
        eye = torch.eye(d, dtype=covariance.dtype, device=covariance.device)
        return (level.alpha**2 * covariance / level.sigma**2 - eye) / level.sigma**2
    with torch.enable_grad():
        state = x.detach().clone().requires_grad_()
        score = denoiser(state, t, **cond).score.flatten(1)
        rows = [
            torch.autograd.grad(score[:, k].sum(), state, retain_graph=True)[0].flatten(1)[:, chosen] for k in chosen
        ]
    return torch.stack(rows, 1).detach()


def asymmetry(
    denoiser: Denoiser, x: Float[Tensor, "b *event"], t: Time, probes: int = 4, seed: int = 0, **cond: Tensor
) -> Float[Tensor, " b"]:
    """`|J - J^T|_F / |J + J^T|_F` of each sample's score Jacobian, estimated with random signs; 0 for a gradient field.

    Raises:
        InputError: no probes.
    """
    if probes < 1:
        raise InputError(f"probes: {probes} was given; expected at least 1")
    skew = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    even = torch.zeros_like(skew)
    with torch.enable_grad():
        state = x.detach().clone().requires_grad_()
        score = denoiser(state, as_time(t).to(x.device) if isinstance(t, Tensor) else t, **cond).score
        dummy = torch.zeros_like(score, requires_grad=True)
        # J^T v is linear in v: differentiating it gives J z.
        (linear,) = torch.autograd.grad(score, state, dummy, create_graph=True)
        for k in range(probes):
            z = random.rademacher(x.shape, seed, draw=k, dtype=x.dtype, device=x.device)
            (back,) = torch.autograd.grad(score, state, z, retain_graph=True)
            (ahead,) = torch.autograd.grad(linear, dummy, z, retain_graph=True)
            skew += (ahead - back).detach().double().flatten(1).square().sum(1)
            even += (ahead + back).detach().double().flatten(1).square().sum(1)
    return (skew / even.clamp_min(1e-300)).sqrt()
