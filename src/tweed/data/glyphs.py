"""Characters rendered from the fonts that matplotlib ships: an image world with classes, styles and no download.

Class = character, style = font. Every (character, font) is drawn once with FreeType at twice the wanted resolution; a
batch is then one affine resampling of these drawings (rotation, scale, aspect, shear, shift), averaged down 2x2, so
edges stay anti-aliased. In each font the characters share one scale and one baseline, chosen so that their common
vertical extent is `HEIGHT` of the image; each is centred horizontally by the box of its ink and its advance, and
condensed where that would be wider than `WIDTH` of the image.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from tweed.core.random import fold, uniform
from tweed.data.dataset import check_indices, one
from tweed.errors import InputError, choose

# The text fonts among matplotlib's, sorted by name: the number of a style never changes with matplotlib's version.
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmti10",
    "cmtt10",
)
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HEIGHT, WIDTH = 0.76, 0.84

# Half-widths of the uniform augmentation: radians, log scale, log aspect, shear, and shift as a share of the image.
ROTATION, SCALE, ASPECT, SHEAR, SHIFT = math.radians(10.0), 0.1, 0.06, 0.12, 0.05

_OVERSAMPLE = 2  # of the drawings and of the resampling grid
_SPLITS = ("train", "test", "all")
_VARIATIONS = {"train": 64, "test": 8, "all": 72}


def _font_file(name: str) -> Path:
    import matplotlib

    path = (
        Path(name) if name.endswith((".ttf", ".otf")) else Path(matplotlib.get_data_path(), "fonts/ttf", f"{name}.ttf")
    )
    if not path.is_file():
        raise InputError(f"fonts: {name!r} is neither a font of matplotlib (such as {FONTS[0]!r}) nor a .ttf file")
    return path


def _holds(name: str, characters: str) -> bool:
    """Whether a font draws all of `characters` as themselves."""
    from matplotlib.ft2font import FT2Font

    # TeX's fonts carry other signs at some ASCII codes; letters and digits are right.
    if name.startswith("cm") and not (characters.isascii() and characters.isalnum()):
        return False
    charmap = FT2Font(str(_font_file(name))).get_charmap()
    return all(ord(c) in charmap for c in characters)


def _draw(name: str, characters: str, side: int) -> UInt8[Tensor, "characters side side"]:
    """Each character on a square of `side` pixels, ink 255 on 0."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    em = 4 * side  # drawn large and averaged down, so that neither hinting nor placement is tied to whole pixels
    font = ImageFont.truetype(str(_font_file(name)), em, layout_engine=ImageFont.Layout.BASIC)
    boxes = [font.getbbox(c, anchor="ls") for c in characters]
    for c, (left, top, right, bottom) in zip(characters, boxes, strict=True):
        if right <= left or bottom <= top:
            raise InputError(f"characters: {c!r} has no ink in {name}; expected characters that can be seen")
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    extent, middle = (bottom - top) / HEIGHT, 0.5 * (top + bottom)
    drawings = []
    for c, box in zip(characters, boxes, strict=True):
        across = max(extent, (box[2] - box[0]) / WIDTH)
        pad = math.ceil(max(extent, across)) + 1
        canvas = Image.new("L", (math.ceil(box[2] - box[0]) + 2 * pad, math.ceil(bottom - top) + 2 * pad))
        x, y = pad - box[0], pad - top
        ImageDraw.Draw(canvas).text((x, y), c, fill=255, font=font, anchor="ls")
        center_x, center_y = x + 0.5 * (box[0] + box[2]), y + middle
        region = (center_x - across / 2, center_y - extent / 2, center_x + across / 2, center_y + extent / 2)
        drawings.append(np.asarray(canvas.resize((side, side), Image.Resampling.BOX, box=region)))
    return torch.from_numpy(np.stack(drawings))


@functools.lru_cache(maxsize=8)
def _atlas(characters: str, fonts: tuple[str, ...], side: int) -> UInt8[Tensor, "characters fonts side side"]:
    return torch.stack([_draw(name, characters, side) for name in fonts], dim=1)


def _affine(u: Float[Tensor, "n 6"]) -> Float[Tensor, "n 2 3"]:
    """From output to source coordinates (both in [-1, 1]), for draws `u` in (-1, 1)."""
    angle, log_scale, log_aspect, shear = u[:, 0] * ROTATION, u[:, 1] * SCALE, u[:, 2] * ASPECT, u[:, 3] * SHEAR
    cos, sin = angle.cos(), angle.sin()
    x_zoom, y_zoom = (-log_scale - log_aspect).exp(), (-log_scale + log_aspect).exp()
    # Undo, in this order: shift, rotation, shear, zoom.
    a, b = x_zoom * (cos + shear * sin), x_zoom * (shear * cos - sin)
    c, d = y_zoom * sin, y_zoom * cos
    dx, dy = 2.0 * SHIFT * u[:, 4], 2.0 * SHIFT * u[:, 5]
    return torch.stack((a, b, -a * dx - b * dy, c, d, -c * dx - d * dy), dim=1).reshape(-1, 2, 3)


