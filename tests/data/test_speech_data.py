"""Speech, noises and rooms: what is mixed is what was asked for, and each sample is a function of its index."""

import numpy as np
import pytest
import torch

from tweed.data import rooms
from tweed.data.noises import NOISES
from tweed.data.spectrograms import CompressedSTFT
from tweed.errors import InputError, MissingPackageError

DIRECT = torch.eye(1, 800)[0]


def test_without_walls_there_is_the_direct_sound_alone():
    response = rooms.room_response((5, 4, 3), (1, 1, 1), (3.2, 2.5, 1.4), 0.0, length=800)
    torch.testing.assert_close(response, DIRECT, atol=1e-6, rtol=0)


def test_one_reflection_has_the_delay_and_level_of_its_image():
    # Points near a wall and far from all others: the first image is across that wall.
    size, source, microphone, reflection = (50.0, 50.0, 50.0), (1.0, 25.0, 25.0), (1.0, 27.0, 25.0), 0.6
    response = rooms.room_response(size, source, microphone, reflection, length=800).double()
    image, direct = (2.0**2 + 2.0**2) ** 0.5, 2.0
    place = (image - direct) / rooms.SPEED_OF_SOUND * 16000
    near = slice(round(place) - 20, round(place) + 21)
    at = torch.arange(800, dtype=torch.float64)[near]
    # A band-limited arrival: its sum is its gain, and its centre its delay.
    assert response[near].sum().item() == pytest.approx(reflection * direct / image, rel=0.02)
    assert (response[near] * at).sum().item() / response[near].sum().item() == pytest.approx(place, abs=0.5)
    assert response[near.stop + 25 : 700].abs().max() < 0.01


def test_sound_and_echo_change_places():
    a, b = (1.0, 2.0, 1.5), (3.5, 1.2, 0.8)
    first = rooms.room_response((5, 4, 3), a, b, 0.7, length=1600)
    torch.testing.assert_close(first, rooms.room_response((5, 4, 3), b, a, 0.7, length=1600), atol=1e-5, rtol=1e-4)


def test_sound_falls_as_fast_as_sabine_says():
    size, wanted = (6.0, 5.0, 3.0), 0.4
    response = rooms.room_response(
        size, (1.2, 1.1, 1.3), (4.1, 3.2, 1.7), rooms.sabine_reflection(size, wanted), length=6400
    ).double()
    left = response.square().flip(0).cumsum(0).flip(0)  # the energy still to come (Schroeder)
    decibels = 10 * (left / left[0]).log10()
    times = [int((decibels < level).nonzero()[0]) / 16000 for level in (-5.0, -25.0)]
    assert 3 * (times[1] - times[0]) == pytest.approx(wanted, rel=0.35)


def test_rooms_out_of_range():
    with pytest.raises(InputError, match="inside"):
        rooms.room_response((5, 4, 3), (1, 1, 1), (6, 1, 1), 0.5)
    with pytest.raises(InputError, match="reflection"):
        rooms.room_response((5, 4, 3), (1, 1, 1), (2, 1, 1), 1.0)
    with pytest.raises(InputError, match="absorb"):
        rooms.sabine_reflection((5, 4, 3), 0.01)


