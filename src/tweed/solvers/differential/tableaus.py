"""Explicit Runge-Kutta methods for any increment `F(t, y; h, dW)`, and the embedded pairs that control a step.

The tableaus are those of `tweed.solvers.runge_kutta`; Tsitouras' pair and the error weights are added here. With noise in
the increment the same methods solve Stratonovich equations: strong order 1 where the noise commutes, 1/2 otherwise.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tweed.solvers.runge_kutta import TABLEAUS, Tableau

Flow = Callable[[float, tuple[Tensor, ...]], tuple[Tensor, ...]]

TSIT5 = Tableau(
    5,
    (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
    (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    ),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
)
"""Tsitouras, "Runge-Kutta pairs of order 5(4)" (Computers & Mathematics with Applications, 2011)."""

EXPLICIT: dict[str, Tableau] = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "midpoint": TABLEAUS["midpoint"],
    "heun": TABLEAUS["heun2"],
    "heun3": TABLEAUS["heun3"],
    "rk4": TABLEAUS["rk4"],
    "bosh3": TABLEAUS["bogacki-shampine3"],
    "dopri5": TABLEAUS["dormand-prince5"],
    "tsit5": TSIT5,
}


class Pair(NamedTuple):
    """A tableau with the weights of its error, the last of them for the derivative at the end of the step."""

    tableau: Tableau
    error: tuple[float, ...]


PAIRS: dict[str, Pair] = {
    "bosh3": Pair(EXPLICIT["bosh3"], (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8)),
    "dopri5": Pair(
        EXPLICIT["dopri5"],
        (
            35 / 384 - 5179 / 57600,
            0.0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            -2187 / 6784 + 92097 / 339200,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
    ),
    "tsit5": Pair(
        TSIT5,
        (
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            0.015151515151515152,
        ),
    ),
}
"""The pairs whose steps adapt, by the name of the method."""


def combine(y: Tensor, weights: Sequence[float], increments: Sequence[Tensor]) -> Tensor:
    """`y + sum_j weights_j increments_j`."""
    for weight, increment in zip(weights, increments, strict=True):
        if weight != 0.0:
            y = torch.add(y, increment, alpha=weight)
    return y


def explicit_step(
    tableau: Tableau,
    flow: Flow,
    start: float,
    end: float,
    state: tuple[Tensor, ...],
    first: tuple[Tensor, ...] | None = None,
) -> tuple[tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
    """One step of a state of several tensors, and the increments of its stages.

    Args:
        flow: (t, state) to the increments over the whole step that the field at that place would give.
        first: those of the first stage, where they are known.
    """
    increments: list[tuple[Tensor, ...]] = []

    def at(weights: Sequence[float]) -> tuple[Tensor, ...]:
        columns = zip(*increments, strict=True) if increments else [()] * len(state)
        return tuple(combine(y, weights, column) for y, column in zip(state, columns, strict=True))

    for c, row in zip(tableau.c, tableau.a, strict=True):
        if first is not None and not increments:
            increments.append(first)
            continue
        increments.append(flow(end if c == 1.0 else start + c * (end - start), at(row)))
    return at(tableau.b), increments
