"""What an option of a network costs, and what an optimizer costs: times over those of the plain one, taken in turns."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from tweed import nets
from tweed.core import random
from tweed.recipes._timing import in_turns, least_ratio
from tweed.recipes.report import Progress
from tweed.training.optimizers import DualAdam, InvAdam

PLAIN: dict[str, dict[str, Any]] = {
    "dit": {"name": "dit", "in_channels": 4, "hidden": 192, "depth": 8, "heads": 3},
    "unet": {"name": "unet", "in_channels": 3, "channels": 64, "multipliers": [1, 2, 2], "blocks": 1},
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "dit": {
        "routing": {"routing": 0.8},
        "experts": {"experts": 3},
        "long skips": {"long_skips": True},
        "long skips, constant scale": {"long_skips": True, "skip_scale": "constant"},
        "long skips, learned scale": {"long_skips": True, "skip_scale": "learned"},
    },
    "unet": {
        "routing": {"routing": 0.8},
        "constant skip scale": {"skip_scale": "constant"},
        "learned skip scale": {"skip_scale": "learned"},
        "alias-free resampling": {"resample": "alias-free"},
        "... and nonlinearities": {"resample": "alias-free", "filtered_activations": True},
    },
}
"""The options of each network that are measured."""

BOUNDS = {"routing": 1.15, "constant skip scale": 1.15, "long skips, constant scale": 1.5, "DualAdam": 1.3}
"""Times over the plain ones that are required; those that are not here are only shown."""


def run(
    net: Literal["unet", "dit"], batch: int | None, rounds: int, compile: bool | None, progress: Progress
) -> dict[str, Any]:
    """Forward and backward of a smaller network with each option, and a step of each optimizer on its parameters."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda = device == "cuda"
    batch = batch or (64 if cuda else 2)
    compiled = cuda if compile is None else compile
    config = PLAIN[net]
    x = random.normal((batch, config["in_channels"], 32, 32), 1).to(device)
    t = random.uniform((batch, 1), 2)[:, 0].to(device)
    clock = time.thread_time if not cuda and torch.get_num_threads() == 1 else time.perf_counter

    runs, parameters = {}, {}
    for name, options in {"plain": {}, **OPTIONS[net]}.items():
        progress(f"{name}: building", None)
        model = nets.build({**config, **options}, 1).to(device).train()
        parameters[name] = sum(p.numel() for p in model.parameters())
        runs[name] = _both_ways(torch.compile(model) if compiled else model, x, t, cuda)
    times = in_turns(runs, rounds, warmup=3 if cuda else 1, clock=clock, progress=progress)
    rows = _rows("forward and backward", times, "plain", parameters)

    steps, made = {}, nets.build(config, 1).to(device)
    optimizers: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
        "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-6, foreach=True),
        "DualAdam": lambda p: DualAdam(p, lr=1e-6),
        "InvAdam": lambda p: InvAdam(p, lr=1e-6),
    }
    for name, make in optimizers.items():
        own = [nn.Parameter(p.detach().clone()) for p in made.parameters()]
        for i, p in enumerate(own):
            p.grad = random.normal((1, *p.shape), 3, draw=i)[0].to(device)
        steps[name] = make(own).step
    times = in_turns(steps, 3 * rounds, warmup=3, clock=clock, progress=progress)
    rows += _rows("optimizer step", times, "AdamW", dict.fromkeys(steps, parameters["plain"]))
    required = [row["ratio"] <= row["bound"] for row in rows if row["bound"] is not None]
    return {
        "bench": "options",
        "net": net,
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
        "batch": batch,
        "precision": "bfloat16" if cuda else "float32",
        "compiled": compiled,
        "rounds": rounds,
        "rows": rows,
        "holds": all(required),
    }


def _rows(
    what: str, times: Mapping[str, list[float]], base: str, parameters: Mapping[str, int]
) -> list[dict[str, Any]]:
    return [
        {
            "what": what,
            "name": name,
            "parameters": parameters[name],
            "ms": 1e3 * min(values),
            "ratio": least_ratio(values, times[base]),
            "bound": BOUNDS.get(name),
        }
        for name, values in times.items()
    ]


def _both_ways(model: Any, x: torch.Tensor, t: torch.Tensor, cuda: bool) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=cuda):
            output = model(x, t)
        output.float().square().mean().backward()

    return step
