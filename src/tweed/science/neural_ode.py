"""Neural ordinary differential equations: a network as the right-hand side, with or without known physics.

Chen, Rubanova, Bettencourt & Duvenaud, "Neural ordinary differential equations" (NeurIPS 2018, arXiv 1806.07366); Dupont,
Doucet & Teh, "Augmented neural ODEs" (2019, arXiv 1904.01681); Rackauckas et al., "Universal differential equations"
(2020, arXiv 2001.04385); Finlay et al., "How to train your neural ODE" (ICML 2020, arXiv 2002.02798), for the energy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.errors import InputError
from tweed.solvers.differential import odeint


class NeuralODE(nn.Module):
    """`dy/dt = known(t, y) + field(t, y)` on states (b, n).

    Args:
        field: `f(t, y)`, on states of n + `augment` numbers; a `VectorField`, say.
        known: what is known of the right-hand side, on the n numbers; its modules' parameters are trained too.
        augment: further numbers that start at zero and are left out of the answer: flows of n numbers alone cannot cross.
        options: those of `odeint`: method, step, adjoint, tolerances.
    """

    def __init__(
        self,
        field: nn.Module,
        *,
        known: Callable[[Tensor, Tensor], Tensor] | None = None,
        augment: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if augment < 0:
            raise InputError(f"augment: {augment} was given; expected at least 0")
        self.field, self.known, self.augment = field, known, augment
        self.options = options

    def slope(self, t: Float[Tensor, ""], y: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
        """The right-hand side on the augmented state."""
        total = self.field(t, y)
        if self.known is None:
            return total
        n = y.shape[1] - self.augment
        return total + nn.functional.pad(self.known(t, y[:, :n]), (0, self.augment))

    def forward(self, y0: Float[Tensor, "b n"], ts: Sequence[float] | Float[Tensor, " t"]) -> Float[Tensor, "t b n"]:
        """The solution at all of `ts`, from y0 at the first.

        Raises:
            InputError, NumericalError: see `odeint`.
        """
        path = odeint(
            self.slope, nn.functional.pad(y0, (0, self.augment)), ts, params=self.parameters(), **self.options
        )
        return path[..., : y0.shape[1]]

    def with_energy(
        self, y0: Float[Tensor, "b n"], ts: Sequence[float] | Float[Tensor, " t"]
    ) -> tuple[Float[Tensor, "t b n"], Float[Tensor, "t b"]]:
        """The solution, and the kinetic energy `Int |dy/dt|^2 dt` up to each time: a penalty on it straightens paths."""

        def both(t: Tensor, y: Tensor) -> Tensor:
            velocity = self.slope(t, y[:, :-1])
            return torch.cat((velocity, velocity.square().sum(1, keepdim=True)), 1)

        start = nn.functional.pad(y0, (0, self.augment + 1))
        path = odeint(both, start, ts, params=self.parameters(), **self.options)
        return path[..., : y0.shape[1]], path[..., -1]
