"""Local data sets, made or shipped on this machine and addressed by index; nothing is downloaded."""

from tweed.data.corpus import Corpus
from tweed.data.dataset import Dataset, Tensors
from tweed.data.degradations import DEGRADATIONS, Degraded, low_light, rain, shadow
from tweed.data.densities import (
    DENSITIES,
    Density,
    Plane,
    checkerboard,
    circles,
    eight_gaussians,
    log_density,
    moons,
    pinwheel,
    rings,
    s_curve,
    swiss_roll,
    two_spirals,
)
from tweed.data.digits import Digits
from tweed.data.glyphs import CHARACTERS, FONTS, Glyphs
from tweed.data.mixtures import Mixture, digits_mixture, grid_mixture, random_mixture, ring_mixture
from tweed.data.phantoms import Phantoms, ellipses, head_volume, moving_blobs, moving_fibres, shepp_logan
from tweed.data.photographs import PHOTOGRAPHS, Photographs
from tweed.data.puzzles import Countdown, RunningSums
from tweed.data.recall import KeyValueRecall, Recalled
from tweed.data.records import HubDataset, ImageFolder, WebDataset
from tweed.data.text_tokens import TextTokenizer, load_tokenizer, pack, padded, train_tokenizer
from tweed.data.tokens import MarkovChain, TabularJoint, Tokens, entropy_rate
from tweed.data.translation import Translation

__all__ = [
    "CHARACTERS",
    "DEGRADATIONS",
    "DENSITIES",
    "FONTS",
    "PHOTOGRAPHS",
    "Corpus",
    "Countdown",
    "Dataset",
    "Degraded",
    "Density",
    "Digits",
    "Glyphs",
    "HubDataset",
    "ImageFolder",
    "KeyValueRecall",
    "MarkovChain",
    "Mixture",
    "Phantoms",
    "Photographs",
    "Plane",
    "Recalled",
    "RunningSums",
    "TabularJoint",
    "Tensors",
    "TextTokenizer",
    "Tokens",
    "Translation",
    "WebDataset",
    "checkerboard",
    "circles",
    "digits_mixture",
    "eight_gaussians",
    "ellipses",
    "entropy_rate",
    "grid_mixture",
    "head_volume",
    "load_tokenizer",
    "log_density",
    "low_light",
    "moons",
    "moving_blobs",
    "moving_fibres",
    "pack",
    "padded",
    "pinwheel",
    "rain",
    "random_mixture",
    "ring_mixture",
    "rings",
    "s_curve",
    "shadow",
    "shepp_logan",
    "swiss_roll",
    "train_tokenizer",
    "two_spirals",
]