@pytest.mark.parametrize("kind", list(NOISES))
def test_noises_are_functions_of_their_generator(kind):
    first, again, other = (NOISES[kind](4000, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (4000,)
    assert np.isfinite(first).all()
    assert first.std() > 0
    assert np.array_equal(first, again)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.5


@pytest.mark.parametrize(
    "stft", [CompressedSTFT(), CompressedSTFT(254, 64, 0.7, 1.3), CompressedSTFT(64, 32, 1.0, 1.0)]
)
def test_there_and_back(stft):
    waves = 0.1 * torch.randn(2, 3, 5000, generator=torch.Generator().manual_seed(1))
    spectrogram = stft.compress(waves, multiple=8)
    assert spectrogram.shape == (2, 3, 1, stft.bins, -(-stft.frames(5000) // 8) * 8)
    torch.testing.assert_close(stft.expand(spectrogram, 5000), waves, atol=1e-5, rtol=0)


def test_amplitudes_are_compressed_and_phases_kept():
    stft = CompressedSTFT(64, 16, 0.5, 0.15)
    wave = torch.randn(1, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, squeezed = CompressedSTFT(64, 16, 1.0, 1.0).compress(wave), stft.compress(wave)
    torch.testing.assert_close(squeezed.abs(), 0.15 * plain.abs().sqrt())
    torch.testing.assert_close(squeezed * plain.conj(), (squeezed.abs() * plain.abs()).to(squeezed.dtype))
    torch.testing.assert_close(stft.compress(4.0 * wave), 2.0 * squeezed)
    assert not stft.compress(torch.zeros(1, 1000)).any()


def test_published_front_end():
    stft = CompressedSTFT()
    assert (stft.bins, stft.samples(256), stft.frames(stft.samples(256))) == (256, 255 * 128, 256)
    assert stft.compress(torch.zeros(0, 4000)).shape == (0, 1, 256, 32)
    assert stft.expand(torch.zeros(0, 1, 256, 32, dtype=torch.complex64), 3900).shape == (0, 3900)
    for bad in ({"n_fft": 511}, {"hop": 300}, {"exponent": 0.0}, {"factor": 0.0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            CompressedSTFT(**bad)
    with pytest.raises(InputError, match="half a frame"):
        stft.compress(torch.zeros(1, 255))
    with pytest.raises(InputError, match="frames"):
        stft.expand(torch.zeros(1, 1, 256, 3, dtype=torch.complex64), 4000)


def test_without_the_synthesiser_the_error_says_what_to_install(monkeypatch):
    import sys

    from tweed.data import speech

    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingPackageError, match=r"pip install tweed\[audio\]"):
        speech.speak("en-us+f1", ["Hello."])


class TestSpoken:
    """What needs espeak-ng."""

    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("espeakng_loader", reason="needs tweed[audio]")

    def test_the_same_call_gives_the_same_speech(self):
        from tweed.data import speech

        first, again = (speech.speak("en-us+f1", ["Good morning.", "Yes."], [150, 180], [40, 60]) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert 0.4 < len(first[0]) / 16000 < 2.0
        assert len(first[1]) < len(first[0])
        assert speech.speak("en-us+f1", []) == []
        with pytest.raises(InputError, match="no voice"):
            speech.speak("no-such-voice", ["Hello."])

    def test_splits_share_nothing(self):
        from tweed.data.speech import BABBLE, SENTENCES, VOICES

        for table in (VOICES, BABBLE, SENTENCES):
            assert not set(table["train"]) & set(table["test"])
        assert not (set(VOICES["train"]) | set(VOICES["test"])) & (set(BABBLE["train"]) | set(BABBLE["test"]))

    def test_mixtures_have_the_ratio_that_was_asked_for(self):
        from tweed.data.speech import KINDS, NoisySpeech

        data = NoisySpeech(KINDS, snr=(3.0, 3.0), frames=64, split="test", length=12)
        clean, noisy = data.waveforms(torch.arange(12))
        torch.testing.assert_close(noisy.abs().amax(1), torch.ones(12))
        for i in range(12):
            if data.kind(i) != "reverberation":
                ratio = 20 * (clean[i].std() / (noisy[i] - clean[i]).std()).log10()
                assert ratio.item() == pytest.approx(3.0, abs=1e-2), data.kind(i)

    def test_a_sample_depends_on_its_index_alone(self):
        from tweed.data.speech import NoisySpeech

        data = NoisySpeech(frames=32, split="test", length=9)
        assert data.shape == (1, 256, 32)
        batch = data.batch(torch.tensor([5, 2]))
        assert batch["x"].dtype == torch.complex64
        torch.testing.assert_close(batch["y"][0], data[5]["y"])
        torch.testing.assert_close(batch["x"][1], data[2]["x"])
        assert data.batch(torch.arange(0))["x"].shape == (0, 1, 256, 32)
        other = NoisySpeech(frames=32, split="test", length=9, seed=1)
        assert not torch.equal(other[5]["y"], data[5]["y"])

    def test_faster_speech_is_higher(self):
        from tweed.data.speech import NoisySpeech

        def centre(**options):
            clean = NoisySpeech(("coloured", "reverberation"), frames=64, length=24, **options).waveforms(
                torch.arange(24)
            )[0]
            assert clean.shape == (24, 63 * 128)
            power = torch.fft.rfft(clean.double(), dim=1).abs().square().mean(0)
            heard = power.cumsum(0) / power.sum()
            return (heard < 0.5).sum().item()

        own = centre()
        assert own == centre(speeds=(1.0, 1.0))
        assert 1.15 < centre(speeds=(1.25, 1.25)) / own < 1.35
        assert 0.7 < centre(speeds=(0.8, 0.8)) / own < 0.87

    def test_options_out_of_range(self):
        from tweed.data.speech import NoisySpeech

        for bad, message in (
            ({"kinds": ("hum",)}, "kinds"),
            ({"kinds": ()}, "kinds"),
            ({"snr": (5.0, -5.0)}, "snr"),
            ({"split": "all"}, "split"),
            ({"frames": 2}, "frames"),
            ({"speeds": (1.1, 0.9)}, "speeds"),
            ({"speeds": (0.1, 1.0)}, "speeds"),
        ):
            with pytest.raises(InputError, match=message):
                NoisySpeech(**bad)
