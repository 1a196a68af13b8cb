"""ScaleLong (Huang et al., NeurIPS 2023, arXiv 2310.13545): long skip connections, scaled down towards the innermost.

The network of the theory at its start: how much its output, its gradients and its answer to a disturbance grow with depth.
Then a deep transformer with long skips on the digits, at a learning rate that is too high for it: the steps to the loss that
the plain network ends with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tweed as tw
from tweed.core import random
from tweed.core.denoiser import NetworkDenoiser
from tweed.core.processes import VP
from tweed.core.targets import Noise
from tweed.data.digits import Digits
from tweed.nets.skips import SkipScale, constant_skip_coefficients
from tweed.recipes import Progress, Report, Row, at_least, at_most, check, info, less_than
from tweed.recipes._figures import curves
from tweed.training import DenoisingLoss, fit

F64 = torch.float64
KAPPAS, WIDTH = (1.0, 0.9, 0.7, 0.5), 64
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"skip_scale": "none"},
    "constant 0.7": {"skip_scale": "constant", "skip_kappa": 0.7},
    "learned": {"skip_scale": "learned"},
}


@dataclass(frozen=True)
class Settings:
    """Depths, networks and inputs of the theory; blocks, steps, learning rate and runs of training."""

    depths: tuple[int, ...]
    networks: int
    blocks: int = 13
    steps: int = 0
    rate: float = 6e-3
    runs: int = 0


SCALES = {
    "smoke": Settings((4, 12), 40),
    "default": Settings((4, 8, 12), 100, blocks=9, steps=300, runs=2),
    "gpu": Settings((4, 8, 12, 16), 100, steps=5000, runs=5),
}


class Theory(nn.Module):
    """Encoder, middle and decoder of `depth` blocks, of two layers with ReLU in He's initialisation; skips are added."""

    def __init__(self, depth: int, kappa: float, seed: int):
        super().__init__()
        shape = (4 * depth + 3, WIDTH, WIDTH)
        draws = (2.0 / WIDTH) ** 0.5 * random.normal(shape, seed, dtype=F64)
        self.weights = nn.ParameterList(nn.Parameter(w) for w in draws)
        self.scale = SkipScale("constant", [WIDTH] * depth, kappa)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for k in range(self.depth):
            x = self._block(x, k)
            skips.append(x)
        x = self._block(x, self.depth)
        for i in reversed(range(self.depth)):
            x = self._block(x + self.scale(skips[i], i), 2 * self.depth - i)
        return x @ self.weights[-1]

    def _block(self, h: Tensor, k: int) -> Tensor:
        return ((h @ self.weights[2 * k]).relu() @ self.weights[2 * k + 1]).relu()


@dataclass(frozen=True)
class Start:
    """Means over networks: the square of the output, |change of the output| over |change of the input|, |gradient|."""

    size: float
    sensitivity: float
    gradient: float


def at_start(depth: int, kappa: float, networks: int, seed: int) -> Start:
    """The network of the theory before training, on 32 normal inputs each."""
    totals = torch.zeros(3, dtype=F64)
    for k in range(networks):
        net = Theory(depth, kappa, random.fold(seed, 1, k))
        x, d, target = (random.normal((32, WIDTH), random.fold(seed, 2 + j, k), dtype=F64) for j in range(3))
        d = 1e-2 * d / d.norm(dim=1, keepdim=True)
        out = net(x)
        (out - target).square().mean().backward()
        with torch.no_grad():
            change = (net(x + d) - out).norm(dim=1) / 1e-2
        gradient = torch.stack([p.grad.square().sum() for p in net.parameters() if p.grad is not None]).sum().sqrt()
        totals += torch.stack([out.detach().square().sum(1).mean(), change.mean(), gradient]) / networks
    return Start(*totals.tolist())


def run(seed: int, scale: str, progress: Progress) -> Report:
    """The start at every scale, training from `default` on."""
    settings = SCALES[scale]
    found: dict[float, dict[int, Start]] = {}
    for number, kappa in enumerate(KAPPAS):
        progress(f"at the start, kappa {kappa:g}", 0.3 * number / len(KAPPAS))
        found[kappa] = {depth: at_start(depth, kappa, settings.networks, seed) for depth in settings.depths}
    rows = [*_coefficients(), *_start_rows(found)]
    figures: dict[str, Any] = {"start": lambda: _start_figure(found)}
    if settings.steps:
        losses = _trained(settings, seed, progress)
        rows += _training_rows(losses, settings)
        figures["training"] = lambda: _training_figure(losses)
    return Report(
        slug="scale-long",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={**vars(settings), "width": WIDTH},
        figures=figures,
        notes=(
            "The network of the theory adds its skips; the transformer joins them by concatenation and a linear layer, which "
            "could undo any constant: what changes is the start and the path, not what can be learned.",
            "Training: digits of 8x8, noise prediction, losses smoothed over 50 steps.",
            "The published factor of 1.5 is of networks of 500,000 steps on CIFAR and the like.",
        ),
    )


