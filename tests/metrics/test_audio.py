"""Measures of speech: closed forms of SI-SDR, and that the packages are called the right way round."""

import importlib

import pytest
import torch

from tweed.core.random import normal
from tweed.errors import InputError, MissingPackageError
from tweed.metrics.audio import estoi, pesq, si_sdr


def test_si_sdr_of_orthogonal_noise_is_the_ratio_of_energies():
    reference, noise = normal((3, 4000), 1, dtype=torch.float64), normal((3, 4000), 2, dtype=torch.float64)
    reference, noise = (w - w.mean(1, keepdim=True) for w in (reference, noise))
    noise = noise - (noise * reference).sum(1, keepdim=True) / reference.square().sum(1, keepdim=True) * reference
    gain = torch.tensor([[0.1], [1.0], [3.0]], dtype=torch.float64)
    wanted = 10 * torch.log10(reference.square().sum(1) / (gain * noise).square().sum(1))
    torch.testing.assert_close(si_sdr(reference + gain * noise, reference), wanted)
    # A factor, a mean and a sign change nothing.
    torch.testing.assert_close(si_sdr(-5.0 * (reference + gain * noise) + 2.0, reference), wanted)
    assert (si_sdr(3.0 * reference, reference) > 200).all()


def test_shapes_must_agree():
    for measure in (si_sdr, estoi, pesq):
        with pytest.raises(InputError, match="estimate"):
            measure(torch.zeros(2, 100), torch.zeros(2, 101))


def test_less_noise_is_better_and_the_reference_comes_second():
    pytest.importorskip("pystoi", reason="needs tweed[audio]")
    pytest.importorskip("pesq", reason="needs tweed[audio]")
    pytest.importorskip("espeakng_loader", reason="needs tweed[audio]")
    from tweed.data.speech import speak

    clean = torch.cat(speak("en-us+f1", ["Two small boats were tied to a post near the shore."]))[None]
    noise = normal(clean.shape, 3) * clean.std()
    noisy = [clean, clean + 0.1 * noise, clean + noise]
    quality, understood = (torch.cat([m(w, clean) for w in noisy]) for m in (pesq, estoi))
    assert (quality.diff() < -0.3).all()
    assert (understood.diff() < -0.02).all()
    assert quality[0] > 4.5
    assert understood[0] == pytest.approx(1.0, abs=1e-6)
    # Neither is symmetric: PESQ forgives what is missing less than what is added.
    assert pesq(noisy[2], clean).item() != pytest.approx(pesq(clean, noisy[2]).item(), abs=1e-3)
    with pytest.raises(InputError, match="rate"):
        pesq(clean, clean, rate=44100)


def test_a_missing_package_is_named(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    for measure in (pesq, estoi):
        with pytest.raises(MissingPackageError, match=r"pip install tweed\[audio\]"):
            measure(torch.zeros(1, 16000), torch.zeros(1, 16000))
