"""Black-box optimisation by conditioning on a reward: few samples with a reward, many without.

Yuan, Huang, Ni, Chen & Wang, "Reward-Directed Conditional Diffusion: Provable Distribution Estimation and Reward Improvement"
(NeurIPS 2023); in the survey arXiv 2404.07771. A reward model fitted to the few labels the many; a denoiser is trained
with these pseudo-labels as the condition `vector`; samples are drawn at a wanted reward. For Gaussian data and a linear reward
`tweed.exact.MixturePosterior` is exact: its mean reward at y = a is `a (1 - noise^2 / v)`, v the variance of y.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import random
from tweed.errors import InputError


def ridge(
    x: Float[Tensor, "n *event"],
    y: Float[Tensor, " n"],
    penalty: float = 1.0,
    basis: Float[Tensor, "d k"] | None = None,
) -> Float[Tensor, " d"]:
    """`(X^T X + penalty I)^{-1} X^T y`, float64: the linear reward `theta . x`, without a constant.

    Args:
        basis: orthonormal columns: the fit is made within their span. For data on a subspace only that part of theta is
            identified, and what lies beside it is noise.

    Raises:
        InputError: shapes do not fit, the penalty is negative, or it is 0 and the data do not determine theta.
    """
    flat = x.double().flatten(1)
    if x.ndim < 2 or y.shape != (len(x),) or not penalty >= 0.0:
        raise InputError(
            f"x, y, penalty: {tuple(x.shape)}, {tuple(y.shape)}, {penalty} were given; expected (n, *event), (n,) and a "
            "penalty of at least 0"
        )
    if basis is not None and (basis.ndim != 2 or basis.shape[0] != flat.shape[1]):
        raise InputError(f"basis: shape {tuple(basis.shape)} was given; expected ({flat.shape[1]}, k)")
    rows = flat if basis is None else flat @ basis.double()
    gram = rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed) or (len(gram) and bool(factor.diagonal().min() < 1e-7 * factor.diagonal().max())):
        raise InputError(f"penalty: {penalty} was given; {len(x)} samples do not determine theta without a larger one")
    found = torch.cholesky_solve((rows.T @ y.double())[:, None], factor)[:, 0]
    return found if basis is None else basis.double() @ found


def pseudo_labels(
    x: Float[Tensor, "n *event"], theta: Float[Tensor, " d"], noise: float, seed: int = 0
) -> Float[Tensor, " n"]:
    """`theta . x + noise z`, float64. Without the noise the label would be a function of x, and the conditional density
    singular.

    Raises:
        InputError: shapes do not fit, or a noise below 0.
    """
    flat = x.double().flatten(1)
    if theta.shape != flat.shape[1:] or not noise >= 0.0:
        raise InputError(
            f"theta, noise: {tuple(theta.shape)}, {noise} were given; expected ({flat.shape[1]},) and at least 0"
        )
    z = random.normal((len(x), 1), seed, dtype=torch.float64, device=x.device)[:, 0]
    return flat @ theta.double() + noise * z
