"""Wasserstein gradient flow matching ("Are We Really Learning the Score Function?", TMLR 2025, arXiv 2509.00336).

Trained networks violate what every true score satisfies - loops integrate to nothing, Jacobians are symmetric - and sample
well all the same. Measured on networks of several sizes, on a gradient by construction, on digits and on the bundled network;
and the reason, in one table: an error that is a gauge term moves paths, not distributions.
"""

from typing import Any

import torch
from torch import Tensor

from tweed.analysis import (
    asymmetry,
    conservativity,
    free_energy,
    gaussian_variance,
    jko_step,
    relative_fisher,
    wgf_velocity,
)
from tweed.core import grids, random, targets
from tweed.core.denoiser import Denoiser, FunctionDenoiser, NetworkDenoiser
from tweed.core.exact import GaussianDenoiser, MixtureDenoiser
from tweed.core.potential import PotentialDenoiser
from tweed.core.processes import VP
from tweed.data import Digits, Glyphs, ring_mixture
from tweed.metrics import sliced_wasserstein
from tweed.nets import build
from tweed.recipes import Progress, Report, Row, at_least, at_most, check, info, less_than
from tweed.solvers import Heun, sample
from tweed.training import DenoisingLoss, fit, load

PROCESS = VP()
F64 = torch.float64
SIZE = 0.6
"""Of the errors of the paradox, over the score."""


def run(seed: int, scale: str, progress: Progress) -> Report:
    widths, steps, n = {
        "smoke": ((16, 32), 120, 400),
        "default": ((8, 16, 32, 64, 128), 1200, 2000),
        "gpu": ((8, 16, 32, 64, 128, 256, 512), 20000, 10000),
    }[scale]
    ring = ring_mixture(8, 2.0**0.5, 0.1)
    truth = MixtureDenoiser(ring.means, ring.covariances, None, PROCESS)
    progress("closed forms", 0.0)
    rows = [*_identities(truth, seed), *_paradox(truth, seed, n)]
    progress("networks", 0.1)
    more, line = _networks(truth, widths, steps, n, seed, progress)
    rows += more
    if scale != "smoke":
        progress("images", 0.85)
        rows += _images(seed, steps)
    return Report(
        slug="wgf-matching",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={"widths": widths, "steps": steps, "samples": n},
        figures={"networks": lambda: _figure(line)},
        notes=(
            "Circulation: |loop integral| over the integral of |s . dl| around circles of one noise standard deviation; 0 for a "
            "gradient, 1 for a rotation.",
            "Networks were trained for as many steps, not to equal loss: small ones are worse in every respect.",
        ),
    )


def _time(ratio: float) -> float:
    """Where sigma / alpha has that value."""
    return PROCESS.time(-torch.tensor(ratio, dtype=F64).log()).item()


def _identities(truth: MixtureDenoiser, seed: int) -> list[Row]:
    x, t = random.normal((64, 2), random.fold(seed, 1), dtype=F64), 0.4
    estimate = truth(x, t)
    same = (wgf_velocity(PROCESS, x, t, estimate.score) - estimate.velocity).abs().max().item()
    (report,) = conservativity(truth, truth.sample(64, random.fold(seed, 2)), [_time(0.3)], seed=seed)
    # A Gaussian down the free energy: variances, and the rate of F.
    v, a, b = torch.tensor([4.0, 0.25], dtype=F64), 0.1, 0.5
    rate = 2.0 * torch.log(PROCESS.alpha(a) / PROCESS.alpha(b)).item()

    def variance(t: float) -> Tensor:
        level = PROCESS.level(t)
        return level.alpha**2 * v + level.sigma**2

    flowed = max(
        abs(gaussian_variance(p, rate) - q) for p, q in zip(variance(a).tolist(), variance(b).tolist(), strict=True)
    )
    h = 1e-4
    slope = (
        free_energy(torch.zeros(2), variance(a + h).diag()) - free_energy(torch.zeros(2), variance(a - h).diag())
    ) / (2 * h)
    fisher = ((variance(a) - 1.0) ** 2 / variance(a)).sum().item()
    predicted = -0.5 * PROCESS.diffusion(a).item() ** 2 * fisher
    model = GaussianDenoiser(torch.zeros(2), v, PROCESS)
    draws = variance(a).sqrt() * random.normal((40000, 2), random.fold(seed, 3), dtype=F64)
    sampled = relative_fisher(draws, model(draws, a).score)
    std = torch.tensor([2.0, 0.5], dtype=F64)
    small = jko_step(std, 1e-4)
    steepest = ((small - std) / 1e-4 - (1.0 / std - std)).abs().max().item()
    return [
        at_most("f x - g^2 s / 2 against the velocity of the estimate", same, 1e-6),
        at_most("exact score: circulation", report.circulation, 1e-8),
        at_most("exact score: asymmetry of the Jacobian", report.asymmetry, 1e-8),
        at_most("Gaussian: variance along the flow, against 1 + (v - 1) exp(-int g^2)", flowed, 1e-6),
        at_most("... dF/dt against -(g^2 / 2) E |x + s|^2, relative", abs(slope / predicted - 1.0), 1e-5),
        check(
            "... E |x + s|^2 from samples",
            abs(sampled / fisher - 1.0) < 0.05,
            "within 5 %",
            here=sampled,
            baseline=fisher,
        ),
        at_most("... a small implicit (JKO) step against steepest descent", steepest, 1e-2),
    ]


