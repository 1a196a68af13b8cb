"""The recipe `speech-enhancement` at the smallest scale, and that wrong ingredients are found out."""

import tweed as tw
from tweed.recipes import _speech_exact as exact
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
