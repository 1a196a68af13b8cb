"""Progress of a long run on stderr: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType


class Progress:
    """Steps done, the loss, the rate and the time left. A context manager; cheap to call at every step.

    Args:
        total: steps in all.
        done: steps already done when it starts.
        show: False for a silent one.
        every: seconds between lines where stderr is no terminal.
    """

    def __init__(self, total: int, done: int = 0, show: bool = True, every: float = 20.0):
        self.total, self.first, self.show, self.every = total, done, show, every
        self._bar = None
        self._last = self._start = time.monotonic()

    def __enter__(self) -> "Progress":
        self._last = self._start = time.monotonic()
        if self.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                refresh_per_second=4,
                auto_refresh=False,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self.total, completed=self.first, told="")
        return self

    def update(self, done: int, loss: float | None) -> None:
        """Tells of the step just done; shown at most four times a second."""
        if not self.show:
            return
        now = time.monotonic()
        if now - self._last < (0.25 if self._bar else self.every) and done < self.total:
            return
        self._last = now
        rate = (done - self.first) / max(now - self._start, 1e-9)
        told = f"{rate:.1f} steps/s" + ("" if loss is None else f"  loss {loss:.4f}")
        if self._bar:
            self._bar.update(self._task, completed=done, told=told, refresh=True)
        else:
            left = (self.total - done) / max(rate, 1e-9)
            print(f"step {done}/{self.total}  {told}  {left:.0f} s left", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
