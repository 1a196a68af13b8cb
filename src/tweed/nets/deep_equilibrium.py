"""Deep equilibrium models: a layer whose output is a fixed point, with the gradient of the implicit function theorem.

Bai, Kolter & Koltun, "Deep equilibrium models" (NeurIPS 2019, arXiv 1909.01377). `z = f(z, x)` is solved by Anderson
acceleration (Anderson, 1965; Walker & Ni, 2011), whatever the number of iterations it takes; the backward pass needs no
graph of them but solves one linear equation, `u = v + (df/dz)^T u`, and hands `u` on to `f`'s own gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tweed.errors import InputError, NumericalError


@torch.no_grad()
def anderson(
    f: Callable[[Tensor], Tensor],
    z0: Float[Tensor, "b *n"],
    *,
    tolerance: float = 1e-6,
    memory: int = 5,
    max_iterations: int = 100,
    ridge: float = 1e-10,
) -> Float[Tensor, "b *n"]:
    """A fixed point `z = f(z)` of each sample, by Anderson acceleration from `z0`; without a graph.

    With residuals `r_i = f(z_i) - z_i` of the last `memory` iterates, the next one is `sum_i a_i f(z_i)` with weights of
    sum one that minimise `|sum_i a_i r_i|^2 + ridge |r|^2 |a|^2`. A sample that has converged is not moved any more, so
    that its result does not depend on the batch. One look at the residuals by the host an iteration.

    Args:
        tolerance: on `|f(z) - z| <= tolerance (1 + |z|)`, root mean square over a sample's numbers.
        memory: iterates that are combined; 1 is plain iteration.

    Raises:
        InputError: an argument out of range, or f answers another shape.
        NumericalError: not converged after `max_iterations`; the residual is named.
    """
    for name, value in (("tolerance", tolerance), ("memory", memory), ("max_iterations", max_iterations)):
        if not value > 0:
            raise InputError(f"{name}: {value} was given; expected a positive number")
    z, batch = z0.detach(), z0.shape[0]
    if not z.numel():
        return z.clone()
    states: list[Tensor] = []
    residuals: list[Tensor] = []
    worst = torch.tensor(torch.inf)
    for _ in range(max_iterations):
        image = f(z)
        if image.shape != z.shape:
            raise InputError(f"f: {tuple(image.shape)} was answered; expected the shape of z, {tuple(z.shape)}")
        r = (image - z).reshape(batch, -1)
        scaled = r.square().mean(1).sqrt() / (1.0 + z.reshape(batch, -1).square().mean(1).sqrt())
        done, worst = scaled <= tolerance, scaled.max()
        if bool(done.all()):
            return z
        if not bool(worst.isfinite()):
            break
        states, residuals = [*states, image.reshape(batch, -1)][-memory:], [*residuals, r][-memory:]
        move = ~done.reshape(-1, *(1 for _ in z.shape[1:]))
        z = torch.where(move, _combine(states, residuals, ridge).reshape(z.shape), z)
    raise NumericalError(
        f"anderson: not converged within {max_iterations} iterations; the worst residual is {worst.item():.3g}, "
        f"expected at most {tolerance:g} (is f a contraction?)"
    )


def _combine(states: list[Tensor], residuals: list[Tensor], ridge: float) -> Tensor:
    """`sum_i a_i f(z_i)` of each sample."""
    if len(states) == 1:
        return states[0]
    r = torch.stack(residuals, 1).double()
    gram = r @ r.mT
    # The scale makes the ridge relative; a sample at a fixed point has a zero matrix, and equal weights.
    size = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(states), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram / size[:, None, None] + ridge * eye, torch.ones_like(gram[:, :, 0]))
    weights = (weights / weights.sum(1, keepdim=True)).to(states[0])
    return (weights[:, :, None] * torch.stack(states, 1)).sum(1)


class _ImplicitGradient(torch.autograd.Function):
    """The identity on `f(z*, x)`, whose backward pass solves for the cotangent of the fixed point."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, pull: Callable[[Tensor], Tensor], options: dict[str, Any]) -> Tensor:
        ctx.pull, ctx.options = pull, options
        return image.view_as(image)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        # Cotangents have no natural size: they are solved relative to the largest, so that the tolerance means the same.
        size = v.abs().max().clamp(min=torch.finfo(v.dtype).tiny)
        scaled = v / size
        try:
            u = anderson(lambda u: scaled + ctx.pull(u), scaled, **ctx.options)
        except NumericalError as error:
            raise NumericalError(f"backward pass of a deep equilibrium: {error}") from None
        return u * size, None, None


class DeepEquilibrium(nn.Module):
    """The fixed point `z = f(z, x)` as a layer.

    Its memory does not depend on the number of iterations, and its gradient is that of an infinitely deep network with
    the same layer throughout, to the tolerances.

    Args:
        f: `f(z, x)` of the shape of z; a contraction in z, or near one. Deterministic.
        tolerance, memory, max_iterations: see `anderson`, for the fixed point.
        backward_tolerance: the same for the linear equation of the gradient, relative to the largest cotangent; None for
            `tolerance`.
    """

    def __init__(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        *,
        tolerance: float = 1e-6,
        memory: int = 5,
        max_iterations: int = 100,
        backward_tolerance: float | None = None,
    ) -> None:
        super().__init__()
        self.f = f
        self.options = {"tolerance": tolerance, "memory": memory, "max_iterations": max_iterations}
        self.backward_options = self.options | {
            "tolerance": tolerance if backward_tolerance is None else backward_tolerance
        }

    def forward(self, x: Float[Tensor, "b *m"], z0: Float[Tensor, "b *n"] | None = None) -> Float[Tensor, "b *n"]:
        """The fixed point for each x, from `z0` (None: zeros of the shape of x).

        Raises:
            NumericalError: not converged, here or later in the backward pass.
        """
        start = torch.zeros_like(x) if z0 is None else z0
        z = anderson(lambda z: self.f(z, x), start, **self.options)
        # One more evaluation, with the graph to x and to the parameters; what flows through z is the equation's part.
        image = self.f(z, x)
        if not image.requires_grad:
            return image
        fixed, given = z.detach().requires_grad_(), x.detach()

        def pull(u: Tensor) -> Tensor:
            # The graph is made anew in each call: one that was kept would hold memory between the passes.
            with torch.enable_grad():
                again = self.f(fixed, given)
            return torch.autograd.grad(again, fixed, u)[0]

        return _ImplicitGradient.apply(image, pull, self.backward_options)  # type: ignore[return-value]
