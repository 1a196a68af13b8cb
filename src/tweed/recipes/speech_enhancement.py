"""Speech enhancement (Richter et al., TASLP 2023, arXiv 2208.05830): OUVE on complex spectrograms, 30 steps with corrector.

Closed forms first: the process, the front end, and the sampler where the score is exact. Then the bundled model, beside
the same network trained to answer the clean spectrogram in one call, on sentences spoken by held-out voices: with fresh
noises of the trained kinds, among other voices, with other kinds of noise, and in rooms. `tweed train speech` and `tweed
train speech-direct` make the models again.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random, targets
from tweed.core.denoiser import NetworkDenoiser
from tweed.core.processes import OUVE
from tweed.data.spectrograms import CompressedSTFT
from tweed.recipes import Progress, Report, Row, less_than
from tweed.recipes import _speech_exact as exact
from tweed.recipes import _speech_figures as drawn
from tweed.recipes import _speech_measured as measured
from tweed.recipes.report import span
from tweed.training import DenoisingLoss, fit, times

BINS = {"smoke": 20000, "default": 20000, "gpu": 200000}


def run(seed: int, scale: str, progress: Progress) -> Report:
    """Closed forms, a short training run, and the bundled models (from `default` on)."""
    progress("exact scores", 0.0)
    moments, rows = exact.rows(seed, BINS[scale])
    figures: dict[str, Any] = {"exact": partial(drawn.exact, moments)}
    settings: dict[str, Any] = {"bins": BINS[scale]}
    sounds: dict[str, Any] = {}
    if scale == "smoke":
        progress("training", 0.5)
        rows += _training(seed)
    else:
        sizes = {"default": measured.Sizes(16, 6, 12, 8), "gpu": measured.Sizes(160, 80, 160, 80)}[scale]
        parts, more = measured.run(seed, sizes, span(progress, 0.05, 1.0))
        rows += more
        settings |= {**vars(sizes), "SNR": measured.SNR, "models": "speech, speech-direct (bundled)"}
        figures["spectrograms"] = partial(drawn.spectrograms, parts)
        sounds = measured.sounds(parts[measured.TRAINED])
    return Report(
        slug="speech-enhancement",
        rows=rows,
        seed=seed,
        scale=scale,
        settings=settings,
        figures=figures,
        files=sounds,
        notes=NOTES,
    )


def _training(seed: int) -> list[Row]:
    """A tiny network on voiced sounds in noise, for some steps: the ordinary loss falls on the published process."""
    stft, n, frames = CompressedSTFT(126, 32), 64, 32
    clean = _voiced(n, stft.samples(frames), random.fold(seed, 31))
    noisy = clean + clean.std(1, keepdim=True) * random.normal(clean.shape, random.fold(seed, 32))
    peak = noisy.abs().amax(1, keepdim=True)
    data = _Pairs(stft.compress(clean / peak), stft.compress(noisy / peak))
    network = {
        "name": "ncsnpp",
        "channels": 16,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention_levels": [],
        "patch": [2, 2],
    }
    model = NetworkDenoiser(tw.nets.build(network, random.fold(seed, 33)), OUVE(), targets.Score())
    objective = DenoisingLoss(target=targets.Noise(), times=times.Uniform(low=0.03))
    found = fit(
        model, data, steps=40, objective=objective, batch_size=8, lr=4e-3, ema=None, progress=False, device="cpu", seed=seed
    )  # fmt: skip
    first, last = (sum(part) / len(part) for part in (found.losses[:8], found.losses[-8:]))
    return [less_than("training on voiced sounds: loss of the last 8 steps, against the first 8", last, first, 0.9)]


def _voiced(n: int, length: int, seed: int) -> Tensor:
    """Harmonic sums with gliding pitch and a swelling level (n, length), 16 kHz."""
    u = random.uniform((n, 4), seed)
    t = torch.arange(length) / 16000.0
    pitch = 90.0 + 160.0 * u[:, :1] + 60.0 * (u[:, 1:2] - 0.5) * (6.0 * t + 6.28 * u[:, 2:3]).sin()
    angle = 2 * torch.pi * torch.cumsum(pitch, 1) / 16000.0
    wave = torch.stack([(k * angle).sin() / k for k in range(1, 16)]).sum(0)
    return wave * (0.6 + 0.4 * (9.0 * t + 6.28 * u[:, 3:4]).sin())


class _Pairs:
    num_classes, conditions = None, ("y",)

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y, self.shape = x, y, tuple(x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"x": self.x[indices], "y": self.y[indices]}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "y": self.y[i]}


NOTES = (
    "Speech is espeak-ng's, not people's: voices, sentences, babblers and rooms of the test are none of the training's, but "
    "they are the same synthesiser's.",
    "The network has 3.0 million parameters (65 million as published), trained for two hours of one core (the discriminative "
    "one for one, with babble among its kinds), with EDM's preconditioning in place of the raw score, and "
    "frames 15 ms apart (8 as published); process and sampler are the published ones.",
    "A draw of the posterior is twice as far from the truth, in mean square, as its mean, which regression aims at: SI-SDR "
    "is the measure that favours the discriminative network most.",
    "Tolerances of the exact case are those of 20000 bins (Monte Carlo error about 0.01).",
    "VoiceBank-DEMAND (PESQ 2.93, ESTOI 0.87, SI-SDR 17.3 dB from 1.97 PESQ) and WSJ0 are recordings and not measured.",
)
