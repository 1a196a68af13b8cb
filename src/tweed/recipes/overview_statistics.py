"""An Overview of Diffusion Models (2024, arXiv 2404.07771): its statistics of subspace data and its optimisation, as experiments.

Exact: the split of the score on a subspace, rewards of conditional Gaussians, guided mixtures, look-ahead guidance and rounds of
it, the error budget. Trained: networks over the dimension of the space and the number of samples, and one told of a reward.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tweed.recipes import Progress, Report, Row, at_least, at_most, check, info, less_than, span
from tweed.recipes import _overview_exact as exact
from tweed.recipes import _overview_trained as trained
from tweed.recipes._overview_trained import NOISE, NU, PLAIN, SD, SUBSPACE, Conditioned, Fitted

DEVIATION = (SD**2 + NU**2) ** 0.5  # of the labels, over the data
MULTIPLES = (-2.0, -1.0, 1.0, 2.0, 4.0, 8.0)


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Closed forms at every scale, networks from `default` on."""
    progress("closed forms", 0.0)
    rows = [*exact.decomposition(seed), *exact.rewards(seed), *exact.exactness(seed)]
    more, guided = exact.mixture_guidance(2001)
    away, left = exact.leaving(seed, 300 if scale == "smoke" else 2000, 40)
    rounds, path = exact.optimisation(seed, 4000 if scale == "smoke" else 10000, 50)
    rows += [*more, *away, *rounds, *exact.budget()]
    fitted: dict[str, dict[int, Fitted]] = {}
    told: dict[float, Conditioned] = {}
    settings: dict[str, Any] = {"targets": exact.TARGETS, "noise of the reward": NU, "variances": exact.SPREAD.tolist()}
    if scale != "smoke":
        sizes = trained.SIZES[scale]
        fitted = trained.dimensions(sizes, seed, span(progress, 0.1, 0.75))
        errors = trained.sweep(sizes, seed, span(progress, 0.75, 0.88))
        told = trained.reward([m * DEVIATION for m in MULTIPLES], sizes, seed, span(progress, 0.88, 1.0))
        rows += [*_dimension_rows(fitted), *_sweep_rows(errors), *_reward_rows(told)]
        settings |= vars(sizes)
    return Report(
        slug="overview-statistics",
        rows=rows,
        seed=seed,
        scale=scale,
        settings=settings,
        figures={"overview": lambda: _figure(fitted, told, left, path, guided, seed)},
        notes=(
            "Eight modes in a plane turned into D dimensions, 2000 samples; residual networks of two blocks of width 64. The "
            "plain network that answers the noise must pass D numbers through that width; the one that answers the data need "
            "not, and adapts to the dimension as the subspace network does.",
            "Naive guidance leaves the subspace relative to the noise that is left: by the ODE in proportion to sigma at every "
            "strength, by the SDE in proportion to sigma^2.",
            "Where the objective's gradient lies in the subspace, as for f(x) = -|A^T x - z|^2, naive guidance stays.",
            "Rates in the number of samples (n^(-2/(d+5)) and the like) are upper bounds up to logarithms; one slope is shown.",
        ),
    )  # fmt: skip


def _dimension_rows(found: Mapping[str, Mapping[int, Fitted]]) -> list[Row]:
    low, high = min(found[SUBSPACE]), max(found[SUBSPACE])
    small, large = found[SUBSPACE][low], found[SUBSPACE][high]
    plain, noise = found[PLAIN], found[NOISE]
    distances = [each.distance or 0.0 for each in found[SUBSPACE].values()]
    share = max(each.off / (2.0 * 1e-3 * (d - 2)) for d, each in found[SUBSPACE].items())
    return [
        less_than(f"subspace network: sliced W2 at D = {high}, over D = {low}", large.latent, small.latent, 1.5),
        at_most("... |VV^T - AA^T|^2, all D", max(distances), 1e-3),
        at_most("... energy off the subspace over 2 (D - d) 1e-3, all D", share, 1.0),
        check(
            f"{NOISE}: sliced W2 at D = {high}, over D = {low}", noise[high].latent > 2.0 * noise[low].latent,
            "> 2 x baseline", here=noise[high].latent, baseline=noise[low].latent,
        ),
        info(f"{PLAIN}: sliced W2 at D = {high}, over D = {low}", plain[high].latent, baseline=plain[low].latent),
        *(
            info(f"{name}, D = {d}: sliced W2", each.latent, note=f"energy off the subspace {each.off:.3g}")
            for name, by in found.items()
            for d, each in by.items()
        ),
    ]  # fmt: skip


