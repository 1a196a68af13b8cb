"""EVODiff (Li et al., NeurIPS 2025, arXiv 2509.26096): weights of a second-order step set by inner products on the way.

Measured as solver error: the distance to the converged flow from the same starts, on eight Gaussians in 32 dimensions, on
the handwritten digits with their exact score, and on the bundled network. The published FID figures need the pretrained
networks of CIFAR-10 and ImageNet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tweed.core import grids, random
from tweed.core.exact import MixtureDenoiser
from tweed.core.processes import VP
from tweed.metrics import frechet_distance
from tweed.recipes import Progress, Report, Row, at_most, info, less_than
from tweed.recipes._cases import Case, bundled, digits_mixture, mixture32
from tweed.recipes._figures import curves
from tweed.recipes.report import span
from tweed.solvers import DDIM, DEIS, DPMSolver, EVODiff, Solver, UniPC, sample
from tweed.solvers.accuracy import rmse

BUDGETS = (5, 8, 10, 15, 20)
SOLVERS: Mapping[str, Solver] = {
    "DDIM": DDIM(),
    "DPM-Solver++ 2M": DPMSolver(2),
    "UniPC": UniPC(3),
    "DEIS": DEIS(3),
    "EVODiff": EVODiff(),
    "EVODiff, official last step": EVODiff("official"),
}
CASES = {"eight Gaussians, d = 32": mixture32, "digits, exact score": digits_mixture, "glyphs, network": bundled}


def run(seed: int, scale: str, progress: Progress) -> Report:
    starts = {"smoke": (192, 48, 0), "default": (512, 256, 4), "gpu": (4096, 2048, 64)}[scale]
    errors: dict[str, Errors] = {}
    for number, ((name, make), count) in enumerate(zip(CASES.items(), starts, strict=True)):
        if count:
            part = span(progress, 0.3 * number, 0.3 * (number + 1))
            errors[name] = _errors(make(count, random.fold(seed, number)), name, part)
    progress("samples, and both forms", 0.9)
    count = {"smoke": 300, "default": 1797, "gpu": 1797}[scale]
    rows = [*_compared(errors), _distance(seed, count), *_forms(seed, starts[0])]
    return Report(
        slug="evodiff",
        rows=rows,
        seed=seed,
        scale=scale,
        settings={"starts": starts, "budgets": BUDGETS, "grid": "log_snr", "solvers": list(SOLVERS)},
        figures={"errors": lambda: _figure(errors)},
        notes=(
            "Errors are distances to the converged flow from the same starts, in units of the data (RMS over a sample).",
            "What it gains is in the tail: fewer starts end in another mode than the flow takes them to. The typical start "
            "(the median) is carried more accurately by DPM-Solver++ 2M, by a factor that grows with the evaluations: "
            "the weights stay away from those of second order.",
            "A third-order method (UniPC) is ahead of both from 10 evaluations on; nothing is claimed against it.",
        ),
    )


Errors = Mapping[str, Sequence[Tensor]]
"""By solver and budget: the distance of each start's result from the converged one."""


def _errors(case: Case, name: str, progress: Progress) -> Errors:
    progress(f"{name}: the converged flow", 0.0)
    with torch.no_grad():
        reference = case.reference(40 if name.startswith("glyphs") else 150)
    found: dict[str, list[Tensor]] = {}
    for number, (solver_name, solver) in enumerate(SOLVERS.items()):
        progress(f"{name}: {solver_name}", 0.4 + 0.6 * number / len(SOLVERS))
        runs = [_run(case, solver, budget).double() for budget in BUDGETS]
        found[solver_name] = [(made - reference).square().flatten(1).mean(1).sqrt() for made in runs]
    return found


def _rms(errors: Tensor) -> float:
    return errors.square().mean().sqrt().item()


def _run(case: Case, solver: Solver, steps: int) -> Tensor:
    times = grids.log_snr(case.denoiser.process, steps, start=case.start, end=case.end)
    return sample(case.denoiser, case.x, solver=solver, times=times)


