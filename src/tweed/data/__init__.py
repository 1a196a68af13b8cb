"""Local data sets, made or shipped on this machine and addressed by index; nothing is downloaded."""

from tweed.data.dataset import Dataset, Tensors
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
from tweed.data.phantoms import Phantoms, ellipses, head_volume, moving_blobs, shepp_logan

__all__ = [
    "CHARACTERS",
    "DENSITIES",
    "FONTS",
    "Dataset",
    "Density",
    "Digits",
    "Glyphs",
    "Mixture",
    "Phantoms",
    "Plane",
    "Tensors",
    "checkerboard",
    "circles",
    "digits_mixture",
    "eight_gaussians",
    "ellipses",
    "grid_mixture",
    "head_volume",
    "log_density",
    "moons",
    "moving_blobs",
    "pinwheel",
    "random_mixture",
    "ring_mixture",
    "rings",
    "s_curve",
    "shepp_logan",
    "swiss_roll",
    "two_spirals",
]
