"""What an ablation found: means over seeds with their intervals, relative to the first variant, as files."""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tweed.training import files
from tweed.training.variants import Variant


@dataclass(frozen=True)
class Outcome:
    """Of one run: its held-out loss (None where it failed, with the error), the losses by step, and seconds a step."""

    loss: float | None
    error: str
    curve: Mapping[int, float | None]
    seconds: float | None


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half the confidence interval of the mean of a normal sample, by Student's t of n - 1 degrees; None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.5 + 0.5 * level, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class Line:
    """A variant's line of the table.

    Attributes:
        name, changes: of the variant.
        losses: held-out loss by seed, of the runs that ended.
        mean, interval: their mean, and half its 95 % confidence interval (None for one seed).
        relative, relative_interval: the mean over seeds of `loss / loss of the first variant - 1`, seeds paired, and half its
            95 % confidence interval. None where no seed has both.
        seconds: a step of training, the median.
        parameters: that are trained.
        failed: the error of each seed that has no loss.
        curve: by step, the mean over seeds, the least and the greatest.
    """

    name: str
    changes: Mapping[str, Any]
    losses: Mapping[int, float]
    mean: float | None
    interval: float | None
    relative: float | None
    relative_interval: float | None
    seconds: float | None
    parameters: int
    failed: Mapping[int, str]
    curve: Mapping[int, tuple[float, float, float]]


