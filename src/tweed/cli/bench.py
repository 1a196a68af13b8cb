"""Measure: how accurate solvers are at how many evaluations, what a step costs, how fast networks train."""

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.markup import escape

from tweed.cli._bench.evidence import record
from tweed.cli._console import print_json, print_table, progress_bar
from tweed.errors import InputError
from tweed.recipes.report import plain, show

EXAMPLES = (
    "tweed bench solvers",
    "tweed bench solvers --model glyphs --budget 5 10 20 --frechet 256",
    "tweed bench solvers --model runs/mine --scale 2 --budget 8 16 --fit 8 --json",
    "tweed bench overhead",
    "tweed bench training --net dit --batch 2",
    "tweed bench training --net unet --options",
)


@dataclass(frozen=True)
class Solvers:
    """Error against evaluations, beside the samplers of k-diffusion and diffusers that are installed.

    Every deterministic solver that fits the model's process, on every fixed grid; then a grid fitted to the model for the
    one that leads. The error is the root mean squared distance to the converged solution of the probability-flow ODE from
    the same starts. The exit code is 1 if the best of ours is behind the best of theirs at 10 or 20 evaluations, or, on the
    digits, if a fitted grid misses what it must reach.
    """

    model: str = "digits-mixture"
    """`digits-mixture`: handwritten digits with their exact score; or a bundled model, a folder, or a Hub id."""
    budget: tuple[int, ...] = (5, 10, 20, 40)
    """Evaluations that a run may take."""
    fit: tuple[int, ...] = (10, 20)
    """The budgets that a grid is fitted for; none with `--fit` alone."""
    frechet: int = 0
    """How many samples the leading solvers are also judged by: the Frechet distances to those of many steps and to the data;
    0 for none."""
    process: Literal["own", "VP", "EDM", "RectifiedFlow"] = "own"
    """Run the model under another process."""
    scale: float = 1.0
    """Classifier-free guidance, for a model with classes."""
    starts: int | None = None
    """How many samples; by default 64 (digits-mixture) or 8 (a network)."""
    seed: int = 0
    """Of the starts."""
    top: int = 12
    """How many rows are printed for each budget; all are written."""
    record: Path | None = None
    """A file of evidence for `tweed.solvers.recommend` that this run is entered into."""
    out: Path = Path("out")
    """The folder for `bench-solvers.json` and `.png`."""
    json: bool = False
    """Print JSON on stdout."""


@dataclass(frozen=True)
class Overhead:
    """Microseconds that a step costs beside the network: a batch of 4 x 16, one thread, a network that does nothing.

    The exit code is 1 if DPMSolver(order=2) takes more than a tenth of diffusers' DPMSolverMultistepScheduler, or reads
    a value of the device within its loop. On a GPU also: capture in a CUDA graph, and a sample of a policy's size.
    """

    rounds: int = 100
    """How often everything is run, in turns."""
    steps: int = 20
    """Of a run."""
    out: Path = Path("out")
    """The folder for `bench-overhead.json` and `.png`."""
    json: bool = False
    """Print JSON on stdout."""


@dataclass(frozen=True)
class Training:
    """Training steps of a network, beside diffusers' of the same architecture; or of its options, beside the plain one.

    bfloat16, compiled, a batch of 256 on a GPU; float32, eager, a batch of 4 on a CPU. The exit code is 1 if the UNet is
    slower than required: 1.3 times the images/s of diffusers on a GPU, 1 time on a CPU; with `--options`, if an option
    that should be free (routing, constant skip scales) or DualAdam takes more than its bound.
    """

    net: Literal["unet", "dit"] = "unet"
    """`unet`: DDPM's for 32x32 images, 35.7 M parameters; `dit`: DiT-S/2 on 32x32x4."""
    batch: int | None = None
    """Images a step."""
    rounds: int = 7
    """Steps of each that are timed, in turns."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Whether the networks are compiled; `auto`: on a GPU."""
    options: bool = False
    """Measure what the network's options, and the optimizers, cost."""
    out: Path = Path("out")
    """The folder for `bench-training-NET.json`, or `bench-options-NET.json`."""
    json: bool = False
    """Print JSON on stdout."""


Bench = (
    Annotated[Solvers, tyro.conf.subcommand("solvers", prefix_name=False)]
    | Annotated[Overhead, tyro.conf.subcommand("overhead", prefix_name=False)]
    | Annotated[Training, tyro.conf.subcommand("training", prefix_name=False)]
)


