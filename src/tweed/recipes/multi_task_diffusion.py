"""Multi-task diffusion (2024, arXiv 2407.17571): several modalities in one diffused variable, decoded by a head each.

Jointly Gaussian modalities, where every conditional law is known, say which conditional sampler is right: the plug-in rule
or the one that is told what is known. Then image and label of digits in one variable, and image beside masked image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.exact import GaussianModalities
from tweed.core.injection import Injection
from tweed.core.modalities import PlugIn
from tweed.core.processes import VP, Cosine
from tweed.guidance import modalities
from tweed.recipes import Progress, Report, Row, at_most, greater_than, info, less_than, span
from tweed.recipes import _multi_task_digits as digits
from tweed.solvers import DDIM, DPMSolver
from tweed.training import DenoisingLoss, MultiModalLoss

F64 = torch.float64
SIZES = {
    "default": digits.Sizes(1500),
    "gpu": digits.Sizes(20000, 256, 512, 4, 2000),
}
CORRELATIONS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Closed forms at every scale; digits from `default` on."""
    progress("closed forms", 0.0)
    rows = [*chain_rows(seed), *_limits(seed), *oracle_rows(seed), *_slopes()]
    sizes = SIZES.get(scale)
    found = None
    if sizes is not None:
        found = digits.measure(sizes, seed, span(progress, 0.05, 1.0))
        rows += digits.rows(found)
    return Report(
        slug="multi-task-diffusion",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={} if sizes is None else vars(sizes),
        figures={"modalities": lambda: _figure(seed, found)},
        notes=(
            "Gaussian modalities: x1 of three dimensions, x2 of two, on orthonormal directions of five; the sampler is affine in "
            "its start, so its law is computed, not estimated.",
            "Digits: 8x8, perceptrons of equal size and equal steps, straight paths and their velocity; labels on random "
            "orthonormal directions; 20 % of the modalities are left out in training, and the network is told which and, for "
            "half of the samples, some of them. Images are read from the aggregate, without their labels' encodings.",
            "ImageNet and its four settings need their data; the paper's abstract states no number.",
        ),
    )


def chain_rows(seed: int) -> list[Row]:
    """A chain of 50 steps with random injections against its recursion, and against a product of two Gaussians."""
    betas = (0.02 + 0.2 * random.uniform((50, 1), random.fold(seed, 1), dtype=F64))[:, 0].tolist()
    weights = random.uniform((50, 1), random.fold(seed, 2), dtype=F64)[:, 0].tolist()
    chain = Injection(betas, weights)
    e, z0, z = (random.normal((20, 3), random.fold(seed, 3), draw=k, dtype=F64) for k in range(3))
    mean, variance, off, posterior = z0, 0.0, 0.0, 0.0
    for n, (beta, weight) in enumerate(zip(betas, weights, strict=True), 1):
        root, found = (1.0 - beta) ** 0.5, chain.posterior(z, e, n, z0)
        if variance:
            precision = 1.0 / variance + root**2 / beta
            product = (mean / variance + root / beta * (z - root * weight * e)) / precision
            posterior = max(posterior, (found[0] - product).abs().max().item(), abs(found[1] - 1.0 / precision))
        mean, variance = root * (mean + weight * e), (1.0 - beta) * variance + beta
        direct = chain.marginal(e, n, z0)
        off = max(off, (direct[0] - mean).abs().max().item(), abs(direct[1] - variance))
    return [
        at_most("chain with injections: moments off their recursion", off, 1e-10),
        at_most("... posterior off the product of step and marginal", posterior, 1e-10),
    ]


def _limits(seed: int) -> list[Row]:
    sizes = digits.Sizes(1, width=16, depth=1)
    one = digits.network(sizes, {"image": {"shape": [64]}}, seed)
    with torch.no_grad():
        one.network.noise.weight += 0.1  # type: ignore[union-attr, operator]
        data = {"x": random.normal((16, 64), random.fold(seed, 4))}
        loss = MultiModalLoss({"image": 0.0})(one, data, seed=seed) - DenoisingLoss()(one, data, seed=seed)
    model = joint(seed)
    known = {
        name: random.normal((9, place.stop - place.start), random.fold(seed, 5), dtype=F64)
        for name, place in model.places.items()
    }
    z = random.normal((9, 5), random.fold(seed, 6), dtype=F64)
    e = model.aggregate(known)
    off = max((each(z, 0.5, **known).x0 - e).abs().max().item() for each in (model, PlugIn(model)))
    return [
        at_most("one modality: loss off plain denoising", loss.abs().max(), 0.0),
        at_most("all modalities known: data off their aggregate", off, 1e-9),
    ]


