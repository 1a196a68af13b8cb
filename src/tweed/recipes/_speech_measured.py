"""The bundled models on spoken sentences: voices, sentences, babblers and rooms that they were not trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random
from tweed.core.denoiser import Denoiser
from tweed.data.speech import NoisySpeech
from tweed.metrics.audio import estoi, pesq, si_sdr
from tweed.recipes import Progress, Row, at_least, greater_than, info
from tweed.restoration.speech import enhance, speech_sampler, write_audio

SEEN, UNSEEN, ROOM = ("coloured", "machine", "babble"), ("bursts", "sweeps"), ("reverberation",)
SNR = (-5.0, 5.0)
MEASURES = {"SI-SDR": si_sdr, "PESQ": pesq, "ESTOI": estoi}
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Sizes:
    """Samples with noises of the trained kinds, of other kinds, and in rooms; frames of each (8 ms)."""

    seen: int
    unseen: int
    rooms: int
    frames: int = 256


@dataclass(frozen=True)
class Part:
    """Some degraded speech, what became of it, and the mean of each measure by the name of the version."""

    kinds: tuple[str, ...]
    clean: Tensor
    versions: Mapping[str, Tensor]
    scores: Scores


def test_set(kinds: tuple[str, ...], n: int, frames: int, seed: int) -> NoisySpeech:
    """Held-out speech with what is named."""
    return NoisySpeech(kinds, snr=SNR, frames=frames, length=n, split="test", seed=random.fold(seed, len(kinds), n))


def run(seed: int, sizes: Sizes, progress: Progress) -> tuple[dict[str, Part], list[Row]]:
    """All parts, and the rows that compare them."""
    model, direct = tw.load("speech"), tw.load("speech-direct")
    parts = {}
    for number, (name, kinds, n) in enumerate(
        (("seen", SEEN, sizes.seen), ("unseen", UNSEEN, sizes.unseen), ("rooms", ROOM, sizes.rooms))
    ):
        progress(f"speech: {', '.join(kinds)}", number / 3)
        parts[name] = measure(
            model, direct, kinds, test_set(kinds, n, sizes.frames, seed), random.fold(seed, 21, number)
        )
    return parts, rows(parts)


def measure(model: Denoiser, direct: Denoiser, kinds: tuple[str, ...], data: NoisySpeech, seed: int) -> Part:
    """Every version of a test set. Waveforms are restored as the channels of one recording: each on its own."""
    clean, noisy = data.waveforms(torch.arange(len(data)))
    snr = 0.33 if kinds == ROOM else 0.5
    versions = {
        "degraded": noisy,
        "direct": enhance(noisy, direct, seed=seed),
        "30 steps": enhance(noisy, model, solver=speech_sampler(snr), steps=30, seed=seed),
    }
    if kinds != ROOM:
        versions["5 steps"] = enhance(noisy, model, solver=speech_sampler(snr), steps=5, seed=seed)
    if kinds == SEEN:
        versions["no corrector"] = enhance(noisy, model, solver=speech_sampler(corrector_steps=0), steps=30, seed=seed)
    scores = {
        version: {name: of(wave, clean).nanmean().item() for name, of in MEASURES.items()}
        for version, wave in versions.items()
    }
    return Part(kinds, clean, versions, scores)


def rows(parts: Mapping[str, Part]) -> list[Row]:
    """What must hold, and what is only reported; the baseline is the discriminative network, or the degraded speech."""
    seen, unseen, rooms = (parts[name].scores for name in ("seen", "unseen", "rooms"))
    found = []
    for name, scores, least in (("trained kinds of noise", seen, 5.0), ("other kinds of noise", unseen, 1.0)):
        gain, plain = (scores[v]["SI-SDR"] - scores["degraded"]["SI-SDR"] for v in ("30 steps", "direct"))
        found += [
            at_least(
                f"{name}: gain in SI-SDR, dB", gain, least, baseline=plain, note="baseline: discriminative network"
            ),
            greater_than("... PESQ", scores["30 steps"]["PESQ"], scores["degraded"]["PESQ"], note="baseline: noisy"),
            greater_than("... ESTOI", scores["30 steps"]["ESTOI"], scores["degraded"]["ESTOI"], note="baseline: noisy"),
            info("... PESQ, ESTOI of the discriminative network", _two(scores["direct"])),
        ]
    found.insert(
        1,
        at_least(
            "... 30 steps over 5 steps, dB",
            seen["30 steps"]["SI-SDR"] - seen["5 steps"]["SI-SDR"],
            1.0,
            published="30 steps suffice",
        ),
    )
    found.insert(
        2,
        info("... without the corrector, over noisy, dB", seen["no corrector"]["SI-SDR"] - seen["degraded"]["SI-SDR"]),
    )
    lost = {v: seen[v]["PESQ"] - unseen[v]["PESQ"] for v in ("30 steps", "direct")}
    return [
        *found,
        info(
            "PESQ lost from trained to other kinds",
            lost["30 steps"],
            baseline=lost["direct"],
            published="loses less than discriminative models",
        ),
        greater_than(
            "rooms: ESTOI", rooms["30 steps"]["ESTOI"], rooms["degraded"]["ESTOI"], note="baseline: reverberant"
        ),
        greater_than("... PESQ", rooms["30 steps"]["PESQ"], rooms["degraded"]["PESQ"], note="baseline: reverberant"),
        info(
            "... SI-SDR, dB",
            rooms["30 steps"]["SI-SDR"],
            baseline=rooms["direct"]["SI-SDR"],
            note=f"reverberant {rooms['degraded']['SI-SDR']:.1f}; baseline: discriminative network",
        ),
    ]


def _two(scores: Mapping[str, float]) -> str:
    return f"{scores['PESQ']:.2f}, {scores['ESTOI']:.2f}"


def write_examples(part: Part, folder: str | Path, index: int = 0) -> list[Path]:
    """The versions of one sample of a part as wav files, each at the level of the degraded one."""
    waves = {"clean": part.clean, **{name.replace(" ", "-"): wave for name, wave in part.versions.items()}}
    return [write_audio(Path(folder) / f"{name}.wav", 0.9 * wave[index]) for name, wave in waves.items()]
