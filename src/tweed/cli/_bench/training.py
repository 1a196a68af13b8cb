"""Training steps of our networks beside diffusers' of the same architecture: forward, backward and AdamW, in turns."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tweed import nets
from tweed.cli._bench import peers
from tweed.recipes._timing import in_turns, median_ratio
from tweed.recipes.report import Progress

BOUND = {"cpu": 1.0, "cuda": 1.3}
"""The images/s that are required, in those of diffusers; of the UNet."""


def ours(net: Literal["unet", "dit"]) -> nn.Module:
    """DDPM's UNet for 32x32 images (35.7 M parameters), or DiT-S/2 on 32x32x4 latents with 10 classes."""
    if net == "unet":
        return nets.build(nets.ddpm_cifar())
    return nets.build({"name": "dit", "in_channels": 4, "depth": 12, "num_classes": 10})


def theirs(net: Literal["unet", "dit"]) -> nn.Module:
    """The same of diffusers, whose DiT has an embedding of time and class in every block (8 % more parameters)."""
    import diffusers

    if net == "unet":
        return diffusers.UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,  # type: ignore[arg-type]
            dropout=0.1,
        )
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, num_layers=12, num_embeds_ada_norm=10
    )


def run(
    net: Literal["unet", "dit"], batch: int | None, rounds: int, compile: bool | None, progress: Progress
) -> dict[str, Any]:
    """Images a second of each, and the ratio: on a GPU bfloat16 and compiled, on a CPU float32 and eager."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda = device == "cuda"
    batch = batch or (256 if cuda else 4)
    compiled = cuda if compile is None else compile
    draws = torch.Generator().manual_seed(0)
    shape = (batch, 3 if net == "unet" else 4, 32, 32)
    x, noise = (torch.randn(shape, generator=draws).to(device) for _ in range(2))
    t = torch.rand(batch, generator=draws).to(device)
    label = torch.arange(batch, device=device) % 10

    def answer_ours(model: nn.Module) -> Tensor:
        return model(x, t, label=label) if net == "dit" else model(x, t)

    def answer_theirs(model: nn.Module) -> Tensor:
        if net == "dit":
            return model(x, (t * 999).long(), class_labels=label).sample
        return model(x, t * 999).sample

    chosen = {"tweed": (ours, answer_ours)}
    if importlib.util.find_spec("diffusers") is not None:
        chosen["diffusers"] = (theirs, answer_theirs)
    runs, parameters = {}, {}
    for name, (make, answer) in chosen.items():
        progress(f"{name}: building", None)
        model = make(net).to(device, memory_format=torch.channels_last if cuda and net == "unet" else None).train()  # type: ignore[call-overload]
        parameters[name] = sum(p.numel() for p in model.parameters())
        runs[name] = _step(model, answer, noise, compiled)
    # On one thread its own time, so that other programs of the machine do not count.
    alone = not cuda and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    times = in_turns(runs, rounds, warmup=3 if cuda else 1, clock=clock, progress=progress)
    rows = [
        {
            "library": name,
            "parameters": parameters[name],
            "ms_per_step": 1e3 * statistics.median(values),
            "images_per_second": batch / statistics.median(values),
        }
        for name, values in times.items()
    ]
    # Of speeds: theirs over ours in time.
    ratio = median_ratio(times["diffusers"], times["tweed"]) if "diffusers" in times else None
    bound = BOUND[device] if net == "unet" else None
    return {
        "bench": "training",
        "net": net,
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
        "batch": batch,
        "precision": "bfloat16" if cuda else "float32",
        "compiled": compiled,
        "rounds": rounds,
        "rows": rows,
        "ratio": ratio,
        "bound": bound,
        "peers": {name: version for name, version in peers.versions().items() if name == "diffusers"},
        "holds": None if ratio is None or bound is None else ratio >= bound,
    }


def _step(model: nn.Module, answer: Callable[[nn.Module], Tensor], noise: Tensor, compiled: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=noise.is_cuda)
    called = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=noise.is_cuda):
            output = answer(called)  # type: ignore[arg-type]
        loss = (output[:, : noise.shape[1]].float() - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
