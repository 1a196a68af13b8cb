"""Processes: what the marginals between data and noise are."""

from tweed.core.processes.base import Level, Process
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
"""Every process by the name that configurations and checkpoints use."""

__all__ = [
    "BY_NAME",
    "EDM",
    "OUVE",
    "VE",
    "VP",
    "Cosine",
    "FromBetas",
    "Interpolant",
    "Level",
    "MeanReverting",
    "Process",
    "RectifiedFlow",
    "Resfusion",
    "Residual",
    "SubVP",
]