def run(what: Bench) -> int:
    """Measure, side by side in one process with the peers that are installed (`pip install tweed[peers]`).

    Args:
        what: What to measure.
    """
    _check(what)
    figure = None
    with progress_bar(f"bench {type(what).__name__.lower()}") as progress:
        if isinstance(what, Solvers):
            from tweed.cli._bench import solvers

            starts = what.starts or (64 if what.model == solvers.EXACT else 8)
            budgets = sorted(set(what.budget))
            result = solvers.run(
                what.model,
                budgets,
                starts,
                what.seed,
                progress,
                process=what.process,
                scale=what.scale,
                fit=[budget for budget in sorted(set(what.fit)) if budget in budgets],
                frechet=what.frechet,
            )
            name, figure = "bench-solvers", solvers.figure(result)
            if what.record is not None:
                record(what.record, result)
        elif isinstance(what, Overhead):
            from tweed.cli._bench import overhead

            result = overhead.run(what.rounds, what.steps, progress)
            name, figure = "bench-overhead", overhead.figure(result)
        else:
            from tweed.cli._bench import options, training

            measured, kind = (options, "options") if what.options else (training, "training")
            compiled = {"auto": None, "yes": True, "no": False}[what.compile]
            result = measured.run(what.net, what.batch, what.rounds, compiled, progress)
            name = f"bench-{kind}-{what.net}"
    files = _write(what.out, name, result, figure)
    if what.json:
        print_json(result)
    else:
        shown = {
            "solvers": _show_solvers,
            "overhead": _show_overhead,
            "training": _show_training,
            "options": _show_options,
        }
        shown[result["bench"]](result, what)
        print(f"  written: {', '.join(map(str, files))}")
    return 1 if result["holds"] is False else 0


def _check(what: Any) -> None:
    for field in dataclasses.fields(what):
        value = getattr(what, field.name)
        if field.name == "budget" and (not value or min(value) < 2):
            raise InputError(f"budget: {value} was given; expected numbers of evaluations, each at least 2")
        if field.name == "frechet" and 0 != value < 16:
            raise InputError(f"frechet: {value} was given; expected 0, or at least 16 samples")
        if field.name in ("rounds", "steps", "starts", "batch", "top") and value is not None and value < 1:
            raise InputError(f"{field.name}: {value} was given; expected at least 1")


def _write(out: Path, name: str, result: dict[str, Any], figure: Any) -> list[Path]:
    from tweed.training.files import write_bytes, write_json

    written = [out / f"{name}.json"]
    if figure is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
        written.append(out / f"{name}.png")
        write_bytes(written[-1], picture.getvalue())
    write_json(written[0], plain(result))
    return written


def _verdict(holds: bool | None) -> str:
    return {True: "[green]yes[/green]", False: "[bold red]NO[/bold red]", None: ""}[holds]


def _beside(result: dict[str, Any]) -> str:
    found = ", ".join(f"{name} {version}" for name, version in result["peers"].items())
    return found or "no peer is installed (pip install tweed[peers])"


