"""Noises to mix with speech, made from a random generator: coloured, machine, bursts and sweeps (babble needs voices)."""

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float64]
RATE = 16000  # hertz


def coloured(length: int, random: np.random.Generator) -> Wave:
    """Gaussian noise with a falling spectrum, `f^-p` of the power with p in [0, 2], a few broad humps, and a slow swell."""
    f = np.maximum(np.fft.rfftfreq(length, 1.0 / RATE), 30.0)
    decibels = -10.0 * random.uniform(0.0, 2.0) * np.log10(f / 1000.0)
    for _ in range(3):
        middle, width = np.exp(random.uniform(np.log(100.0), np.log(7000.0))), random.uniform(0.3, 1.0)
        decibels += random.uniform(-10.0, 10.0) * np.exp(-0.5 * (np.log(f / middle) / width) ** 2)
    spectrum = np.fft.rfft(random.standard_normal(length)) * 10.0 ** (decibels / 20.0)
    swell = 1.0 + random.uniform(0.0, 0.6) * np.sin(_phase(length, random.uniform(0.2, 3.0), random))
    return np.fft.irfft(spectrum, length) * swell


def machine(length: int, random: np.random.Generator) -> Wave:
    """A hum: up to 24 partials of a wavering base of 30 to 200 Hz, beaten by the turning, over coloured noise 15 dB below."""
    base = np.exp(random.uniform(np.log(30.0), np.log(200.0)))
    waver = 0.01 * base * np.sin(_phase(length, random.uniform(0.1, 2.0), random))
    angle = 2.0 * np.pi * np.cumsum(base + waver) / RATE
    turn = np.exp(1j * angle)
    rotor, wave = turn.copy(), np.zeros(length)  # the partials one after another: powers of one rotation
    for partial in range(1, random.integers(8, 25)):
        if partial * base < 0.45 * RATE:
            gain = random.exponential() * partial ** -random.uniform(0.2, 1.0)
            wave += gain * (rotor * np.exp(1j * random.uniform(0.0, 2.0 * np.pi))).imag
        rotor *= turn
    wave *= 1.0 + random.uniform(0.0, 0.9) * np.sin(_phase(length, random.uniform(2.0, 15.0), random))
    hiss = coloured(length, random)
    return wave + hiss * (0.18 * wave.std() / max(hiss.std(), 1e-12))


def bursts(length: int, random: np.random.Generator) -> Wave:
    """Knocks and clatter: 3 to 12 a second, each a band of noise that rises in 2 ms and dies within 15 to 120 ms."""
    wave = np.zeros(length)
    for start in np.sort(random.integers(0, length, random.poisson(random.uniform(3.0, 12.0) * length / RATE) + 1)):
        decay = random.uniform(0.005, 0.04) * RATE
        n = min(int(6 * decay), length - start)
        t = np.arange(n)
        middle = np.exp(random.uniform(np.log(300.0), np.log(5000.0)))
        f = np.maximum(np.fft.rfftfreq(n, 1.0 / RATE), 1.0) if n > 1 else np.ones(1)
        shape = np.exp(-0.5 * (np.log(f / middle) / random.uniform(0.4, 1.0)) ** 2)
        band = np.fft.irfft(np.fft.rfft(random.standard_normal(n)) * shape, n) if n > 1 else np.zeros(n)
        wave[start : start + n] += random.exponential() * band * np.minimum(t / 32.0, 1.0) * np.exp(-t / decay)
    return wave


def sweeps(length: int, random: np.random.Generator) -> Wave:
    """An alarm: two tones with harmonics that glide up and down over an octave, a cycle in 0.3 to 2 s."""
    wave = np.zeros(length)
    for _ in range(2):
        middle = np.exp(random.uniform(np.log(400.0), np.log(1500.0)))
        glide = 2.0 ** (0.5 * np.sin(_phase(length, 1.0 / random.uniform(0.3, 2.0), random)))
        angle = 2.0 * np.pi * np.cumsum(middle * glide) / RATE
        for partial in (1, 2, 3):
            wave += random.uniform(0.2, 1.0) / partial * np.sin(partial * angle)
    return wave


def _phase(length: int, hertz: float, random: np.random.Generator) -> Wave:
    return 2.0 * np.pi * hertz * np.arange(length) / RATE + random.uniform(0.0, 2.0 * np.pi)


NOISES = {"coloured": coloured, "machine": machine, "bursts": bursts, "sweeps": sweeps}
"""Every noise that needs no voices, by name: `(length, generator) -> wave`, 16 kHz, of any level."""
