"""Sheets of samples as PNG: images in a grid, points in the plane."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.data import Dataset
from tweed.errors import InputError


def tile(images: Float[Tensor, "n c h w"], columns: int | None = None, gap: int = 1) -> Float[Tensor, "H W 3"]:
    """Images of values in [-1, 1] and 1, 3 or more channels (the first three are shown), in a grid, values in [0, 1].

    Raises:
        InputError: not images, or two channels.
    """
    if images.ndim != 4 or images.shape[1] == 2 or len(images) == 0:
        raise InputError(f"images: shape {tuple(images.shape)} was given; expected (n, 1 or 3, h, w), n > 0")
    x = (images.detach().float().cpu()[:, :3].clamp(-1.0, 1.0) + 1.0) / 2.0
    x = x.expand(-1, 3, -1, -1)
    n, _, h, w = x.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = torch.ones(rows * (h + gap) + gap, columns * (w + gap) + gap, 3)
    for i in range(n):
        top, side = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[top : top + h, side : side + w] = x[i].permute(1, 2, 0)
    return sheet


def write_sheet(samples: Float[Tensor, "n *event"], path: str | Path, columns: int | None = None) -> Path:
    """A PNG of images (n, c, h, w), enlarged to at least 32 pixels, or of points: the first two of each row's numbers.

    Raises:
        InputError: the samples are neither.
    """
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if samples.ndim == 4:
        zoom = max(1, math.ceil(32 / samples.shape[-1]))
        samples = samples.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
        imsave(temporary, tile(samples, columns, gap=2).numpy(), format="png")
    elif samples.ndim == 2 and samples.shape[1] >= 2:
        figure = Figure(figsize=(5, 5))
        axes = figure.add_subplot()
        axes.scatter(*samples[:, :2].detach().float().cpu().numpy().T, s=2, linewidths=0)
        axes.set_aspect("equal")
        figure.savefig(temporary, dpi=100, format="png")
    else:
        raise InputError(f"samples: shape {tuple(samples.shape)} was given; expected images or points in the plane")
    temporary.replace(path)
    return path


def default_sampler(
    data: Dataset, conditions: Sequence[str] | None, device: torch.device
) -> Callable[[Denoiser], Tensor]:
    """Samples for a sheet: 64 images (or 2000 points), classes in turn, other conditions from the data."""

    def draw(denoiser: Denoiser) -> Tensor:
        from tweed import solvers
        from tweed.solvers.sampling import sample

        n = 64 if len(data.shape) == 3 else 2000
        first = data.batch(torch.arange(n) % len(data))
        cond = {k: v for k, v in first.items() if k not in ("x", "weight")}
        if conditions is not None:
            cond = {k: v for k, v in cond.items() if k in ("y", *conditions)}
        if "label" in cond and data.num_classes:
            cond["label"] = torch.arange(n) % data.num_classes
        cond = {k: v.to(device) for k, v in cond.items()}
        solver = solvers.Euler() if denoiser.process.endpoint == "drawn" else None  # type: ignore[attr-defined]
        return sample(denoiser, n, shape=data.shape, cond=cond, solver=solver, steps=20, seed=0)

    return draw