class Glyphs:
    """Rendered characters `x` (1, size, size) in [-1, 1], white on black, with `label` and, where asked, `style`.

    Sample `i` shows character `i % num_classes` in the font `(i // num_classes) % len(styles)` under augmentation `i`:
    every run of `num_classes * len(styles)` samples holds each combination once.

    Args:
        size: height and width in pixels.
        characters: the classes, in the order of `label`.
        fonts: names of fonts of matplotlib, or .ttf files; None takes those of `FONTS` that hold all characters.
        augment: the strength of the augmentation; True is 1, and False (0) shows the bare drawings.
        length: number of samples; None is 64 (train), 8 (test) or 72 (all) of each combination of character and font,
            or one of each without augmentation.
        split: `"train"`, `"test"` or `"all"`: each has augmentations of its own.
        seed: of the augmentation.
        held_out: fonts that `"train"` leaves out, and that `"test"` alone shows when any are named.
        conditions: which of `label` (character) and `style` (position in the attribute `fonts`) a batch carries.

    Raises:
        InputError: repeated or invisible characters, no font that holds them, unknown names, a size below 4.
    """

    def __init__(
        self,
        size: int = 32,
        characters: str = CHARACTERS,
        fonts: Sequence[str] | None = None,
        augment: bool | float = True,
        length: int | None = None,
        split: str = "train",
        seed: int = 0,
        held_out: Sequence[str] = (),
        conditions: Sequence[str] = ("label",),
    ):
        choose("split", split, _SPLITS)
        for name in conditions:
            choose("conditions", name, ("label", "style"))
        if size < 4:
            raise InputError(f"size: {size} was given; expected at least 4 pixels")
        if not characters or len(set(characters)) != len(characters):
            raise InputError(f"characters: {characters!r} was given; expected at least one, and none twice")
        if float(augment) < 0.0:
            raise InputError(f"augment: {augment} was given; expected a strength of at least 0")
        self.fonts = tuple(name for name in FONTS if _holds(name, characters)) if fonts is None else tuple(fonts)
        lacking = [name for name in self.fonts if not _holds(name, characters)]
        if lacking or not self.fonts:
            raise InputError(f"characters: {characters!r} are not all in {lacking[0] if lacking else 'any of FONTS'}")
        for name in held_out:
            choose("held_out", name, self.fonts)
        shown = {"train": set(self.fonts) - set(held_out), "test": set(held_out or self.fonts), "all": set(self.fonts)}
        self.styles = torch.tensor([i for i, name in enumerate(self.fonts) if name in shown[split]], dtype=torch.int64)
        if len(self.styles) == 0:
            raise InputError(
                f"held_out: all {len(self.fonts)} fonts were given; expected that some are left to train on"
            )
        self.characters, self.size, self.split, self.seed = characters, size, split, seed
        self.augment = float(augment)
        self.conditions = tuple(conditions)
        self.num_classes = len(characters) if "label" in self.conditions else None
        combinations = len(characters) * len(self.styles)
        self._length = combinations * (_VARIATIONS[split] if augment else 1) if length is None else int(length)
        if self._length < 0:
            raise InputError(f"length: {length} was given; expected at least 0")
        self._stream = fold(seed, _SPLITS.index(split))
        # One row a (character, font), in bytes: a batch converts only what it shows.
        self._drawings = _atlas(characters, self.fonts, _OVERSAMPLE * size).flatten(0, 1)
        steps = (torch.arange(_OVERSAMPLE * size, dtype=torch.float32) + 0.5) * (2.0 / (_OVERSAMPLE * size)) - 1.0
        self._x, self._y = steps[None, None, :], steps[None, :, None]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, self.size, self.size)

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        indices = check_indices(indices, len(self))
        label = indices % len(self.characters)
        style = self.styles[(indices // len(self.characters)) % len(self.styles)]
        ink = self._drawings[label * len(self.fonts) + style][:, None].float()
        if self.augment and len(indices):
            draws = uniform((len(indices), 6), self._stream, index=indices) * 2.0 - 1.0
            m = _affine(draws * self.augment)[..., None, None]
            # Multiplied out by hand: a matrix product may round differently in another batch.
            grid = torch.stack([m[:, k, 0] * self._x + m[:, k, 1] * self._y + m[:, k, 2] for k in (0, 1)], dim=-1)
            ink = F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        x = F.avg_pool2d(ink, _OVERSAMPLE) if len(indices) else ink.new_zeros(0, *self.shape)
        made = {"label": label, "style": style}
        return {"x": (x * (2.0 / 255.0) - 1.0).clamp_(-1.0, 1.0), **{name: made[name] for name in self.conditions}}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)
