"""Train on handwritten digits, sample, and compare the solvers."""

from pathlib import Path
from typing import Any

from rich.markup import escape

from tweed.cli._console import console, print_json, print_table, progress_bar
from tweed.errors import InputError

EXAMPLES = ("tweed demo", "tweed demo --steps 300 --out out/quick")

_BUDGETS = (5, 10, 20, 40)
_SOLVERS = (
    "DDIM",
    "Heun",
    "PNDM(start=heun)",
    "DEIS(order=3)",
    "DPMSolver(order=2)",
    "DPMSolver(order=3)",
    "DPMSolver(order=3, form=noise)",
    "UniPC(order=3)",
    "LMS",
)


def run(*, out: Path = Path("out/demo"), steps: int | None = None, seed: int = 0, json: bool = False) -> int:
    """Train on real handwritten digits, sample from that model and the bundled one, and compare the solvers.

    Takes a few minutes on two CPU cores. Writes digits.png, glyphs.png, solvers.png and demo.json.

    Args:
        out: Where the pictures go; the model is kept in OUT/model and trained on by a second run with more steps.
        steps: Training steps, instead of the configuration's.
        seed: Of the samples and the starts.
        json: Print the measurements as JSON on stdout.
    """
    import tweed as tw
    from tweed.training.config import TrainConfig, train
    from tweed.training.files import write_json

    if steps is not None and steps < 1:
        raise InputError(f"steps: {steps} was given; expected a positive number")
    say = console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)

    config = TrainConfig.read("digits")
    config = config if steps is None else config.replace(steps=steps)
    say.print("[bold]1. training a small U-Net on 1,442 real handwritten digits[/bold]")
    trained = train(config, out / "model")
    seconds, speed = trained.seconds, trained.samples_per_second
    say.print(f"   {len(trained.losses)} steps in {seconds:.0f} s, {speed:,.0f} images a second: {out / 'model'}")

    say.print("[bold]2. sampling: ten steps of DPM-Solver++ 2M with classifier-free guidance[/bold]")
    solver = tw.solvers.DPMSolver(order=2)
    _sheet(trained.denoiser, 10, 6, solver, seed, out / "digits.png")
    say.print(f"   digits of the model just trained: {out / 'digits.png'}")
    pictures = ["digits.png"]
    if "glyphs" in tw.training.bundled():
        _sheet(tw.load("glyphs"), 36, 2, solver, seed, out / "glyphs.png")
        say.print(f"   characters of the bundled model: {out / 'glyphs.png'}")
        pictures.append("glyphs.png")

    say.print("[bold]3. how accurate is which solver?[/bold] RMS distance to the exact flow of the digits' density")
    with progress_bar("solvers") as progress:
        found = _accuracies(seed, progress)
    _figure(found, out / "solvers.png")
    pictures.append("solvers.png")
    facts: dict[str, Any] = {
        "training": {"steps": len(trained.losses), "seconds": seconds, "samples_per_second": speed},
        "solvers": found,
        "pictures": [str(out / name) for name in pictures],
    }
    write_json(out / "demo.json", facts)
    if json:
        print_json(facts)
        return 0
    _table(found)
    say.print(f"pictures: {', '.join(facts['pictures'])}")
    return 0


def _sheet(denoiser, classes: int, each: int, solver, seed: int, path: Path) -> None:
    import torch

    import tweed as tw

    label = torch.arange(classes).repeat_interleave(each) if classes == 10 else torch.arange(classes).repeat(each)
    guided = tw.guidance.ClassifierFree(denoiser, 2.0)
    samples = tw.sample(guided, len(label), solver=solver, steps=10, cond={"label": label}, seed=seed)
    tw.training.write_sheet(samples, path, columns=12)


def _accuracies(seed: int, progress) -> list[dict[str, Any]]:
    import torch

    import tweed as tw
    from tweed.solvers.accuracy import compare
    from tweed.solvers.registry import parse

    digits = tw.data.Digits(flat=True)
    images = digits.batch(torch.arange(len(digits)))["x"]
    process = tw.processes.EDM()
    exact = tw.EmpiricalDenoiser(images, 0.15, process)
    starts = process.prior((32, 64), seed, dtype=torch.float64)
    solvers = [parse(text) for text in _SOLVERS]
    measured = compare(exact, starts, solvers, _BUDGETS, end=process.t_min, progress=progress)
    rows = []
    for text, first in zip(_SOLVERS, range(0, len(measured), len(_BUDGETS)), strict=True):
        part = measured[first : first + len(_BUDGETS)]
        rows.append({"solver": text, "rmse": {str(b): a.rmse for b, a in zip(_BUDGETS, part, strict=True)}})
    return rows


def _table(found: list[dict[str, Any]]) -> None:
    best = {str(b): min(row["rmse"][str(b)] for row in found) for b in _BUDGETS}
    cells = []
    for row in found:
        shown = [f"{row['rmse'][b]:.2g}" for b in best]
        marked = [
            f"[bold green]{s}[/bold green]" if row["rmse"][b] == best[b] else s
            for s, b in zip(shown, best, strict=True)
        ]
        cells.append((escape(row["solver"]), *marked))
    print_table(
        ("solver", *(f"{b} evaluations" for b in _BUDGETS)),
        cells,
        title="RMS error, in units where the images span [-1, 1]",
        right=[f"{b} evaluations" for b in _BUDGETS],
    )


def _figure(found: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row, marker in zip(found, "osv^D<>PX", strict=False):
        axes.plot(_BUDGETS, list(row["rmse"].values()), marker=marker, label=row["solver"], linewidth=1.2, markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="RMS error of the sample")
    axes.set_xticks(_BUDGETS, [str(b) for b in _BUDGETS])
    axes.minorticks_off()
    axes.set_title("Exact score of the digits' density, EDM process, Karras grid, 32 starts", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=130, format="png")
    temporary.replace(path)
