"""Training runs of many variants under one budget, over several seeds, compared by one held-out loss.

Every run has a folder of its own, `runs/<variant>/seed-<n>`, is resumed where it was interrupted, and is not trained again
once it is done: `run.json` holds its configuration and its result, `curve.json` the held-out loss on the way.
"""

import hashlib
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.data import Dataset
from tweed.errors import CheckpointError, IncompatibleError, InputError, NumericalError
from tweed.training import checkpoint, files, fine_tuning, held_out, learned
from tweed.training.ablation_table import Outcome, Table, write
from tweed.training.config import build, read_table, train
from tweed.training.held_out import HeldOutLoss
from tweed.training.variants import Variant, grid

Tell = Callable[[str, float | None], None]
"""Told what is done, and which share of all is."""

_LOOKS = 20  # held-out losses along a run


@dataclass(frozen=True)
class Budget:
    """What all runs share: steps, seeds, data to train on, the held-out loss, and where they run."""

    steps: int
    seeds: tuple[int, ...]
    data: Dataset
    loss: HeldOutLoss
    device: torch.device | str | None
    told: Mapping[str, Any]


def ablate(
    config: str | Path | Mapping[str, Any],
    vary: Sequence[str],
    out: str | Path,
    *,
    steps: int | None = None,
    seeds: int = 3,
    share: float = 0.1,
    device: torch.device | str | None = None,
    tell: Tell = lambda text, fraction: None,
) -> Table:
    """Trains every combination of `vary` with every seed, and writes `table.md`, `table.json` and `curves.png` to `out`.

    All runs of a seed see the same data, times and noise in the same order, so variants are compared pair by pair.

    Args:
        config: a TOML file, the name of a bundled configuration, or the tables themselves.
        vary: texts `path=value,value`, see `tweed.training.variants.grid`; with none the configuration as it is.
        out: the folder. Runs that are done in it are kept, so variants and seeds can be added.
        steps: of every run; those of the configuration by default.
        seeds: how many: the configuration's seed and the ones after it.
        share: of the data that is held out, where they have no test split (see `held_out.split`).
        device: as for `fit`.
        tell: told of the progress.

    Raises:
        InputError: a variant that does not work, before anything is trained; or a folder with a run of another configuration.
        CheckpointError: a file of an earlier run is damaged.
    """
    table, where = (config, "config") if isinstance(config, Mapping) else read_table(config)
    if seeds < 1:
        raise InputError(f"seeds: {seeds} was given; expected at least 1")
    if steps is not None:
        if steps < 1:
            raise InputError(f"steps: {steps} was given; expected at least 1")
        settings = table.get("optimisation", {})
        table = {**table, "optimisation": {**settings, "steps": steps}} if isinstance(settings, Mapping) else table
    variants = grid(table, vary, where)
    first = variants[0].config
    for variant in variants:
        if variant.config.process.states != "numbers":
            raise IncompatibleError(
                f"config: {where} trains a process of {variant.config.process.states}, whose losses are not comparable here; "
                "expected one of numbers"
            )
    data, held = held_out.split(first.data, share, first.seed)
    loss = HeldOutLoss.of(held, [v.config.process for v in variants], _conditions(variants), first.seed)
    told = {
        "held out": len(held),
        "evaluations": len(loss.u),
        "straight": loss.straight,
        "share": share,
        "seed": first.seed,
    }
    every = tuple(range(first.seed, first.seed + seeds))
    budget = Budget(first.optimisation.steps, every, data, loss, device, told)
    sizes = [_parameters(variant, budget) for variant in variants]
    out = Path(out)
    runs = [(seed, variant) for seed in every for variant in variants]
    for seed, variant in runs:
        _refuse_another(_folder(out, variant, seed), _identity(variant, seed, budget))
    found: dict[tuple[int, str], Outcome] = {}
    for number, (seed, variant) in enumerate(runs):
        text = f"{variant.name}, seed {seed} ({number + 1} of {len(runs)})"

        def look(share: float, number: int = number, text: str = text) -> None:
            tell(text, (number + share) / len(runs))

        look(0.0)
        found[seed, variant.name] = _run(variant, seed, _folder(out, variant, seed), budget, look)
    outcomes = {variant.name: {seed: found[seed, variant.name] for seed in every} for variant in variants}
    result = Table.of(where, variants, outcomes, sizes, budget.steps, told)
    write(result, out)
    return result


def _conditions(variants: Sequence[Variant]) -> tuple[str, ...] | None:
    told = {variant.config.optimisation.conditions for variant in variants}
    if len(told) > 1:
        raise InputError("vary: optimisation.conditions was given; expected another path: all are told the same")
    return told.pop()