def _sweep_rows(errors: Mapping[int, float]) -> list[Row]:
    slope = float(np.polyfit(np.log(list(errors)), np.log(list(errors.values())), 1)[0])
    text = ", ".join(f"{n}: {error:.2g}" for n, error in errors.items())
    return [at_most("|VV^T - AA^T|^2 with noise off the subspace: log-log slope in samples", slope, -0.3, note=text)]


def _reward_rows(told: Mapping[float, Conditioned]) -> list[Row]:
    shares = {a / DEVIATION: each.reward / (a * exact.FACTOR) for a, each in told.items()}
    near = max(abs(share - 1.0) for m, share in shares.items() if abs(m) < 2.5)
    far = shares[max(shares)]
    return [
        at_most("network told of the reward, |a| <= 2 sd: off a (1 - nu^2 / v), relative", near, 0.1),
        at_most("... at 8 sd: mean reward over that", far, 0.8),
        *(
            info(
                f"... at {m:g} sd", each.reward, baseline=a * exact.FACTOR,
                note=f"baseline: closed form; whitened latent {each.shift:.1f}, off the subspace {each.off:.2g}",
            )
            for m, (a, each) in zip(shares, told.items(), strict=True)
        ),
        at_least("... energy of the whitened latent, 2 sd over 1 sd", _shift(told, 2.0) / _shift(told, 1.0), 1.0),
    ]  # fmt: skip


def _shift(told: Mapping[float, Conditioned], multiple: float) -> float:
    return next(each.shift for a, each in told.items() if abs(a / DEVIATION - multiple) < 1e-6)


def _figure(
    fitted: Mapping[str, Mapping[int, Fitted]],
    told: Mapping[float, Conditioned],
    left: Mapping[str, Mapping[float, float]],
    path: Mapping[str, Sequence[float]],
    guided: Mapping[float, Sequence[float]],
    seed: int,
) -> Any:
    """Six panels: errors over the dimension, two of them; reward at targets, a guided mixture, leaving the subspace, rounds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(13.8, 7.6), layout="constrained")
    (error, off, reward), (mixture, away, rounds) = figure.subplots(2, 3)
    for axes, name, title in ((error, "latent", "sliced W2 of the latent"), (off, "off", "energy off the subspace")):
        axes.set_visible(bool(fitted))
        axes.set(xlabel="dimension D of the space", xscale="log", yscale="log")
        axes.set_title(f"trained networks: {title}", fontsize=10)
        for k, (network, by) in enumerate(fitted.items()):
            values = [max(getattr(each, name), 1e-9) for each in by.values()]
            axes.plot(list(by), values, marker="os^"[k], linestyle=("-", "--", ":")[k], markersize=4.5, label=network)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(list(fitted.get(SUBSPACE, (8, 128))))
        axes.xaxis.set_major_formatter(ScalarFormatter())
    at = np.linspace(-2.0, 8.0, 41) * DEVIATION
    reward.plot(at, at * exact.FACTOR, color="#8a8a8a", label="Gaussian latent, closed form")
    if told:
        values = [each.reward for each in told.values()]
        reward.plot(list(told), values, "o-", color="C0", markersize=4.5, label="Gaussian latent, trained network")
    cube = exact.uniform_reward(trained.reward_world(seed), torch.as_tensor(at))
    reward.plot(at, cube, "--", color="C1", label="latent on the cube, closed form")
    reward.set(xlabel="target a", ylabel="mean reward")
    reward.set_title("reward of samples at a target", fontsize=10)
    for k, name in enumerate(("mean of p(y | x)", "variance", "mean (of the class: 1.5)")):
        values = [each[k] for each in guided.values()]
        mixture.plot(list(guided), values, marker="os^"[k], markersize=4.5, label=name)
    mixture.set(xlabel="weight w of classifier-free guidance")
    mixture.set_title("two Gaussians, exact scores", fontsize=10)
    for k, (name, by) in enumerate(left.items()):
        style = {"linestyle": ("-", "-", "--", "--")[k], "marker": "os^D"[k], "markersize": 4.5}
        away.plot(list(by), list(by.values()), label=name, **style)
    away.set(xlabel="gain of reward (standard deviations)")
    away.set_title("guided: energy off the subspace, over that unguided", fontsize=10)
    for name, values in path.items():
        if name == "regular":
            rounds.axhline(values[0], color="#8a8a8a", linestyle="--", label="regularised optimum")
        else:
            rounds.plot([max(v, 1e-5) for v in values], label=name)
    rounds.set(xlabel="round", yscale="log")
    rounds.set_title("largest objective on the subspace less the present", fontsize=10)
    for axes in (error, off, reward, mixture, away, rounds):
        axes.grid(alpha=0.25)
        if axes.has_data():
            axes.legend(fontsize=7.5)
    return figure
