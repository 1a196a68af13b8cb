"""Processes: what the marginals between data and noise are."""

from tweed.core.processes.base import Level, Process
from tweed.core.processes.categorical import CategoricalProcess, MaskedProcess, UniformProcess
from tweed.core.processes.discrete import FromBetas
from tweed.core.processes.endpoint import OUVE, MeanReverting, Residual
from tweed.core.processes.interpolant import Interpolant
from tweed.core.processes.rectified_flow import RectifiedFlow
from tweed.core.processes.resfusion import Resfusion
from tweed.core.processes.variance_exploding import EDM, VE
from tweed.core.processes.variance_preserving import VP, Cosine, SubVP

BY_NAME: dict[str, type[Process]] = {
    kind.__name__: kind
    for kind in (
        VP,
        Cosine,
        SubVP,
        VE,
        EDM,
        RectifiedFlow,
        FromBetas,
        MeanReverting,
        OUVE,
        Residual,
        Resfusion,
        Interpolant,
    )
}
"""Every process of numbers by the name that configurations and checkpoints use."""

CATEGORICAL: dict[str, type[Process]] = {kind.__name__: kind for kind in (MaskedProcess, UniformProcess)}
"""Every process of tokens by its name."""

__all__ = [
    "BY_NAME",
    "CATEGORICAL",
    "EDM",
    "OUVE",
    "VE",
    "VP",
    "CategoricalProcess",
    "Cosine",
    "FromBetas",
    "Interpolant",
    "Level",
    "MaskedProcess",
    "MeanReverting",
    "Process",
    "RectifiedFlow",
    "Resfusion",
    "Residual",
    "SubVP",
    "UniformProcess",
]
