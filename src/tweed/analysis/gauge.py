"""Gauge freedom: the part of a field that moves no mass (Horvat & Pfister, ICLR 2024, arXiv 2402.03845).

Any field is `s = grad phi + r` with `div(p r) = 0`, uniquely, and the two are orthogonal under p: `E_p[grad psi . r] = 0` for
every psi. The evolution of densities, by the ODE or by the SDE, does not see r. So sampling is exact if and only if `grad phi`
is the true score; being a gradient is neither needed nor enough.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError, NumericalError


@dataclass(frozen=True)
class Decomposition:
    """A field on samples, in its two parts.

    Attributes:
        conservative, gauge: `grad phi` and `r`, shape (n, d).
        coefficients: of the basis, shape (k,).
        held_out: the share of the field's mean square that `grad phi` explains on samples it was not fitted to.
        weak: the largest `|E[grad psi . r]|` over the basis, over the root mean square of each factor.
    """

    conservative: Float[Tensor, "n d"]
    gauge: Float[Tensor, "n d"]
    coefficients: Float[Tensor, " k"]
    held_out: float
    weak: float


def linear_gaussian(
    a: Float[Tensor, "d d"], covariance: Float[Tensor, "d d"]
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """The two parts of the field `a x` under N(0, covariance): `(M, R)`, `a = M + R`, exactly.

    M is symmetric, and `covariance^-1 R` is skew: `C M + M C = C a + a^T C` with `C` the inverse covariance (Sylvester).

    Raises:
        InputError: shapes do not fit.
        NumericalError: the covariance is singular.
    """
    d = len(a)
    if a.shape != (d, d) or covariance.shape != (d, d):
        raise InputError(
            f"a, covariance: shapes {tuple(a.shape)}, {tuple(covariance.shape)} were given; expected (d, d) twice"
        )
    values, axes = torch.linalg.eigh(covariance.double())
    if bool((values <= 1e-14 * values.abs().amax()).any()):
        raise NumericalError("covariance: it is singular; restrict the field to the directions that have variance")
    inverse = axes @ torch.diag(1.0 / values) @ axes.T
    right = axes.T @ (inverse @ a.double() + a.double().T @ inverse) @ axes
    rate = 1.0 / values
    symmetric = axes @ (right / (rate[:, None] + rate[None, :])) @ axes.T
    return symmetric, a.double() - symmetric


def gauge_residual(
    r: Float[Tensor, "n d"], divergence: Float[Tensor, " n"], score: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """`div r + r . grad log p`, zero where r is a gauge field of p (their Eq. 11)."""
    return divergence + (r * score).sum(1)


def decompose(
    field: Float[Tensor, "n d"],
    x: Float[Tensor, "n d"],
    features: Callable[[Tensor], Tensor],
    weights: Float[Tensor, " n"] | None = None,
    *,
    hold_out: float = 0.25,
    ridge: float = 0.0,
) -> Decomposition:
    """The two parts of a field from its values on samples of p, with `phi` in the span of some features.

    Args:
        field: the values, shape of `x`.
        x: samples of p; or, with `weights`, the nodes of a quadrature of it.
        features: `(n, d) -> (n, k)`, differentiable.
        hold_out: the share of the samples, the last ones, that the fit does not see; all are used where there are weights.
        ridge: added to the normal equations' diagonal, over its mean.

    Raises:
        InputError: shapes do not fit, or fewer than two samples a feature.
    """
    if field.shape != x.shape or x.ndim != 2:
        raise InputError(f"field, x: shapes {tuple(field.shape)}, {tuple(x.shape)} were given; expected (n, d) twice")
    state = x.detach().double().requires_grad_()
    with torch.enable_grad():
        values = features(state)
        columns = [
            torch.autograd.grad(values[:, k].sum(), state, retain_graph=True, materialize_grads=True)[0]
            for k in range(values.shape[1])
        ]
    gradients = torch.stack(columns, 1).detach()
    n, k, _ = gradients.shape
    seen = n if weights is not None else int(n * (1.0 - hold_out))
    if weights is None and seen < 2 * k:
        raise InputError(f"x: {seen} samples to fit {k} features were given; expected at least two a feature")
    mass = torch.full((n,), 1.0, dtype=torch.float64) if weights is None else weights.double()
    values64 = field.double()
    g, w = gradients[:seen], mass[:seen] / mass[:seen].sum()
    normal = torch.einsum("n,nkd,njd->kj", w, g, g)
    normal = normal + ridge * normal.diagonal().mean() * torch.eye(k, dtype=normal.dtype)
    right = torch.einsum("n,nkd,nd->k", w, g, values64[:seen])
    coefficients = torch.linalg.lstsq(normal, right[:, None], driver="gelsd").solution[:, 0]
    conservative = torch.einsum("nkd,k->nd", gradients, coefficients)
    gauge = values64 - conservative
    test = slice(seen, n) if seen < n else slice(0, n)
    share = mass[test] / mass[test].sum()
    missed = (share * gauge[test].square().sum(1)).sum() / (share * values64[test].square().sum(1)).sum()
    even = mass / mass.sum()
    inner = torch.einsum("n,nkd,nd->k", even, gradients, gauge).abs()
    sizes = (even[:, None] * gradients.square().sum(2)).sum(0).sqrt() * (even * gauge.square().sum(1)).sum().sqrt()
    weak = (inner / sizes.clamp_min(1e-300)).max().item()
    return Decomposition(conservative, gauge, coefficients, 1.0 - missed.item(), weak)
