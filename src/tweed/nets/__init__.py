"""Networks, by name and from a plain config: `build({"name": "unet", ...}, seed=0)`."""

from tweed.nets.dit import DiT
from tweed.nets.mlp import MLP
from tweed.nets.registry import build, initialise, names, register
from tweed.nets.unet import UNet, ddpm_cifar

__all__ = ["MLP", "DiT", "UNet", "build", "ddpm_cifar", "initialise", "names", "register"]
