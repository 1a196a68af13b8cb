"""Turn pictures into the latents of a model's autoencoder, once."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from tweed.cli._console import console, print_json, progress_bar
from tweed.errors import InputError

EXAMPLES = (
    "tweed encode path/to/pictures --model path/to/stable-diffusion --size 512 --out latents",
    "torchrun --nproc-per-node 8 -m tweed encode path/to/tars --model path/to/flux --size 1024 --out latents",
)


def run(
    data: Annotated[str, tyro.conf.Positional],
    *,
    model: str,
    out: Path,
    size: int = 512,
    batch: int = 16,
    seed: int | None = None,
    shard_size: int = 10000,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Turn pictures into the latents of a model's autoencoder, once, so that training need not.

    OUT holds tars of arrays and labels; train on them with `[data]`, `name = "WebDataset"`, `tars = "OUT"`. Any number of
    processes share the work; the same command again does what is missing. Pictures that cannot be read are named.

    Args:
        data: A folder of pictures (folders in it are classes), a tar of WebDataset, or a folder of such tars.
        model: The folder or Hub id of a diffusers pipeline with an autoencoder.
        out: The folder for the shards.
        size: Side of the pictures in pixels.
        batch: How many are encoded at once.
        seed: Draw each latent from the encoder's law; its mode by default.
        shard_size: Latents of a shard.
        device: cpu, cuda, cuda:1 ...; the CPU by default, and a GPU each for several processes where there are any.
        json: Print what was made as JSON on stdout.
    """
    import torch

    from tweed.interop import from_diffusers
    from tweed.training.shards import ShardPlan, place_in_world, write_shards

    source: Any = _source(data, size)
    rank, world, local = place_in_world()
    if device is None:
        device = f"cuda:{local}" if world > 1 and torch.cuda.is_available() else "cpu"
    denoiser = from_diffusers(model).to(device)
    if denoiser.autoencoder is None:
        raise InputError(f"model: {model} has no autoencoder; expected a model of latents")

    def draw(first: int, count: int) -> dict[str, Any]:
        rows = source.batch(torch.arange(first, first + count))
        # Of a seed of its own each batch: rows of one are the same whatever the processes.
        drawn = None if seed is None else seed + first
        return {**rows, "x": denoiser.encode(rows["x"].to(device), drawn)}

    told = {"data": data, "model": model, "size": size, "seed": seed, "batch": batch}
    plan = ShardPlan(len(source), shard_size, arrays=True, told=told)
    with progress_bar(f"encoding {data}" + (f", process {rank} of {world}" if world > 1 else "")) as progress:
        done = write_shards(draw, plan, out, batch=batch, rank=rank, world=world, tell=progress)
    rate = done.samples / max(done.seconds, 1e-9)
    facts = {"out": str(out), "n": len(source), "written": done.written, "kept": done.kept, "samples_per_second": rate}
    if json:
        print_json(facts | {"broken": source.broken, "process": rank, "processes": world})
        return 0
    console().print(
        f"{done.written} shards written ({done.samples} latents, {rate:,.1f}/s), {done.kept} were there: {out}",
        markup=False,
    )
    if source.broken:
        console(stderr=True).print(
            f"{len(source.broken)} records could not be read, and have their neighbour's latents"
        )
    return 0


def _source(data: str, size: int) -> Any:
    from tweed.data import ImageFolder, WebDataset

    path = Path(data)
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return WebDataset(data, size)
    return ImageFolder(data, size)
