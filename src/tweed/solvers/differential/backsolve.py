"""The continuous adjoint (Chen et al., "Neural ordinary differential equations", NeurIPS 2018; Li et al., AISTATS 2020):

    da = -a^T dF/dy,    d(dL/dtheta) = -a^T dF/dtheta,    F = f dt + g o dW,

solved backwards together with y itself, driven by the same Brownian path; at each kept time the cotangent of y is added to a.
Memory does not depend on the number of steps. The gradient is that of the equation, not of the steps taken: it is wrong by
the error of the method, and by more where the way back is unstable (strongly contracting fields).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tweed.solvers.differential.field import Noise
from tweed.solvers.differential.plan import Plan
from tweed.solvers.differential.tableaus import EXPLICIT, explicit_step


def backsolved(plan: Plan, y0: Tensor, params: Sequence[Tensor], method: str) -> Tensor:
    """The path of a plan, whose backward pass solves the adjoint equation by the explicit `method` on the same grid."""
    return _Backsolve.apply(plan, method, y0, *params)  # type: ignore[return-value]


class _Backsolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, method: str, y0: Tensor, *params: Tensor) -> Tensor:
        path = plan.run(y0)
        ctx.plan, ctx.method = plan, method
        ctx.save_for_backward(path[-1], *params)
        return path

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bars: Tensor) -> tuple[Tensor | None, ...]:
        plan, (y, *params) = ctx.plan, ctx.saved_tensors
        rows = {index: row for row, index in enumerate(plan.keep)}
        state = (y, bars[rows[plan.steps]], *(torch.zeros_like(p) for p in params))
        for i in reversed(range(plan.steps)):
            start, end = plan.grid[i + 1], plan.grid[i]
            noise = plan.noise_of(i)
            back = None if noise is None else noise.scaled(-1.0)

            def flow(
                t: float, s: tuple[Tensor, ...], h: float = end - start, noise: Noise | None = back
            ) -> tuple[Tensor, ...]:
                return _augmented(plan, t, s, h, noise, params)

            state, _ = explicit_step(EXPLICIT[ctx.method], flow, start, end, state)
            if i in rows:
                state = (state[0], state[1] + bars[rows[i]], *state[2:])
        return None, None, *state[1:]


def _augmented(
    plan: Plan, t: float, state: tuple[Tensor, ...], h: float, noise: Noise | None, params: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The increments of y, of its adjoint and of the parameters' gradients."""
    with torch.enable_grad():
        y = state[0].detach().requires_grad_()
        change = plan.field.flow(t, y, h, noise)
    if not change.requires_grad:
        return change, *(torch.zeros_like(s) for s in state[1:])
    found = torch.autograd.grad(change, [y, *params], state[1], allow_unused=True)
    shares = (torch.zeros_like(s) if d is None else -d for d, s in zip(found, state[1:], strict=True))
    return change.detach(), *shares
