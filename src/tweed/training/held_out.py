"""A loss that any two training runs on the same data can be compared by: held-out data, fixed noise levels and noise."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.core.processes import Process
from tweed.core.targets import K, Velocity
from tweed.data import Dataset
from tweed.data.dataset import check_indices, one
from tweed.errors import InputError
from tweed.training.config import build_data
from tweed.training.objectives import DenoisingLoss

LOW, HIGH = 0.05, 0.95
_EVALUATIONS, _MOST, _CHUNK = 1024, 2048, 256
_SPLIT, _ROWS, _NOISE = 0x75, 0x76, 0x77  # streams of a seed
_GOLDEN = 0.6180339887498949


class Subset:
    """Some samples of a data set, as one."""

    def __init__(self, data: Dataset, kept: Int[Tensor, " n"]):
        self.data, self.kept = data, check_indices(kept, len(data))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def num_classes(self) -> int | None:
        return self.data.num_classes

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.data.conditions

    def __len__(self) -> int:
        return len(self.kept)

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        return self.data.batch(self.kept[check_indices(indices, len(self))])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)

    def __getattr__(self, name: str) -> Any:
        if name in ("data", "kept"):  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.data, name)


def split(table: Mapping[str, Any], share: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Data to train on and data to test on, from the `data` table of a configuration.

    Where the table asks for the split "train" of data that have one, "test" is held out. Elsewhere a random `share` of the
    samples is, at most 2048.

    Raises:
        InputError: `share` is not in (0, 1), fewer than two samples, or what `build_data` raises.
    """
    if not 0.0 < share < 1.0:
        raise InputError(f"held_out: {share} was given; expected a share in (0, 1)")
    data = build_data(table)
    inner = data.data if "degrade" in table else data  # type: ignore[attr-defined]
    option = inspect.signature(type(inner)).parameters.get("split")
    if option is not None and table.get("split", option.default) == "train":
        return data, build_data({**table, "split": "test"})
    n = len(data)
    if n < 2:
        raise InputError(f"data: {n} samples were given; expected at least two, to hold one out")
    count = min(max(1, round(share * n)), n - 1, _MOST)
    order = torch.randperm(n, generator=random.generator(seed, _SPLIT))
    return Subset(data, order[count:].sort().values), Subset(data, order[:count])


@dataclass(frozen=True)
class HeldOutLoss:
    """The mean squared error of the straight path's velocity, `eps - x_0`, over fixed samples, noise levels and noise.

    Levels are `log(alpha / sigma) = log((1 - u) / u)`, u spread evenly over (0.05, 0.95): those of the rectified flow at the
    times u, where this is the plain loss of velocity. A denoiser is shown the state of its own process at that level, and
    its answer is read as data and noise. So neither the target, nor the process, nor the loss it was trained with matters:
    the best possible denoiser has the same loss under all. About 1024 evaluations.

    Where `straight` is not set it is the velocity of the denoiser's own process, u its times: the loss of endpoints that are
    drawn, and of processes that do not reach these levels. It compares denoisers of one process only.
    """

    rows: Mapping[str, Tensor]
    noise: Tensor
    u: Tensor
    straight: bool = True

    @classmethod
    def of(
        cls, data: Dataset, processes: Sequence[Process], conditions: Sequence[str] | None = None, seed: int = 0
    ) -> "HeldOutLoss":
        """The loss on these held-out data that is fair to denoisers of all of these processes.

        Args:
            data: what is held out; a random choice of it where it is large.
            processes: of the denoisers that will be compared.
            conditions: which of a batch they are told; all by default.
            seed: of the choice and of the noise.

        Raises:
            InputError: different processes, and one does not reach the noise levels.
        """
        reached = [_reaches(process) for process in processes]
        if not all(reached) and len(set(processes)) > 1:
            name = type(processes[reached.index(False)]).__name__
            raise InputError(
                f"process: {name} was given among others; expected one process, or processes without a drawn endpoint that "
                f"all reach log(alpha / sigma) from {_level(HIGH):.2f} to {_level(LOW):.2f}, for a loss that can be compared"
            )
        count = min(len(data), _EVALUATIONS)
        chosen = torch.randperm(len(data), generator=random.generator(seed, _ROWS))[:count]
        wanted = data.conditions if conditions is None else ("y", *conditions)
        batch = {name: value for name, value in data.batch(chosen).items() if name == "x" or name in wanted}
        draws = min(8, -(-_EVALUATIONS // count))
        rows = {name: value.repeat(draws, *[1] * (value.ndim - 1)) for name, value in batch.items()}
        noise = random.normal(tuple(rows["x"].shape), random.fold(seed, _NOISE), device=rows["x"].device)
        place = torch.arange(count * draws, dtype=torch.float64)
        return cls(rows, noise, LOW + (HIGH - LOW) * ((place + 0.5) * _GOLDEN % 1.0), all(reached))

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, most: int | None = None) -> float:
        """The loss of a denoiser, on its device; of the first `most` rows where that is given."""
        process, device = denoiser.process, denoiser.device
        # k x_0 - (1 - k) eps with k = 1/2 is minus half the velocity, on any process.
        loss, factor = (DenoisingLoss(target=K(0.5)), 4.0) if self.straight else (DenoisingLoss(target=Velocity()), 1.0)
        times = process.time((1.0 - self.u).log() - self.u.log()) if self.straight else self.u
        total, count = torch.zeros((), dtype=torch.float64), len(self.u) if most is None else min(most, len(self.u))
        for first in range(0, count, _CHUNK):
            part = slice(first, min(first + _CHUNK, count))
            batch = {name: value[part].to(device) for name, value in self.rows.items()}
            each = loss(denoiser, batch, t=times[part].to(device), noise=self.noise[part].to(device))
            total += each.double().sum().cpu()
        return factor * total.item() / count


def _level(u: float) -> float:
    return torch.tensor((1.0 - u) / u).log().item()


def _reaches(process: Process) -> bool:
    if process.endpoint == "drawn":
        return False
    return process.level(1.0).log_snr <= _level(HIGH) and process.level(0.0).log_snr >= _level(LOW)
