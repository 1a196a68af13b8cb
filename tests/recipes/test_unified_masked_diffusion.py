"""The recipe of unified masked diffusion: it holds where little is trained, and finds wrong ingredients out."""

import torch

from tweed.nets.masked_autoencoder import MaskedAutoencoder
from tweed.recipes import silent
from tweed.recipes import unified_masked_diffusion as recipe
from tweed.recipes.registry import reproduce
from tweed.training import MaskedDiffusionLoss


def failed(rows):
    return {row.quantity for row in rows if row.holds is False}


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("unified-masked-diffusion", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == {"report.json", "report.md"}


def test_the_default_runs_from_end_to_end(monkeypatch, tmp_path):
    monkeypatch.setitem(recipe.SCALES, "default", recipe.Settings(4, 2, 16, 16, 1, 20))
    report = reproduce("unified-masked-diffusion", seed=3, scale="default")
    names = {path.name for path in report.write(tmp_path).iterdir()}
    assert names == {"report.json", "report.md", "trade-off.png", "pictures.png"}


def test_what_is_drawn_is_the_network_before_fine_tuning():
    from tweed.data.digits import Digits

    found = recipe.trained(recipe.Settings(4, 2, 16, 16, 1, 20), 3, silent)
    for each in found.values():
        assert recipe.noise_error(each.model, Digits("test").x, 3) == each.error != each.tuned


def test_patches_that_are_only_painted_over_are_found_out(monkeypatch):
    right = MaskedAutoencoder._encoded

    def all_of_them(self, x, embedding, positions, visible):
        representation, seen = right(self, x, embedding, positions, None)
        if visible is None:
            return representation, seen
        return representation, seen.gather(1, visible[..., None].expand(-1, -1, self.hidden))

    monkeypatch.setattr(MaskedAutoencoder, "_encoded", all_of_them)
    assert "encoder: patches an image, UMD over DiT" in failed(recipe._tokens(0))
    assert "hidden patches: change of the answer when they change" in failed(recipe._exact(0))


def test_heads_that_are_swapped_are_found_out(monkeypatch):
    right = MaskedAutoencoder.heads

    def swapped(self, *args, **options):
        made = right(self, *args, **options)
        return made._replace(data=made.noise, noise=made.data)

    right_part = MaskedDiffusionLoss._part

    def part(self, network, *rest):
        monkeypatch.setattr(MaskedAutoencoder, "heads", swapped)
        made = right_part(self, network, *rest)
        monkeypatch.setattr(MaskedAutoencoder, "heads", right)
        return made

    monkeypatch.setattr(MaskedDiffusionLoss, "_part", part)
    assert "nothing clean, nothing hidden: loss, off denoising and data error" in failed(recipe._exact(0))


def test_the_noise_error_and_the_shots(monkeypatch):
    from tweed.core.denoiser import FunctionDenoiser
    from tweed.core.targets import Noise
    from tweed.data.digits import Digits

    train = Digits("train")
    few = recipe.few_shots(train.batch(torch.arange(len(train)))["label"], 1)
    label = train.batch(few)["label"]
    assert torch.equal(label.bincount(), torch.full((10,), recipe.SHOTS))
    assert len(set(few.tolist())) == 10 * recipe.SHOTS
    zero = FunctionDenoiser(lambda x, t: torch.zeros_like(x), recipe.PROCESS, Noise(), event=(1, 8, 8))
    assert abs(recipe.noise_error(zero, train.x[:300], 1) - 1.0) < 5 * (2 / (300 * 64)) ** 0.5
    assert silent("", 0.0) is None