def _show_solvers(result: dict[str, Any], what: Solvers) -> None:
    columns = ("library", "method", "grid", "evaluations", "RMSE")
    for budget in dict.fromkeys(row["budget"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["budget"] == budget]
        kept = rows[: what.top]
        # The best peer is shown, however far behind.
        kept += [row for row in rows[what.top :] if row["library"] != "tweed"][:1] * all(
            row["library"] == "tweed" for row in kept
        )
        cells = [
            (row["library"], escape(row["method"]), row["grid"], str(row["evaluations"]), show(row["rmse"]))
            for row in kept
        ]
        left = f"; {len(rows) - len(kept)} more in the file" if len(rows) > len(kept) else ""
        title = f"[bold]{result['model']}[/bold], at most {budget} evaluations{left}"
        print_table(columns, cells, title=title, right=("evaluations", "RMSE"))
    if result["grids"]:
        _show_grids(result)
    if result["frechet"]:
        cells = [
            (str(each["budget"]), escape(each["method"]), each["grid"])
            + tuple(show(each[key]) for key in ("rmse", "frechet_converged", "frechet"))
            for each in result["frechet"]
        ]
        print_table(
            ("budget", "method", "grid", "RMSE", "to the converged", "to the data"),
            cells,
            title="Frechet distances of samples of the leading solvers",
            right=("budget", "RMSE", "to the converged", "to the data"),
        )
    lines = []
    for line in result["summary"]:
        ours, theirs, same = line["ours"], line["peers"], line["ours_on_their_grid"]
        lines.append(
            (
                str(line["budget"]),
                f"{show(ours['rmse'])}  {escape(ours['method'])}, {ours['grid']}",
                f"{show(same['rmse'])}  {escape(same['method'])}" if same else "",
                f"{show(theirs['rmse'])}  {theirs['library']} {escape(theirs['method'])}" if theirs else "",
                show(line["ratio"]),
                show(line["ratio_on_their_grid"]),
                _verdict(line["holds"]),
            )
        )
    print_table(
        ("budget", "best of ours", "... on the peers' grid", "best of the peers", "ratio", "same grid", "<= 1"),
        lines,
        title=f"ours beside {_beside(result)}",
        right=("budget", "ratio", "same grid"),
    )


def _show_grids(result: dict[str, Any]) -> None:
    cells = [
        (
            str(each["row"]["budget"]),
            escape(each["row"]["method"]),
            each["row"]["grid"],
            show(each["row"]["rmse"]),
            show(each["ratio"]),
            "" if each["bound"] is None else f"<= {each['bound']}",
            show(each["cross"]),
            f"{each['seconds']:.0f}",
            _verdict(each["holds"]),
        )
        for each in result["grids"]
    ]
    print_table(
        ("budget", "method", "grid", "RMSE", "over the best peer", "required", "other half / own", "seconds", "holds"),
        cells,
        title="grids fitted to the model, on starts that they were not fitted to",
        caption="other half / own: error of a grid on starts it was not fitted to, over that of their own grid (at most 1.1)",
        right=("budget", "RMSE", "over the best peer", "other half / own", "seconds"),
    )


def _show_overhead(result: dict[str, Any], what: Overhead) -> None:
    rows = [
        (
            escape(row["run"]),
            show(row["us_per_step"]),
            show(row["us_per_step_min"]),
            show(row["ratio"]),
            str(row["host_reads"]),
        )
        for row in result["rows"]
    ]
    print_table(
        ("run", "us a step", "smallest", "ratio", "host reads in a run"),
        rows,
        title=f"a step with a trivial network, {what.steps} steps, batch 4 x 16, one thread; {_beside(result)}",
        caption="ratio: to diffusers' DPMSolverMultistepScheduler, the median over the rounds; times are of this thread alone",
        right=("us a step", "smallest", "ratio", "host reads in a run"),
    )
    if result["ratio"] is not None:
        print(f"  DPMSolver(order=2): {result['ratio']:.3f} of diffusers' (required: at most {result['bound']})")
    gpu = result["gpu"]
    if gpu is None:
        print("  GPU: none is visible; CUDA graph, synchronisations and the policy-size sample were not measured")
        return
    print_table(
        ("run", "us a sample", "ratio"),
        [(escape(row["run"]), show(row["us_per_sample"]), show(row["ratio"])) for row in gpu["rows"]],
        title=f"{gpu['device']}: a batch-1 sample of {gpu['steps']} steps with a policy-size network",
        caption=f"no synchronisation in the loop; the CUDA graph differs by {gpu['graph_difference']:.1e}",
        right=("us a sample", "ratio"),
    )


def _show_training(result: dict[str, Any], what: Training) -> None:
    rows = [
        (row["library"], f"{row['parameters']:,}", show(row["ms_per_step"]), show(row["images_per_second"]))
        for row in result["rows"]
    ]
    kind = f"{result['precision']}, {'compiled' if result['compiled'] else 'eager'}, batch {result['batch']}"
    print_table(
        ("library", "parameters", "ms a step", "images/s"),
        rows,
        title=f"[bold]{what.net}[/bold] on {escape(result['device'])}: {kind}; {_beside(result)}",
        right=("parameters", "ms a step", "images/s"),
    )
    if result["ratio"] is not None:
        required = "" if result["bound"] is None else f" (required: at least {result['bound']})"
        print(f"  images/s: {result['ratio']:.3f} x diffusers'{required}")


def _show_options(result: dict[str, Any], what: Training) -> None:
    rows = [
        (
            row["what"],
            row["name"],
            f"{row['parameters']:,}",
            show(row["ms"]),
            show(row["ratio"]),
            "" if row["bound"] is None else f"<= {row['bound']}",
            _verdict(None if row["bound"] is None else row["ratio"] <= row["bound"]),
        )
        for row in result["rows"]
    ]
    kind = f"{result['precision']}, {'compiled' if result['compiled'] else 'eager'}, batch {result['batch']}"
    print_table(
        ("time of", "", "parameters", "ms", "ratio", "required", "holds"),
        rows,
        title=f"options of [bold]{what.net}[/bold] on {escape(result['device'])}: {kind}",
        caption="the least time of all rounds; ratio: to the plain network, or to torch's foreach AdamW",
        right=("parameters", "ms", "ratio"),
    )