def _paradox(truth: MixtureDenoiser, seed: int, n: int) -> list[Row]:
    """A gauge term, and a gradient error of the same size at every state."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
    times = grids.log_snr(PROCESS, 200, end=PROCESS.t_min)
    x = PROCESS.prior((n, 2), random.fold(seed, 4), dtype=F64)
    data = truth.sample(n, random.fold(seed, 5))

    def field(change: Any) -> Denoiser:
        def score(x: Tensor, t: Any) -> Tensor:
            s = truth(x, t).score
            return s + change(s)

        return FunctionDenoiser(score, PROCESS, targets.Score(), event=(2,))

    made = {
        name: sample(field(change), x, solver=Heun(form="velocity"), times=times)
        for name, change in (
            ("exact", lambda s: 0.0 * s),
            ("gauge", lambda s: SIZE * s @ turn.T),
            ("gradient", lambda s: SIZE * s),
        )
    }
    floor = sliced_wasserstein(truth.sample(n, random.fold(seed, 6)), data, seed=seed)
    distance = {name: sliced_wasserstein(y, data, seed=seed) for name, y in made.items()}
    paths = (made["gauge"] - made["exact"]).square().sum(1).mean().sqrt().item()
    size = data.square().sum(1).mean().sqrt().item()
    gauge, gradient = distance["gauge"], distance["gradient"]
    return [
        at_most(
            "S + 0.6 B S (a gauge term): sliced W2 to the data, over exact", gauge / max(distance["exact"], floor), 1.8
        ),
        at_least("S + 0.6 S (a gradient of that size): sliced W2, over the gauge term's", gradient / gauge, 1.3),
        at_least("... although the gauge term's paths end elsewhere: RMS, over the data's size", paths / size, 0.3),
        info("... sliced W2 of two sets of the data", floor),
    ]


def _train(model: Denoiser, data: Tensor, steps: int, seed: int) -> Denoiser:
    return fit(
        model,
        data,
        steps=steps,
        objective=DenoisingLoss(target=targets.Noise()),
        batch_size=256,
        lr=2e-3,
        schedule="cosine",
        ema=0.99,
        conditions=(),
        seed=seed,
        progress=False,
    ).denoiser


def _networks(
    truth: MixtureDenoiser, widths: tuple[int, ...], steps: int, n: int, seed: int, progress: Progress
) -> tuple[list[Row], dict[str, list[float]]]:
    data, fresh = truth.sample(20000, random.fold(seed, 10)).float(), truth.sample(n, random.fold(seed, 11))
    t = _time(0.3)
    line: dict[str, list[float]] = {"width": [], "circulation": [], "asymmetry": [], "loss": [], "distance": []}

    def measure(model: Denoiser) -> tuple[float, float, float, float]:
        (report,) = conservativity(model, data[:200], [t], seed=random.fold(seed, 12))
        with torch.no_grad():
            loss = (
                DenoisingLoss(target=targets.Noise())(model, {"x": data[:8000]}, seed=random.fold(seed, 13))
                .mean()
                .item()
            )
        times = grids.log_snr(PROCESS, 40, end=PROCESS.t_min)
        made = sample(model, n, solver=Heun(form="velocity"), times=times, seed=random.fold(seed, 14))
        return report.circulation, report.asymmetry, loss, sliced_wasserstein(made.double(), fresh, seed=seed)

    for number, width in enumerate(widths):
        progress(f"width {width}", 0.1 + 0.6 * number / len(widths))
        network = build({"name": "mlp", "dim": 2, "width": width, "depth": 2, "norm": False}, random.fold(seed, 15))
        model = _train(
            NetworkDenoiser(network, PROCESS, targets.Noise(), event=(2,)), data, steps, random.fold(seed, 16)
        )
        for name, value in zip(line, (float(width), *measure(model)), strict=True):
            line[name].append(value)
    progress("a gradient by construction", 0.75)
    network = build(
        {"name": "mlp", "dim": 2, "out_dim": 1, "width": 32, "depth": 2, "norm": False}, random.fold(seed, 17)
    )
    potential = _train(
        PotentialDenoiser(network, PROCESS, data_std=1.0, event=(2,)), data, steps, random.fold(seed, 18)
    )
    around, skew, loss, distance = measure(potential)
    return [
        at_least(
            "networks on the ring, sigma = 0.3: smallest circulation of all widths", min(line["circulation"]), 1e-3
        ),
        at_most("a gradient by construction: circulation (float32)", around, 1e-3),
        less_than("... asymmetry, against that of the widest", skew, line["asymmetry"][-1], 0.1),
        info("... loss, sliced W2", f"{loss:.4f}, {distance:.3f}"),
        *(
            info(f"width {width}: circulation, asymmetry, loss, sliced W2", f"{c:.3g}, {a:.3g}, {e:.4f}, {w:.3f}")
            for width, c, a, e, w in zip(widths, *list(line.values())[1:], strict=True)
        ),
    ], line


def _images(seed: int, steps: int) -> list[Row]:
    digits, t = Digits(flat=True), _time(0.3)
    network = build({"name": "mlp", "dim": 64, "width": 128, "depth": 2, "norm": False}, random.fold(seed, 20))
    model = _train(
        NetworkDenoiser(network, PROCESS, targets.Noise(), event=(64,)), digits.x, steps, random.fold(seed, 21)
    )
    x = PROCESS.perturb(digits.x[:64], t, random.normal((64, 64), random.fold(seed, 22)))
    skew = asymmetry(model, x, t, 8, random.fold(seed, 23)).median().item()
    bundled, glyphs = load("glyphs"), Glyphs()
    batch = glyphs.batch(torch.arange(4) * 997)
    rows = [at_least("digits, a perceptron, sigma = 0.3: asymmetry of the Jacobian", skew, 0.02)]
    for ratio in (3.0, 0.3, 0.1):
        t = bundled.process.time(-torch.tensor(ratio, dtype=F64).log()).item()
        x = bundled.process.perturb(batch["x"], t, random.normal(batch["x"].shape, random.fold(seed, 24)))
        found = asymmetry(bundled, x, t, 2, random.fold(seed, 25), label=batch["label"]).median().item()
        rows.append(at_least(f"glyphs, the bundled U-Net, sigma = {ratio:g}: asymmetry", found, 0.005))
    return rows


def _figure(line: dict[str, list[float]]) -> Any:
    shape = {"circulation": (line["width"], line["circulation"]), "asymmetry": (line["width"], line["asymmetry"])}
    quality = {"sliced W2 to the data": (line["circulation"], line["distance"])}
    loss = {
        "regression loss": (line["width"], line["loss"]),
        "sliced W2 to the data": (line["width"], line["distance"]),
    }
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.6, 3.8), layout="constrained")
    panels = (
        ("against the width", "width", shape),
        ("against the width", "width", loss),
        ("error against quality, by width", "circulation", quality),
    )
    for axes, (title, label, lines) in zip(figure.subplots(1, 3), panels, strict=True):
        for name, (x, y) in lines.items():
            axes.plot(x, y, "o" if label == "circulation" else "-o", markersize=4, label=name)
        if label == "circulation":
            for width, x, y in zip(line["width"], *lines["sliced W2 to the data"], strict=True):
                axes.annotate(f"{width:.0f}", (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
        axes.set(xlabel=label, xscale="log", yscale="log")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure
