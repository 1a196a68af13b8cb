"""Speech enhancement and dereverberation: from a noisy recording to clean speech, by a model of complex spectrograms.

Richter, Welker, Lemercier, Lay & Gerkmann, "Speech Enhancement and Dereverberation with Diffusion-based Generative
Models" (TASLP 2023, arXiv 2208.05830). The forward SDE `OUVE` drifts from clean speech to the noisy recording `y` while
noise is added; it is undone from `y + sigma(1) n` in 30 steps of a predictor-corrector sampler, on spectrograms whose
amplitudes are compressed (`CompressedSTFT`). Every word of that is an ordinary one of tweed: any solver, grid, process
with an endpoint and network may take its place.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tweed.core import grids
from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.processes import OUVE, Process
from tweed.data.spectrograms import CompressedSTFT
from tweed.errors import InputError
from tweed.metrics.audio import audio_package
from tweed.solvers import DDIM, AnnealedLangevin, EulerMaruyama, PredictorCorrector, Solver, sample

__all__ = ["CompressedSTFT", "enhance", "read_audio", "speech_grid", "speech_sampler", "write_audio"]

_OVERLAP = 0.25  # seconds that neighbouring segments share


def speech_sampler(snr: float = 0.5, corrector_steps: int = 1) -> PredictorCorrector:
    """The published sampler: at each time a step of annealed Langevin, then a reverse step of Euler in `x` itself.

    With score `s` and step `d` from time t: `k = 2 (snr sigma_t)^2`, `x <- x + k s + sqrt(2 k) n`; then
    `x <- x - [stiffness (y - x) - g^2 s] d + g sqrt(d) n`, the last step without noise. To be used on `speech_grid`.

    Args:
        snr: the corrector's ratio `r`: 0.5 for enhancement, 0.33 for dereverberation, as published.
        corrector_steps: Langevin steps at each time; 0 leaves the predictor alone, at half the evaluations.
    """
    corrector = AnnealedLangevin(snr=snr, steps=corrector_steps, scaled=False)
    return PredictorCorrector(EulerMaruyama(endpoint="euler"), corrector, first="corrector")


def speech_grid(process: Process, steps: int, *, start: float = 1.0, end: float = 0.0) -> Float[Tensor, " steps+1"]:
    """The published grid: equal steps from `start` to `process.t_min` (0.03 on `OUVE`), and from there one to `end`.

    Raises:
        InputError: fewer than one step, or times out of order.
    """
    if steps < 2:
        return grids.uniform(process, steps, start=start, end=end)
    inner = grids.uniform(process, steps - 1, start=start, end=process.t_min)
    return torch.cat((inner, torch.tensor([end], dtype=inner.dtype)))


def enhance(
    waveform: Float[Tensor, "*channels length"],
    model: Denoiser,
    *,
    rate: int = 16000,
    steps: int | None = None,
    solver: Solver | None = None,
    grid: Callable[..., Tensor] | None = None,
    stft: CompressedSTFT | None = None,
    samples: int = 1,
    segment: float = 8.0,
    seed: int = 0,
    progress: bool = False,
) -> Float[Tensor, "*channels length"]:
    """Clean speech from a noisy or reverberant recording.

    The recording is resampled to the model's rate (so that nothing above half of it comes back), divided by its largest
    absolute sample, cut into overlapping segments, restored as spectrograms, cross-faded, brought back to its level and
    rate. Channels are restored each on its own, with noise of its own.

    Args:
        waveform: shape (length,) or (channels, length), real.
        model: a denoiser of compressed spectrograms given `y`, such as `tweed.load("speech")`. Its `meta` may say `rate`
            (16000), `sampling_steps` (30) and `stft`, the fields of its front end.
        rate: of the waveform, in hertz.
        steps: of the solver.
        solver: by default the published sampler for `OUVE`, and DDIM on any other process.
        grid: of times, a function of `tweed.grids`; by default `speech_grid` for `OUVE`, with any solver.
        stft: the front end, where it is not the model's.
        samples: draws to average. A draw is speech-like, but twice as far from the truth, in mean square, as the average
            of many.
        segment: longest stretch restored at once, in seconds.
        seed: of the noise.
        progress: show a progress bar on stderr.

    Returns:
        The speech: shape, rate and dtype of `waveform` (float32 or better), on the device of the model.

    Raises:
        InputError: the waveform is not real, has other dimensions or is not finite, or an argument is out of its range.
    """
    meta = getattr(model, "meta", {})
    if not waveform.is_floating_point() or waveform.ndim not in (1, 2):
        raise InputError(
            f"waveform: {waveform.dtype} of shape {tuple(waveform.shape)} was given; expected real numbers, (length,) or "
            "(channels, length)"
        )
    if rate < 1 or samples < 1 or not segment > 2 * _OVERLAP:
        raise InputError(
            f"rate, samples, segment: {rate}, {samples}, {segment} were given; expected >= 1, >= 1, > {2 * _OVERLAP} s"
        )
    if not bool(torch.isfinite(waveform).all()):
        raise InputError("waveform: some of its samples are not finite; expected numbers")
    if not waveform.numel():
        return waveform.clone()
    stft, own = stft or CompressedSTFT(**meta.get("stft", {})), int(meta.get("rate", 16000))
    kept = torch.promote_types(waveform.dtype, torch.float32)
    rows = _resample(waveform.reshape(-1, waveform.shape[-1]).to(model.device, kept), rate, own)
    peak = rows.abs().amax(-1, keepdim=True)
    pieces, restore = _segments(rows / peak.clamp_min(1e-8), round(segment * own), round(_OVERLAP * own), stft)
    y = stft.compress(pieces.float(), multiple=_columns(model))
    published = isinstance(model.process, OUVE)
    solver = solver or (speech_sampler() if published else DDIM())
    grid = grid or (speech_grid if published else grids.default)
    steps = int(meta.get("sampling_steps", 30)) if steps is None else steps
    total = torch.zeros_like(pieces)
    for number in range(samples):
        first = number * len(pieces)
        x = sample(
            model, len(y), solver=solver, steps=steps, grid=grid, cond={"y": y}, seed=seed, index=first,
            shape=tuple(y.shape[1:]), progress=progress,
        )  # fmt: skip
        total += stft.expand(x, pieces.shape[-1]).to(total.dtype) / samples
    speech = _resample(restore(total) * peak, own, rate)[:, : waveform.shape[-1]]
    return F.pad(speech, (0, waveform.shape[-1] - speech.shape[-1])).to(kept).reshape(waveform.shape)


def read_audio(path: str | Path) -> tuple[Float[Tensor, "channels length"], int]:
    """A sound file as float32 in [-1, 1] and its rate in hertz, by `soundfile` (wav, flac, ogg and others).

    Raises:
        InputError: the file is missing or no sound file.
        MissingPackageError: `soundfile` is not installed.
    """
    soundfile = audio_package("soundfile")
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"path: {path} cannot be read as sound ({error})") from None
    return torch.from_numpy(samples.T.copy()), int(rate)


def write_audio(path: str | Path, waveform: Float[Tensor, "*channels length"], rate: int = 16000) -> Path:
    """Writes a waveform as a 16-bit file of the type that its name says; beyond [-1, 1] it is clipped.

    Raises:
        InputError: the name's ending is not one that `soundfile` writes, or the folder is missing.
        MissingPackageError: `soundfile` is not installed.
    """
    soundfile, path = audio_package("soundfile"), Path(path)
    samples = waveform.detach().cpu().float().clamp(-1.0, 1.0).reshape(-1, waveform.shape[-1]).T.numpy()
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        soundfile.write(str(temporary), samples, rate, subtype="PCM_16" if path.suffix.lower() != ".ogg" else None)
        temporary.replace(path)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"path: {path} cannot be written ({error})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _columns(model: Denoiser) -> int:
    # Frames that the network's halvings need a multiple of; the published network's where it does not say.
    inner: Denoiser = model
    while isinstance(inner, Wrapper):
        inner = inner.denoiser
    return getattr(getattr(inner, "network", None), "multiple", (0, 64))[1]


def _resample(rows: Tensor, rate: int, wanted: int) -> Tensor:
    if rate == wanted:
        return rows
    from scipy.signal import resample_poly

    shared = math.gcd(rate, wanted)
    changed = resample_poly(rows.double().cpu().numpy(), wanted // shared, rate // shared, axis=-1)
    return torch.from_numpy(changed).to(rows)


def _segments(rows: Tensor, size: int, overlap: int, stft: CompressedSTFT):
    """Pieces of equal length (n, length) that cover each row, and the function that fades pieces into rows again."""
    channels, length = rows.shape
    size = max(min(size, length), 2 * overlap + 1, stft.n_fft // 2 + 1)
    count = 1 + max(0, math.ceil((length - size) / (size - overlap)))
    starts = [k * (size - overlap) for k in range(count)]
    padded = F.pad(rows, (0, starts[-1] + size - length))
    pieces = torch.stack([padded[:, s : s + size] for s in starts], dim=1).reshape(-1, size)
    ramp = (torch.arange(overlap, dtype=rows.dtype, device=rows.device) + 0.5) / overlap

    def restore(parts: Tensor) -> Tensor:
        whole = torch.zeros_like(padded)
        for k, (start, part) in enumerate(zip(starts, parts.reshape(channels, count, size).unbind(1), strict=True)):
            weight = torch.ones(size, dtype=rows.dtype, device=rows.device)
            if k > 0:
                weight[:overlap] = ramp
            if k + 1 < count:
                weight[-overlap:] = ramp.flip(0)
            whole[:, start : start + size] += weight * part
        return whole[:, :length]

    return pieces, restore
