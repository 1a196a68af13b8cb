"""Times of several runs, taken in turns."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 2,
    inner: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[str, float | None], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each run in each round, every run once a round, the order reversed from one round to the next.

    Args:
        inner: how often a run is repeated in its turn; its time is the mean.
        clock: `time.thread_time` counts this thread's own time alone, whatever else the machine does; it is right for
            one thread on a CPU.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warmup, rounds):
        if progress is not None:
            progress("all runs, in turns", max(turn, 0) / rounds)
        for name in sorted(runs, reverse=turn % 2 == 0):
            start = clock()
            for _ in range(inner):
                runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                times[name].append((clock() - start) / inner)
    return times


def median_ratio(a: list[float], b: list[float]) -> float:
    """The median over the rounds of `a / b`: both were measured within a moment of each other."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def least_ratio(a: list[float], b: list[float]) -> float:
    """The least time of `a` over the least of `b`: what is left of it when other programs disturb many rounds."""
    return min(a) / min(b)
