"""Gradients through the reversible Heun method without keeping its states (Kidger et al., NeurIPS 2021, Algorithm 2).

Going back, each step is inverted from the state after it and its cotangent pulled back: the memory does not depend on the
number of steps, and the gradients are those of backpropagation through the steps, up to the round-off of the inversion.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tweed.solvers.differential.adjoints import Cotangent, leaves
from tweed.solvers.differential.plan import Plan
from tweed.solvers.differential.steppers import ReversibleHeun, detached


def reversible(plan: Plan, y0: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The path of a plan with the reversible Heun method, whose backward pass keeps its last state only."""
    return _Reversible.apply(plan, y0, *params)  # type: ignore[return-value]


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, y0: Tensor, *params: Tensor) -> Tensor:
        state, kept, path = plan.start(y0), set(plan.keep), [y0]
        for i in range(plan.steps):
            state = plan.step(i, state)
            if i + 1 in kept:
                path.append(state[0])
        ctx.plan, ctx.width = plan, len(state)
        ctx.save_for_backward(*state, *params)
        return torch.stack(path)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, path: Tensor) -> tuple[Tensor | None, ...]:
        plan, state, params = ctx.plan, ctx.saved_tensors[: ctx.width], ctx.saved_tensors[ctx.width :]
        stepper, field = plan.stepper, plan.field
        assert isinstance(stepper, ReversibleHeun)
        cotangent = Cotangent(plan, params, path)
        cotangent.state = [None] * len(state)
        cotangent.jump(plan.steps)
        # The fields at the present z with their graph: one evaluation a step serves the inversion and the gradient.
        z, fields = _fields(plan, plan.steps, state[1])
        for i in reversed(range(plan.steps)):
            h, noise = plan.grid[i + 1] - plan.grid[i], plan.noise_of(i)
            back = None if noise is None else noise.scaled(-1.0)
            with torch.no_grad():
                earlier = stepper.predict(field, state, -h, back)
            earlier, before = _fields(plan, i, earlier)
            with torch.no_grad():
                state = stepper.correct(field, state[0], earlier, -h, back, _pair(state[2:]), _pair(detached(before)))
            state = (state[0].detach(), earlier.detach(), *detached(before))
            with torch.enable_grad():
                begin, later = leaves(state), leaves(detached(fields))
                place = stepper.predict(field, begin, h, noise)
                y = stepper.correct(field, begin[0], place, h, noise, _pair(begin[2:]), _pair(later))[0]
            bar_y, bar_z, *bar_fields = cotangent.state
            outer = _grad((y,), (*begin, *later), (bar_y,))
            bar_fields = [_sum(a, b) for a, b in zip(bar_fields, outer[len(begin) :], strict=True)]
            inner = _grad(fields, (z, *params), bar_fields)
            cotangent.add(inner[1:])
            reached = _grad((place,), begin, (_sum(bar_z, inner[0]),))
            cotangent.state = [_sum(a, b) for a, b in zip(outer, reached, strict=False)]
            cotangent.jump(i)
            z, fields = earlier, before
        bar_y, bar_z, *bar_fields = cotangent.state
        first = _grad(fields, (z, *params), bar_fields)
        cotangent.add(first[1:])
        return None, _sum(_sum(bar_y, bar_z), first[0]), *cotangent.sums


def _fields(plan: Plan, i: int, z: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A leaf at z, and the fields there with their graph."""
    with torch.enable_grad():
        (z,) = leaves((z,))
        return z, tuple(v for v in plan.field(plan.grid[i], z) if v is not None)


def _pair(fields: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    return fields[0], fields[1] if len(fields) > 1 else None


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _grad(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], bars: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The pulled-back cotangents; None where nothing depends on an input."""
    pairs = [(out, bar) for out, bar in zip(outputs, bars, strict=True) if bar is not None and out.requires_grad]
    if not pairs:
        return (None,) * len(inputs)
    return torch.autograd.grad([out for out, _ in pairs], list(inputs), [bar for _, bar in pairs], allow_unused=True)