def joint(seed: int) -> GaussianModalities:
    """Two dependent Gaussians, of three and two dimensions, side by side in five."""
    a = random.normal((5, 5), random.fold(seed, 7), dtype=F64)
    q = torch.linalg.qr(random.normal((5, 5), random.fold(seed, 8), dtype=F64))[0]
    mean = random.normal((5, 1), random.fold(seed, 9), dtype=F64)[:, 0]
    return GaussianModalities(mean, a @ a.T / 5 + 0.1 * torch.eye(5), {"x1": q[:, :3], "x2": q[:, 3:]}, VP())


def law(model: Denoiser, known: Tensor, steps: int = 100, solver: Any = None) -> tuple[Tensor, Tensor]:
    """Means of x2 for each known x1, and its covariance, of a deterministic sampler that is affine in its start."""
    d = model.process.level(model.t_max).sigma * torch.eye(model.event[0], dtype=F64)  # type: ignore[index]
    start = torch.cat((torch.zeros(len(known), len(d), dtype=F64), d))
    given = torch.cat((known, known[:1].expand(len(d), -1)))
    x = modalities.sample(
        model, start, {"x1": given}, steps=steps, solver=solver or DDIM(), grid=tw.grids.log_snr
    )["x2"]  # fmt: skip
    means, slope = x[: len(known)], x[len(known) :] - x[0]
    return means, slope.T @ slope


def oracle_rows(seed: int) -> list[Row]:
    """The law of samples of x2 given x1 against the closed form."""
    model = joint(seed)
    x1 = modalities_of(model, 32, random.fold(seed, 10))[:, :3]
    mean, covariance = model.given({"x1": x1})
    mean, covariance = mean[:, 3:], covariance[3:, 3:]
    rows, off = [], {}
    for name, denoiser in (("told", model), ("plugged in", PlugIn(model))):
        found = law(denoiser, x1)
        away = (found[0] - mean).norm() / (mean - model.mean[3:]).norm()
        off[name] = away.item(), ((found[1] - covariance).norm() / covariance.norm()).item()
    rows += [
        at_most("Gaussians, x2 given x1, told: mean off, of how far it moves", off["told"][0], 0.05),
        at_most("... covariance off, relative", off["told"][1], 0.1),
        greater_than("... plug-in rule: mean off, against told", off["plugged in"][0], off["told"][0], 3.0),
        info("... plug-in rule: covariance off", off["plugged in"][1], baseline=off["told"][1]),
    ]
    return rows


def modalities_of(model: GaussianModalities, n: int, seed: int) -> Tensor:
    """Draws of all modalities, side by side."""
    root = torch.linalg.cholesky(model.covariance)
    return model.mean + random.normal((n, len(root)), seed, dtype=F64) @ root.T


def pair(r: float) -> GaussianModalities:
    """Two standard normals of correlation r, each a direction of its own."""
    encoders = {"x1": torch.eye(2)[:, :1], "x2": torch.eye(2)[:, 1:]}
    return GaussianModalities(torch.zeros(2), torch.tensor([[1.0, r], [r, 1.0]]), encoders, Cosine())


def derived(r: float) -> float:
    """The slope of x2 on x1 under the plug-in rule, see `tweed.core.modalities`."""
    v = 1.0 + torch.logspace(-12, 8, 20001, base=10.0, dtype=F64)
    return 0.5 * r * (1.0 - r**2) ** 0.25 * torch.trapezoid((v**2 - r**2) ** -1.25, v).item()


