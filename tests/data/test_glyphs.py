import time

import pytest
import torch

from tweed.data import CHARACTERS, FONTS, Glyphs
from tweed.errors import InputError


def _all(data):
    return data.batch(torch.arange(len(data)))


def test_every_combination_appears_equally_often():
    data = Glyphs(size=8, characters="ABC", length=3 * 21 * 4, conditions=("label", "style"))
    batch = _all(data)
    table = torch.bincount(batch["label"] * 21 + batch["style"], minlength=63)
    assert (table == 4).all()
    assert data.fonts == FONTS == tuple(sorted(FONTS))
    assert len(Glyphs()) == 36 * 21 * 64
    assert data.num_classes == 3


def test_images_are_white_on_black_in_range_and_smooth():
    x = Glyphs(length=36 * 21).batch(torch.arange(36 * 21))["x"]
    assert x.shape == (756, 1, 32, 32)
    assert float(x.min()) == -1.0
    assert 0.9 < float(x.max()) <= 1.0
    ink = (x + 1) / 2
    assert 0.05 < float(ink.mean()) < 0.25
    # Anti-aliased: grey levels at the edges, no ink at the border.
    assert float(((ink > 0.1) & (ink < 0.9)).float().mean()) > 0.05
    border = torch.cat((ink[..., 0, :], ink[..., -1, :], ink[..., :, 0], ink[..., :, -1]), dim=-1)
    assert float(border.mean()) < 1e-3


def test_bare_characters_are_centred_and_fill_the_height():
    data = Glyphs(augment=False, conditions=("label", "style"))
    assert len(data) == 36 * 21
    ink = (_all(data)["x"][:, 0] + 1) / 2
    across = ink.amax(1) > 0.1
    first, last = across.float().argmax(1), 31 - across.flip(1).float().argmax(1)
    # By ink and advance together: the ink alone is within a pixel for most, and three off for a slanted U.
    offset = 0.5 * (first + last - 31).abs()
    assert float(offset.max()) <= 3.0
    assert float((offset <= 1.0).double().mean()) > 0.95
    assert (last - first + 1 <= 28).all()
    down = (ink.reshape(21, 36, 32, 32).amax(3) > 0.3).any(1)  # of each font as a whole
    height = down.sum(1)
    assert ((height >= 23) & (height <= 26)).all()


def test_characters_of_a_font_share_a_baseline():
    ink = (_all(Glyphs(augment=False, characters="EFHILTZ", fonts=("DejaVuSans",)))["x"][:, 0] + 1) / 2
    rows = ink.amax(2) > 0.5
    assert len({int(31 - row.flip(0).float().argmax()) for row in rows}) == 1
    assert len({int(row.float().argmax()) for row in rows}) == 1


def test_seeds_and_splits_have_augmentations_of_their_own():
    index = torch.arange(64)
    first, again = Glyphs(seed=3).batch(index), Glyphs(seed=3).batch(index)
    assert torch.equal(first["x"], again["x"])
    for other in (Glyphs(seed=4), Glyphs(seed=3, split="test"), Glyphs(seed=3, split="all")):
        batch = other.batch(index)
        assert torch.equal(batch["label"], first["label"])
        assert ((batch["x"] - first["x"]).flatten(1).abs().amax(1) > 0.1).all()
    # The augmentation is bounded and continuous in its strength.
    bare, weak = Glyphs(augment=False).batch(index)["x"], Glyphs(augment=0.01).batch(index)["x"]
    full = Glyphs(augment=1.0).batch(index)["x"]
    assert float((weak - bare).square().mean()) < 0.02 * float((full - bare).square().mean())


def test_held_out_fonts_are_only_in_the_test_split():
    held = ("cmr10", "STIXGeneral")
    kw = {"held_out": held, "size": 8, "characters": "AB", "conditions": ("style",)}
    train, test = _all(Glyphs(split="train", **kw))["style"], _all(Glyphs(split="test", **kw))["style"]
    assert {FONTS[i] for i in test.unique().tolist()} == set(held)
    assert {FONTS[i] for i in train.unique().tolist()} == set(FONTS) - set(held)
    assert Glyphs(**kw).num_classes is None


def test_other_scripts_drop_the_fonts_that_lack_them():
    greek = Glyphs(characters="αβγΩ", size=48)
    assert not any(name.startswith("cm") for name in greek.fonts)
    assert len(greek.fonts) == 16
    assert greek.shape == (1, 48, 48)
    assert len(Glyphs(characters="abcxyz").fonts) == 21


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("characters", {"characters": "AA"}),
        ("characters", {"characters": ""}),
        ("characters", {"characters": "A "}),
        ("characters", {"characters": "α", "fonts": ("cmr10",)}),
        ("characters", {"characters": "\U0001f600\u4e00"}),
        ("fonts", {"fonts": ("Comic",)}),
        ("split", {"split": "val"}),
        ("conditions", {"conditions": ("class",)}),
        ("size", {"size": 2}),
        ("augment", {"augment": -1.0}),
        ("length", {"length": -1}),
        ("held_out", {"held_out": ("Comic",)}),
        ("held_out", {"held_out": FONTS}),
    ],
)
def test_bad_arguments_are_named(argument, options):
    with pytest.raises(InputError, match=argument):
        Glyphs(**options)


def test_a_batch_is_fast():
    data = Glyphs()
    data.batch(torch.arange(128))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = 0.0
        for k in range(10):
            start = time.process_time()
            data.batch(torch.arange(128) + 128 * k)
            best = max(best, 128 / (time.process_time() - start))
    finally:
        torch.set_num_threads(threads)
    assert best > 5000, f"{best:.0f} images a second"
    assert data.characters == CHARACTERS
