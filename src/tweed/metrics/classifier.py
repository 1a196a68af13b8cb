"""A judge of samples trained here: a small classifier, its accuracy, its features, and the entropy score.

`train_classifier` fits a small convolutional network (or a perceptron, for vectors) to any data set with labels, in
seconds to a minute on one CPU core, the same for the same seed. Its accuracy on conditional samples says whether they
show their class; its features serve `frechet_distance` and `manifold` as Inception's serve FID; `entropy_score` is the
Inception Score's formula (Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016) with this classifier.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tweed.core.precision import fast_precision
from tweed.core.random import fold, normal, uniform
from tweed.errors import CheckpointError, InputError, NumericalError

_FORMAT = "tweed-classifier-1"


class Labelled(Protocol):
    """What a classifier is trained on: samples `x` of `shape` and a `label`, addressed by index."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int | None: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]: ...


class Classifier(nn.Module):
    """Logits of `classes` classes for samples of `shape`: (channels, height, width) or (dimension,).

    Images pass stages of two convolutions, each stage halving the image until a side is at most 5; vectors pass two
    hidden layers. The weights are drawn from `seed`.

    Args:
        width: channels of the first stage (each further stage has twice as many, up to 4 widths); of the hidden layers,
            a quarter.
        size: number of features, the activations before the last linear layer.

    Raises:
        InputError: `shape` is neither that of an image nor of a vector, or `classes` below 2.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 32, size: int = 128, seed: int = 0):
        super().__init__()
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise InputError(f"shape: {tuple(shape)} was given; expected (channels, height, width) or (dimension,)")
        if classes < 2:
            raise InputError(f"classes: {classes} was given; expected at least 2")
        self.settings = {"shape": list(shape), "classes": classes, "width": width, "size": size, "seed": seed}
        # Built without memory and filled from the seed: torch's own start would draw from its global generator.
        with torch.device("meta"):
            if len(shape) == 3:
                layers: list[nn.Module] = []
                channels, (height, wide), out = shape[0], shape[1:], width
                while not layers or min(height, wide) > 5:
                    layers += [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(4, out), nn.SiLU()]
                    layers += [nn.Conv2d(out, out, 3, stride=2, padding=1), nn.GroupNorm(4, out), nn.SiLU()]
                    channels, out = out, min(2 * out, 4 * width)
                    height, wide = -(-height // 2), -(-wide // 2)
                layers += [nn.Flatten(), nn.Linear(channels * height * wide, size), nn.SiLU()]
            else:
                layers = [nn.Linear(shape[0], 4 * width), nn.SiLU(), nn.Linear(4 * width, size), nn.SiLU()]
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(size, classes)
        self.to_empty(device="cpu")
        with torch.no_grad():
            for number, layer in enumerate(m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
                weight = layer.weight
                gain = 2.0 if layer is not self.head else 0.1
                weight.copy_(normal(weight.shape, fold(seed, number)) * math.sqrt(gain / weight[0].numel()))
                assert layer.bias is not None
                layer.bias.zero_()
            for layer in self.modules():
                if isinstance(layer, nn.GroupNorm):
                    layer.weight.fill_(1.0)
                    layer.bias.zero_()

    def features(self, x: Float[Tensor, "b *event"]) -> Float[Tensor, "b f"]:
        """The activations before the last layer."""
        if list(x.shape[1:]) != self.settings["shape"]:
            raise InputError(
                f"x: samples of shape {tuple(x.shape[1:])} were given; expected {tuple(self.settings['shape'])}"
            )
        return self.body(x)

    def forward(self, x: Float[Tensor, "b *event"]) -> Float[Tensor, "b c"]:
        return self.head(self.features(x))


def _shifted(x: Float[Tensor, "b c h w"], reach: int, seed: int, step: int) -> Float[Tensor, "b c h w"]:
    """Each image moved by up to `reach` pixels along both axes, filled with its edge values."""
    b, _, h, w = x.shape
    move = (uniform((2, b), seed, draw=step) * (2 * reach + 1)).long().to(x.device)
    row = move[0][:, None] + torch.arange(h, device=x.device)
    column = move[1][:, None] + torch.arange(w, device=x.device)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    batch = torch.arange(b, device=x.device)[:, None, None]
    return padded[batch, :, row[:, :, None], column[:, None, :]].movedim(-1, 1)


def train_classifier(
    data: Labelled,
    steps: int = 300,
    seed: int = 0,
    *,
    batch: int = 128,
    rate: float = 3e-3,
    width: int = 32,
    shift: int = 0,
    smoothing: float = 0.0,
    device: torch.device | str = "cpu",
) -> Classifier:
    """A classifier fitted to `data` by AdamW with a cosine rate, in evaluation mode.

    Every number drawn comes from `seed`: the weights, and which samples a step sees. It trains under bfloat16 autocast where
    the device has matrix units for it (`fast_precision`), with weights in float32.

    Args:
        data: a data set with `x` (image or vector) and `label`.
        steps: of the optimizer.
        rate: the largest learning rate.
        width: of the network; see `Classifier`.
        shift: move training images by up to this many pixels: for data without augmentation of its own.
        smoothing: of the labels, spread evenly over the classes; it makes the classifier doubt, which lowers
            `entropy_score`.

    Raises:
        InputError: `data` has no labels or no samples, or `steps`, `batch` below 1.
        NumericalError: the loss became not finite.
    """
    if not data.num_classes or len(data) == 0:
        raise InputError(
            f"data: {len(data)} samples of {data.num_classes} classes were given; expected labelled samples"
        )
    if steps < 1 or batch < 1:
        raise InputError(f"steps, batch: {steps}, {batch} were given; expected at least 1")
    if shift and len(data.shape) != 3:
        raise InputError(
            f"shift: {shift} was given for samples of shape {data.shape}; expected 0, as they are no images"
        )
    model = Classifier(tuple(data.shape), data.num_classes, width, seed=seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    warmup, fast = max(1, steps // 20), fast_precision(device) == "bf16"
    loss = torch.zeros(())
    for step in range(steps):
        scale = min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        draws = uniform((batch,), fold(seed, 1), index=step * batch, dtype=torch.float64)
        drawn = data.batch((draws * len(data)).long())
        x, label = drawn["x"].to(device), drawn["label"].to(device)
        if shift:
            x = _shifted(x, shift, fold(seed, 2), step)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=fast):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), label, label_smoothing=smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if not bool(loss.isfinite()):
        raise NumericalError(f"rate: the loss became {float(loss)} at a rate of {rate}; a smaller one may train")
    return model.eval().requires_grad_(False)


def _apply(classifier: Classifier, function, x: Tensor, chunk: int) -> Tensor:
    if x.shape[0] == 0:
        raise InputError(f"x: shape {tuple(x.shape)} was given; expected at least 1 sample")
    device = next(classifier.parameters()).device
    with torch.no_grad():
        return torch.cat([function(part.to(device, torch.float32)) for part in x.split(chunk)])


def features(classifier: Classifier, x: Float[Tensor, "n *event"], chunk: int = 512) -> Float[Tensor, "n f"]:
    """The classifier's features of `x`, in float32, `chunk` samples at a time."""
    return _apply(classifier, classifier.features, x, chunk)