def slopes(r: float, steps: int = 100) -> dict[str, float]:
    """The slope of x2 on x1 in samples of either rule; r is right."""
    one, solver = torch.ones(1, 1, dtype=F64), DPMSolver()
    return {
        name: law(model, one, steps, solver)[0].item()
        for name, model in (("told", pair(r)), ("plugged in", PlugIn(pair(r))))
    }


def _slopes() -> list[Row]:
    found = {r: slopes(r) for r in (0.1, 0.9)}
    plugged = max(abs(each["plugged in"] / derived(r) - 1.0) for r, each in found.items())
    told = max(abs(each["told"] / r - 1.0) for r, each in found.items())
    weak = found[0.1]["plugged in"] / 0.1
    return [
        at_most("two normals, slope of x2 on x1: plug-in rule, off what is derived", plugged, 0.01),
        at_most("... told, off the truth", told, 0.01),
        less_than("... plug-in rule at correlation 0.1, against the truth", weak, 1.0, 0.4, note="a third is derived"),
    ]


def _figure(seed: int, found: digits.Found | None) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.9) if found is None else (12.0, 8.2), layout="constrained")
    if found is None:
        _draw_oracle(figure, seed, {})
        return figure
    parts: Any = figure.subfigures(3, 1, height_ratios=(1, 0.55, 0.55))
    top, *bottom = parts
    _draw_oracle(top, seed, found.curves)
    names = list(found.pictures)
    for part, chosen in zip(bottom, (names[:2], names[2:]), strict=True):
        digits.draw(part, {name: found.pictures[name] for name in chosen})
    return figure


def _draw_oracle(figure: Any, seed: int, curves: Mapping[str, Any]) -> None:
    panels = figure.subplots(1, 2 + bool(curves))
    model = joint(seed)
    x1 = modalities_of(model, 1, random.fold(seed, 11))[:, :3] + 0.0
    mean, covariance = model.given({"x1": x1})
    exact = (mean[:, 3:], covariance[3:, 3:])
    prior = (model.mean[None, 3:], model.covariance[3:, 3:])
    turn = torch.linspace(0.0, 2.0 * torch.pi, 200, dtype=F64)
    circle = torch.stack((turn.cos(), turn.sin()), 1)
    for name, (m, c), style in (
        ("all x2", prior, {"color": "#8a8a8a", "linestyle": ":"}),
        ("x2 given x1, exact", exact, {"color": "k", "linewidth": 2.4}),
        ("told x1", law(model, x1), {"color": "C0", "linestyle": "--"}),
        ("plug-in rule", law(PlugIn(model), x1), {"color": "C1"}),
    ):
        ring = m[0] + 2.0 * circle @ torch.linalg.cholesky(c).T
        panels[0].plot(ring[:, 0].tolist(), ring[:, 1].tolist(), label=name, **style)
        panels[0].plot(*m[0].tolist(), marker="+", color=style["color"])
    panels[0].set(xlabel="first of x2", ylabel="second of x2")
    panels[0].set_title("two deviations around the mean, 100 steps of DDIM", fontsize=9)
    line = torch.linspace(0.02, 0.98, 49).tolist()
    panels[1].plot(line, [derived(r) / r for r in line], color="C1", label="plug-in rule, derived")
    measured = [slopes(r) for r in CORRELATIONS]
    panels[1].plot(
        CORRELATIONS,
        [m["plugged in"] / r for m, r in zip(measured, CORRELATIONS, strict=True)],
        "C1o",
        label="... sampled",
    )
    panels[1].plot(
        CORRELATIONS, [m["told"] / r for m, r in zip(measured, CORRELATIONS, strict=True)], "C0s", label="told, sampled"
    )
    panels[1].axhline(1.0, color="k", linewidth=0.8)
    panels[1].set(xlabel="correlation of x1 and x2", ylim=(0, 1.1))
    panels[1].set_title("slope of x2 on x1, of the true one", fontsize=9)
    for name, curve in curves.items():
        panels[2].plot(*zip(*curve, strict=True), label=name)
    if curves:
        panels[2].set(xlabel="steps of training")
        panels[2].set_title("held-out loss of the noise of images", fontsize=9)
        panels[2].set_yscale("log")
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7.5)
