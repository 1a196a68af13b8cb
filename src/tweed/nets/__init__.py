"""Networks, by name and from a plain config: `build({"name": "unet", ...}, seed=0)`."""

from tweed.nets.deep_equilibrium import DeepEquilibrium, anderson
from tweed.nets.dit import DiT
from tweed.nets.embedding_transformer import EmbeddingTransformer
from tweed.nets.experts import TimeExperts, gate_statistics
from tweed.nets.kv_cache import KVCache
from tweed.nets.lipschitz import LipSwish, clip_linear, lipschitz_bound
from tweed.nets.masked_autoencoder import MaskedAutoencoder
from tweed.nets.mlp import MLP
from tweed.nets.multi_head import MultiHead
from tweed.nets.ncsnpp import NCSNpp
from tweed.nets.registry import build, initialise, names, register
from tweed.nets.subspace import Frame, SubspaceNet
from tweed.nets.text_transformer import TextTransformer
from tweed.nets.unet import UNet, ddpm_cifar
from tweed.nets.vector_field import VectorField

__all__ = [
    "MLP",
    "DeepEquilibrium",
    "DiT",
    "EmbeddingTransformer",
    "Frame",
    "KVCache",
    "LipSwish",
    "MaskedAutoencoder",
    "MultiHead",
    "NCSNpp",
    "SubspaceNet",
    "TextTransformer",
    "TimeExperts",
    "UNet",
    "VectorField",
    "anderson",
    "build",
    "clip_linear",
    "ddpm_cifar",
    "gate_statistics",
    "initialise",
    "lipschitz_bound",
    "names",
    "register",
]
