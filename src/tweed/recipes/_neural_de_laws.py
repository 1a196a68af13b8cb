"""Blocks of the recipe `neural-de` that find laws in series: a latent SDE, and formulas for a fitted neural ODE."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random
from tweed.nets import VectorField, initialise
from tweed.recipes.report import Row, at_most, info, within
from tweed.science import LatentSDE, MissingPackageError, NeuralODE, recover_field
from tweed.solvers.differential import odeint

F64 = torch.float64
RATE, SPREAD, ERROR = 1.0, 0.8, 0.5
"""Of the Ornstein-Uhlenbeck process `dz = -RATE z dt + SPREAD dW`, and the noise on an observation."""
VARIANCE = SPREAD**2 / (2.0 * RATE)


def ornstein_uhlenbeck(count: int, ts: Float[Tensor, " k"], seed: int) -> Float[Tensor, "b k 1"]:
    """Exact stationary paths at equal times, observed with noise."""
    z = random.normal((count, len(ts)), seed, draw=0, dtype=F64)
    decay = math.exp(-RATE * float(ts[1] - ts[0]))
    path = [math.sqrt(VARIANCE) * z[:, 0]]
    for i in range(1, len(ts)):
        path.append(decay * path[-1] + math.sqrt(VARIANCE * (1.0 - decay**2)) * z[:, i])
    x = torch.stack(path, 1)[:, :, None]
    return (x + ERROR * random.normal(x.shape, seed, draw=1, dtype=F64)).float()


def evidence(x: Float[Tensor, "b k 1"], ts: Float[Tensor, " k"]) -> float:
    """The mean log likelihood of series under the process that made them, in nats."""
    t, y = ts.double(), x[:, :, 0].double()
    covariance = VARIANCE * (-RATE * (t[:, None] - t).abs()).exp() + ERROR**2 * torch.eye(len(t), dtype=F64)
    law = torch.distributions.MultivariateNormal(torch.zeros(len(t), dtype=F64), covariance)
    return law.log_prob(y).mean().item()


def latent_ou(seed: int, steps: int, batch: int, strict: bool) -> tuple[list[Row], dict[str, Any]]:
    """A latent SDE fitted to noisy stationary series; how far its prior, run on, has the variance of the process."""
    ts, count = torch.linspace(0.0, 4.0, 9), 8192
    data = ornstein_uhlenbeck(count, ts, random.fold(seed, 50))
    model = LatentSDE(
        1, 1, width=16, step=0.0625, halvings=2, method="euler_maruyama", noise=ERROR, seed=random.fold(seed, 51)
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x = data[torch.arange(step * batch, (step + 1) * batch) % count]
        optimizer.zero_grad()
        (-model.elbo(ts, x, random.fold(seed, 52, step)).mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    fresh = ornstein_uhlenbeck(2000, ts, random.fold(seed, 53))
    with torch.no_grad():
        bound = model.elbo(ts, fresh, random.fold(seed, 54)).mean().item()
    run = model.sample(1000, torch.linspace(0.0, 24.0, 97), random.fold(seed, 55), noise=False)[:, 33:, 0]
    best = evidence(fresh, ts)
    lags = range(0, 13, 2)
    learnt = [(run[:, 20 - k] * run[:, 20]).mean().item() for k in lags]
    exact = [VARIANCE * math.exp(-RATE * 0.25 * k) for k in lags]
    curves = {"latent SDE's prior": ([0.25 * k for k in lags], learnt), "~exact": ([0.25 * k for k in lags], exact)}
    rows = [
        at_most(
            "latent SDE on an OU process: bound on new series, nats", bound, best + 0.1, note="true log likelihood"
        ),
    ]
    ratio, name = run.var().item() / VARIANCE, "... stationary variance of the prior, over the exact one"
    rows.append(within(name, ratio, 1.0, 0.2) if strict else info(name, ratio, note="hardly trained at this scale"))
    return rows, curves


GROWTH, EATEN, DEATH, GAIN = 1.1, 0.8, 1.0, 0.6
"""Lotka and Volterra's `x' = GROWTH x - EATEN x y`, `y' = -DEATH y + GAIN x y`."""


def _lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    prey, hunters = y.unbind(1)
    return torch.stack((GROWTH * prey - EATEN * prey * hunters, -DEATH * hunters + GAIN * prey * hunters), 1)


def lotka_volterra(seed: int, steps: int, population: int, strict: bool) -> tuple[list[Row], dict[str, Any]]:
    """A neural ODE is fitted to trajectories, without derivatives; then formulas to the network."""
    ts = torch.linspace(0.0, 2.4, 13)
    y0 = 0.4 + 2.2 * random.uniform((64, 2), seed, draw=56)
    with torch.no_grad():
        data = odeint(_lotka_volterra, y0.double(), ts, method="rk4", step=0.02).float()
    data = data + 0.002 * random.normal(data.shape, seed, draw=57)
    net = VectorField(2, width=48, activation="silu", time=False)
    initialise(net, random.fold(seed, 58))
    model = NeuralODE(net, method="rk4")
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # Windows of four intervals from every observation: short, so that the fit begins well wherever it starts.
    windows = data.unfold(0, 5, 1).permute(3, 0, 1, 2).reshape(5, -1, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(windows[0], ts[:5]) - windows).square().mean().backward()
        optimizer.step()
        schedule.step()
    seen = data.reshape(-1, 2)[::2]
    with torch.no_grad():
        off = (net(ts[0], seen) - _lotka_volterra(ts[0], seen)).square().mean().sqrt().item()
    rows, curves = [info("root mean square error of the fitted field", off)], {}
    options = {"names": ("x", "y"), "population": population, "generations": 40 if strict else 12}
    try:
        fronts = recover_field(net, seen, seed=random.fold(seed, 59), **options)
    except MissingPackageError as error:
        return [*rows, info("formulas for it", note=str(error))], curves
    truth = ({"x": GROWTH, "x*y": -EATEN}, {"y": -DEATH, "x*y": GAIN})
    for front, terms, name in zip(fronts, truth, ("x'", "y'"), strict=True):
        found = front.knee.coefficients()
        wrong = max(abs(found.get(term, 0.0) - terms.get(term, 0.0)) for term in {*found, *terms})
        note = f"{name} = {front.knee.text}"
        what = f"formula for {name}: worst coefficient is off by"
        rows.append(at_most(what, wrong, 0.05, note=note) if strict else info(what, wrong, note=note))
        curves[name] = ([e.length for e in front.expressions], [math.sqrt(e.error) for e in front.expressions])
    return rows, curves
