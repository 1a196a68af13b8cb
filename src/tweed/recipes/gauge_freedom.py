"""Gauge freedom (Horvat & Pfister, ICLR 2024, arXiv 2402.03845): which part of a learned field moves mass, and which does not.

Fields whose two parts are known are taken apart; a gauge term is shown to leave densities alone where a gradient of the same
size does not; and the dimension of spheres in twenty dimensions is read off the flow and off one Jacobian, with a gauge term
of growing size in the field.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tweed.analysis import decompose, gauge_residual, intrinsic_dimension, linear_gaussian, score_jacobian
from tweed.core import random
from tweed.core.exact import MixtureDenoiser, SphereDenoiser
from tweed.core.processes import VE
from tweed.recipes import Progress, Report, Row, at_least, at_most, check, info
from tweed.recipes._figures import curves

F64 = torch.float64
PROCESS = VE(0.01, 1.0)
FLOW, STATIC, TANGENT = "flow's singular values", "eigenvalues of one Jacobian", "tangent space of the Jacobian (sine)"
AMBIENT, SIZES = 20, (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0)


def run(seed: int, scale: str, progress: Progress) -> Report:
    dimensions, points, steps = {
        "smoke": ((1, 4, 10), 6, 80),
        "default": (tuple(range(1, 11)), 16, 120),
        "gpu": (tuple(range(1, 11)), 200, 300),
    }[scale]
    progress("known fields", 0.0)
    rows = [*_parts(seed), *_harm(seed)]
    more, survived = _dimensions(seed, dimensions, points, steps, progress)
    return Report(
        slug="gauge-freedom",
        rows=rows + more,
        seed=seed,
        scale=scale,
        settings={"ambient": AMBIENT, "dimensions": dimensions, "points": points, "steps": steps, "gauge sizes": SIZES},
        figures={"survival": lambda: _figure(survived)},
        notes=(
            "The gauge term is c B s with s the exact score and B skew, of spectral norm 1: div(p B grad log p) = 0 for any p.",
            "How far each estimator survives it is a curve, not a verdict: continuous-time marginals do not see the term, but "
            "Heun's steps do, and its Jacobian is not symmetric, which is all that the static test looks at.",
        ),
    )


def _skew(d: int, seed: int) -> Tensor:
    b = random.normal((d, d), seed, dtype=F64)
    b = b - b.T
    return b / torch.linalg.matrix_norm(b, 2)


def _parts(seed: int) -> list[Row]:
    # A linear field under a Gaussian: M symmetric, R = B C^-1.
    root = random.normal((6, 6), random.fold(seed, 1), dtype=F64)
    covariance = root @ root.T + 0.5 * torch.eye(6, dtype=F64)
    m = random.normal((6, 6), random.fold(seed, 2), dtype=F64)
    m, r = m + m.T, _skew(6, random.fold(seed, 3)) @ torch.linalg.inv(covariance)
    found, rest = linear_gaussian(m + r, covariance)
    linear = max((found - m).abs().max().item(), (rest - r).abs().max().item())
    # A curved field in the plane under a mixture, on a quadrature of it; the potential is a polynomial.
    means = 0.8 * random.normal((3, 2), random.fold(seed, 4), dtype=F64)
    mixture = MixtureDenoiser(means, torch.tensor([0.3, 0.2, 0.4]), None, PROCESS)
    side = torch.linspace(-7.0, 7.0, 225, dtype=F64)
    x = torch.cartesian_prod(side, side)
    mass = mixture.log_prob(x, 0.0).exp()

    def features(z: Tensor) -> Tensor:
        powers = [z[:, 0] ** i * z[:, 1] ** j for i in range(5) for j in range(5 - i) if i + j > 0]
        return torch.stack(powers, 1)

    coefficients = 0.3 * random.normal((14, 1), random.fold(seed, 5), dtype=F64)[:, 0]
    with torch.enable_grad():
        z = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((features(z) @ coefficients).sum(), z)
    score = mixture(x, 0.0).score
    turn = 1.5 * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
    gauge = score @ turn.T
    parts = decompose(gradient + gauge, x, features, mass)
    inside = mass > 1e-6 * mass.max()
    curved = (parts.conservative - gradient)[inside].abs().max().item()
    jacobian = score_jacobian(mixture, x[inside][::40], 0.0)
    divergence = (turn @ jacobian).diagonal(dim1=1, dim2=2).sum(1)
    residual = gauge_residual(gauge[inside][::40], divergence, score[inside][::40]).abs().max().item()
    share = mass / mass.sum()
    whole = (share * (gradient + gauge).square().sum(1)).sum()
    split = (share * (parts.conservative.square() + parts.gauge.square()).sum(1)).sum()
    return [
        at_most("linear field under a Gaussian, d = 6: largest error of either part", linear, 1e-5),
        at_most("polynomial potential and a gauge term under a mixture: largest error of grad phi", curved, 1e-5),
        at_most("... div r + r . grad log p of the gauge term", residual, 1e-8),
        at_most("... weak residual |E grad psi . r| over the basis, relative", parts.weak, 1e-6),
        at_most("... E |s|^2 less the sum of its parts', relative", abs((whole - split) / whole).item(), 1e-6),
    ]


def _covariance(c: float, scale: float, steps: int) -> tuple[Tensor, float]:
    """The covariance that Heun's method gives data N(0, diag(4, 1/4)), VE from 25 to 1e-3, and `log |det|` of the flow."""
    variances = torch.tensor([4.0, 0.25], dtype=F64)
    b = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
    levels = torch.logspace(torch.log10(torch.tensor(25.0)).item(), -3.0, steps + 1, dtype=F64)
    flow = torch.eye(2, dtype=F64)

    def rate(t: Tensor) -> Tensor:
        # dx/dt = -s/2 in the variance t, s = (scale S + c B C_t^-1 x).
        inverse = torch.diag(1.0 / (variances + t))
        return -0.5 * (-scale * inverse + c * b @ inverse)

    for t, u in pairwise(levels):
        h = u - t
        first = rate(t) @ flow
        flow = flow + 0.5 * h * (first + rate(u) @ (flow + h * first))
    start = torch.diag(variances + levels[0])
    return flow @ start @ flow.T, torch.linalg.slogdet(flow)[1].item()


