"""Restore a picture, an array or a recording."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tweed.cli._console import console, print_json, progress_bar
from tweed.errors import InputError, choose

if TYPE_CHECKING:
    from torch import Tensor

    from tweed.inverse import Method, Solution
    from tweed.inverse.operators import LinearOperator

EXAMPLES = (
    "tweed restore letter.png --task inpaint --degrade --out out",
    "tweed restore small.png --task sr --factor 2 --method ddrm --n 4",
    "tweed restore scan.npy --task ct --span 180 --noise 0.02",
    "tweed restore speech.wav --task denoise-speech --n 4",
)

METHODS = ("pigdm", "ddrm", "diffpir", "red-diff", "dps", "flow-chef")
Task = Literal["inpaint", "sr", "deblur", "ct", "denoise-speech"]


def run(
    input: Annotated[Path, tyro.conf.Positional],
    *,
    task: Task,
    method: Literal["pigdm", "ddrm", "diffpir", "red-diff", "dps", "flow-chef"] = "pigdm",
    model: str | None = None,
    label: str | None = None,
    scale: float = 1.0,
    degrade: bool = False,
    mask: Path | None = None,
    factor: int = 2,
    blur: float = 1.5,
    views: int = 16,
    span: float = 180.0,
    noise: float = 0.02,
    n: int = 1,
    steps: int | None = None,
    seed: int = 0,
    out: Path = Path("out"),
    device: str = "cpu",
    json: bool = False,
) -> int:
    """Restore a picture (.png), an array (.npy) or a recording (.wav), with a model of what is clean as the prior.

    Args:
        input: What was measured; with `--degrade` something clean, which is degraded first, so that the result can be judged.
        task: inpaint (see `--mask`), sr (an image that is smaller by `--factor`), deblur (`--blur`), ct (a sinogram .npy of
            absorption in [0, 1], angles x detectors over `--span`, in units of pixels), or denoise-speech.
        method: pigdm, ddrm, diffpir, red-diff, dps or flow-chef. PiGDM and DDRM come nearest to samples of the posterior.
        model: A bundled model, a checkpoint's folder or a Hub id; glyphs by default, and speech for recordings.
        label: A class of the model, by name or number; none by default.
        scale: Classifier-free guidance towards the label.
        degrade: Take the input for clean, and degrade it first.
        mask: For inpaint: a picture of the same size, white where the input is to be kept; the transparent pixels of a .png,
            or the NaN of an .npy, where not given. With `--degrade`, half of the pixels at random.
        factor: For sr: how many times larger the result is.
        blur: For deblur: the standard deviation of the Gaussian blur, in pixels.
        views: For ct with `--degrade`: how many angles.
        span: For ct: the range of the angles, in degrees.
        noise: Standard deviation of the measurement's noise, for values in [-1, 1].
        n: How many restorations are drawn; for a recording, how many are averaged.
        steps: Of the method; its own default where not given.
        seed: Of all randomness.
        out: The folder for the results: restored.png, restored.npy and comparison.png, or restored.wav and spectrograms.png.
        device: cpu, cuda, cuda:1 ...
        json: Print what was made as JSON on stdout.
    """
    if n < 1:
        raise InputError(f"n: {n} was given; expected at least 1")
    if not input.is_file():
        raise InputError(f"input: {input} is no file")
    out.mkdir(parents=True, exist_ok=True)
    if task == "denoise-speech":
        facts = _speech(input, model or "speech", steps, n, seed, out, device)
    else:
        import torch

        denoiser, cond = _model(model or "glyphs", label, scale, device)
        assert denoiser.event is not None
        clean, operator, y = _measured(
            input, task, denoiser.event, degrade, mask, factor, blur, views, span, noise, seed
        )
        from tweed.inverse import Measurement

        chosen = _method(method, steps)
        measurement = Measurement(operator, y.float(), noise)
        with progress_bar(f"{task} by {method}") as progress:
            solution = chosen.solve(
                denoiser, measurement, n, seed, cond=cond, watch=lambda text, share: progress(text, share)
            )
        images = solution.samples[:, 0].clamp(-1.0, 1.0).cpu()
        files = _write(images, operator, y, clean, solution, task, method, out)
        facts = {"task": task, "method": repr(chosen), "n": n, "evaluations": solution.evaluations, "files": files}
        facts["misfit"] = solution.misfit[-1].mean().item()
        if clean is not None:
            error = (images.double() - clean.double()).square().flatten(1).mean(1)
            facts["psnr"] = (10.0 * torch.log10(4.0 / error)).mean().item()
            facts["psnr_of_mean"] = 10.0 * math.log10(
                4.0 / (images.double().mean(0) - clean[0].double()).square().mean().item()
            )
    if json:
        print_json(facts)
    else:
        said = console()
        for name in ("misfit", "psnr", "psnr_of_mean"):
            if name in facts:
                said.print(f"{name.replace('_', ' ')}: {facts[name]:.4g}", markup=False)
        said.print("written: " + ", ".join(facts["files"]), markup=False)
    return 0


def _model(name: str, label: str | None, scale: float, device: str) -> tuple[Any, dict[str, Any]]:
    import torch

    from tweed.guidance import ClassifierFree
    from tweed.training import load

    denoiser = load(name).to(device)
    if denoiser.event is None:
        raise InputError(f"model: {name!r} does not say the shape of its samples")
    if label is None:
        if scale != 1.0:
            raise InputError("scale: no label was given to guide towards")
        return denoiser, {}
    known = [str(c) for c in (getattr(denoiser, "meta", None) or {}).get("classes", ())]
    number = getattr(denoiser.network, "config", {}).get("num_classes", 0)
    known = known or [str(i) for i in range(number)]
    choose("label", label, known)
    cond = {"label": torch.tensor([known.index(label)], device=device)}
    return (denoiser if scale == 1.0 else ClassifierFree(denoiser, scale)), cond


def _method(name: str, steps: int | None) -> "Method":
    from tweed import inverse

    kinds: dict[str, Callable[..., Any]] = {
        "pigdm": inverse.PiGDM,
        "ddrm": inverse.DDRM,
        "diffpir": inverse.DiffPIR,
        "red-diff": inverse.REDDiff,
        "dps": inverse.DPS,
        "flow-chef": inverse.FlowChef,
    }
    # DPS and RED-diff are published with a thousand steps; a command that is waited for takes fewer.
    default = {"dps": 200, "red-diff": 200}.get(name)
    steps = default if steps is None else steps
    return kinds[name]() if steps is None else kinds[name](steps=steps)


def _measured(
    path: Path,
    task: str,
    event: tuple[int, ...],
    degrade: bool,
    mask: Path | None,
    factor: int,
    blur: float,
    views: int,
    span: float,
    noise: float,
    seed: int,
) -> "tuple[Tensor | None, LinearOperator, Tensor]":
    """The clean sample where there is one, the operator, and the measurement, all in [-1, 1] and of a batch of one."""
    import torch

    from tweed.core import random
    from tweed.inverse import operators

    given, alpha = _read(path, event)
    if task == "inpaint":
        seen = alpha if mask is None else _read(mask, event)[0] > 0.0
        if seen is None:
            if not degrade:
                raise InputError("mask: none was given, and the input has neither transparent pixels nor NaN")
            seen = operators.random_mask(event, 0.5, seed)
        _same("input", given, event)
        operator: LinearOperator = operators.Inpainting(event, seen.expand(event))
    elif task == "sr":
        operator = operators.SuperResolution(event, factor)
    elif task == "deblur":
        operator = operators.Blur(event, operators.gaussian_kernel(blur))
    else:
        count = views if degrade else given.shape[-2]
        angles = operators.parallel_angles(count, span * math.pi / 180.0)
        operator = operators.Radon(event, angles, None if degrade else given.shape[-1])
    if not degrade:
        _same("input", given, operator.measured)
        y = given[None]
        if task == "inpaint":
            y = operator(y)
        elif task == "ct":
            # Of absorption in [0, 1], which samples in [-1, 1] stand for.
            y = 2.0 * y - operator(torch.ones(1, *event, dtype=torch.float64))
        return None, operator, y
    _same("input", given, event)
    y = operator(given[None].double())
    y = y + noise * random.normal(y.shape, random.fold(seed, 1), dtype=torch.float64)
    if task == "inpaint":
        y = operator(y)
    return given[None], operator, y


def _same(name: str, given: "Tensor", shape: tuple[int, ...]) -> None:
    if tuple(given.shape) != tuple(shape):
        raise InputError(f"{name}: shape {tuple(given.shape)} was given; expected {tuple(shape)}")


def _read(path: Path, event: tuple[int, ...]) -> "tuple[Tensor, Tensor | None]":
    """A picture in [-1, 1] with the model's channels, or an array as it is; and where it is seen, if it says so."""
    import numpy as np
    import torch

    if path.suffix == ".npy":
        try:
            loaded = np.load(path, allow_pickle=False)
            array = torch.from_numpy(np.asarray(loaded.real, dtype=np.float64))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"input: {path} cannot be read as an array of numbers ({error})") from None
        if np.iscomplexobj(loaded):
            raise InputError(f"input: {path.name} holds complex numbers; expected real ones")
        array = array.reshape((1,) * (len(event) - array.ndim) + tuple(array.shape))
        hidden = array.isnan()
        return array.nan_to_num(), ~hidden if bool(hidden.any()) else None
    if path.suffix != ".png":
        raise InputError(f"input: {path.name} was given; expected a .png, an .npy, or a .wav for denoise-speech")
    from matplotlib.image import imread

    try:
        pixels = torch.from_numpy(np.array(imread(path), dtype=np.float64))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"input: {path} cannot be read as a picture ({error})") from None
    pixels = pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)
    alpha = pixels[3] > 0.5 if len(pixels) == 4 else None
    pixels = pixels[:3]
    if event[0] == 1 and len(pixels) == 3:
        pixels = (pixels * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(0, keepdim=True)
    elif event[0] == 3 and len(pixels) == 1:
        pixels = pixels.expand(3, -1, -1)
    if alpha is not None and bool(alpha.all()):
        alpha = None
    return 2.0 * pixels - 1.0, alpha


def _write(
    images: "Tensor",
    operator: "LinearOperator",
    y: "Tensor",
    clean: "Tensor | None",
    solution: "Solution",
    task: str,
    method: str,
    out: Path,
) -> list[str]:
    import numpy as np
    from matplotlib.figure import Figure

    from tweed.training.files import write_bytes
    from tweed.training.sheets import write_sheet

    files = [out / "restored.npy", out / "restored.png", out / "comparison.png"]
    held = io.BytesIO()
    np.save(held, images.numpy(), allow_pickle=False)
    write_bytes(files[0], held.getvalue())
    write_sheet(images, files[1])
    shown = {"measured": y[0], "pseudo-inverse": operator.pseudo_inverse(y)[0], method: images[0]}
    if len(images) > 1:
        shown |= {f"mean of {len(images)}": images.mean(0), "spread": images.std(0)}
    if clean is not None:
        shown["clean"] = clean[0]
    figure = Figure(figsize=(2.3 * len(shown), 2.7), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        free = name == "spread" or (name == "measured" and task == "ct")
        fixed = {} if free else {"vmin": -1.0, "vmax": 1.0}
        picture = image[0] if len(image) == 1 else (0.5 * image.clamp(-1, 1) + 0.5).movedim(0, -1)
        axes.imshow(picture.detach().cpu().numpy(), cmap="gray", **fixed)
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    write_bytes(files[2], _png(figure))
    return [str(file) for file in files]


def _speech(path: Path, model: str, steps: int | None, n: int, seed: int, out: Path, device: str) -> dict[str, Any]:
    from matplotlib.figure import Figure
    from torch.nn.functional import pad

    from tweed.restoration.speech import CompressedSTFT, enhance, read_audio, write_audio
    from tweed.training import load
    from tweed.training.files import write_bytes

    waveform, rate = read_audio(path)
    if not waveform.numel():
        raise InputError(f"input: {path.name} holds no samples")
    denoiser = load(model).to(device)
    speech = enhance(waveform, denoiser, rate=rate, steps=steps, samples=n, seed=seed, progress=True).cpu()
    files = [write_audio(out / "restored.wav", speech, rate), out / "spectrograms.png"]
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    front = CompressedSTFT(exponent=1.0, factor=1.0)
    sounds = {"input": waveform, "restored": speech}
    for axes, (name, sound) in zip(figure.subplots(2, 1, sharex=True), sounds.items(), strict=True):
        shown = pad(sound[:1].float(), (0, max(front.n_fft - sound.shape[-1], 0)))  # at least a frame
        level = 20.0 * front.compress(shown)[0, 0].abs().clamp_min(1e-6).log10()
        limits = {"vmin": level.max().item() - 60.0, "vmax": level.max().item()}  # decibels
        extent = (0.0, sound.shape[-1] / rate, 0.0, 0.5e-3 * rate)
        axes.imshow(level.numpy(), origin="lower", aspect="auto", cmap="magma", extent=extent, **limits)
        axes.set_ylabel(f"{name}, kHz")
    axes.set_xlabel("seconds")
    write_bytes(files[1], _png(figure))
    return {"task": "denoise-speech", "rate": rate, "channels": len(waveform), "files": [str(file) for file in files]}


def _png(figure: Any) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, dpi=130, format="png")
    return held.getvalue()
