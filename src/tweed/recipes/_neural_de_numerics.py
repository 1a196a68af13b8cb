"""Blocks of the recipe `neural-de` about the integrators: orders, agreement of gradients, memory, and a fixed point."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tweed.core import random
from tweed.nets import DeepEquilibrium, VectorField, initialise
from tweed.recipes.report import Row, at_least, at_most, less_than, within
from tweed.solvers.differential import BrownianInterval, odeint, saved_bytes, sdeint

F64 = torch.float64
ODE_ORDERS = {"euler": 1, "heun": 2, "reversible_heun": 2, "bosh3": 3, "rk4": 4, "dopri5": 5, "tsit5": 5}

SDE_CASES: dict[str, tuple[str, str, str, float]] = {
    "Euler-Maruyama, multiplicative": ("euler_maruyama", "ito", "diagonal", 0.5),
    "Milstein, multiplicative": ("milstein", "ito", "diagonal", 1.0),
    "Heun, multiplicative": ("heun", "stratonovich", "diagonal", 1.0),
    "reversible Heun, additive": ("reversible_heun", "stratonovich", "additive", 1.0),
    "SRK, additive": ("srk", "ito", "additive", 1.5),
}
"""Method, calculus, noise, and the strong order."""


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The order: minus the slope of log error over log steps."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def _rotation(t: Tensor, y: Tensor) -> Tensor:
    """A nonlinear oscillator whose speed depends on the radius: `y' = |y|^2 J y`, solved by a rotation."""
    return y.square().sum(1, keepdim=True) * torch.stack((-y[:, 1], y[:, 0]), 1)


def ode_orders(seed: int) -> tuple[list[Row], dict[str, Any]]:
    """Fitted orders on `y' = |y|^2 J y`, from eight starts."""
    z = random.normal((8, 2), seed, draw=1, dtype=F64)
    y0 = z / z.norm(dim=1, keepdim=True) * torch.linspace(0.8, 1.2, 8, dtype=F64)[:, None]
    turn = y0.square().sum(1)
    exact = torch.stack(
        (turn.cos() * y0[:, 0] - turn.sin() * y0[:, 1], turn.sin() * y0[:, 0] + turn.cos() * y0[:, 1]), 1
    )
    counts, rows, curves = (16, 32, 64, 128), [], {}
    for method, order in ODE_ORDERS.items():
        errors = [
            (odeint(_rotation, y0, [0.0, 1.0], method=method, step=1.0 / n)[-1] - exact).square().mean().sqrt().item()
            for n in counts
        ]
        rows.append(
            within(f"order, ODE: {method}", slope(counts, errors), order, 0.2 if order < 5 else 0.5, published=order)
        )
        curves[method] = (counts, errors)
    return rows, curves


def sde_orders(seed: int, paths: int) -> tuple[list[Row], dict[str, Any]]:
    """Strong and weak errors on equations that are solved exactly along the same Brownian path.

    Multiplicative: `dX = a X dt + s X dW`, geometric Brownian motion. Additive: `dX = -X dt + s(t) dW`, against the same
    method's fine path.
    """
    counts, rows, curves = (8, 16, 32, 64), [], {}
    for k, (name, (method, calculus, noise, order)) in enumerate(SDE_CASES.items()):
        # Additive noise scatters the errors less, and the fine path is the dear one.
        count = paths if noise == "diagonal" else paths // 4
        y0 = torch.ones(count, 1, dtype=F64)
        brownian = BrownianInterval(0.0, 1.0, (count, 1), random.fold(seed, 20, k), area=method == "srk", dtype=F64)
        options: dict[str, Any] = {"noise": noise, "calculus": calculus, "method": method, "brownian": brownian}
        if noise == "diagonal":
            shift = 0.5 * 0.6**2 if calculus == "ito" else 0.0
            exact = (0.3 - shift + 0.6 * brownian.increment(0.0, 1.0)).exp()
            drift, diffusion = (lambda t, y: 0.3 * y), (lambda t, y: 0.6 * y)
        else:
            drift, diffusion = (lambda t, y: -y.sin()), (lambda t, y: torch.full_like(y, 0.5) * (1.0 + t))
            exact = sdeint(drift, diffusion, y0, [0.0, 1.0], step=2.0**-9, **options)[-1]
        errors = [
            (sdeint(drift, diffusion, y0, [0.0, 1.0], step=1.0 / n, **options)[-1] - exact)
            .square()
            .mean()
            .sqrt()
            .item()
            for n in counts
        ]
        found = slope(counts, errors)
        if method == "srk":  # the deterministic part of its error is of second order, and not small at these steps
            rows.append(at_least(f"strong order: {name}", found, 1.35, published=order))
        else:
            rows.append(within(f"strong order: {name}", found, order, 0.2, published=order))
        curves[name] = (counts, errors)
    return rows, curves


class _Nodes:
    """The nodes of a Gauss-Hermite rule as the increments of one step: means over the batch are expectations, exactly."""

    area = False

    def __init__(self, h: float, count: int = 12):
        nodes, weights = np.polynomial.hermite_e.hermegauss(count)
        self.w = torch.from_numpy(nodes * math.sqrt(h))[:, None]
        self.weights = torch.from_numpy(weights / weights.sum())
        self.shape = tuple(self.w.shape)

    def increment(self, s: float, t: float) -> Tensor:
        return self.w

    def increment_and_area(self, s: float, t: float) -> tuple[Tensor, Tensor]:
        return self.w, torch.zeros_like(self.w)


def weak_orders() -> list[Row]:
    """Weak orders on geometric Brownian motion, without sampling.

    The steps multiply X by independent factors, so the second moment after n steps is the n-th power of that of one step,
    and that is an integral over one Gaussian.
    """
    a, s, counts, rows = 0.5, 0.7, (8, 16, 32, 64), []
    for name, method, calculus in (
        ("Euler-Maruyama", "euler_maruyama", "ito"),
        ("Milstein", "milstein", "ito"),
        ("Heun", "heun", "stratonovich"),
    ):
        drift = a if calculus == "ito" else a - 0.5 * s**2
        errors = []
        for n in counts:
            nodes = _Nodes(1.0 / n)
            end = sdeint(
                lambda t, y, drift=drift: drift * y,
                lambda t, y: s * y,
                torch.ones(nodes.shape, dtype=F64),
                [0.0, 1.0 / n],
                noise="diagonal",
                calculus=calculus,  # type: ignore[arg-type]
                method=method,
                brownian=nodes,  # type: ignore[arg-type]
            )[-1]
            moment = (nodes.weights @ end.square())[0].item()
            errors.append(abs(moment**n - math.exp(2.0 * a + s**2)))
        rows.append(within(f"weak order, second moment: {name}", slope(counts, errors), 1.0, 0.2, published=1))
    return rows


def _net(seed: int, dim: int = 4, out_dim: int | None = None) -> VectorField:
    net = VectorField(dim, out_dim, width=16, activation="tanh", bounded=True)
    initialise(net, seed)
    return net.double()


def _gradient(result: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(result.square().sum(), tensors)])


def gradients(seed: int) -> list[Row]:
    """How far the gradients of a network with 64 steps differ between adjoints, relative, in float64."""
    drift, diffusion = _net(random.fold(seed, 30)), _net(random.fold(seed, 31))
    y0 = random.normal((16, 4), seed, draw=3, dtype=F64).requires_grad_()
    ode, sde = [y0, *drift.parameters()], [y0, *drift.parameters(), *diffusion.parameters()]

    def of_ode(method: str, adjoint: Any, n: int) -> Tensor:
        return _gradient(odeint(drift, y0, [0.0, 0.5, 1.0], method=method, step=1.0 / n, adjoint=adjoint), ode)

    def of_sde(method: str, adjoint: Any, n: int) -> Tensor:
        path = sdeint(
            drift,
            lambda t, y: 0.5 * diffusion(t, y),
            y0,
            [0.0, 0.5, 1.0],
            noise="diagonal",
            calculus="stratonovich",
            method=method,
            adjoint=adjoint,
            seed=random.fold(seed, 32),
            step=1.0 / n,
            params=sde[1:],
        )
        return _gradient(path, sde)

    rows = []
    for word, of in (("ODE", of_ode), ("SDE", of_sde)):
        for method, adjoint in (("reversible_heun", "checkpoint"), ("reversible_heun", "reversible")):
            exact = of(method, "direct", 64)
            off = ((of(method, adjoint, 64) - exact).norm() / exact.norm()).item()
            published = "round-off" if adjoint == "reversible" else "exact"
            name = f"gradient of an {word}, {adjoint} against direct"
            rows.append(at_most(name, off, 1e-10, published=published, note="reversible Heun, 64 steps"))
        off = []
        for n in (16, 64):
            exact = of("midpoint", "direct", n)
            off.append(((of("midpoint", "backsolve", n) - exact).norm() / exact.norm()).item())
        if word == "ODE":
            exact = of("rk4", "direct", 64)
            fine = ((of("rk4", "backsolve", 64) - exact).norm() / exact.norm()).item()
            rows.append(at_most("... backsolve, rk4", fine, 1e-6, note="64 steps"))
        rows.append(
            less_than("... backsolve, midpoint method, 64 steps", off[1], off[0], 0.5, note="baseline: 16 steps")
        )
    return rows


def memory(seed: int, counts: Sequence[int]) -> tuple[list[Row], dict[str, Any]]:
    """Bytes kept for the backward pass at most, by the number of steps."""
    net = _net(random.fold(seed, 33))
    y0 = random.normal((32, 4), seed, draw=4, dtype=F64)
    curves: dict[str, Any] = {}
    for adjoint in ("direct", "checkpoint", "backsolve", "reversible"):
        peaks = []
        for n in counts:
            with saved_bytes() as meter:
                end = odeint(net, y0, [0.0, 1.0], method="reversible_heun", step=1.0 / n, adjoint=adjoint)
                end.sum().backward()
            peaks.append(meter.peak / 1024.0)
        curves[adjoint] = (list(counts), peaks)
    growth = {name: slope(counts, y) * -1.0 for name, (_, y) in curves.items()}
    rows = [within("memory against steps, exponent: direct", growth["direct"], 1.0, 0.1, published=1)]
    rows.append(at_most("... checkpoint", growth["checkpoint"], 0.65, published="1/2"))
    rows += [at_most(f"... {name}", abs(growth[name]), 0.05, published=0) for name in ("backsolve", "reversible")]
    for name in ("checkpoint", "reversible"):
        here, baseline = curves[name][1][-1], curves["direct"][1][-1]
        rows.append(less_than(f"KiB kept at {counts[-1]} steps: {name}", here, baseline, 0.25, note="baseline: direct"))
    return rows, curves


class _Cell(nn.Module):
    """`tanh(W z + U x)`, with |W| made 0.9: a contraction."""

    def __init__(self, seed: int, dim: int = 12):
        super().__init__()
        self.w, self.u = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        initialise(self, seed)
        self.double()
        with torch.no_grad():
            self.w.weight.mul_(0.9 / torch.linalg.matrix_norm(self.w.weight, 2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.w(z) + self.u(x))


def equilibrium(seed: int) -> list[Row]:
    """A fixed point's gradient against that of 400 layers, and the evaluations that Anderson acceleration saves."""
    cell = _Cell(random.fold(seed, 40))
    x = random.normal((16, 12), seed, draw=5, dtype=F64).requires_grad_()
    tensors = [x, *cell.parameters()]
    unrolled = torch.zeros_like(x)
    with saved_bytes() as deep:
        for _ in range(400):
            unrolled = cell(unrolled, x)
        exact = _gradient(unrolled, tensors)
    calls = {}
    for memory in (1, 5):
        counted = _Counted(cell)
        layer = DeepEquilibrium(counted, tolerance=1e-10, memory=memory, max_iterations=1000)
        with torch.no_grad():
            layer(x)
        calls[memory] = counted.calls
    with saved_bytes() as flat:
        found = _gradient(DeepEquilibrium(cell, tolerance=1e-10)(x), tensors)
    return [
        at_most("gradient of a fixed point against 400 layers", ((found - exact).norm() / exact.norm()).item(), 1e-7),
        less_than("... KiB kept", flat.peak / 1024.0, deep.peak / 1024.0, 0.05),
        less_than("... evaluations to 1e-10, Anderson against plain iteration", calls[5], calls[1], 0.8),
    ]


class _Counted:
    def __init__(self, f: Any):
        self.f, self.calls = f, 0

    def __call__(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.f(z, x)