def _harm(seed: int) -> list[Row]:
    exact = torch.diag(torch.tensor([4.001, 0.251], dtype=F64))
    plain, strong, wrong = (
        (_covariance(c, s, 1000)[0] - exact).abs().max().item() for c, s in ((0.0, 1.0), (5.0, 1.0), (0.0, 1.05))
    )
    coarse = (_covariance(5.0, 1.0, 200)[0] - exact).abs().max().item()
    volume = abs(_covariance(5.0, 1.0, 1000)[1] - _covariance(0.0, 1.0, 1000)[1])
    return [
        at_most(
            "gauge term 5 x the score: error of the covariance, 1000 steps",
            strong,
            0.01,
            note=f"{plain:.2g} without it",
        ),
        at_least("a score 5 % too large, over that", wrong / strong, 30.0),
        info("... the gauge term in 200 steps", coarse, note="the ODE does not see it, Heun's steps do"),
        at_most("... change of log density at any point", volume, 1e-2),
    ]


def _dimensions(
    seed: int, dimensions: tuple[int, ...], points: int, steps: int, progress: Progress
) -> tuple[list[Row], dict[str, list[float]]]:
    end = PROCESS.time(-torch.tensor(0.03, dtype=F64).log()).item()
    b, errors = _skew(AMBIENT, random.fold(seed, 10)), {"flow": [], "static": []}
    survived: dict[str, list[float]] = {
        "flow's singular values": [],
        "eigenvalues of one Jacobian": [],
        "tangent space of the Jacobian (sine)": [],
    }
    slopes: list[float] = []
    for number, c in enumerate(SIZES):
        progress(f"dimension, gauge term {c:g}", 0.1 + 0.9 * number / len(SIZES))
        found: dict[str, list[float]] = {"flow": [], "static": [], "tangent": []}
        for k in dimensions:
            model = SphereDenoiser(k, AMBIENT, 1.0, PROCESS, random.fold(seed, 11, k))
            noise = random.normal((points, AMBIENT), random.fold(seed, 13, k), dtype=F64)
            x = PROCESS.perturb(model.sample(points, random.fold(seed, 12, k)), 1.0, noise)

            def bend(score: Tensor, jacobian: Tensor, t: float, c: float = c) -> tuple[Tensor, Tensor]:
                return score + c * score @ b.T, jacobian + c * b @ jacobian

            made = intrinsic_dimension(model, x, 1.0, end, steps, bend=bend if c else None)
            found["flow"].append((made.flow.double() - k).abs().mean().item())
            found["static"].append((made.static.double() - k).abs().mean().item())
            found["tangent"].append(_tangent_error(model, made.x, end, c, b, k))
            if c == 0.0:
                slopes += [made.slopes[:, :k].abs().max().item(), (made.slopes[:, k:] - 1.0).abs().max().item()]
                for name in errors:
                    errors[name].append(found[name][-1])
        for name, values in zip(survived, found.values(), strict=True):
            survived[name].append(sum(values) / len(values))
    rows = [
        at_most(
            "spheres of each dimension in R^20: largest mean error of the flow's estimate", max(errors["flow"]), 0.5
        ),
        at_most("... of the eigenvalues' estimate", max(errors["static"]), 0.5),
        at_most("... slopes of singular values off 0 or 1, at most", max(slopes), 0.25),
        at_most(
            "gauge term 2 x the score: mean error of the flow's estimate",
            survived[FLOW][SIZES.index(2.0)],
            0.5,
        ),
        info("gauge term 15 x: mean error of the flow's estimate", survived[FLOW][SIZES.index(15.0)]),
        info("... of the eigenvalues'", survived[STATIC][SIZES.index(15.0)]),
        check(
            "tangent space from the Jacobian: sine of the largest angle, gauge 10 x against none",
            survived[TANGENT][4] > survived[TANGENT][0],
            "grows",
            here=survived[TANGENT][4],
            baseline=survived[TANGENT][0],
        ),
    ]
    return rows, survived


def _tangent_error(model: SphereDenoiser, x: Tensor, t: float, c: float, b: Tensor, k: int) -> float:
    """The sine of the largest angle between the Jacobian's k flattest directions and the tangent space."""
    jacobian = score_jacobian(model, x, t)
    jacobian = jacobian + c * b @ jacobian
    _, axes = torch.linalg.eigh(-0.5 * (jacobian + jacobian.mT))
    flat = axes[:, :, :k]
    outside = flat - model.tangent(x) @ flat
    return torch.linalg.matrix_norm(outside, 2).mean().item()


def _figure(survived: Mapping[str, list[float]]) -> Any:
    counts = {name: (SIZES, line) for name, line in survived.items() if "sine" not in name}
    angle = {name: (SIZES, line) for name, line in survived.items() if "sine" in name}
    return curves(
        {"mean error of the dimension, spheres 1 to 10 in R^20": counts, "tangent space": angle},
        xlabel="size of the gauge term, over the score",
        ylabel="error",
        log="",
        width=5.0,
    )
