"""Data on a linear subspace: how far a learned one is off, how far samples leave it; and the error budget of sampling.

The budget is that of the statistical theory of diffusion (Chen et al., "Sampling Is as Easy as Learning the Score", ICLR 2023;
in the survey arXiv 2404.07771), written for any Gaussian process, and with its constants: total variation of what the
reverse SDE ends with, from the data noised to the last time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.time import as_time
from tweed.errors import IncompatibleError, InputError

OfTime = float | Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]
"""A number, or a function of times."""

_NODES = 64  # points of the quadrature within a step


def subspace_distance(a: Float[Tensor, "D k"], b: Float[Tensor, "D l"]) -> float:
    """`|P_a - P_b|_F^2` of the projectors onto the spans of the columns; for k = l twice the sum of the squared sines.

    The columns need not be orthonormal.

    Raises:
        InputError: the matrices are not of one height, or some columns depend on the others.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[0]:
        raise InputError(f"a, b: shapes {tuple(a.shape)}, {tuple(b.shape)} were given; expected (D, k) and (D, l)")
    a, b = _orthonormal("a", a), _orthonormal("b", b)
    # What each leaves of the other: no difference of large numbers.
    return ((a - b @ (b.T @ a)).square().sum() + (b - a @ (a.T @ b)).square().sum()).item()


def off_support(x: Float[Tensor, "n *event"], basis: Float[Tensor, "D d"]) -> Float[Tensor, " n"]:
    """`|(I - A A^T) x|^2` of each sample, float64; `basis` need not be orthonormal.

    Raises:
        InputError: the height of `basis` is not that of a flattened sample.
    """
    flat = x.double().flatten(1)
    if basis.ndim != 2 or flat.shape[1] != basis.shape[0]:
        raise InputError(f"basis: shape {tuple(basis.shape)} was given; expected ({flat.shape[1]}, d)")
    a = _orthonormal("basis", basis)
    return (flat - (flat @ a) @ a.T).square().sum(1)


def _orthonormal(name: str, basis: Tensor) -> Tensor:
    q, r = torch.linalg.qr(basis.double())
    size = r.diagonal().abs()
    if basis.shape[1] > basis.shape[0] or (len(size) and bool(size.min() < 1e-10 * size.max())):
        raise InputError(f"{name}: a column depends on the others; expected independent columns")
    return q


@dataclass(frozen=True)
class ErrorBudget:
    """Three bounds on total variation, in [0, 1] each where they say anything; their sum bounds the whole.

    Attributes:
        prior: of starting from noise instead of the noised data.
        score: of the score's error.
        discretisation: of holding the score for a step, to leading order in the steps.
    """

    prior: float
    score: float
    discretisation: float

    @property
    def total(self) -> float:
        """The sum of the three."""
        return self.prior + self.score + self.discretisation


def error_budget(
    process: Process,
    times: Sequence[float] | Float[Tensor, " steps+1"],
    *,
    second_moment: float,
    dimension: int,
    score_error: OfTime = 0.0,
    lipschitz: OfTime | None = None,
) -> ErrorBudget:
    """What the reverse SDE on a grid may be off by, at most: `TV(made, data noised to the last time)`.

    - prior: `KL(p_T | N(0, sigma^2 I)) <= alpha^2 E|x_0|^2 / (2 sigma^2)` (convexity, at each x_0), and Pinsker. It is finite
      for data on a subspace, where the usual `alpha sqrt(KL(data | N))` is not.
    - score: Girsanov and Pinsker, `(1/2) sqrt(int g^2 E|s - s'|^2 dt)`. (`sqrt(T) e / 2` for g = 1.)
    - discretisation: within a step of length `tau = int g^2 dt` the score of the path moves by
      `E|s - s_k|^2 = E |Hessian|_F^2 tau <= D L^2 tau` to leading order: `(1/2) sqrt(sum D L_k^2 tau_k^2 / 2)`.

    So the prior asks for a time of `log(1 / error)`, the steps for `tau ~ error^2 / D` (and for steps that shrink with the
    noise, where L = 1 / sigma^2).

    Args:
        process: a Gaussian process.
        times: decreasing, the last above 0, as of a sampler that holds the score (`EulerMaruyama` in its own variables).
        second_moment: `E|x_0|^2`.
        dimension: D, or an effective one, `E|Hessian|_F^2 / L^2`.
        score_error: the root mean square `sqrt(E|s - s'|^2)` over noised data: a number, or a function of times.
        lipschitz: a bound L on the score's Jacobian in spectral norm, the same; `1 / sigma^2` where not given, which holds
            for data on a subspace at all times with `alpha^2 Cov[x_0 | x] <= 2 sigma^2`.

    Raises:
        InputError: times do not decrease, or leave (0, 1]; a number is negative.
        IncompatibleError: the process has an endpoint.
    """
    if process.endpoint != "none":
        raise IncompatibleError(f"process: {type(process).__name__} has an endpoint; expected a Gaussian process")
    t = torch.as_tensor(times, dtype=torch.float64)
    if t.ndim != 1 or len(t) < 2 or bool((t[1:] >= t[:-1]).any()) or not 0.0 < t[-1].item() < t[0].item() <= 1.0:
        raise InputError(f"times: {t.flatten()[:8].tolist()} were given; expected decreasing times in (0, 1]")
    if not second_moment >= 0.0 or dimension < 1:
        raise InputError(
            f"second_moment, dimension: {second_moment}, {dimension} were given; expected at least 0, and at least 1"
        )
    for name, value in (("score_error", score_error), ("lipschitz", lipschitz)):
        if isinstance(value, int | float) and value < 0.0:
            raise InputError(f"{name}: {value} was given; expected at least 0")
    first = process.level(t[0].item())
    prior = 0.5 * (second_moment * (first.alpha / first.sigma) ** 2) ** 0.5
    middle = (torch.arange(_NODES, dtype=torch.float64) + 0.5) / _NODES
    within = t[1:, None] + (t[:-1] - t[1:])[:, None] * middle
    rate = process.diffusion(within).square() * (t[:-1] - t[1:])[:, None] / _NODES
    wrong = _at(score_error, within)
    steepness = process.sigma(t[1:]).square().reciprocal() if lipschitz is None else _at(lipschitz, t[1:])
    score = 0.5 * (rate * wrong.square()).sum().sqrt()
    held = 0.5 * (0.5 * dimension * (steepness * rate.sum(1)).square().sum()).sqrt()
    return ErrorBudget(prior, score.item(), held.item())


def _at(value: OfTime, t: Tensor) -> Tensor:
    return as_time(value(t)) if callable(value) else torch.full_like(t, value)
