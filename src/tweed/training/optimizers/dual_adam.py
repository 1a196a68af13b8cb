"""Adam and its inverse: an optimizer that first multiplies by the second moment, and then divides by it.

"Combining Adam and its Inverse Counterpart to Enhance Generalization of Deep Learning Optimizers" (2026, arXiv 2603.07122).
With the bias-corrected moments `m` and `v` and `s = sqrt(v) + eps`, Adam steps by `m / s` and InvAdam by `m s`. A minimum
of curvature H is left by noise the sooner the sharper it is, by InvAdam with an exponent that falls like H^(-3/2), by
Adam like H^(-1/2) only. DualAdam goes from one to the other.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from tweed.errors import InputError, choose

Mode = Literal["dual", "inverse", "adam"]
_Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class DualAdam(Optimizer):
    """`theta <- theta - lr ((1 - a) m / s + a m s)`, where `a = max(0, 1 - t switch_rate)` falls with the steps `t`.

    The inverse step is of second degree in the gradient, so gradients must be of moderate size: of mean losses, unscaled,
    clipped where need be. Weight decay is decoupled, as in AdamW. The step of the last remainder, `a < switch_rate`, is
    Adam's, as in the official code; unlike there each parameter keeps its own count in the state, so that training resumes
    where it was.

    Args:
        params: parameters or groups; complex ones are seen as pairs of real numbers.
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment, in both directions.
        weight_decay: decoupled.
        switch_rate: one over the number of steps in which `a` falls to 0; 0.1 to 0.2 of all steps is a good time.
        mode: "dual"; "inverse" (`a` is 1 forever), or "adam" (0 forever).
        maximize: ascend instead.
        foreach: all tensors of a kind in one call (the default), or one after another, which needs less memory.

    Raises:
        InputError: a hyperparameter is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        switch_rate: float = 1e-2,
        mode: Mode = "dual",
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "switch_rate": switch_rate,
            "mode": mode,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss of `closure` where one is given.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for tensors in self._gathered(group):
                if group["foreach"] is False:
                    for each in zip(*tensors, strict=True):
                        _update(*([one] for one in each), group=group)
                else:
                    _update(*tensors, group=group)
        return loss

    def _gathered(self, group: dict[str, Any]) -> list[_Lists]:
        """Parameters, gradients, moments and counts, in lists of one device and precision each; complex ones as pairs."""
        lists: dict[Any, _Lists] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            row = [p, p.grad, state["exp_avg"], state["exp_avg_sq"]]
            if p.is_complex():
                row = [torch.view_as_real(each) for each in row]
            lists.setdefault((p.device, p.dtype), ([], [], [], [], []))
            for each, values in zip([*row, state["step"]], lists[p.device, p.dtype], strict=True):
                values.append(each)
        return list(lists.values())


class InvAdam(DualAdam):
    """`DualAdam` that never hands over to Adam: `theta <- theta - lr m s`. Arguments as there."""

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-3, **options: Any):
        super().__init__(params, lr, **{**options, "mode": "inverse"})


def inverse_share(step: int, switch_rate: float, mode: Mode = "dual") -> float:
    """The weight `a` of the inverse direction at the step with this number; the first is 1."""
    if mode != "dual":
        return 1.0 if mode == "inverse" else 0.0
    share = max(0.0, 1.0 - step * switch_rate)
    return share if share >= switch_rate else 0.0


def escape_exponent(kind: str, curvature: float, batch: float, lr: float, barrier: float) -> float:
    """The exponent of the mean time in which gradient noise leaves a minimum: `2 dL / lr (B / H)^p`.

    Kramers' law for a noise of covariance H / B, with p = 1/2 for "adam", 1 for "sgd", 3/2 for "inverse".

    Args:
        kind: "adam", "sgd" or "inverse".
        curvature: H, along the way out.
        batch: samples a gradient, B.
        lr: learning rate.
        barrier: height of the barrier, dL.

    Raises:
        InputError: an unknown kind, or a number that is not positive.
    """
    power = choose("kind", kind, {"adam": 0.5, "sgd": 1.0, "inverse": 1.5})
    if not min(curvature, batch, lr, barrier) > 0.0:
        raise InputError(
            f"curvature, batch, lr, barrier: {curvature}, {batch}, {lr}, {barrier} were given; expected positive numbers"
        )
    return 2.0 * barrier / lr * (batch / curvature) ** power


def _check(group: dict[str, Any]) -> None:
    lr, betas, eps, decay, rate = (group[k] for k in ("lr", "betas", "eps", "weight_decay", "switch_rate"))
    if isinstance(lr, Tensor) or not lr >= 0.0:
        raise InputError(f"lr: {lr} was given; expected a number of at least 0")
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise InputError(f"betas: {betas} was given; expected two numbers in [0, 1)")
    if not (eps >= 0.0 and decay >= 0.0 and 0.0 < rate <= 1.0):
        raise InputError(
            f"eps, weight_decay, switch_rate: {eps}, {decay}, {rate} were given; expected >= 0, >= 0, in (0, 1]"
        )
    choose("mode", group["mode"], ("dual", "inverse", "adam"))


def _factors(steps: list[Tensor], group: dict[str, Any]) -> tuple[list[float], list[float], list[float]]:
    """For each parameter: the factors of `m / s` and of `m s`, and the root of the second moment's bias correction."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    counts = [int(step) for step in steps]
    shares = [inverse_share(t, group["switch_rate"], group["mode"]) for t in counts]
    rates = [-lr / (1.0 - beta1**t) for t in counts]
    divided = [rate * (1.0 - a) for rate, a in zip(rates, shares, strict=True)]
    multiplied = [rate * a for rate, a in zip(rates, shares, strict=True)]
    return divided, multiplied, [(1.0 - beta2**t) ** 0.5 for t in counts]


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    steps: list[Tensor],
    group: dict[str, Any],
) -> None:
    beta1, beta2 = group["betas"]
    for step in steps:
        step += 1
    divided, multiplied, roots = _factors(steps, group)
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
    torch._foreach_lerp_(m, grads, 1.0 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, grads, grads, 1.0 - beta2)
    s = torch._foreach_sqrt(v)
    torch._foreach_div_(s, roots)
    torch._foreach_add_(s, group["eps"])
    if any(divided):
        torch._foreach_addcdiv_(params, m, s, divided)
    if any(multiplied):
        torch._foreach_addcmul_(params, m, s, multiplied)