def _compared(errors: Mapping[str, Errors]) -> list[Row]:
    rows, ratios = [], []
    for name, found in errors.items():
        for at, budget in enumerate(BUDGETS):
            ours, theirs = found["EVODiff"][at], found["DPM-Solver++ 2M"][at]
            label, note = f"{name}: RMS error at {budget} evaluations", "baseline: DPM-Solver++ 2M"
            if budget in (10, 15) and not name.startswith("glyphs"):
                ratios.append(_rms(ours) / _rms(theirs))
                rows.append(less_than(label, _rms(ours), _rms(theirs), 1.15, note=note))
            else:
                rows.append(info(label, _rms(ours), baseline=_rms(theirs), note=note))
            if budget in (10, 20):
                middle = (ours.median().item(), theirs.median().item())
                rows.append(info("... of the median start", middle[0], baseline=middle[1]))
        at = BUDGETS.index(10)
        rows.append(info("... with the official last step, 10", _rms(found["EVODiff, official last step"][at])))
        rows.append(info("... UniPC, 10", _rms(found["UniPC"][at])))
        rows.append(info("... DEIS, 10", _rms(found["DEIS"][at])))
    mixture = errors[next(iter(errors))]
    elsewhere = [
        (mixture[name][BUDGETS.index(10)] > 0.5).double().mean().item() for name in ("EVODiff", "DPM-Solver++ 2M")
    ]
    label = "eight Gaussians: share of starts that end in another mode, 10 evaluations"
    rows.append(less_than(label, elsewhere[0], elsewhere[1], 1.1, note="baseline: DPM-Solver++ 2M"))
    label = "smallest ratio of RMS errors to 2M's at 10 and 15 evaluations"
    rows.append(at_most(label, min(ratios), 0.95, published="FID 2.78 against 5.10 at 10"))
    return rows


def _distance(seed: int, count: int) -> Row:
    """Frechet distance of samples to the digits, at 10 evaluations."""
    case = digits_mixture(count, random.fold(seed, 7))
    data = case.denoiser.sample(count, random.fold(seed, 8))  # type: ignore[operator]
    ours, theirs = (frechet_distance(_run(case, solver, 10), data) for solver in (EVODiff(), DPMSolver(2)))
    return less_than("digits: Frechet distance at 10 evaluations", ours, theirs, 1.2, note="baseline: DPM-Solver++ 2M")


def _forms(seed: int, starts: int) -> list[Row]:
    """The first insight: estimates of the data leave less variance than those of the noise."""
    case, process = mixture32(min(starts, 192), random.fold(seed, 11)), VP()
    inner = case.denoiser
    assert isinstance(inner, MixtureDenoiser)
    model = MixtureDenoiser(inner.means, _covariances(inner), inner.log_weights.exp(), process)
    x = process.prior((len(case.x), 32), random.fold(seed, 12), dtype=torch.float64)
    at = Case(model, x, 1.0, process.t_min, 1e-4)
    reference = at.reference()
    rows = []
    for evaluations in (6, 8, 10):
        data, noise = (
            rmse(_run(at, DPMSolver(2, "singlestep", form), evaluations // 2), reference) for form in ("data", "noise")
        )
        label, note = f"singlestep 2 at {evaluations} evaluations: data form", "baseline: noise form"
        if evaluations == 6:
            rows.append(less_than(label, data, noise, 0.65, note=note))
        else:
            rows.append(info(label, data, baseline=noise, note=note))
    # For data N(0, v) a first-order step from s to t scales x by a number: what it should be is the flow's psi.
    v, here, there = 0.04, process.level(0.9), process.level(0.5)
    total = here.alpha**2 * v + here.sigma**2
    keep, carry = there.sigma / here.sigma, there.alpha / here.alpha
    by_data = keep + (there.alpha - keep * here.alpha) * here.alpha * v / total
    by_noise = carry + (there.sigma - carry * here.sigma) * here.sigma / total
    exact = (there.alpha**2 * v + there.sigma**2) / total
    return [
        *rows,
        info(
            "N(0, 0.04): variance kept by a first-order step from 0.9 to 0.5",
            by_data**2,
            baseline=exact,
            note="the flow's",
        ),
        at_most(
            "... data and noise form differ by",
            abs(by_data - by_noise),
            1e-12,
            note="both are DDIM: the insight needs order 2",
        ),
    ]


def _covariances(model: MixtureDenoiser) -> Tensor:
    assert model.vectors is not None
    return torch.einsum("kde,ke,kfe->kdf", model.vectors, model.values, model.vectors)


def _figure(errors: Mapping[str, Errors]) -> Any:
    panels = {
        f"{name}: {kind}": {
            ("" if solver.startswith("EVODiff") else "~") + solver: (BUDGETS, [read(each) for each in values])
            for solver, values in found.items()
        }
        for kind, read in (("RMS", _rms), ("median", lambda each: each.median().item()))
        for name, found in errors.items()
    }
    return curves(panels, xlabel="evaluations", ylabel="distance to the converged flow", ticks=BUDGETS, width=3.6)
