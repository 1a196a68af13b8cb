"""A start in closed form: the flow of a Gaussian from pure noise to where the data's shape begins to matter.

At high noise a learned score is that of the Gaussian with the data's mean and covariance, whose probability flow is known
exactly; the first part of a run may be jumped at no evaluation at all (Wang & Vastola, "The Hidden Linear Structure in
Diffusion Models and its Application to Fast Sampling", TMLR 2024, Eq. 9). A multistep solver begins anew at the jump's end.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.processes import Process
from tweed.core.starts import Start
from tweed.errors import InputError


class Gaussian(Protocol):
    """What is jumped along: `GaussianDenoiser`, or the `PrincipalGaussian` that `fit_gaussian` gives."""

    process: Process

    @property
    def event(self) -> tuple[int, ...] | None: ...

    @property
    def mean(self) -> Tensor: ...

    def flow(self, x: Tensor, t: float, s: float, y: Tensor | None = None) -> Tensor: ...


def gaussian_jump(
    gaussian: Gaussian | Sequence[Gaussian],
    n_or_x: int | Float[Tensor, "b *event"],
    t: float,
    *,
    start: float = 1.0,
    label: Int[Tensor, " b"] | None = None,
    y: Float[Tensor, "b *event"] | None = None,
    seed: int = 0,
    index: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Start:
    """Draws of the prior (or given states) at time `start`, carried to time `t` by the flow of a Gaussian.

    Args:
        gaussian: of the data, on the model's process; or one for each class, and `label` says whose a sample is.
        n_or_x: how many draws, the same as those of `tweed.sample` under the same `seed` and `index`; or states.
        t: where the jump ends. At `start` nothing is changed. Below two or three times the distance of the data's modes a
            Gaussian, which goes to none of them, leads astray.
        y: the endpoint, where the process has one.

    Raises:
        InputError: `t` is above `start`, or the classes and labels do not fit.
        IncompatibleError: from a time at which a direction has neither variance nor noise.
    """
    each = list(gaussian) if isinstance(gaussian, Sequence) else [gaussian]
    if not each or not 0.0 <= t <= start <= 1.0:
        raise InputError(
            f"gaussian, t, start: {len(each)} Gaussians, {t}, {start} were given; expected one, 0 <= t <= start <= 1"
        )
    if len(each) > 1 and label is None:
        raise InputError(f"label: none was given for {len(each)} Gaussians; expected the class of each sample")
    process, event = each[0].process, each[0].event
    if isinstance(n_or_x, Tensor):
        x = n_or_x
    else:
        assert event is not None
        device = each[0].mean.device
        x = process.prior((n_or_x, *event), seed, index=index, t=start, y=y, dtype=dtype, device=device)
    if label is not None and (label.shape != (len(x),) or label.is_floating_point()):
        raise InputError(f"label: shape {tuple(label.shape)} was given; expected {len(x)} classes")
    if t == start:
        return Start(x, t)
    if len(each) == 1:
        return Start(each[0].flow(x, start, t, y).to(x.dtype), t)
    assert label is not None
    moved = torch.empty_like(x)
    for k in label.unique().tolist():
        if not 0 <= k < len(each):
            raise InputError(f"label: {k} was given; expected classes below {len(each)}")
        rows = (label == k).nonzero()[:, 0].to(x.device)
        moved[rows] = each[k].flow(x[rows], start, t, None if y is None else y[rows]).to(x.dtype)
    return Start(moved, t)


def skip(
    process: Process, grid: Callable[..., Tensor], steps: int, skipped: int, *, end: float = 0.0, start: float = 1.0
) -> tuple[float, Float[Tensor, " left+1"]]:
    """Where a jump over the first `skipped` of the grid's `steps` steps ends, and the grid's times from there on.

    `tweed.sample(model, gaussian_jump(gaussian, n, t), times=times)` then runs the rest; with the grid function itself and
    `steps - skipped` steps it spaces them anew.

    Raises:
        InputError: no step is left, or a negative number is skipped.
    """
    if not 0 <= skipped < steps:
        raise InputError(f"skipped: {skipped} of {steps} steps; expected at least 0, and one left")
    times = grid(process, steps, start=start, end=end)
    return times[skipped].item(), times[skipped:]
