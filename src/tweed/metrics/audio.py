"""What speech is worth after processing: SI-SDR, PESQ, ESTOI, of waveforms of shape (b, length)."""

import importlib
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.errors import InputError, MissingPackageError


def si_sdr(estimate: Float[Tensor, "b length"], reference: Float[Tensor, "b length"]) -> Float[Tensor, " b"]:
    """The scale-invariant ratio of signal to distortion in dB, float64, of waveforms without their means.

    Le Roux et al., "SDR - half-baked or well done?" (ICASSP 2019): with `s` the projection of the estimate on the
    reference, `10 log10(|s|^2 / |estimate - s|^2)`. Infinite where the estimate is a multiple of the reference, and NaN for a
    silent reference.

    Raises:
        InputError: the shapes differ.
    """
    estimate, reference = _pair(estimate, reference)
    estimate, reference = (w - w.mean(-1, keepdim=True) for w in (estimate, reference))
    target = (estimate * reference).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True) * reference
    return 10.0 * torch.log10(target.square().sum(-1) / (estimate - target).square().sum(-1))


def pesq(
    estimate: Float[Tensor, "b length"],
    reference: Float[Tensor, "b length"],
    rate: int = 16000,
    band: Literal["wide", "narrow"] = "wide",
) -> Float[Tensor, " b"]:
    """Perceptual evaluation of speech quality, 1 to 4.6, float64: ITU-T P.862.2 ("wide", 16 kHz) or P.862, by `pesq`.

    NaN where the package finds no utterance.

    Raises:
        InputError: the shapes differ, or the rate is not 8000 or 16000 Hz (16000 for "wide").
        MissingPackageError: `pesq` is not installed.
    """
    if rate not in (8000, 16000) or (band == "wide" and rate != 16000) or band not in ("wide", "narrow"):
        raise InputError(f"rate, band: {rate}, {band!r} were given; expected 16000, or 8000 with 'narrow'")
    pairs, package = _numpy(estimate, reference), audio_package("pesq")
    mode = "wb" if band == "wide" else "nb"
    values = [package.pesq(rate, r, e, mode, on_error=package.PesqError.RETURN_VALUES) for e, r in pairs]
    return torch.tensor([v if v >= 0 else float("nan") for v in values], dtype=torch.float64)


def estoi(
    estimate: Float[Tensor, "b length"], reference: Float[Tensor, "b length"], rate: int = 16000
) -> Float[Tensor, " b"]:
    """Extended short-time objective intelligibility, at most 1, float64 (Jensen & Taal, 2016), by `pystoi`.

    Raises:
        InputError: the shapes differ.
        MissingPackageError: `pystoi` is not installed.
    """
    pairs, package = _numpy(estimate, reference), audio_package("pystoi")
    values = [package.stoi(r, e, rate, extended=True) for e, r in pairs]
    return torch.tensor(values, dtype=torch.float64)


def audio_package(name: str) -> Any:
    """An optional package of the extra `audio`, imported when it is used.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingPackageError(f"{name}: this package is needed; expected `pip install tweed[audio]`") from None


def _pair(estimate: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if estimate.shape != reference.shape or estimate.ndim != 2:
        raise InputError(
            f"estimate: shape {tuple(estimate.shape)} was given for a reference of {tuple(reference.shape)}; expected "
            "the same two (b, length)"
        )
    return estimate.detach().double().cpu(), reference.detach().double().cpu()


def _numpy(estimate: Tensor, reference: Tensor):
    return [(e.numpy(), r.numpy()) for e, r in zip(*_pair(estimate, reference), strict=True)]
