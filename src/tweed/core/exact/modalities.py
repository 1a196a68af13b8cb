"""Jointly Gaussian modalities in one diffusion variable: the exact denoiser of their aggregate, whatever of them is known."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core import targets
from tweed.core.aggregate import Aggregate, Embedding
from tweed.core.denoiser import Denoiser
from tweed.core.modalities import ModalEstimate
from tweed.core.processes import VP, Process
from tweed.core.time import as_time, working_dtype
from tweed.errors import IncompatibleError, InputError


class GaussianModalities(Denoiser):
    """`X = (x_1, ..., x_n) ~ N(mean, covariance)` seen through `z_t = alpha M X + sigma eps`, M X the aggregate.

    With M the encoders side by side over `n^power`, and m, C the moments of X given the modalities that are known (the
    conditions of their names), `E[X | z_t, x_K] = m + alpha C M^T (alpha^2 M C M^T + sigma^2)^{-1} (z_t - alpha M m)`.
    Computed in float64; times are numbers or of shape (b,).

    Args:
        mean: shape (d,), all modalities in order.
        covariance: (d, d), positive definite.
        encoders: name -> matrix (dimension of the diffusion variable, dimension of the modality).
        process: a Gaussian process; `VP()` where not given.
        power: as for `Aggregate`.

    Raises:
        InputError: shapes do not fit, or the covariance is not positive definite.
        IncompatibleError: the process has an endpoint.
    """

    event: tuple[int, ...]
    mean: Tensor
    covariance: Tensor
    matrix: Tensor

    def __init__(
        self,
        mean: Float[Tensor, " d"],
        covariance: Float[Tensor, "d d"],
        encoders: Mapping[str, Float[Tensor, "z n"]],
        process: Process | None = None,
        power: float = 1.0,
    ):
        super().__init__()
        self.process = process or VP()
        if self.process.endpoint != "none":
            raise IncompatibleError(
                f"process: {type(self.process).__name__} has an endpoint; expected a Gaussian process"
            )
        matrices = {name: matrix.double() for name, matrix in encoders.items()}
        sizes = [matrix.shape[1] for matrix in matrices.values()]
        d, heights = sum(sizes), {matrix.shape[0] for matrix in matrices.values()}
        if mean.shape != (d,) or covariance.shape != (d, d) or len(heights) != 1:
            raise InputError(
                f"mean, covariance: shapes {tuple(mean.shape)}, {tuple(covariance.shape)} were given with encoders into "
                f"{sorted(heights)} dimensions; expected ({d},), ({d}, {d}) and one dimension"
            )
        if bool(torch.linalg.cholesky_ex(covariance.double())[1]):
            raise InputError("covariance: it is not positive definite; expected one that is")
        self.event = (heights.pop(),)
        self.aggregate = Aggregate(
            {name: Embedding(m.shape[1], self.event, gain=1.0, matrix=m) for name, m in matrices.items()}, power=power
        )
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self.places = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(matrices)}
        self.register_buffer("mean", mean.double())
        self.register_buffer("covariance", covariance.double())
        self.register_buffer("matrix", torch.cat(list(matrices.values()), 1) / len(matrices) ** power)

    def given(self, known: Mapping[str, Tensor]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "d d"]]:
        """The mean and covariance of all modalities given some; those themselves have no variance left."""
        if not known:
            return self.mean[None], self.covariance
        place = torch.cat([torch.arange(len(self.mean))[self.places[name]] for name in known]).to(self.mean.device)
        value = torch.cat([x.double() for x in known.values()], 1)
        gain = torch.linalg.solve(self.covariance[place][:, place], self.covariance[place]).T
        return self.mean + (value - self.mean[place]) @ gain.T, self.covariance - gain @ self.covariance[place]

    def forward(self, x, t, **cond):
        mean, covariance = self.given(self.aggregate.known(cond))
        time = as_time(t)
        alpha, sigma = (c.to(x.device).reshape(-1, 1, 1) for c in (self.process.alpha(time), self.process.sigma(time)))
        cross = covariance @ self.matrix.T
        seen = alpha**2 * (self.matrix @ cross) + sigma**2 * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        surplus = x.double() - alpha[..., 0] * (mean @ self.matrix.T)
        found = mean + alpha[..., 0] * (torch.linalg.solve(seen, surplus[..., None])[..., 0] @ cross.T)
        dtype = working_dtype(x)
        read = {name: found[:, place].to(dtype) for name, place in self.places.items()}
        answer = (found @ self.matrix.T).to(dtype)
        return ModalEstimate(x.to(dtype), t, answer, self.process, targets.Data(), modalities=read)
