"""Exact worlds and measured slopes for the tests of solvers."""

import math
from functools import cache

import torch
from scipy.integrate import solve_ivp

import tweed
from tweed import processes, random
from tweed.solvers import Problem

FINITE = processes.VP()
START, END = 0.7, 0.1


def mixture(process=None):
    """Three unequal Gaussians in the plane: a flow with curvature, and neither linear nor symmetric."""
    means = torch.tensor([[1.0, 0.5], [-0.7, 0.3], [0.2, -1.0]])
    variances, weights = torch.tensor([0.15, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    return tweed.MixtureDenoiser(means, variances, weights, process or FINITE)


def noisy(process, t, n=8, seed=0, shape=(2,)):
    """States that are plausible at time `t`, float64."""
    level = process.level(t)
    centre = 0.25 * level.alpha
    return centre + level.sigma * random.normal((n, *shape), seed, dtype=torch.float64)


def flow(denoiser, x, t, s):
    """The probability flow from time `t` to time `s` to twelve digits, by a method of order eight with error control."""

    def velocity(time, flat):
        return denoiser(torch.from_numpy(flat).reshape(x.shape), float(time)).velocity.numpy().ravel()

    result = solve_ivp(velocity, (t, s), x.numpy().ravel(), method="DOP853", rtol=1e-13, atol=1e-14)
    return torch.from_numpy(result.y[:, -1]).reshape(x.shape)


@cache
def case(process=FINITE, t=START, s=END):
    """The mixture, states at time `t`, and where the flow carries them by time `s`; computed once."""
    denoiser, x = mixture(process), noisy(process, t)
    return denoiser, x, flow(denoiser, x, t, s)


def run(solver, denoiser, times, x, **options):
    """The run itself, on a grid of numbers or of times a sample, without the checks of `tweed.sample`."""
    if isinstance(times, torch.Tensor) and times.ndim == 1:
        times = times.tolist()
    if not isinstance(times, torch.Tensor):
        times = tuple(times)
    return solver.integrate(Problem(denoiser, times, **options), x)


def slope(solver, denoiser, x, exact, grid, counts, start=START, end=END):
    """The measured order of convergence between the two numbers of steps in `counts`."""
    errors = [
        (run(solver, denoiser, grid(denoiser.process, n, start=start, end=end), x) - exact).norm().item()
        for n in counts
    ]
    return math.log(errors[0] / errors[1]) / math.log(counts[1] / counts[0])
