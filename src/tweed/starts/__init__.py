"""Starts: a state and the time it belongs to, from which any solver goes on."""

from tweed.core.starts import Start, noised, stack
from tweed.starts.denoising_mcmc import Chain, ChainReport, DenoisingMCMC, Emission, langevin, tweedie
from tweed.starts.gaussian_jump import gaussian_jump, skip
from tweed.starts.noise_level import (
    ExactNoiseLevel,
    NoiseLevelClassifier,
    NoiseLevelPosterior,
    fit_noise_levels,
    log_levels,
)
from tweed.starts.optimal_transport import OptimalTransport, transport
from tweed.starts.semi_discrete import SemiDiscreteOT, fit_transport

__all__ = [
    "Chain",
    "ChainReport",
    "DenoisingMCMC",
    "Emission",
    "ExactNoiseLevel",
    "NoiseLevelClassifier",
    "NoiseLevelPosterior",
    "OptimalTransport",
    "SemiDiscreteOT",
    "Start",
    "fit_noise_levels",
    "fit_transport",
    "gaussian_jump",
    "langevin",
    "log_levels",
    "noised",
    "skip",
    "stack",
    "transport",
    "tweedie",
]
