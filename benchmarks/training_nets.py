"""Forward + backward time of our networks beside diffusers' of the same size, in turns, in one process.

`python benchmarks/training_nets.py [--net unet|dit] [--batch 4] [--rounds 7] [--threads 2]` prints the medians in
milliseconds and the ratio (above 1: ours is faster).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import diffusers
import torch
from torch import nn

from tweed import nets


def unets() -> tuple[nn.Module, nn.Module]:
    """The DDPM network for 32x32 images, ours and diffusers'."""
    theirs = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        dropout=0.1,
    )
    return nets.build(nets.ddpm_cifar()), theirs


def dits(depth: int = 12) -> tuple[nn.Module, nn.Module]:
    """DiT-S/2 on 32x32x4 latents, ours and diffusers'."""
    ours = nets.build({"name": "dit", "in_channels": 4, "depth": depth, "num_classes": 10})
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, num_layers=depth, num_embeds_ada_norm=10
    )
    return ours, theirs


def steps(kind: str, batch: int, device: str) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """A forward and backward pass of each, and their numbers of parameters."""
    ours, theirs = (net.to(device).train() for net in (unets() if kind == "unet" else dits()))
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3 if kind == "unet" else 4, 32, 32, generator=draws).to(device)
    t = torch.rand(batch, generator=draws).to(device)
    label = torch.arange(batch, device=device) % 10

    def step(net: nn.Module, forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            forward().square().mean().backward()
            for parameter in net.parameters():
                parameter.grad = None
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    if kind == "unet":
        mine, other = (lambda: ours(x, t)), (lambda: theirs(x, t * 999).sample)
    else:
        mine = lambda: ours(x, t, label=label)  # noqa: E731
        other = lambda: theirs(x, (t * 999).long(), class_labels=label).sample  # noqa: E731
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in (("tweed", ours), ("diffusers", theirs))}
    return {"tweed": step(ours, mine), "diffusers": step(theirs, other)}, sizes


def measure(kind: str, batch: int, rounds: int, device: str) -> dict[str, object]:
    """Median times over `rounds` turns, after one warm-up turn."""
    runs, sizes = steps(kind, batch, device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in sorted(runs, reverse=turn % 2 == 0):  # alternate who goes first
            start = time.perf_counter()
            runs[name]()
            if turn:
                times[name].append(time.perf_counter() - start)
    medians = {name: round(1e3 * statistics.median(values), 1) for name, values in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times["tweed"], times["diffusers"], strict=True))
    return {"net": kind, "batch": batch, "milliseconds": medians, "ratio": round(ratio, 3), "parameters": sizes}


def main() -> None:
    """Parses the command line and prints one JSON line a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=("unet", "dit"), action="append")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for kind in options.net or ("unet", "dit"):
        print(json.dumps(measure(kind, options.batch, options.rounds, options.device)), flush=True)


if __name__ == "__main__":
    main()