@dataclass(frozen=True)
class Table:
    """The lines of an ablation, in the order of its grid.

    Attributes:
        config: the name of the configuration.
        lines: one a variant.
        steps, seeds: of every variant.
        told: about the held-out loss.
    """

    config: str
    lines: tuple[Line, ...]
    steps: int
    seeds: tuple[int, ...]
    told: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        config: str,
        variants: Sequence[Variant],
        outcomes: Mapping[str, Mapping[int, Outcome]],
        parameters: Sequence[int],
        steps: int,
        told: Mapping[str, Any],
    ) -> "Table":
        """The table of the outcomes by variant and seed."""
        first = outcomes[variants[0].name]
        lines = [
            _line(variant, outcomes[variant.name], first, size)
            for variant, size in zip(variants, parameters, strict=True)
        ]
        return cls(config, tuple(lines), steps, tuple(first), told)

    @property
    def notes(self) -> list[str]:
        """What a reader must know to read the numbers."""
        loss = (
            "the squared error of eps - x_0 a number, at log(alpha / sigma) = log((1 - u) / u), u evenly over 0.05 .. 0.95"
            if self.told["straight"]
            else "the squared error of the velocity a number, at times evenly over 0.05 .. 0.95"
        )
        n = len(self.seeds)
        seeds = (
            "One seed: there is no interval, and a difference may be chance."
            if n == 1
            else f"Means over {n} seeds, +- half of the 95 % confidence interval (Student's t, degrees of freedom: {n - 1}); "
            "relative to the first variant, seed by seed."
        )
        return [
            f"Held-out loss: {loss}; {self.told['held out']} samples held out, {self.told['evaluations']} evaluations, the same "
            "for all; of the averaged weights.",
            f"{self.steps} steps. {seeds}",
            *(
                f"{line.name}, seed {seed}: {error}"
                for line in self.lines
                for seed, error in line.failed.items()
            ),
        ]  # fmt: skip

    def cells(self) -> list[tuple[str, ...]]:
        """The lines as texts: variant, held-out loss, relative to the first, ms a step, parameters."""
        return [
            (
                line.name,
                "failed" if line.mean is None else _with_interval(line.mean, line.interval, "{:.4g}"),
                _relative(line, first=line is self.lines[0]),
                "" if line.seconds is None else f"{1000.0 * line.seconds:.3g}",
                f"{line.parameters:,}",
            )
            for line in self.lines
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        lines = [
            {
                "variant": line.name,
                "changes": dict(line.changes),
                "losses": {str(seed): loss for seed, loss in line.losses.items()},
                "held_out_loss": line.mean,
                "interval": line.interval,
                "relative": line.relative,
                "relative_interval": line.relative_interval,
                "seconds_per_step": line.seconds,
                "parameters": line.parameters,
                "failed": {str(seed): error for seed, error in line.failed.items()},
            }
            for line in self.lines
        ]
        return {
            "config": self.config,
            "steps": self.steps,
            "seeds": list(self.seeds),
            "held_out": dict(self.told),
            "notes": self.notes,
            "lines": lines,
        }


COLUMNS = ("variant", "held-out loss", "relative to the first", "ms a step", "parameters")


def write(table: Table, out: Path) -> None:
    """Writes `table.md`, `curves.png` and, last, `table.json`, each whole or not at all."""
    head = [f"# Ablation of {table.config}", "", f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    body = [f"| {' | '.join(cells)} |" for cells in table.cells()]
    text = "\n".join([*head, *body, "", *(f"- {note}" for note in table.notes), "", "![Curves](curves.png)", ""])
    files.write_bytes(out / "table.md", text.encode())
    picture = io.BytesIO()
    figure(table).savefig(picture, format="png", dpi=130)
    files.write_bytes(out / "curves.png", picture.getvalue())
    files.write_json(out / "table.json", table.to_dict())


def figure(table: Table) -> Any:
    """Held-out losses by step: the mean over seeds, and the band from the least to the greatest."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    made = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = made.subplots()
    for number, line in enumerate(table.lines):
        steps, points = list(line.curve), list(line.curve.values())
        style = ("-", "--", ":", "-.")[number // 10 % 4]
        axes.plot(
            steps, [mean for mean, _, _ in points], style, color=f"C{number % 10}", linewidth=1.5, label=line.name
        )
        low, high = [least for _, least, _ in points], [greatest for _, _, greatest in points]
        axes.fill_between(steps, low, high, color=f"C{number % 10}", alpha=0.18, linewidth=0)
    values = [bound for line in table.lines for point in line.curve.values() for bound in point]
    if values and min(values) > 0.0 and max(values) > 4.0 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    seeds = "one seed" if len(table.seeds) == 1 else f"mean of {len(table.seeds)} seeds, least to greatest shaded"
    axes.set(xlabel="steps", ylabel="held-out loss")
    axes.set_title(f"{table.config}: {seeds}", fontsize=10)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
    return made


def _line(variant: Variant, runs: Mapping[int, Outcome], first: Mapping[int, Outcome], parameters: int) -> Line:
    losses = {seed: run.loss for seed, run in runs.items() if run.loss is not None}
    ratios = [
        loss / other - 1.0 for seed, loss in losses.items() if (other := first[seed].loss) is not None and other > 0.0
    ]
    rates = [run.seconds for run in runs.values() if run.seconds is not None]
    curve: dict[int, tuple[float, float, float]] = {}
    ended = [run for run in runs.values() if run.loss is not None] or list(runs.values())
    for step in sorted(set.intersection(*(set(run.curve) for run in ended))):
        values = [value for run in ended if (value := run.curve[step]) is not None]
        if values:
            curve[step] = (statistics.fmean(values), min(values), max(values))
    return Line(
        name=variant.name,
        changes=variant.changes,
        losses=losses,
        mean=statistics.fmean(losses.values()) if losses else None,
        interval=half_width(list(losses.values())),
        relative=statistics.fmean(ratios) if ratios else None,
        relative_interval=half_width(ratios),
        seconds=statistics.median(rates) if rates else None,
        parameters=parameters,
        failed={seed: run.error for seed, run in runs.items() if run.loss is None},
        curve=curve,
    )


def _with_interval(mean: float, interval: float | None, form: str) -> str:
    return form.format(mean) + ("" if interval is None else f" +- {interval:.2g}")


def _relative(line: Line, first: bool) -> str:
    if first or line.relative is None:
        return ""
    interval = None if line.relative_interval is None else 100.0 * line.relative_interval
    return _with_interval(100.0 * line.relative, interval, "{:+.1f}") + " %"
