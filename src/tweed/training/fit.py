"""`fit`: the training loop.

Every random number of a run is addressed by (seed, step, place in the batch): the order of the data, times, noise and
dropped conditions. So a run that was killed goes on with the losses it would have had, and micro-batches or several
processes (started by `accelerate launch` or `torchrun`) compute what one process does, up to rounding.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.learned_target import LearnedK
from tweed.core.precision import fast_precision
from tweed.data import Dataset, Tensors, Tokens
from tweed.errors import InputError, NumericalError, choose
from tweed.training import checkpoint, sheets, state
from tweed.training.ema import EMA, PowerEMA
from tweed.training.objectives import DenoisingLoss, Objective
from tweed.training.optimizers.choices import AdamW, OptimizerChoice
from tweed.training.order import indices
from tweed.training.parts import Follower, Losses, batches, compiled, learning_rate, place, seeded
from tweed.training.plain import to_config
from tweed.training.progress import Progress
from tweed.training.token_losses import TokenLoss

_DROP = 0x73  # the stream of a seed that dropped conditions are drawn from
_DROPPED = ("label", "vector", "tokens")
_PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class FitResult:
    """What a run of `fit` gives.

    Attributes:
        denoiser: the averaged denoiser, in evaluation mode (the one that was passed in holds the last weights).
        losses: the loss of each step from the first, those of an interrupted run included.
        seconds: of this call, after its set-up.
        samples_per_second: training samples over these seconds, all processes together.
        folder: of the checkpoint, if there is one.
    """

    denoiser: Denoiser
    losses: tuple[float, ...]
    seconds: float
    samples_per_second: float
    folder: Path | None


def fit(
    denoiser: Denoiser,
    data: Dataset | Tensor,
    *,
    steps: int,
    objective: Objective | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    warmup: int = 0,
    schedule: Literal["constant", "cosine"] = "constant",
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float | None = 1.0,
    ema: EMA | float | None = 0.999,
    power_ema: Sequence[float] = (),
    drop: float = 0.0,
    conditions: Sequence[str] | None = None,
    precision: Literal["auto", "no", "bf16", "fp16"] = "no",
    micro_batch: int | None = None,
    compile: bool = False,
    channels_last: bool = False,
    device: torch.device | str | None = None,
    optimizer: OptimizerChoice | Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = True,
    save_every: int = 1000,
    save_dtype: str | None = None,
    snapshot_every: int = 0,
    sample_every: int = 0,
    sampler: Callable[[Denoiser], Tensor | None] | None = None,
    log_every: int = 50,
    tensorboard: bool = False,
    watch: Callable[[int, Denoiser], None] | None = None,
    watch_every: int = 0,
    progress: bool = True,
    meta: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a denoiser, in place, on a data set.

    Args:
        denoiser: what is trained. Where it does not know the shape of a sample it learns it from the data.
        data: a data set addressed by index, or the samples themselves, shape (n, *event).
        steps: optimizer steps in all, those before an interruption included.
        objective: `DenoisingLoss()` where not given, `TokenLoss()` for tokens. Samples with an entry `weight` count by it.
        batch_size: samples a step, over all processes and micro-batches.
        lr, warmup, schedule: the learning rate rises linearly over `warmup` steps, then stays or falls to zero like a
            half cosine.
        weight_decay, betas: of AdamW.
        clip: largest norm of the gradient; None for no clipping.
        ema: the moving average of the weights (a number is its decay); None to keep the last weights.
        power_ema: relative widths of power-function averages to follow; see `snapshot_every` and `posthoc_ema`.
        drop: the share of samples whose label, vector and tokens are dropped, for classifier-free guidance.
        conditions: which entries of a batch the network is told; all by default.
        precision: "bf16" or "fp16" run the networks in autocast, parameters stay as they are; "auto" is "bf16" where
            the device is faster in it, else "no".
        micro_batch: largest number of samples in one backward pass of a process; the whole share by default.
        compile, channels_last: as they say, of the networks.
        device: a GPU where there is one, by default.
        optimizer: one of `tweed.training.optimizers.choices`, which gets `lr`, `betas` and `weight_decay`; or a function that
            makes one from the list of parameters. `AdamW` by default.
        seed: of everything random.
        folder: where the averaged denoiser (as `tweed.save` writes it), the state of the run, `losses.jsonl`, sheets
            and TensorBoard events go.
        resume: go on with the run in `folder`, where there is one.
        save_every: steps between checkpoints; one is also written at the end.
        save_dtype: what weights are stored in; see `tweed.save`.
        snapshot_every: steps between snapshots of the power-function averages.
        sample_every: steps between sheets of samples, `folder/samples/<step>.png`.
        sampler: gives the samples of a sheet from the averaged denoiser (or None, having drawn its own).
        log_every: steps between looks at the losses, each of which waits for the device.
        tensorboard: write events, `folder/tensorboard`.
        watch: told of the steps done and the averaged denoiser, every `watch_every` steps and at the end.
        watch_every: steps between looks of `watch`; 0 for the end alone.
        progress: tell of progress on stderr.
        meta: plain values to keep in the checkpoint.

    Raises:
        InputError: an argument is out of its range, or `folder` holds a run with other settings.
        NumericalError: a loss is not finite; the step is named, and the last checkpoint stays.
        CheckpointError: the run in `folder` is damaged.
    """
    tokens = denoiser.process.states == "tokens"
    if isinstance(data, Tensor):
        data = Tokens(data) if tokens else Tensors(data)
    objective = objective or (TokenLoss() if tokens else DenoisingLoss())
    average = ema if isinstance(ema, EMA) or ema is None else EMA(float(ema))
    averages = [PowerEMA(width) for width in power_ema]
    choose("precision", precision, ("auto", *_PRECISIONS))
    choose("schedule", schedule, ("constant", "cosine"))
    _positive(steps=steps, batch_size=batch_size, lr=lr, save_every=save_every, log_every=log_every)
    if not 0.0 <= drop <= 1.0:
        raise InputError(f"drop: {drop} was given; expected a share in [0, 1]")
    if clip is not None and not clip > 0.0:
        raise InputError(f"clip: {clip} was given; expected a positive norm, or None")
    if micro_batch is not None:
        _positive(micro_batch=micro_batch)
    if folder is None and (tensorboard or snapshot_every or (sample_every and sampler is None)):
        raise InputError("folder: none was given; expected one for sheets, snapshots or TensorBoard events")
    if denoiser.event is None:
        denoiser.event = tuple(data.shape)

    accelerator = _accelerator(device)
    world, rank, main = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process
    device = torch.device(accelerator.device if device is None else device)
    precision = fast_precision(device) if precision == "auto" else precision
    dtype = _PRECISIONS[precision]
    if dtype == torch.float16 and device.type != "cuda":
        raise InputError(f"precision: 'fp16' was given on {device}; expected 'bf16' or 'no' without a GPU")
    if batch_size % world:
        raise InputError(f"batch_size: {batch_size} was given; expected a multiple of the {world} processes")
    settings = {
        "seed": seed,
        "batch_size": batch_size,
        "lr": lr,
        "warmup": warmup,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "betas": list(betas),
        "clip": clip,
        "ema": None if average is None else to_config(average),
        "power_ema": list(power_ema),
        "drop": drop,
        "conditions": None if conditions is None else list(conditions),
        "precision": precision,
        "objective": _described(objective),
        "data": [type(data).__name__, len(data), list(data.shape)],
    }
    if isinstance(optimizer, OptimizerChoice) and optimizer != AdamW():
        settings["optimizer"] = to_config(optimizer)
    if folder is not None:
        folder = Path(folder)
        settings["denoiser"] = _denoiser_config(denoiser)
        if main:
            folder.mkdir(parents=True, exist_ok=True)

    denoiser.to(device).train()
    if channels_last:
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    followed = copy.deepcopy(denoiser).eval().requires_grad_(False)
    powers = [copy.deepcopy(followed) for _ in averages]
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("denoiser: it has no parameters to train")
    chosen = AdamW() if optimizer is None else optimizer
    made = isinstance(chosen, OptimizerChoice)
    optimizer_ = chosen.make(parameters, lr, betas, weight_decay) if made else chosen(parameters)
    rates = [group["lr"] / lr for group in optimizer_.param_groups]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    modules = {"last": denoiser, "average": followed, **{f"power{i}": m for i, m in enumerate(powers)}}
    done, losses = 0, []
    if folder is not None and resume:
        done, scaler_state = state.read(folder, settings, modules, optimizer_)
        losses = state.read_losses(folder, done) if done else []
        if scaler_state:
            scaler.load_state_dict(scaler_state)
    if folder is not None and main and not done:
        state.clear(folder)
    network = Losses(denoiser, objective, dtype, device)
    loss_of = accelerator.prepare_model(network) if world > 1 else network
    dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in denoiser.modules())
    writer = _writer(folder) if tensorboard and main and folder is not None else None

    share = batch_size // world
    offset = rank * share
    size = min(micro_batch or share, share)

    def load(step: int) -> dict[str, Tensor]:
        first = step * batch_size + offset
        batch = data.batch(indices(len(data), seed, first, share))
        wanted = batch if conditions is None else {"x", "y", "weight", *conditions}
        batch = {name: value for name, value in batch.items() if name in wanted}
        if drop and any(name in batch for name in _DROPPED):
            stream = random.fold(seed, _DROP)
            batch["drop"] = random.uniform((share, 1), stream, index=first)[:, 0] < drop
        return {name: place(value, device, channels_last) for name, value in batch.items()}

    def advance(step: int, batch: dict[str, Tensor]) -> Tensor:
        batch = objective.prepare(denoiser.process, batch, seed=seed, step=step, offset=offset, total=batch_size)
        total = torch.zeros((), device=device)
        for first in range(0, share, size):
            piece = {name: value[first : first + size] for name, value in batch.items()}
            weight = piece.pop("weight", None)
            whole = first + size >= share or world == 1
            with (
                nullcontext() if whole else accelerator.no_sync(loss_of),
                seeded(dropout, device, seed, step, first, rank),
            ):
                each = loss_of(piece, seed, step)
                loss = (each if weight is None else each * weight).sum() / share
            scaler.scale(loss).backward()
            total += loss.detach()
        for group, rate in zip(optimizer_.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate(step, steps, lr, warmup, schedule)
        if clip is not None:
            scaler.unscale_(optimizer_)
            nn.utils.clip_grad_norm_(parameters, clip)
        scaler.step(optimizer_)
        scaler.update()
        optimizer_.zero_grad(set_to_none=True)
        return total

    follower = Follower.of(denoiser, followed)
    power_followers = [Follower.of(denoiser, module) for module in powers]
    waiting: list[Tensor] = []
    begun = time.monotonic()
    first_step = done
    source = batches(load, done, steps, ahead=device.type == "cuda")
    with compiled(list(denoiser.children()) if compile else []), Progress(steps, done, show=progress and main) as bar:
        for step, batch in source:
            waiting.append(advance(step, batch))
            done = step + 1
            follower.follow(0.0 if average is None else average.at(done))
            for power, other in zip(averages, power_followers, strict=True):
                other.follow(power.at(done))
            last = done == steps
            saves = folder is not None and (last or done % save_every == 0)
            if last or saves or done % log_every == 0:
                fresh = _gathered(waiting, accelerator)
                _check_finite(fresh, done - len(fresh))
                if folder is not None and main:
                    state.append_losses(folder, done - len(fresh) + 1, fresh, optimizer_.param_groups[0]["lr"])
                if writer:
                    for i, value in enumerate(fresh):
                        writer.add_scalar("loss", value, done - len(fresh) + i + 1)
                    writer.add_scalar("lr", optimizer_.param_groups[0]["lr"], done)
                losses += fresh
                waiting = []
            bar.update(done, losses[-1] if losses else None)
            if main and sample_every and (done % sample_every == 0 or last):
                with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    samples = (sampler or sheets.default_sampler(data, settings["conditions"], device))(followed)
                if samples is not None and folder is not None:
                    sheets.write_sheet(samples, folder / "samples" / f"{done:07d}.png")
            if watch and main and (last or (watch_every and done % watch_every == 0)):
                with torch.no_grad():
                    watch(done, followed)
            if main and folder is not None and averages and snapshot_every and (done % snapshot_every == 0 or last):
                state.write_snapshot(folder, done, list(zip(averages, powers, strict=True)))
            if saves and main and folder is not None:
                told = {**(meta or {}), "steps": done, "samples": done * batch_size}
                checkpoint.save(followed, folder, dtype=save_dtype, meta=told)
                state.write(folder, done, settings, modules, optimizer_, scaler.state_dict())
            if saves:
                accelerator.wait_for_everyone()
    seconds = time.monotonic() - begun
    if writer:
        writer.close()
    for averaged, own in zip(followed.parameters(), denoiser.parameters(), strict=True):
        averaged.requires_grad_(own.requires_grad)
    if meta:
        followed.meta = dict(meta)  # type: ignore[assignment]
    trained = (done - first_step) * batch_size
    return FitResult(followed, tuple(losses), seconds, trained / max(seconds, 1e-9), folder)


def _accelerator(device: torch.device | str | None) -> Any:
    from accelerate import Accelerator

    # Precision and placement are ours. Several processes without a GPU have to be asked for: each would run alone.
    cpu = not torch.cuda.is_available() if device is None else torch.device(device).type == "cpu"
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(mixed_precision="no", device_placement=False, cpu=cpu and several)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{name}: {value!r} was given; expected a positive number")


def _described(objective: Any) -> Any:
    try:
        return to_config(objective)
    except InputError:
        return repr(objective) if type(objective).__repr__ is not object.__repr__ else type(objective).__name__


def _denoiser_config(denoiser: Denoiser) -> dict[str, Any]:
    if not isinstance(denoiser, LearnedK):
        return checkpoint.denoiser_config(denoiser)
    # Its k is one of the weights.
    return {
        **checkpoint.denoiser_config(denoiser.fixed()),
        "target": {"name": "LearnedK", "rate": denoiser.rate},
    }


def _gathered(waiting: list[Tensor], accelerator: Any) -> list[float]:
    if not waiting:
        return []
    fresh = torch.stack(waiting)
    if accelerator.num_processes > 1:
        fresh = accelerator.reduce(fresh, reduction="mean")
    return fresh.tolist()


def _check_finite(losses: list[float], before: int) -> None:
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise NumericalError(
                f"loss: it is {loss} at step {before + i + 1}; the last checkpoint stays (a smaller lr, clip, or "
                "times kept away from 0 and 1 may help)"
            )


def _writer(folder: Path):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
