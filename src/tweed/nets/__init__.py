"""Networks, by name and from a plain config: `build({"name": "unet", ...}, seed=0)`."""

from tweed.nets.deep_equilibrium import DeepEquilibrium, anderson
from tweed.nets.dit import DiT
from tweed.nets.lipschitz import LipSwish, clip_linear, lipschitz_bound
from tweed.nets.mlp import MLP
from tweed.nets.ncsnpp import NCSNpp
from tweed.nets.registry import build, initialise, names, register
from tweed.nets.unet import UNet, ddpm_cifar
from tweed.nets.vector_field import VectorField

__all__ = [
    "MLP",
    "DeepEquilibrium",
    "DiT",
    "LipSwish",
    "NCSNpp",
    "UNet",
    "VectorField",
    "anderson",
    "build",
    "clip_linear",
    "ddpm_cifar",
    "initialise",
    "lipschitz_bound",
    "names",
    "register",
]
