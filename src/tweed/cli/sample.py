"""Draw samples from a model."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tweed.cli._console import console, print_json, progress_bar
from tweed.errors import InputError

EXAMPLES = (
    "tweed sample glyphs --n 36",
    "tweed sample glyphs --label A,B,C --n 12 --scale 3 --solver 'UniPC(order=3)' --steps 8 --out abc.png",
    "tweed sample runs/digits --n 5000 --out digits.npz",
    "torchrun --nproc-per-node 4 -m tweed sample glyphs --n 1000000 --out shards/",
    "tweed sample path/to/stable-diffusion --prompt 'a red fox' --n 4 --solver 'UniPC(order=3)' --steps 15",
)


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    n: int = 16,
    solver: str = "DPMSolver",
    steps: int = 20,
    grid: str = "default",
    label: str | None = None,
    prompt: str | None = None,
    negative: str = "",
    size: tuple[int, int] | None = None,
    scale: float | None = None,
    seed: int = 0,
    index: int = 0,
    batch: int = 256,
    out: Path = Path("samples.png"),
    shard_size: int = 10000,
    shard_format: Literal["tar", "npz"] = "tar",
    device: str | None = None,
    json: bool = False,
) -> int:
    """Draw samples from a model and write them as a picture, as arrays, or as shards.

    A name without an ending is a folder for shards: any number of samples, drawn by any number of processes (torchrun,
    accelerate launch, SLURM), each shard whole or absent; the same command again does what is missing.

    Args:
        model: A bundled name (glyphs), a checkpoint's folder, or a Hugging Face Hub id; or the folder of a diffusers
            pipeline (with --prompt its Hub id too).
        n: How many samples.
        solver: A solver and its options, such as "DPMSolver(order=3)", "DDIM(eta=1)" or "Heun".
        steps: Steps of the time grid.
        grid: The time grid: default, uniform, quadratic, log_snr or karras; a .json of `tweed grid`; or fitted, the one
            that was kept with the model for this solver and number of steps.
        label: Classes, in turn: names the model's card knows, or numbers, separated by commas; all by default.
        prompt: What the picture shows, for a model of texts.
        negative: What it does not show.
        size: Height and width in pixels, for a diffusers pipeline; those it was trained on by default.
        scale: Classifier-free guidance; 1 is the plain conditional model. By default 2 where the model has classes, 5 where
            it has texts (3.5 for one that was distilled to be told the scale).
        seed: Sample i is the same under the same seed, whatever n and batch are.
        index: The number of the first sample.
        batch: How many are made at once.
        out: A .png (a sheet of images, or points in the plane), .npz / .npy (float32 arrays), or a folder for shards.
        shard_size: Samples of a shard.
        shard_format: tar is WebDataset's, with PNG for images; npz holds arrays.
        device: cpu, cuda, cuda:1 ...; the CPU by default, and a GPU each for several processes where there are any.
        json: Print what was made as JSON on stdout.
    """
    import torch

    from tweed.guidance import ClassifierFree
    from tweed.solvers.registry import describe, parse
    from tweed.solvers.sampling import sample
    from tweed.training.shards import ShardPlan, place_in_world, write_shards

    if n < 1 or batch < 1:
        raise InputError(f"n, batch: {n}, {batch} were given; expected positive numbers")
    if out.suffix not in (".png", ".npz", ".npy", ""):
        raise InputError(f"out: {str(out)!r} was given; expected a file that ends in .png, .npz or .npy, or a folder")
    rank, world, local = place_in_world()
    if world > 1 and out.suffix:
        raise InputError(f"out: {str(out)!r} was given to {world} processes; expected a folder, for shards")
    if device is None:
        device = f"cuda:{local}" if world > 1 and torch.cuda.is_available() else "cpu"
    chosen = parse(solver)
    denoiser = _model(model, prompt, size).to(device)
    levels = _grid(denoiser, grid, chosen, steps)
    classes = _labels(label, _classes(denoiser))
    if scale is not None and classes is None and prompt is None:
        raise InputError("scale: the model has no classes to guide towards, and no --prompt was given")
    told, null = {}, None
    if prompt is not None:
        # One row, for all samples.
        told, null = denoiser.prompt(prompt, negative, guidance=3.5 if scale is None else scale)
        scale = (5.0 if scale is None else scale) if null else 1.0
    scale = 2.0 if scale is None else scale
    plain = scale == 1.0 or (classes is None and prompt is None)
    guided = denoiser if plain else ClassifierFree(denoiser, scale, null=null)
    decode = getattr(denoiser, "decode", lambda samples: samples)
    options = {"steps": None if chosen.adaptive else steps, "grid": None if chosen.adaptive else levels}
    facts = {"out": str(out), "n": n, "solver": describe(chosen), "steps": steps, "seed": seed, "scale": scale}

    def draw(first: int, count: int) -> dict[str, Any]:
        labels = None if classes is None else classes[(first + torch.arange(count)) % len(classes)]
        cond = told if labels is None else {"label": labels}
        made = sample(guided, count, solver=chosen, cond=cond, seed=seed, index=index + first, **options)
        return {"x": decode(made).cpu()} | ({} if labels is None else {"label": labels})

    if not out.suffix:
        made_by = {
            "model": model,
            **{name: facts[name] for name in ("solver", "steps", "seed", "scale")},
            "index": index,
        }
        made_by |= {"grid": grid, "label": label, "prompt": prompt, "negative": negative, "size": size and list(size)}
        plan = ShardPlan(n, shard_size, shard_format, told=made_by)
        with progress_bar(f"sampling {model}" + (f", process {rank} of {world}" if world > 1 else "")) as progress:
            done = write_shards(draw, plan, out, batch=batch, rank=rank, world=world, tell=progress)
        return _told(facts, plan, done, rank, world, json)
    pieces = []
    with progress_bar(f"sampling {model}") as progress:
        for first in range(0, n, batch):
            progress(f"{first} of {n}", first / n)
            pieces.append(draw(first, min(batch, n - first)))
    samples = torch.cat([piece["x"] for piece in pieces])
    labels = None if classes is None else torch.cat([piece["label"] for piece in pieces])
    _write(samples, labels, out)
    if json:
        print_json(facts | {"shape": list(samples.shape)})
    else:
        console().print(f"{n} samples by {facts['solver']} in {steps} steps: {out}", markup=False)
    return 0


def _told(facts: dict[str, Any], plan: Any, done: Any, rank: int, world: int, json: bool) -> int:
    rate = done.samples / max(done.seconds, 1e-9)
    if json:
        told = {"shards": plan.count, "written": done.written, "kept": done.kept, "samples_per_second": rate}
        print_json(facts | told | {"process": rank, "processes": world})
        return 0
    who = f"process {rank} of {world}: " if world > 1 else ""
    console().print(
        f"{who}{done.written} shards written ({done.samples} samples, {rate:,.1f}/s), {done.kept} were there: {facts['out']}",
        markup=False,
    )
    return 0


def _model(model: str, prompt: str | None, size: tuple[int, int] | None) -> Any:
    """A denoiser of ours, or of diffusers, whichever the name leads to."""
    from tweed.training import load

    if prompt is None and not (Path(model) / "model_index.json").exists():
        if size is not None:
            raise InputError(f"size: {size} was given; expected a diffusers pipeline with it")
        return load(model)
    from tweed.interop import from_diffusers

    return from_diffusers(model, size=size)


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
    if name == "default" and hasattr(denoiser, "grid"):
        return denoiser.grid
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
    number = getattr(denoiser.network, "config", {}).get("num_classes", 0) or getattr(denoiser.network, "classes", 0)
    return [str(i) for i in range(number)] or None


def _labels(text: str | None, classes: list[str] | None):
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
    return torch.tensor(numbers)


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