def _coefficients() -> list[Row]:
    kappa = constant_skip_coefficients(4, 0.5)
    plain = tw.nets.build({**_config(5), "skip_scale": "none"}, 1)
    same = tw.nets.build({**_config(5), "skip_scale": "constant", "skip_kappa": 1.0}, 1)
    x, t = random.normal((3, 1, 8, 8), 2), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        for net in (plain, same):
            for i, p in enumerate(net.parameters()):
                p += 0.1 * random.normal((1, *p.shape), 3, draw=i)[0]
        off = (plain(x, t) - same(x, t)).abs().max()
    return [
        check(
            "coefficients from the outermost skip to the innermost", kappa == [1.0, 0.5, 0.25, 0.125], "1, k, k^2, k^3"
        ),
        at_most("kappa = 1: off the plain network", off, 0.0),
    ]


def _start_rows(found: Mapping[float, Mapping[int, Start]]) -> list[Row]:
    first, last = min(found[1.0]), max(d for d in found[1.0] if d <= 12)
    plain, scaled = found[1.0], found[0.7]
    growth = {k: found[k][last].sensitivity / found[k][first].sensitivity for k in (1.0, 0.7)}
    rows = [
        less_than(f"depth {last}, kappa 0.7: sensitivity", scaled[last].sensitivity, plain[last].sensitivity, 0.55),
        less_than("... gradient", scaled[last].gradient, plain[last].gradient, 0.2),
        less_than("... square of the output", scaled[last].size, plain[last].size, 0.25),
        at_most(f"sensitivity at depth {last} over that at {first}, kappa 0.7", growth[0.7], 1.15),
        at_least("... without scaling", growth[1.0], 1.45),
    ]
    for kappa, each in found.items():
        for depth, start in each.items():
            text = f"output {start.size:.0f}, gradient {start.gradient:.3g}"
            rows.append(info(f"depth {depth}, kappa {kappa:g}: sensitivity", start.sensitivity, note=text))
    return rows


def _config(blocks: int) -> dict[str, Any]:
    return {
        "name": "dit", "in_channels": 1, "patch": 2, "hidden": 48, "depth": blocks, "heads": 3, "long_skips": True,
    }  # fmt: skip


def _trained(settings: Settings, seed: int, progress: Progress) -> dict[str, list[Tensor]]:
    data, found = Digits("train"), {name: [] for name in WAYS}
    total = settings.runs * len(WAYS)
    for k in range(settings.runs):
        for name, options in WAYS.items():
            progress(f"training: {name}, run {k + 1}", 0.3 + 0.7 * sum(map(len, found.values())) / total)
            network = tw.nets.build({**_config(settings.blocks), **options}, random.fold(seed, 11, k))
            made = fit(
                NetworkDenoiser(network, VP(), Noise(), event=(1, 8, 8)), data, steps=settings.steps,
                objective=DenoisingLoss(), batch_size=64, lr=settings.rate, clip=None, ema=None, conditions=(),
                progress=False, seed=random.fold(seed, 12, k), device="cuda" if torch.cuda.is_available() else "cpu",
            )  # fmt: skip
            found[name].append(_smoothed(torch.tensor(made.losses)))
    return found


def _smoothed(losses: Tensor, over: int = 50) -> Tensor:
    return losses.unfold(0, over, 1).mean(1)


def _training_rows(losses: Mapping[str, list[Tensor]], settings: Settings) -> list[Row]:
    rows: list[Row] = []
    ends = [curve[-1].item() for curve in losses["plain"]]
    for name in list(WAYS)[1:]:
        shares = []
        for curve, end in zip(losses[name], ends, strict=True):
            reached = (curve <= end).nonzero()
            shares.append((reached[0].item() if len(reached) else len(curve)) / (len(curve) - 1))
        last = sum(curve[-1].item() for curve in losses[name]) / settings.runs
        rows += [
            info(
                f"{name}: steps to the plain network's last loss, share",
                sum(shares) / settings.runs,
                published="1 / 1.5",
            ),
            info("... last loss", last, baseline=sum(ends) / settings.runs, note="baseline: plain"),
        ]
    return rows


def _start_figure(found: Mapping[float, Mapping[int, Start]]) -> Any:
    panels: dict[str, Any] = {}
    for title, name in (("sensitivity", "sensitivity"), ("gradient", "gradient"), ("square of the output", "size")):
        panels[title] = {
            f"kappa {kappa:g}": (list(each), [getattr(start, name) for start in each.values()])
            for kappa, each in found.items()
        }
    return curves(panels, xlabel="depth", ylabel="", log="y")


def _training_figure(losses: Mapping[str, list[Tensor]]) -> Any:
    panels = {}
    for k in range(len(losses["plain"])):
        panels[f"run {k + 1}"] = {
            name: (list(range(0, len(each[k]), 10)), each[k][::10].tolist()) for name, each in losses.items()
        }
    return curves(panels, xlabel="step", ylabel="loss", log="y")
