"""The bundled models on spoken sentences: voices, sentences, babblers and rooms that they were not trained on."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.data.speech import NoisySpeech
from tweed.metrics.audio import audio_package, estoi, pesq, si_sdr
from tweed.recipes import Progress, Row, at_least, greater_than, info, span
from tweed.restoration.speech import enhance, speech_sampler

PARTS = {
    "trained kinds of noise": ("coloured", "machine"),
    "other voices": ("babble",),
    "other kinds of noise": ("bursts", "sweeps"),
    "rooms": ("reverberation",),
}
SNR = (-5.0, 5.0)
MEASURES = {"SI-SDR": si_sdr, "PESQ": pesq, "ESTOI": estoi}
DRAWS = 8
MEAN = f"mean of {DRAWS} draws"
TRAINED, VOICES, OTHER, ROOMS = PARTS
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Sizes:
    """Samples with noises of the trained kinds, among other voices, with other kinds of noise, and in rooms."""

    trained: int
    voices: int
    other: int
    rooms: int
    frames: int = 256  # of 8 ms

    def of(self) -> dict[str, int]:
        return dict(zip(PARTS, (self.trained, self.voices, self.other, self.rooms), strict=True))


@dataclass(frozen=True)
class Part:
    """Some degraded speech, what became of it, and the mean of each measure by the name of the version."""

    kinds: tuple[str, ...]
    clean: Tensor
    versions: Mapping[str, Tensor]
    scores: Scores

    def gain(self, version: str) -> float:
        """In SI-SDR over the degraded speech, dB."""
        return self.scores[version]["SI-SDR"] - self.scores["degraded"]["SI-SDR"]


def run(seed: int, sizes: Sizes, progress: Progress) -> tuple[dict[str, Part], list[Row]]:
    """All parts, and the rows that compare them."""
    for name in ("pesq", "pystoi"):
        audio_package(name)  # missed now rather than after minutes
    model, direct = tw.load("speech"), tw.load("speech-direct")
    parts = {}
    for number, (name, n) in enumerate(sizes.of().items()):
        data = NoisySpeech(
            PARTS[name], snr=SNR, frames=sizes.frames, length=n, split="test", seed=random.fold(seed, 20, number)
        )
        parts[name] = measure(
            model, direct, name, data, random.fold(seed, 21, number), span(progress, number / 4, (number + 1) / 4)
        )
    return parts, rows(parts)


def measure(model: Denoiser, direct: Denoiser, name: str, data: NoisySpeech, seed: int, progress: Progress) -> Part:
    """Every version of a test set. Waveforms are restored as the channels of one recording: each on its own."""
    clean, noisy = data.waveforms(torch.arange(len(data)))
    sampler = speech_sampler(0.33 if name == ROOMS else 0.5)
    versions = {"degraded": noisy, "discriminative": enhance(noisy, direct, seed=seed)}
    wanted: dict[str, dict[str, Any]] = {"30 steps": {"steps": 30}}
    if name != ROOMS:
        wanted["5 steps"] = {"steps": 5}
    if name == TRAINED:
        wanted["30 steps, no corrector"] = {"steps": 30, "solver": speech_sampler(corrector_steps=0)}
        wanted[MEAN] = {"steps": 30, "samples": DRAWS}
    for k, (version, options) in enumerate(wanted.items()):
        progress(f"{name}: {version}", k / len(wanted))
        versions[version] = enhance(noisy, model, seed=seed, **{"solver": sampler, **options})
    scores = {
        version: {measure: of(wave, clean).nanmean().item() for measure, of in MEASURES.items()}
        for version, wave in versions.items()
    }
    return Part(data.kinds, clean, versions, scores)


def rows(parts: Mapping[str, Part]) -> list[Row]:
    """What must hold, and what is only reported; the baseline is the discriminative network, or the degraded speech."""
    part = parts[TRAINED]
    direct = "baseline: discriminative network"
    found = [
        at_least(
            f"{TRAINED}: gain in SI-SDR, 30 steps, dB",
            part.gain("30 steps"),
            3.0,
            baseline=part.gain("discriminative"),
            note=direct,
        ),
        _up(part, "PESQ", True),
        greater_than(
            "... ESTOI",
            part.scores["30 steps"]["ESTOI"],
            part.scores["degraded"]["ESTOI"],
            0.96,
            note="baseline: degraded",
        ),
        greater_than(
            f"... ESTOI, {MEAN}",
            part.scores[MEAN]["ESTOI"],
            part.scores["degraded"]["ESTOI"],
            note="baseline: degraded",
        ),
        at_least(f"... {MEAN}: gain in SI-SDR, dB", part.gain(MEAN), 4.5),
        at_least("... over one, dB", part.gain(MEAN) - part.gain("30 steps"), 0.8, note="of exact draws 2.5"),
        greater_than(
            "... PESQ of 30 steps over that of 5", part.scores["30 steps"]["PESQ"], part.scores["5 steps"]["PESQ"]
        ),
        greater_than(
            "... ESTOI of 30 steps over that of 5", part.scores["30 steps"]["ESTOI"], part.scores["5 steps"]["ESTOI"]
        ),
        info("... SI-SDR of 30 steps over 5, dB", part.gain("30 steps") - part.gain("5 steps")),
        info("... gain without the corrector, dB", part.gain("30 steps, no corrector")),
    ]
    for name in (VOICES, OTHER, ROOMS):
        part = parts[name]
        found += [
            info(
                f"{name}: gain in SI-SDR, 30 steps, dB",
                part.gain("30 steps"),
                baseline=part.gain("discriminative"),
                note=f"degraded {part.scores['degraded']['SI-SDR']:.1f}; {direct}",
            ),
            _up(part, "PESQ", False),
            _up(part, "ESTOI", False),
        ]
    for measure in ("SI-SDR", "PESQ"):
        lost = {
            v: _rise(parts[TRAINED], v, measure) - _rise(parts[OTHER], v, measure)
            for v in ("30 steps", "discriminative")
        }
        found.append(
            info(
                f"rise in {measure} lost from trained to other kinds of noise",
                lost["30 steps"],
                baseline=lost["discriminative"],
                published="loses less than discriminative models",
                note=direct,
            )
        )
    for name, part in parts.items():
        found.append(info(f"{name}: PESQ, ESTOI of the discriminative network", _two(part.scores["discriminative"])))
    return found


def _rise(part: Part, version: str, measure: str) -> float:
    return part.scores[version][measure] - part.scores["degraded"][measure]


def _up(part: Part, measure: str, needed: bool, name: str = "... ") -> Row:
    here, before = part.scores["30 steps"][measure], part.scores["degraded"][measure]
    if needed:
        return greater_than(f"{name}{measure}", here, before, note="baseline: degraded")
    return info(f"{name}{measure}", here, baseline=before, note="baseline: degraded")


def _two(scores: Mapping[str, float]) -> str:
    return f"{scores['PESQ']:.2f}, {scores['ESTOI']:.2f}"


def sounds(part: Part, index: int = 0) -> dict[str, Callable[[], bytes]]:
    """The versions of one sample of a part as the bytes of wav files, each at the level of the degraded one."""
    waves = {"clean": part.clean, **part.versions}
    return {f"{re.sub('[^a-z0-9]+', '-', name)}.wav": partial(_wav, wave[index]) for name, wave in waves.items()}


def _wav(wave: Tensor) -> bytes:
    held = io.BytesIO()
    samples = (0.9 * wave).clamp(-1.0, 1.0).numpy()
    audio_package("soundfile").write(held, samples, 16000, format="WAV", subtype="PCM_16")
    return held.getvalue()
