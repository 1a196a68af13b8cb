"""Latent stochastic differential equations: a variational autoencoder whose latent variable is a path.

Li, Wong, Chen & Duvenaud, "Scalable gradients for stochastic differential equations" (AISTATS 2020, arXiv 2001.01328).
Prior `dz = h dt + g dW` and posterior `dz = f dt + g dW` share the diffusion, so by Girsanov's theorem the divergence of
their laws is finite,

    KL(q || p) = KL(q(z_0) || p(z_0)) + E_q Int (1/2) |g^{-1} (f - h)|^2 dt,

and is integrated along with the path, as one more coordinate without noise.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random
from tweed.errors import InputError
from tweed.nets.registry import initialise, without_draws, zero
from tweed.nets.vector_field import VectorField
from tweed.science.controls import check_knots
from tweed.solvers.differential import sdeint
from tweed.solvers.differential.plan import fixed_grid

Function = Callable[[Tensor, Tensor], Tensor]


def posterior_path(
    posterior: Function,
    prior: Function,
    diffusion: Function,
    z0: Float[Tensor, "b n"],
    ts: Sequence[float] | Float[Tensor, " t"],
    *,
    floor: float = 1e-6,
    **options: Any,
) -> tuple[Float[Tensor, "t b n"], Float[Tensor, "t b"]]:
    """A path of the posterior for each sample, and `Int (1/2) |g^{-1} (f - h)|^2 dt` along it up to each time.

    The mean of the integral over paths is the divergence of the two laws of paths from the same start. Both drifts are
    meant in the same calculus: what Ito's and Stratonovich's differ in cancels.

    Args:
        posterior, prior: drifts f and h, `(t, z) -> (b, n)`. diffusion: diagonal, `(t, z) -> (b, n)`.
        floor: |g| is taken for at least this in the integrand.
        options: those of `sdeint`: calculus, method, seed or brownian, step, adjoint, params.

    Raises:
        InputError, IncompatibleError, NumericalError: see `sdeint`.
    """

    def drift(t: Tensor, state: Tensor) -> Tensor:
        z = state[:, :-1]
        f, g = posterior(t, z), diffusion(t, z)
        g = torch.where(g.abs() < floor, torch.full_like(g, floor), g)
        rate = 0.5 * ((f - prior(t, z)) / g).square().sum(1, keepdim=True)
        return torch.cat((f, rate), 1)

    def spread(t: Tensor, state: Tensor) -> Tensor:
        g = diffusion(t, state[:, :-1])
        return nn.functional.pad(g.expand(len(state), -1), (0, 1))

    path = sdeint(drift, spread, nn.functional.pad(z0, (0, 1)), ts, noise="diagonal", **options)
    return path[..., :-1], path[..., -1]


def refined(times: Sequence[float], step: float | None, halvings: int) -> tuple[list[float], list[int]]:
    """Steps of at most `step` between the times, the last before each of them halved: (grid, where the times are in it).

    Raises:
        InputError: `step` is not positive, or `halvings` negative.
    """
    if halvings < 0:
        raise InputError(f"halvings: {halvings} was given; expected at least 0")
    grid, keep = fixed_grid(times, step)
    fine, ends, where = [grid[0]], set(keep), [0]
    for i, (a, b) in enumerate(pairwise(grid), 1):
        if i in ends:
            fine += [b - (b - a) * 0.5**k for k in range(1, halvings + 1)]
        fine.append(b)
        if i in ends:
            where.append(len(fine) - 1)
    return fine, where


class LatentSDE(nn.Module):
    """A latent SDE with additive noise for series of d numbers at common times.

    The posterior's drift is `f = h + g u`, so that the rate of the divergence is `|u|^2 / 2` and training begins at the
    prior. The control u is the one that leads a Brownian motion to the next observation, in closed form ("guided
    proposals", Schauer, van der Meulen & van Zanten, Bernoulli 2017; the decoder is linear),

        u_0 = (D g)^T (w (D g)(D g)^T + R)^{-1} (x - D z - c),   w the time until then, R the covariance of the noise,

    and a network's correction, which sees z, x, w and the state of a recurrent network that has read the series backwards
    to there; `q(z_0)` sees its last state. The prior's drift does not read the time, so it can be run on for ever. The
    diffusion is learnt, one number a coordinate, and so is the noise of an observation.

    A control that acts in steps cannot undo the noise of the last step before an observation, and the model would explain
    that as noise of observation or make the diffusion smaller. So the bound is computed on a grid whose last step before
    each observation is halved, and its second half again, and so on.

    Args:
        data_dim, latent_dim: numbers in an observation and in the latent state.
        context, width, depth: sizes of the encoder's state, and of the drifts' hidden layers.
        noise: the standard deviation of an observation where it is known; None to learn it.
        step: of the integration; None for one step from observation to observation.
        halvings: how many times the last step before an observation is halved, for the bound.
        method: an integrator of `sdeint`; the noise is additive, so any calculus will do.
        adjoint: "direct", "checkpoint", or "reversible" with `method="reversible_heun"`.
        seed: of the weights.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        *,
        context: int = 16,
        width: int = 32,
        depth: int = 1,
        noise: float | None = None,
        step: float | None = None,
        halvings: int = 2,
        method: str = "heun",
        adjoint: str = "direct",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if noise is not None and not noise > 0:
            raise InputError(f"noise: {noise} was given; expected a positive number")
        with without_draws():
            self.encoder = nn.GRU(data_dim + 1, context)
            self.initial = nn.Linear(context, 2 * latent_dim)
            self.prior = VectorField(latent_dim, width=width, depth=depth, time=False)
            told = context + data_dim + 1
            self.control = VectorField(latent_dim, width=width, depth=depth, time=False, context_dim=told)
            zero(self.control.layers[-1])
            self.prior_mean = nn.Parameter(torch.zeros(latent_dim))
            self.prior_log_std = nn.Parameter(torch.zeros(latent_dim))
            self.log_diffusion = nn.Parameter(torch.full((latent_dim,), math.log(0.5)))
            self.decoder = nn.Linear(latent_dim, data_dim)
            level = torch.full((data_dim,), math.log(0.3 if noise is None else noise))
            self.log_noise = nn.Parameter(level, requires_grad=noise is None)
            # The noise is additive: the calculi are one, and the one declared is that of the method.
            calculus = "ito" if method in ("euler_maruyama", "milstein") else "stratonovich"
            self.halvings = halvings
            self.options: dict[str, Any] = {"step": step, "method": method, "adjoint": adjoint, "calculus": calculus}
        initialise(self, seed)

    def diffusion(self, t: Float[Tensor, ""], z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """g, the same everywhere."""
        return self.log_diffusion.exp().expand_as(z)

    def guide(self, wait: Float[Tensor, ""], z: Float[Tensor, "b n"], x: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        """The control of a Brownian motion that will be observed as x after the time `wait`."""
        spread = self.decoder.weight * self.log_diffusion.exp()
        covariance = wait * spread @ spread.mT + (2.0 * self.log_noise).exp().diag()
        return torch.linalg.solve(covariance, (x - self.decoder(z)).mT).mT @ spread

    def elbo(
        self, ts: Sequence[float] | Float[Tensor, " t"], x: Float[Tensor, "b t d"], seed: int, *, kl_weight: float = 1.0
    ) -> Float[Tensor, " b"]:
        """The evidence lower bound `E log p(x | z) - kl_weight KL`, from one path a series drawn from `seed`.

        Raises:
            InputError: bad shapes or times; values that are not finite.
        """
        times = check_knots(ts, x)
        if bool(x.isnan().any()):
            raise InputError("x: NaN was given; expected complete series")
        fine, keep = refined(times.tolist(), self.options["step"], self.halvings)
        gap = nn.functional.pad(times.diff(), (1, 0)).to(x).expand(len(x), -1)[:, :, None]
        read = self.encoder(torch.cat((x, gap), 2).flip(1).transpose(0, 1))[0].flip(0)
        mean, log_std = self.initial(read[0]).chunk(2, 1)
        z0 = mean + log_std.exp() * random.normal(mean.shape, seed, draw=0, dtype=x.dtype, device=x.device)
        inner = times[1:].to(x)

        def posterior(t: Tensor, z: Tensor) -> Tensor:
            # The next observation: the encoder's state there has read everything from there on.
            i = torch.searchsorted(inner, t.detach()[None], right=True).clamp(max=len(inner) - 1)
            wait, ahead = inner[i] - t, x.index_select(1, i + 1)[:, 0]
            told = torch.cat((read.index_select(0, i + 1)[0], ahead, wait.expand(len(z), 1)), 1)
            control = self.guide(wait, z, ahead) + self.control(t, z, told)
            return self.prior(t, z) + self.diffusion(t, z) * control

        options: dict[str, Any] = self.options | {"step": None}  # the grid has all the steps
        path, rate = posterior_path(
            posterior,
            self.prior,
            self.diffusion,
            z0,
            fine,
            seed=random.fold(seed, 1),
            # What the equation reads itself: the encoder's weights act through its states alone.
            params=[
                *(p for part in (self.prior, self.control, self.decoder) for p in part.parameters()),
                *(self.log_diffusion, self.log_noise, read),
            ],
            **options,
        )
        seen = torch.distributions.Normal(self.decoder(path[keep]), self.log_noise.exp())
        start = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, log_std.exp()),
            torch.distributions.Normal(self.prior_mean, self.prior_log_std.exp()),
        )
        evidence = seen.log_prob(x.transpose(0, 1)).sum((0, 2))
        return evidence - kl_weight * (start.sum(1) + rate[-1])

    @torch.no_grad()
    def sample(
        self, count: int, ts: Sequence[float] | Float[Tensor, " t"], seed: int, *, noise: bool = True
    ) -> Float[Tensor, "b t d"]:
        """Series of the learnt prior at `ts`; with the noise of observation unless `noise` is False."""
        like = self.prior_mean
        shape, drawn = (count, like.shape[0]), {"dtype": like.dtype, "device": like.device}
        z0 = like + self.prior_log_std.exp() * random.normal(shape, seed, draw=0, **drawn)
        options: dict[str, Any] = self.options | {"adjoint": "direct"}
        path = sdeint(self.prior, self.diffusion, z0, ts, noise="diagonal", seed=random.fold(seed, 1), **options)
        x = self.decoder(path).transpose(0, 1)
        return x + self.log_noise.exp() * random.normal(x.shape, seed, draw=2, **drawn) if noise else x
