"""Speech spoken by espeak-ng on this machine, mixed with noises or heard in simulated rooms; nothing is downloaded.

Needs the extra `audio` (`espeakng-loader` brings the synthesiser and its voices). Everything is at 16 kHz.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.random import fold
from tweed.data.dataset import check_indices, one
from tweed.data.noises import NOISES, RATE
from tweed.data.rooms import random_room
from tweed.data.spectrograms import CompressedSTFT
from tweed.errors import InputError, MissingPackageError, choose

VOICES = {
    "train": (
        "en-us+m1", "en-us+m3", "en+m2", "en-gb-scotland+m4", "en-us-nyc+m6", "en-029+m7", "en-us+max", "en+Andy",
        "en-us+f1", "en+f2", "en-gb-x-rp+f3", "en-us+f4", "en-us+linda", "en+steph",
    ),
    "test": ("en-us+m5", "en-gb-x-rp+m8", "en+f5", "en-us+Annie"),
}  # fmt: skip
"""espeak-ng's voices of each split, `language+variant`."""

BABBLE = {
    "train": ("en+Lee", "en-us+Jacky", "en-029+Mike", "en-gb-x-rp+belinda"),
    "test": ("en+Gene", "en-us+anika", "en-gb-scotland+paul", "en-us+shelby"),
}
"""The voices that babble is made of."""

SENTENCES = {
    "train": (
        "The river runs past the old mill before it meets the sea.",
        "Nobody had told the baker that the market opens at noon.",
        "Seven grey pigeons watched us from the roof of the chapel.",
        "She keeps her letters in a box under the kitchen table.",
        "A thin layer of ice covered the pond this morning.",
        "We should leave early if we want good seats.",
        "His brother repairs clocks, and sometimes violins.",
        "The teacher drew a large circle on the board.",
        "Please put the blue jug back where you found it.",
        "Thunder rolled across the valley for half an hour.",
        "Every visitor must sign the book at the door.",
        "They planted cherry trees along both sides of the road.",
        "I would rather walk than wait for another bus.",
        "The judge asked why the window had been open.",
        "Fresh bread and salted butter were all we needed.",
        "Our neighbour plays the trumpet rather badly.",
        "Young foxes chased each other through the tall grass.",
        "The captain measured the depth with a rope and a stone.",
        "You can see three villages from the top of that hill.",
        "Most of the paint had peeled off the wooden gate.",
        "Which of these keys belongs to the garden shed?",
        "The orchestra stopped when the lights went out.",
        "He folded the map and pushed it into his pocket.",
        "Warm air rises, so the attic is the hottest room.",
        "Did anyone remember to feed the goldfish?",
        "The old bridge was closed for the whole of July.",
        "Sugar dissolves faster if you stir the tea.",
        "A yellow van has been parked outside since Thursday.",
        "She explained the rules twice, and nobody objected.",
        "Bring a torch, because the path is steep and dark.",
        "The shepherd counted his flock again at sunset.",
        "Their train was late, as trains in the north often are.",
    ),
    "test": (
        "Two small boats were tied to a post near the shore.",
        "My cousin wrote a book about the birds of this island.",
        "The price of coal fell sharply after the warm winter.",
        "Choose a jacket that will keep the rain out.",
        "Why does the moon look larger when it is low?",
        "He found a silver coin between the stones of the wall.",
        "Good soup takes patience, onions and a heavy pot.",
        "The children whispered behind the curtain all evening.",
    ),
}  # fmt: skip
"""What is said in each split; no sentence is in both."""

KINDS = ("coloured", "machine", "babble", "bursts", "sweeps", "reverberation")
"""What can happen to speech: a noise, or a room."""

_SPLITS = ("train", "test")
_ROOMS = 48  # a split
_SPEEDS = 32  # speeds are multiples of 1 / 32


