"""The recipe `speech-enhancement` at the smallest scale, and that wrong ingredients are found out."""

import pytest

import tweed as tw
from tweed.errors import InputError
from tweed.recipes import Report
from tweed.recipes import _speech_exact as exact
from tweed.recipes import _speech_figures as drawn
from tweed.recipes import _speech_measured as measured
from tweed.recipes.registry import reproduce


def wrong(seed=0, n=4000):
    return {row.quantity for row in exact.rows(seed, n)[1] if row.holds is False}


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("speech-enhancement", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.relation) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == {"report.json", "report.md", "exact.png"}


def test_complex_noise_of_variance_two_is_found_out(monkeypatch):
    # The usual mistake: variance one in each part.
    right = tw.random.normal
    monkeypatch.setattr(
        tw.random, "normal", lambda *a, **o: right(*a, **o) * (2**0.5 if o["dtype"].is_complex else 1.0)
    )
    assert {
        "... variance, of the posterior's",
        "simulated paths at t = 1: mean or variance off, in standard errors",
    } <= wrong()


def test_a_denoiser_that_shrinks_is_found_out(monkeypatch):
    right = exact.denoiser()
    shrunk = tw.FunctionDenoiser(lambda x, t, y: 0.8 * right(x, t, y=y).x0, exact.PROCESS, event=(1,))
    monkeypatch.setattr(exact, "denoiser", lambda: shrunk)
    assert "exact score, 30 steps: |bias| of the mean" in wrong()


def test_a_front_end_that_forgets_its_factor_is_found_out(monkeypatch):
    class Forgetful(exact.CompressedSTFT):
        def expand(self, spectrogram, length):
            return super().expand(1.1 * spectrogram, length)

    monkeypatch.setattr(exact, "CompressedSTFT", Forgetful)
    assert "waveform through the front end and back, largest error" in wrong()


def parts(**changed):
    """Made-up measurements: 30 steps gain 5.5 dB, the mean of draws 8, and so on."""
    made = {}
    for number, (name, kinds) in enumerate(measured.PARTS.items()):
        clean = tw.random.normal((len(kinds), 4000), number)
        scores = {
            version: {"SI-SDR": gain, "PESQ": 1.1 + 0.05 * gain, "ESTOI": 0.5 + 0.01 * gain}
            for version, gain in {
                "degraded": 0.0, "discriminative": 8.0, "30 steps": 5.5, "5 steps": 4.0, "30 steps, no corrector": 5.0,
                measured.MEAN: 8.0, **changed,
            }.items()
        }  # fmt: skip
        made[name] = measured.Part(kinds, clean, dict.fromkeys(scores, clean + 0.1), scores)
    return made


def test_what_is_measured_of_the_bundled_models_is_judged_drawn_and_heard(tmp_path):
    assert {row.holds for row in measured.rows(parts())} == {True, None}
    worse = [row.quantity for row in measured.rows(parts(**{"30 steps": -3.0})) if row.holds is False]
    assert len(worse) >= 5
    assert [row.quantity for row in measured.rows(parts(**{measured.MEAN: 5.6})) if row.holds is False]
    figure = drawn.spectrograms(parts())
    assert len(figure.axes) == 4 * 6 + 1
    soundfile = pytest.importorskip("soundfile", reason="needs tweed[audio]")
    made = parts()[measured.TRAINED]
    report = Report(
        slug="speech-enhancement", rows=measured.rows(parts()), seed=0, scale="default", files=measured.sounds(made)
    )
    folder = report.write(tmp_path)
    assert {p.name for p in folder.iterdir()} == {
        "report.json", "report.md", "clean.wav", "degraded.wav", "discriminative.wav", "30-steps.wav", "5-steps.wav",
        "30-steps-no-corrector.wav", "mean-of-8-draws.wav",
    }  # fmt: skip
    heard, rate = soundfile.read(folder / "clean.wav", dtype="float32")
    assert rate == 16000
    assert abs(heard - (0.9 * made.clean[0]).clamp(-1, 1).numpy()).max() < 1e-3
    with pytest.raises(InputError, match="files"):
        Report(
            slug="speech-enhancement", rows=measured.rows(parts()), seed=0, scale="default", files={"../a.wav": bytes}
        )