def log_probabilities(classifier: Classifier, x: Float[Tensor, "n *event"], chunk: int = 512) -> Float[Tensor, "n c"]:
    """The classifier's log probability of each class, in float64, `chunk` samples at a time."""
    return _apply(classifier, lambda part: classifier(part).double().log_softmax(1), x, chunk)


def _check_label(label: Tensor, n: int) -> None:
    if label.shape != (n,) or label.is_floating_point():
        raise InputError(f"label: {label.dtype} {tuple(label.shape)} was given; expected integers of shape ({n},)")


def accuracy(classifier: Classifier, x: Float[Tensor, "n *event"], label: Int[Tensor, " n"], chunk: int = 512) -> float:
    """The share of the samples whose likeliest class is `label`.

    Raises:
        InputError: no samples, samples of another shape than the classifier's, or not one label a sample.
    """
    _check_label(label, x.shape[0])
    likeliest = log_probabilities(classifier, x, chunk).argmax(1)
    return float((likeliest == label.to(likeliest.device)).double().mean())


def confusion(
    classifier: Classifier, x: Float[Tensor, "n *event"], label: Int[Tensor, " n"], chunk: int = 512
) -> Int[Tensor, "c c"]:
    """Counts of (label, likeliest class); `InputError` as for `accuracy`, or for a label beyond the classes."""
    _check_label(label, x.shape[0])
    logits = log_probabilities(classifier, x, chunk)
    classes = logits.shape[1]
    label = label.to(logits.device)
    if int(label.min()) < 0 or int(label.max()) >= classes:
        raise InputError(f"label: {int(label.min())} .. {int(label.max())} were given; expected 0 .. {classes - 1}")
    return torch.bincount(label * classes + logits.argmax(1), minlength=classes**2).reshape(classes, classes)


def entropy_score(classifier: Classifier, x: Float[Tensor, "n *event"], chunk: int = 512) -> float:
    """`exp(E KL(p(label | x) || p(label)))`: 1 where all samples look alike, the number of classes at best.

    The Inception Score's formula, over all of `x` at once, with this classifier in the place of Inception.

    Raises:
        InputError: no samples, or samples of another shape than the classifier's.
    """
    log_p = log_probabilities(classifier, x, chunk)
    log_marginal = log_p.logsumexp(0) - math.log(len(log_p))
    return math.exp(max(float((log_p.exp() * (log_p - log_marginal)).sum(1).mean()), 0.0))


def save_classifier(classifier: Classifier, path: str | Path) -> None:
    """Write the weights and settings to one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    path = Path(path)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    metadata = {"format": _FORMAT, "settings": json.dumps(classifier.settings)}
    save_file({name: p.detach().cpu().contiguous() for name, p in classifier.state_dict().items()}, scratch, metadata)
    os.replace(scratch, path)


def load_classifier(path: str | Path, device: torch.device | str = "cpu") -> Classifier:
    """The classifier that `save_classifier` wrote.

    Raises:
        CheckpointError: no such file, or not one that `save_classifier` wrote.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"path: {path} has format {metadata.get('format')!r}; expected {_FORMAT!r}")
        settings = json.loads(metadata["settings"])
        classifier = Classifier(tuple(settings.pop("shape")), **settings)
        classifier.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"path: {path} does not hold a classifier ({error})") from error
    return classifier.to(device).eval().requires_grad_(False)