def speak(
    voice: str, texts: Sequence[str], speeds: Sequence[int] | None = None, pitches: Sequence[int] | None = None
) -> list[Float[Tensor, " length"]]:
    """Each text as spoken by a voice of espeak-ng, float32 in [-1, 1], 16 kHz; the same call gives the same samples.

    Args:
        voice: `language+variant`, such as "en-us+f3".
        texts: spoken one after another by one process.
        speeds: words a minute, 165 by default; pitches: from 0 to 99, 50 by default.

    Raises:
        InputError: the voice or a text is refused.
        MissingPackageError: the synthesiser is not installed.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise MissingPackageError(
            "speech: the package espeakng-loader is needed; expected `pip install tweed[audio]`"
        ) from None
    from scipy.signal import resample_poly

    speeds, pitches = speeds or [165] * len(texts), pitches or [50] * len(texts)
    request = {
        "library": espeakng_loader.get_library_path(),
        "data": espeakng_loader.get_data_path(),
        "voice": voice,
        "texts": list(zip(texts, speeds, pitches, strict=True)),
    }
    program = [sys.executable, str(Path(__file__).with_name("_espeak.py"))]
    done = subprocess.run(program, input=json.dumps(request).encode(), capture_output=True, check=False)
    if done.returncode:
        raise InputError(f"voice, texts: {voice!r}: {done.stderr.decode(errors='replace').strip()[-200:]}")
    head, _, body = done.stdout.partition(b"\n")
    told, samples = json.loads(head), np.frombuffer(body, dtype=np.int16) / 32768.0
    parts = np.split(samples, np.cumsum(told["lengths"])[:-1]) if texts else []
    return [torch.from_numpy(resample_poly(p, RATE, told["rate"])).float().clamp(-1.0, 1.0) for p in parts]


@functools.lru_cache(maxsize=64)
def recordings(voice: str, split: str) -> tuple[Float[Tensor, " length"], ...]:
    """All sentences of a split by one voice, 0.1 s of rest after each; speed and pitch vary from sentence to sentence."""
    texts = SENTENCES[split]
    random = np.random.default_rng(fold(0, *voice.encode(), _SPLITS.index(split)))
    speeds, pitches = random.integers(140, 200, len(texts)).tolist(), random.integers(30, 70, len(texts)).tolist()
    rest = torch.zeros(RATE // 10)
    return tuple(torch.cat((wave, rest)) for wave in speak(voice, texts, speeds, pitches))


@functools.lru_cache(maxsize=32)
def _track(voice: str, split: str) -> tuple[Float[Tensor, " length"], float]:
    # All that a voice says, and its level.
    track = torch.cat(recordings(voice, split))
    return track, track.std().item()


@functools.lru_cache(maxsize=2 * _ROOMS)
def _room(split: str, number: int) -> Float[Tensor, " length"]:
    return random_room(np.random.default_rng(fold(0, 0x526F6F6D, _SPLITS.index(split), number)))


class NoisySpeech:
    """Pairs of compressed spectrograms: clean speech `x`, and `y`, the same with noise or in a room, both complex64.

    Sample `i` meets the kind `kinds[i % len(kinds)]`. Waveforms are divided by the largest |sample| of the degraded one,
    as at inference. The two splits share no sentence, no voice, no babbling voice, and no room.

    Args:
        kinds: what happens to the speech, out of `KINDS`.
        snr: the range of the ratio of speech to noise, in dB, over the sample; uniform.
        frames: of the spectrogram; a sample lasts `stft.samples(frames)`.
        length: number of samples.
        split: "train" or "test".
        seed: of everything random.
        stft: the front end.
        speeds: the range of the speeds that recordings are replayed at, pitch and formants with them; uniform, in steps of
            1/32 (speed perturbation: Ko et al., Interspeech 2015). More voices, for training.

    Raises:
        InputError: an argument is out of its range.
        MissingPackageError: the synthesiser is not installed.
    """

    num_classes = None
    conditions = ("y",)

    def __init__(
        self,
        kinds: Sequence[str] = ("coloured", "machine", "babble", "reverberation"),
        snr: Sequence[float] = (-5.0, 10.0),
        frames: int = 128,
        length: int = 100000,
        split: str = "train",
        seed: int = 0,
        stft: CompressedSTFT | None = None,
        speeds: Sequence[float] = (1.0, 1.0),
    ):
        choose("split", split, _SPLITS)
        for kind in kinds:
            choose("kinds", kind, KINDS)
        if not kinds or len(snr) != 2 or not snr[0] <= snr[1]:
            raise InputError(f"kinds, snr: {tuple(kinds)}, {tuple(snr)} were given; expected a kind, and low <= high")
        self.stft = stft or CompressedSTFT()
        if frames < 2 or length < 0 or self.stft.samples(frames) <= self.stft.n_fft // 2:
            raise InputError(f"frames, length: {frames}, {length} were given; expected longer samples, and length >= 0")
        if len(speeds) != 2 or not 0.5 <= speeds[0] <= speeds[1] <= 2.0:
            raise InputError(f"speeds: {tuple(speeds)} was given; expected 0.5 <= low <= high <= 2")
        self.speeds = tuple(speeds)
        self.kinds, self.snr, self.frames, self.split, self.seed = tuple(kinds), tuple(snr), frames, split, seed
        self._length = length

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, self.stft.bins, self.frames)

    def __len__(self) -> int:
        return self._length

    def kind(self, i: int) -> str:
        """What happens to sample `i`."""
        return self.kinds[i % len(self.kinds)]

    def waveforms(self, indices: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n length"], Float[Tensor, "n length"]]:
        """Clean and degraded waveforms of the samples `indices`, the largest |sample| of the degraded one being 1."""
        indices = check_indices(indices, len(self))
        pairs = [self._pair(i) for i in indices.tolist()]
        empty = torch.zeros(0, self.stft.samples(self.frames))
        clean, noisy = [torch.stack(w) for w in zip(*pairs, strict=True)] if pairs else (empty, empty)
        return clean, noisy

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        clean, noisy = self.waveforms(indices)
        return {"x": self.stft.compress(clean), "y": self.stft.compress(noisy)}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)

    def _pair(self, i: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng(fold(self.seed, _SPLITS.index(self.split), i))
        length, kind = self.stft.samples(self.frames), self.kind(i)
        voices = VOICES[self.split]
        response = _room(self.split, int(random.integers(_ROOMS))) if kind == "reverberation" else None
        lead = 0 if response is None else len(response)
        speech = self._speech(voices[random.integers(len(voices))], length + lead, random)
        clean = speech[lead:]
        if response is not None:
            n = 2 * len(speech)
            heard = torch.fft.irfft(torch.fft.rfft(speech, n) * torch.fft.rfft(response, n), n)
            noisy = heard[lead : lead + length]
        else:
            noise = self._noise(kind, length, random)
            ratio = 10.0 ** (-random.uniform(self.snr[0], self.snr[1]) / 20.0)
            noisy = clean + noise * (ratio * clean.std() / noise.std().clamp_min(1e-8))
        peak = noisy.abs().max().clamp_min(1e-8)
        return clean / peak, noisy / peak

    def _speech(self, voice: str, length: int, random: np.random.Generator) -> Tensor:
        track, (low, high) = _track(voice, self.split), self.speeds
        if low == high == 1.0:
            return _excerpt(track, length, random)
        from scipy.signal import resample_poly

        parts = round(_SPEEDS * random.uniform(low, high))
        replayed = _excerpt(track, -(-length * parts // _SPEEDS), random)
        return torch.from_numpy(resample_poly(replayed.numpy(), _SPEEDS, parts)[:length])

    def _noise(self, kind: str, length: int, random: np.random.Generator) -> Tensor:
        if kind != "babble":
            return torch.from_numpy(NOISES[kind](length, random)).float()
        voices = BABBLE[self.split]
        talkers = [_track(voices[k % len(voices)], self.split) for k in range(random.integers(4, 8))]
        return torch.stack([_excerpt(t, length, random) * random.uniform(0.5, 1.0) for t in talkers]).sum(0)


def _excerpt(track: tuple[Tensor, float], length: int, random: np.random.Generator) -> Tensor:
    # A place where the voice speaks: half the level of the whole track, or the last of ten tries.
    wave, level = track
    excerpt = wave[:0]
    for _ in range(10):
        start = random.integers(max(len(wave) - length, 0) + 1)
        excerpt = wave[start : start + length]
        if excerpt.std() > 0.5 * level:
            break
    return torch.nn.functional.pad(excerpt, (0, length - len(excerpt)))
