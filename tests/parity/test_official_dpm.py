"""DPM-Solver and UniPC against their published formulas, written out step by step as the papers do.

Nothing here is flattened into a table: stages restart from the beginning of the step, UniPC keeps the corrected state,
linear systems are solved number by number.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from tweed import MixtureDenoiser, grids
from tweed.core.processes import VP, RectifiedFlow
from tweed.core.random import normal
from tweed.solvers import DPMSolver, Problem, UniPC

pytestmark = pytest.mark.parity
TOLERANCE = 1e-12
MEANS = normal((3, 4), 2, dtype=torch.float64)
START = normal((16, 4), 1, dtype=torch.float64)
GRIDS = {"log_snr": grids.log_snr, "quadratic": grids.quadratic}


class World:
    def __init__(self, form, process, times):
        self.form, self.process, self.times = form, process, times.tolist()
        self.denoiser = MixtureDenoiser(MEANS, torch.tensor([0.3, 0.4, 0.5]), None, process)

    def model(self, x, t):
        estimate = self.denoiser(x, t)
        return estimate.x0 if self.form == "data" else estimate.eps

    def lam(self, t):
        return self.process.level(t).log_snr

    def pair(self, t):
        level = self.process.level(t)
        return (level.sigma, level.alpha) if self.form == "data" else (level.alpha, level.sigma)

    def first(self, x, m, s, t):
        """DPM-Solver-1 and the numbers that all updates share: the scale at t, z, expm1(z)."""
        (base_s, _), (base_t, scale) = self.pair(s), self.pair(t)
        z = (self.lam(t) - self.lam(s)) * (-1 if self.form == "data" else 1)
        return base_t / base_s * x - scale * math.expm1(z) * m, scale, z, math.expm1(z)

    def start(self):
        return START * self.process.level(self.times[0]).sigma

    def ours(self, solver):
        return solver.integrate(Problem(self.denoiser, tuple(self.times)), self.start())


def multistep(world, order, taylor):
    """2M and 3M; 3M with the authors' divided difference where the polynomial's second derivative would be twice that."""
    x, values, lams = world.start(), [], []
    for k, (s, t) in enumerate(itertools.pairwise(world.times), 1):
        values, lams = [world.model(x, s), *values], [world.lam(s), *lams]
        x, scale, z, e = world.first(x, values[0], s, t)
        h = world.lam(t) - lams[0]
        p2 = e / z - 1
        p3 = p2 / z - 1 / 2
        if min(order, k) > 1:
            r0 = (lams[0] - lams[1]) / h
            d0 = (values[0] - values[1]) / r0
        if min(order, k) == 2:
            x = x - scale * (p2 if taylor else e / 2) * d0
        if min(order, k) == 3:
            r1 = (lams[1] - lams[2]) / h
            d1 = (values[1] - values[2]) / r1
            x = x - scale * p2 * (d0 + r0 / (r0 + r1) * (d0 - d1)) - scale * p3 * (d0 - d1) / (r0 + r1)
    return x


def singlestep(world, taylor, steps):
    """`steps` lists the times of each step: its beginning, its stages and its end."""
    x = world.start()
    for s, *inner, t in steps:
        m = world.model(x, s)
        x1, scale, z, e = world.first(x, m, s, t)
        order = len(inner) + 1
        p2, h = e / z - 1, world.lam(t) - world.lam(s)
        p3 = p2 / z - 1 / 2
        r = [(world.lam(u) - world.lam(s)) / h for u in inner]
        if order == 1:
            x = x1
        elif order == 2:
            u = world.first(x, m, s, inner[0])[0]
            d = world.model(u, inner[0]) - m
            x = x1 - scale * (p2 if taylor else e / 2) / r[0] * d
        else:
            u = world.first(x, m, s, inner[0])[0]
            du = world.model(u, inner[0]) - m
            v, scale_v, z_v, e_v = world.first(x, m, s, inner[1])
            v = v - r[1] / r[0] * scale_v * (e_v / z_v - 1) * du
            dv = world.model(v, inner[1]) - m
            d0, d1 = du / r[0], dv / r[1]
            if taylor:
                slope, bend = (r[1] * d0 - r[0] * d1) / (r[1] - r[0]), 2 * (d1 - d0) / (r[1] - r[0])
                x = x1 - scale * p2 * slope - scale * p3 * bend
            else:
                x = x1 - scale * p2 * d1
    return x


def unipc(world, p, variant, lower_order_final):
    """Algorithms 1 and 2 of the paper with `B_1(h) = h`, `B_2(h) = e^h - 1`; no correction at the last step."""
    x, n = world.start(), len(world.times) - 1
    values, lams = [world.model(x, world.times[0])], [world.lam(world.times[0])]
    for k, (s, t) in enumerate(itertools.pairwise(world.times), 1):
        order = min(p, k, n + 1 - k) if lower_order_final else min(p, k)
        base, scale, z, e = world.first(x, values[0], s, t)
        b = z if variant == "bh1" else e
        r = [(lams[j] - lams[0]) / (world.lam(t) - lams[0]) for j in range(1, order)] + [1.0]
        d = [(values[j] - values[0]) / r[j - 1] for j in range(1, order)]
        right, q = [], e / z - 1
        for i in range(1, order + 1):
            right.append(q * math.factorial(i) / b)
            q = q / z - 1 / math.factorial(i + 1)
        matrix = np.array([[c ** (i - 1) for c in r] for i in range(1, order + 1)])
        predict = [0.5] if order == 2 else np.linalg.solve(matrix[:-1, :-1], np.array(right[:-1])).tolist()
        correct = [0.5] if order == 1 else np.linalg.solve(matrix, np.array(right)).tolist()
        x = base - scale * b * sum((w * v for w, v in zip(predict, d, strict=True)), torch.zeros_like(x))
        if k == n:
            return x
        new = world.model(x, t)
        past = sum((w * v for w, v in zip(correct, d, strict=False)), torch.zeros_like(x))
        x = base - scale * b * (past + correct[-1] * (new - values[0]))
        values, lams = [new, *values], [world.lam(t), *lams]
    return x


def world_of(form, grid, n=12):
    process = VP()
    return World(form, process, GRIDS[grid](process, n, start=1.0, end=1e-3))


def gap(ours, theirs):
    return (ours - theirs).abs().max().item()


forms = pytest.mark.parametrize("form", ["data", "noise"])
types = pytest.mark.parametrize("solver_type", ["midpoint", "taylor"])
spacings = pytest.mark.parametrize("grid", list(GRIDS))


@forms
@spacings
@pytest.mark.parametrize(("order", "solver_type"), [(1, "midpoint"), (2, "midpoint"), (2, "taylor"), (3, "midpoint")])
def test_multistep(form, grid, order, solver_type):
    world = world_of(form, grid)
    solver = DPMSolver(order, form=form, solver_type=solver_type, lower_order_final=False)
    assert gap(world.ours(solver), multistep(world, order, solver_type == "taylor")) < TOLERANCE


@forms
@types
@spacings
@pytest.mark.parametrize("order", [2, 3])
def test_singlestep(form, grid, order, solver_type):
    world = world_of(form, grid)
    steps = []
    for s, t in itertools.pairwise(world.times):
        lam, h = world.lam(s), world.lam(t) - world.lam(s)
        inner = [world.process.time(lam + h * j / order).item() for j in range(1, order)]
        steps.append([s, *inner, t])
    theirs = singlestep(world, solver_type == "taylor", steps)
    assert gap(world.ours(DPMSolver(order, "singlestep", form, solver_type)), theirs) < TOLERANCE


@forms
@types
@pytest.mark.parametrize(
    ("order", "n", "orders"),
    [
        (2, 12, [2] * 6),
        (2, 13, [2] * 6 + [1]),
        (3, 12, [3] * 3 + [2, 1]),
        (3, 13, [3] * 4 + [1]),
        (3, 14, [3] * 4 + [2]),
    ],
)
def test_fast(form, order, n, orders, solver_type):
    world = world_of(form, "log_snr", n)
    ends = [0, *itertools.accumulate(orders)]
    theirs = singlestep(world, solver_type == "taylor", [world.times[a : b + 1] for a, b in itertools.pairwise(ends)])
    assert gap(world.ours(DPMSolver(order, "singlestep", form, solver_type, group=True)), theirs) < TOLERANCE


@forms
@spacings
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc(form, grid, p, variant):
    world = world_of(form, grid)
    assert gap(world.ours(UniPC.published(p, variant, form)), unipc(world, p, variant, True)) < TOLERANCE
    kept = UniPC(p + 1, variant, form, lower_order_final=False)
    assert gap(world.ours(kept), unipc(world, p, variant, False)) < TOLERANCE


def test_on_the_straight_path():
    process = RectifiedFlow()
    world = World("data", process, grids.log_snr(process, 10, start=0.99, end=0.01))
    assert gap(world.ours(DPMSolver(2, lower_order_final=False)), multistep(world, 2, False)) < TOLERANCE
    assert gap(world.ours(UniPC.published(2)), unipc(world, 2, "bh2", True)) < TOLERANCE
