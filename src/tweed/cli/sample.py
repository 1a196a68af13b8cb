"""Draw samples from a model."""

from pathlib import Path
from typing import Annotated

import tyro

from tweed.cli._console import console, print_json, progress_bar
from tweed.errors import InputError

EXAMPLES = (
    "tweed sample glyphs --n 36",
    "tweed sample glyphs --label A,B,C --n 12 --scale 3 --solver 'UniPC(order=3)' --steps 8 --out abc.png",
    "tweed sample runs/digits --n 5000 --out digits.npz",
)


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    n: int = 16,
    solver: str = "DPMSolver",
    steps: int = 20,
    grid: str = "default",
    label: str | None = None,
    scale: float | None = None,
    seed: int = 0,
    index: int = 0,
    batch: int = 256,
    out: Path = Path("samples.png"),
    device: str = "cpu",
    json: bool = False,
) -> int:
    """Draw samples from a model and write them as a picture or as arrays.

    Args:
        model: A bundled name (glyphs), a checkpoint's folder, or a Hugging Face Hub id.
        n: How many samples.
        solver: A solver and its options, such as "DPMSolver(order=3)", "DDIM(eta=1)" or "Heun".
        steps: Steps of the time grid.
        grid: The time grid: default, uniform, quadratic, log_snr or karras; a .json of `tweed grid`; or fitted, the one
            that was kept with the model for this solver and number of steps.
        label: Classes, in turn: names the model's card knows, or numbers, separated by commas; all by default.
        scale: Classifier-free guidance; 1 is the plain conditional model. 2 by default where the model has classes.
        seed: Sample i is the same under the same seed, whatever n and batch are.
        index: The number of the first sample.
        batch: How many are made at once.
        out: A .png (a sheet of images, or points in the plane), or .npz / .npy (float32 arrays).
        device: cpu, cuda, cuda:1 ...
        json: Print what was made as JSON on stdout.
    """
    import torch

    from tweed.guidance import ClassifierFree
    from tweed.solvers.registry import describe, parse
    from tweed.solvers.sampling import sample
    from tweed.training import load

    if n < 1 or batch < 1:
        raise InputError(f"n, batch: {n}, {batch} were given; expected positive numbers")
    if out.suffix not in (".png", ".npz", ".npy"):
        raise InputError(f"out: {str(out)!r} was given; expected a file that ends in .png, .npz or .npy")
    chosen = parse(solver)
    denoiser = load(model).to(device)
    levels = _grid(denoiser, grid, chosen, steps)
    classes = _classes(denoiser)
    labels = _labels(label, classes, n)
    if scale is not None and labels is None:
        raise InputError("scale: the model has no classes to guide towards")
    scale = 2.0 if scale is None else scale
    guided = denoiser if labels is None or scale == 1.0 else ClassifierFree(denoiser, scale)
    pieces = []
    with progress_bar(f"sampling {model}") as progress:
        for first in range(0, n, batch):
            progress(f"{first} of {n}", first / n)
            count = min(batch, n - first)
            cond = None if labels is None else {"label": labels[first : first + count]}
            options = {"steps": None if chosen.adaptive else steps, "grid": None if chosen.adaptive else levels}
            made = sample(guided, count, solver=chosen, cond=cond, seed=seed, index=index + first, **options)
            pieces.append(made.cpu())
    samples = torch.cat(pieces)
    _write(samples, labels, out)
    facts = {"out": str(out), "n": n, "solver": describe(chosen), "steps": steps, "seed": seed, "scale": scale}
    if json:
        print_json(facts | {"shape": list(samples.shape)})
    else:
        console().print(f"{n} samples by {facts['solver']} in {steps} steps: {out}", markup=False)
    return 0


def _grid(denoiser, name: str, solver, steps: int):
    """The grid function that the command line names."""
    from tweed.core import grids
    from tweed.core.fitted_grid import FittedGrid
    from tweed.errors import choose
    from tweed.solvers import kept_grids
    from tweed.solvers.registry import describe
    from tweed.training.files import read_json

    if name.endswith(".json"):
        return FittedGrid.from_dict(read_json(Path(name)))
    if name != "fitted":
        return choose("grid", name, [*grids.BY_NAME, "fitted"]) and grids.BY_NAME[name]
    kept = [grid for grid in kept_grids(denoiser) if not grid.jump]
    for grid in kept:
        if (grid.solver, grid.steps) == (describe(solver), steps):
            return grid
    known = ", ".join(f"{grid.solver} in {grid.steps} steps" for grid in kept) or "none"
    raise InputError(
        f"grid: no grid is kept for {describe(solver)} in {steps} steps (there are: {known}); see `tweed grid`"
    )


def _classes(denoiser) -> list[str] | None:
    meta = getattr(denoiser, "meta", None) or {}
    if meta.get("classes"):
        return [str(c) for c in meta["classes"]]
    number = getattr(denoiser.network, "config", {}).get("num_classes", 0)
    return [str(i) for i in range(number)] or None


def _labels(text: str | None, classes: list[str] | None, n: int):
    import torch

    from tweed.errors import choose

    if classes is None:
        if text is not None:
            raise InputError("label: the model has no classes")
        return None
    wanted = classes if text is None else text.split(",")
    numbers = []
    for name in wanted:
        if name not in classes and name.isdigit() and int(name) < len(classes):
            numbers.append(int(name))
        else:
            numbers.append(classes.index(choose("label", name, classes)))
    return torch.tensor(numbers)[torch.arange(n) % len(numbers)]


def _write(samples, labels, out: Path) -> None:
    import io

    import numpy

    from tweed.training.files import write_bytes
    from tweed.training.sheets import write_sheet

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        write_sheet(samples, out)
        return
    held = io.BytesIO()
    if out.suffix == ".npy":
        numpy.save(held, samples.numpy(), allow_pickle=False)
    else:
        arrays = {"samples": samples.numpy()} | ({} if labels is None else {"label": labels.numpy()})
        numpy.savez_compressed(held, **arrays)
    write_bytes(out, held.getvalue())
