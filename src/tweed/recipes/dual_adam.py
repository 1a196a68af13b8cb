"""DualAdam (2026, arXiv 2603.07122): escape from sharp minima, and what it is worth in training.

Two wells of known curvature, left by gradient noise under each optimizer; a quadratic, where the inverse step alone is
slow; and classifiers of few digits with wrong labels among them, from scratch and fine-tuned, whose minima are measured.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tweed.core import random
from tweed.recipes import Progress, Report, Row, at_least, at_most, greater_than, info, less_than, span
from tweed.recipes import _flatness as flatness
from tweed.recipes._figures import curves
from tweed.training.optimizers import DualAdam, InvAdam, Mode, escape_exponent

F64 = torch.float64
SHARP, FLAT = 25.0, 1.0  # curvatures of the wells; both barriers are 1 high
# At these learning rates all three leave the flat well at about the same rate.
RATES = {"Adam": 0.09, "SGD with momentum": 0.03, "InvAdam": 0.01}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "SGD with momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, dampening=0.9),
    "InvAdam": InvAdam,
}
CHAINS = {"smoke": 1000, "default": 10000, "gpu": 100000}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Escape rates and the quadratic at every scale; classifiers from `default` on."""
    rows, rates = _escapes(seed, CHAINS[scale], span(progress, 0.0, 0.1))
    rows += _quadratic()
    figures: dict[str, Any] = {"escape": lambda: _escape_figure(rates)}
    settings: dict[str, Any] = {"chains": CHAINS[scale], "learning rates of escape": RATES}
    if scale != "smoke":
        sizes = flatness.SIZES[scale]
        found = {
            task: flatness.compare(task, sizes, seed, span(progress, 0.1 + 0.45 * k, 0.55 + 0.45 * k))
            for k, task in enumerate(flatness.TASKS)
        }
        rows += flatness.rows(found)
        figures["minima"] = lambda: flatness.figure(found)
        settings |= vars(sizes)
    return Report(
        slug="dual-adam",
        rows=rows,
        seed=seed,
        scale=scale,
        settings=settings,
        figures=figures,
        notes=(
            "Wells: gradients have a noise of 4 sqrt(H / 2); a chain that leaves starts again at the minimum.",
            "Classifiers: 200 digits, a fifth of them mislabelled; of each optimizer the learning rate of four that reads "
            "held-out digits best, chosen on digits that are not tested on.",
            "Sharpness: the mean rise of the training loss under weights moved by 5 % of their norm, at random.",
            "CIFAR, ImageNet and language models need their data and days of a GPU.",
        ),
    )


def escape_rates(
    name: str, lr: float, curvatures: Sequence[float], chains: int, seed: int, steps: int = 3000
) -> Tensor:
    """Crossings of the barrier a chain and step, after the first tenth of the steps, for wells of these curvatures.

    The potential is `H (x - a)^2 / 2` with height 1 at 0, where chains that cross start again from the minimum `a`, at rest.
    """
    h = torch.tensor(curvatures, dtype=F64)[:, None]
    bottom = (2.0 / h).sqrt().expand(-1, chains)
    x = nn.Parameter(bottom.clone())
    optimizer = OPTIMIZERS[name]([x], lr=lr)
    crossed = torch.zeros(len(h), dtype=F64)
    for step in range(steps):
        noise = random.normal(x.shape, seed, draw=step, dtype=F64)
        x.grad = h * (x.detach() - bottom) + 4.0 * (0.5 * h).sqrt() * noise
        optimizer.step()
        out = x.detach() < 0.0
        if step >= steps // 10:
            crossed += out.sum(1)
        x.data = torch.where(out, bottom, x.detach())
        for key in ("exp_avg", "momentum_buffer"):
            if key in optimizer.state[x]:
                optimizer.state[x][key].masked_fill_(out, 0.0)
    return crossed / (chains * (steps - steps // 10))


def _escapes(seed: int, chains: int, progress: Progress) -> tuple[list[Row], dict[str, dict[float, float]]]:
    curvatures = (FLAT, 4.0, SHARP)
    rates: dict[str, dict[float, float]] = {}
    for k, (name, lr) in enumerate(RATES.items()):
        progress(f"escape: {name}", k / len(RATES))
        found = escape_rates(name, lr, curvatures, chains, random.fold(seed, 1, k))
        rates[name] = dict(zip(curvatures, found.tolist(), strict=True))
    sharp = {name: each[SHARP] for name, each in rates.items()}
    return [
        greater_than("sharp well: escapes a step, InvAdam over SGD", sharp["InvAdam"], sharp["SGD with momentum"], 2.0),
        greater_than("... InvAdam over Adam", sharp["InvAdam"], sharp["Adam"], 10.0),
        greater_than("... SGD over Adam", sharp["SGD with momentum"], sharp["Adam"], 3.0),
        at_most("flat well: escapes a step, the most of all three", max(each[FLAT] for each in rates.values()), 2e-5),
        *(info(f"... {name}", each[FLAT]) for name, each in rates.items()),
        *(_exponent(name, kind) for name, kind in (("Adam", "adam"), ("SGD", "sgd"), ("InvAdam", "inverse"))),
    ], rates


def _exponent(name: str, kind: str) -> Row:
    ratio = escape_exponent(kind, SHARP, 1.0, 1.0, 1.0) / escape_exponent(kind, FLAT, 1.0, 1.0, 1.0)
    return info(f"theory: exponent of the sharp well over that of the flat one, {name}", ratio)


def _quadratic() -> list[Row]:
    h = torch.tensor([1.0, 10.0], dtype=F64)

    def ended(make: Callable[..., torch.optim.Optimizer], steps: int = 3000) -> Tensor:
        x = nn.Parameter(torch.ones(2, dtype=F64))
        optimizer = make([x])
        for _ in range(steps):
            x.grad = h * x.detach()
            optimizer.step()
        return 0.5 * (h * x.detach().square()).sum()

    modes: tuple[Mode, ...] = ("adam", "dual", "inverse")
    found = {mode: ended(partial(DualAdam, lr=3e-3, switch_rate=1e-3, mode=mode)) for mode in modes}
    adam = ended(lambda p: torch.optim.Adam(p, 3e-3))
    return [
        at_most("quadratic: loss without the inverse, off torch's Adam", abs(found["adam"] - adam), 1e-30),
        less_than("... loss of DualAdam, against InvAdam", found["dual"], found["inverse"], 1e-3),
        at_least("... loss of InvAdam", found["inverse"], 1e-5, note="slow: its step is quadratic in the gradient"),
    ]


def _escape_figure(rates: dict[str, dict[float, float]]) -> Any:
    lines = {name: (list(each), [max(rate, 1e-9) for rate in each.values()]) for name, each in rates.items()}
    return curves(
        {"escapes a chain and step": lines}, xlabel="curvature of the well", ylabel="", ticks=(1.0, 4.0, 25.0)
    )
