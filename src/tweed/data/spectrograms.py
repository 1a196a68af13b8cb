"""Complex spectrograms with compressed amplitudes: what speech models see, and back to waveforms."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F

from tweed.errors import InputError


@dataclass(frozen=True)
class CompressedSTFT:
    """`c -> factor |c|^exponent e^{i angle c}` of each bin of a short-time Fourier transform, and its inverse.

    Richter et al., "Speech Enhancement and Dereverberation with Diffusion-based Generative Models" (TASLP 2023),
    Section IV-A: amplitudes of speech are heavy-tailed, and the square root brings quiet bins into the range of loud
    ones. Frames are centred, the window is a periodic Hann window of `n_fft` samples. The defaults are the published ones
    for 16 kHz. The power has an infinite slope at silence, so nothing should be differentiated through it there.

    Args:
        n_fft: samples a frame, even; 510 gives 256 bins.
        hop: samples between frames, at most `n_fft // 2`, where the inverse is exact.
        exponent: of the amplitude, in (0, 1].
        factor: what multiplies the compressed amplitude.

    Raises:
        InputError: an argument is out of its range.
    """

    n_fft: int = 510
    hop: int = 128
    exponent: float = 0.5
    factor: float = 0.15

    def __post_init__(self):
        if self.n_fft < 2 or self.n_fft % 2:
            raise InputError(f"n_fft: {self.n_fft} was given; expected a positive even number")
        if not 1 <= self.hop <= self.n_fft // 2:
            raise InputError(f"hop: {self.hop} was given; expected 1 .. {self.n_fft // 2}, half a frame")
        if not (0.0 < self.exponent <= 1.0 and self.factor > 0.0):
            raise InputError(
                f"exponent, factor: {self.exponent}, {self.factor} were given; expected (0, 1] and a positive number"
            )

    @property
    def bins(self) -> int:
        """Frequencies of a spectrogram, from 0 to half the sampling rate."""
        return self.n_fft // 2 + 1

    def frames(self, length: int) -> int:
        """Frames of `length` samples."""
        return 1 + length // self.hop

    def samples(self, frames: int) -> int:
        """The fewest samples that have `frames` frames."""
        return (frames - 1) * self.hop

    def compress(self, waveform: Float[Tensor, "*b length"], multiple: int = 1) -> Complex[Tensor, "*b 1 bins frames"]:
        """The compressed spectrogram of each waveform, frames padded with zeros to a multiple of `multiple`.

        Raises:
            InputError: fewer samples than half a frame, or `multiple` is not positive.
        """
        length = waveform.shape[-1]
        if length <= self.n_fft // 2:
            raise InputError(
                f"waveform: {length} samples were given; expected more than {self.n_fft // 2}, half a frame"
            )
        if multiple < 1:
            raise InputError(f"multiple: {multiple} was given; expected a positive number of frames")
        rows = waveform.reshape(-1, length)
        if not len(rows):
            frames = math.ceil(self.frames(length) / multiple) * multiple
            shape = (*waveform.shape[:-1], 1, self.bins, frames)
            return torch.zeros(shape, dtype=waveform.dtype.to_complex(), device=waveform.device)
        bins = torch.stft(rows, self.n_fft, self.hop, window=self._window(waveform), center=True, return_complex=True)
        squeezed = torch.polar(self.factor * bins.abs() ** self.exponent, bins.angle())
        squeezed = F.pad(squeezed, (0, -squeezed.shape[-1] % multiple))
        return squeezed.reshape(*waveform.shape[:-1], 1, *squeezed.shape[1:])

    def expand(self, spectrogram: Complex[Tensor, "*b 1 bins frames"], length: int) -> Float[Tensor, "*b length"]:
        """The waveforms of `length` samples whose spectrograms are nearest to these (in the sense of least squares).

        Raises:
            InputError: another number of bins, or too few frames for `length`.
        """
        if spectrogram.shape[-3:-1] != (1, self.bins) or spectrogram.shape[-1] < self.frames(length):
            raise InputError(
                f"spectrogram: shape {tuple(spectrogram.shape)} was given; expected (..., 1, {self.bins}, frames) with "
                f"at least {self.frames(length)} frames for {length} samples"
            )
        rows = spectrogram.reshape(-1, *spectrogram.shape[-2:])[..., : self.frames(length)]
        if not len(rows):
            return torch.zeros((*spectrogram.shape[:-3], length), dtype=rows.dtype.to_real(), device=rows.device)
        bins = torch.polar((rows.abs() / self.factor) ** (1.0 / self.exponent), rows.angle())
        waves = torch.istft(bins, self.n_fft, self.hop, window=self._window(bins.real), center=True, length=length)
        return waves.reshape(*spectrogram.shape[:-3], length)

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.n_fft, dtype=like.dtype, device=like.device)