def _parameters(variant: Variant, budget: Budget) -> int:
    """The number of parameters, after one loss of the variant on two samples, so that a bad one is found before all runs."""
    config = variant.config
    try:
        denoiser, data = build(config, budget.data)
        if config.start is not None:
            fine_tuning.start_from(learned.network_of(denoiser), config.start)
        wanted = None if config.optimisation.conditions is None else {"x", "y", *config.optimisation.conditions}
        batch: dict[str, Tensor] = data.batch(torch.arange(min(2, len(data))))
        batch = {name: value for name, value in batch.items() if wanted is None or name in wanted}
        config.objective(denoiser, config.objective.prepare(config.process, batch, seed=0, step=0), seed=0, step=0)
        budget.loss(denoiser, most=2)
    except (InputError, CheckpointError) as error:
        raise type(error)(f"{variant.name}: {error}") from None
    return sum(p.numel() for p in denoiser.parameters() if p.requires_grad)


def _folder(out: Path, variant: Variant, seed: int) -> Path:
    joined = variant.name.replace(", ", "+")
    plain = re.sub(r"[^\w.=+-]+", "-", joined)[:80].strip("-.")
    if plain != joined:
        plain += f"-{hashlib.sha256(variant.name.encode()).hexdigest()[:6]}"
    return out / "runs" / plain / f"seed-{seed}"


def _identity(variant: Variant, seed: int, budget: Budget) -> dict[str, Any]:
    config = {**variant.table, "seed": seed}
    return json.loads(json.dumps({"config": config, "held_out": dict(budget.told)}, default=str))


def _refuse_another(place: Path, identity: Mapping[str, Any]) -> None:
    if not (place / "run.json").is_file():
        return
    before = files.read_json(place / "run.json").get("identity", {})
    for path, (had, has) in sorted(_differences(before, identity).items()):
        raise InputError(
            f"out: {place} holds a run with {path} = {had!r}, and {has!r} was given; expected the same configuration, or "
            "another folder"
        )


def _differences(a: Any, b: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return {} if a == b else {path: (a, b)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**a, **b}:
        found |= _differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
    return {path.removeprefix("config."): pair for path, pair in found.items()}


def _run(variant: Variant, seed: int, place: Path, budget: Budget, look: Callable[[float], None]) -> Outcome:
    path = place / "run.json"
    identity = _identity(variant, seed, budget)
    result = files.read_json(path).get("result") if path.is_file() else None
    if not isinstance(result, Mapping) or not _intact(place, result):
        files.write_json(path, {"identity": identity, "result": None})
        # A result whose checkpoint is lost or another one is measured anew, from the start.
        result = _train(variant, seed, place, budget, look, resume=result is None)
        files.write_json(path, {"identity": identity, "result": result})
    points = _Curve(place / "curve.json").points
    curve = {int(step): point["loss"] for step, point in points.items()}
    rates = [point["seconds"] for point in points.values() if point["seconds"] is not None]
    return Outcome(result["loss"], result.get("error", ""), curve, statistics.median(rates) if rates else None)


def _intact(place: Path, result: Mapping[str, Any]) -> bool:
    if result.get("error"):
        return True
    try:
        return checkpoint.read_config(place)["weights"]["sha256"] == result.get("weights")
    except (CheckpointError, OSError):
        return False


def _train(
    variant: Variant, seed: int, place: Path, budget: Budget, look: Callable[[float], None], resume: bool
) -> dict[str, Any]:
    curve = _Curve(place / "curve.json")
    every = max(1, budget.steps // _LOOKS)

    def watch(done: int, denoiser: Denoiser) -> None:
        curve.look(done, denoiser, budget.loss)
        look(done / budget.steps)

    config = variant.config.replace(seed=seed, tensorboard=False, sample_every=0, snapshot_every=0)
    options: dict[str, Any] = {"data": budget.data, "watch": watch, "watch_every": every, "resume": resume}
    try:
        told = {"variant": variant.name}
        trained = train(config, place, device=budget.device, meta=told, progress=False, **options)
        loss = budget.loss(trained.denoiser)
        if not math.isfinite(loss):
            raise NumericalError(f"held-out loss: it is {loss} after {budget.steps} steps")
    except NumericalError as error:
        return {"loss": None, "error": str(error)}
    return {"loss": loss, "weights": checkpoint.read_config(place)["weights"]["sha256"]}


class _Curve:
    """The points of a run on disk, by step: its held-out loss, and the seconds a step since the point before.

    A point that an interrupted run had already passed is measured anew, and is the same.
    """

    def __init__(self, path: Path):
        self.path, self.last = path, None
        self.points: dict[str, Any] = files.read_json(path) if path.is_file() else {}

    def look(self, done: int, denoiser: Denoiser, loss: HeldOutLoss) -> None:
        """Measures a point; what that takes is not counted as training."""
        if denoiser.device.type == "cuda":
            torch.cuda.synchronize(denoiser.device)
        now, seconds = time.perf_counter(), None
        if self.last is not None:
            before, since = self.last
            seconds = (now - since) / (done - before)
        value = loss(denoiser)
        self.points[str(done)] = {"loss": value if math.isfinite(value) else None, "seconds": seconds}
        files.write_json(self.path, self.points)
        self.last: tuple[int, float] | None = done, time.perf_counter()
