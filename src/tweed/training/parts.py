"""The parts of the training loop: batches ahead of time, seeded layers, averages that follow, the learning rate."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.training.ema import update
from tweed.training.objectives import Objective

_LAYERS = 0x74  # the stream of a seed that dropout layers draw from


class Losses(nn.Module):
    """The losses of a batch as one module, so that any number of networks under an objective can be distributed."""

    def __init__(self, denoiser: Denoiser, objective: Objective, dtype: torch.dtype | None, device: torch.device):
        super().__init__()
        self.denoiser, self.objective, self.dtype, self.device_type = denoiser, objective, dtype, device.type

    def forward(self, batch: dict[str, Tensor], seed: int, step: int) -> Float[Tensor, " b"]:
        """The loss of each sample, float32."""
        with torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.objective(self.denoiser, batch, seed=seed, step=step).float()


def learning_rate(step: int, steps: int, lr: float, warmup: int, schedule: str) -> float:
    """The rate of step `step` (from 0): a linear rise over `warmup` steps, then level, or a half cosine to zero."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if schedule == "constant":
        return lr
    return 0.5 * lr * (1.0 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def place(value: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    """`value` on the device, images in the memory format that is wanted."""
    if device.type == "cuda":
        value = value.pin_memory().to(device, non_blocking=True)
    if channels_last and value.ndim == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    return value.to(device)


def batches(
    load: Callable[[int], dict[str, Tensor]], first: int, last: int, ahead: bool
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Batches of steps `first ... last - 1`; on a GPU the next one is made in another thread meanwhile."""
    if not ahead:
        for step in range(first, last):
            yield step, load(step)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(load, first) if first < last else None
        for step in range(first, last):
            assert coming is not None
            batch = coming.result()
            coming = pool.submit(load, step + 1) if step + 1 < last else None
            yield step, batch


@contextmanager
def seeded(dropout: bool, device: torch.device, *words: int):
    """Gives torch's global generator, which dropout layers draw from, a seed of this step, then its state back."""
    if not dropout:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(random.fold(words[0], _LAYERS, *words[1:]))
        yield


@contextmanager
def compiled(modules: list[nn.Module]):
    """Compiles modules in place, names of parameters unchanged, and takes it back at the end."""
    for module in modules:
        module.compile()
    try:
        yield
    finally:
        for module in modules:
            module._compiled_call_impl = None


@dataclass(frozen=True)
class Follower:
    """Tensors of an average and of what it follows; buffers are copied."""

    held: list[Tensor]
    current: list[Tensor]
    held_buffers: list[Tensor]
    buffers: list[Tensor]

    @classmethod
    def of(cls, source: nn.Module, average: nn.Module) -> "Follower":
        """The tensors of two modules of the same kind."""
        return cls(
            list(average.parameters()), list(source.parameters()), list(average.buffers()), list(source.buffers())
        )

    def follow(self, decay: float) -> None:
        """One update of the average."""
        update(self.held, self.current, decay)
        for a, b in zip(self.held_buffers, self.buffers, strict=True):
            a.copy_(b)
