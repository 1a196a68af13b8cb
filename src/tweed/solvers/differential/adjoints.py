"""Gradients of a run with less memory than its whole graph: recursive checkpointing.

`checkpointed` keeps C states of the forward run and rebuilds the others from them, in the order of Griewank's binomial
schedule ("Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation", 1992):
with at most r rebuildings of a step, C checkpoints suffice for (C + r choose r) steps. The gradients are those of
backpropagation through the steps, to the last bit but for the order of additions.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tweed.solvers.differential.plan import Plan
from tweed.solvers.differential.steppers import State, detached


def checkpointed(plan: Plan, y0: Tensor, params: Sequence[Tensor], checkpoints: int) -> Tensor:
    """The path of a plan, whose backward pass keeps `checkpoints` states and the graph of one step."""
    return _Checkpointed.apply(plan, checkpoints, y0, *params)  # type: ignore[return-value]


@lru_cache(maxsize=4096)
def repeats(steps: int, checkpoints: int) -> int:
    """How often a step is made at most, after the forward pass, with so many checkpoints (the first state among them)."""
    count = 0
    while math.comb(checkpoints + count, count) < steps:
        count += 1
    return count


@lru_cache(maxsize=4096)
def split(steps: int, checkpoints: int) -> int:
    """Where the next checkpoint goes: after how many of `steps` steps, when `checkpoints` (the start among them) are left.

    Any place that lets both parts do with the binomial number of repeats is optimal; this is the latest.
    """
    r = repeats(steps, checkpoints)
    later = math.comb(checkpoints - 1 + r - 1, r - 1) if r else 0
    return max(1, min(math.comb(checkpoints + r - 1, r - 1) if r else 1, steps - later, steps - 1))


def spine(steps: int, checkpoints: int) -> list[int]:
    """The steps before which the forward pass keeps its state."""
    places, here = [0], 0
    while checkpoints > 1 and steps - here > 1:
        here += split(steps - here, checkpoints)
        places.append(here)
        checkpoints -= 1
    return places


class Cotangent:
    """The cotangent of the state on the way back, and what the parameters have got so far."""

    def __init__(self, plan: Plan, params: Sequence[Tensor], path: Tensor):
        self.plan, self.params, self.path = plan, params, path
        self.at = {index: row for row, index in enumerate(plan.keep)}
        self.state: list[Tensor | None] = []
        self.sums: list[Tensor | None] = [None] * len(params)

    def jump(self, i: int) -> None:
        """Add what the loss says of y at grid index i."""
        if i in self.at:
            here = self.path[self.at[i]]
            first = self.state[0] if self.state else None
            self.state[:1] = [here if first is None else first + here]

    def pull(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """From the cotangent of the outputs to that of the inputs; the shares of the parameters are added up."""
        pairs = [
            (out, bar)
            for out, bar in zip(outputs, [*self.state, *[None] * len(outputs)], strict=False)
            if bar is not None and out.requires_grad
        ]
        if not pairs:
            self.state = [None] * len(inputs)
            return
        found = torch.autograd.grad(
            [out for out, _ in pairs], [*inputs, *self.params], [bar for _, bar in pairs], allow_unused=True
        )
        self.state = list(found[: len(inputs)])
        self.add(found[len(inputs) :])

    def add(self, shares: Sequence[Tensor | None]) -> None:
        """Add to the parameters' gradients."""
        self.sums = [
            new if old is None else old if new is None else old + new
            for old, new in zip(self.sums, shares, strict=True)
        ]


def leaves(state: State) -> State:
    """The numbers of a state as the inputs of a fresh graph."""
    return tuple(s.detach().requires_grad_() for s in state)


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, checkpoints: int, y0: Tensor, *params: Tensor) -> Tensor:
        places = spine(plan.steps, checkpoints)
        kept, wanted, path, saved = set(plan.keep), set(places), [y0], []
        state = plan.start(y0)
        widths = len(state)
        for i in range(plan.steps):
            if i in wanted:
                saved += state if i else (y0,)
            state = plan.step(i, state)
            if i + 1 in kept:
                path.append(state[0])
        ctx.plan, ctx.checkpoints, ctx.places, ctx.widths, ctx.count = plan, checkpoints, places, widths, len(saved)
        ctx.save_for_backward(*saved, *params)
        return torch.stack(path)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, path: Tensor) -> tuple[Tensor | None, ...]:
        plan, saved = ctx.plan, ctx.saved_tensors
        states, params = saved[: ctx.count], saved[ctx.count :]
        y0 = states[0]
        cotangent = Cotangent(plan, params, path)
        cotangent.jump(plan.steps)
        end = plan.steps
        for number in reversed(range(len(ctx.places))):
            # The first state is made anew from y0, so that its graph can be followed to y0.
            first = 1 + (number - 1) * ctx.widths
            state = states[first : first + ctx.widths] if number else plan.start(y0)
            _reverse(plan, ctx.places[number], end, state, ctx.checkpoints - number, cotangent)
            end = ctx.places[number]
        with torch.enable_grad():
            (begin,) = leaves((y0,))
            state = plan.start(begin)
        cotangent.pull(state, (begin,))
        return None, None, cotangent.state[0], *cotangent.sums


def _reverse(plan: Plan, first: int, last: int, state: State, checkpoints: int, cotangent: Cotangent) -> None:
    """Carry the cotangent from grid index `last` to `first`, whose state is given."""
    while last - first > 1:
        cut = first + split(last - first, checkpoints) if checkpoints > 1 else last - 1
        inner = state
        with torch.no_grad():
            for i in range(first, cut):
                inner = plan.step(i, inner)
        _reverse(plan, cut, last, inner, checkpoints - 1, cotangent)
        last = cut
    if last == first:
        return
    with torch.enable_grad():
        begin = leaves(detached(state))
        outputs = plan.step(first, begin)
    cotangent.pull(outputs, begin)
    cotangent.jump(first)
