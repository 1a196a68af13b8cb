"""Restoration: from a degraded recording, picture or spectrogram to a clean one, given the degraded as an endpoint."""

from tweed.restoration.mean_reverting import mrs, remaining_grid, step_times
from tweed.restoration.objective_selection import Choice, select_objective
from tweed.restoration.residual import (
    ResidualNoise,
    ResidualNoiseLoss,
    noise_first,
    process_path,
    remove,
    residual_first,
)
from tweed.restoration.speech import enhance, read_audio, speech_grid, speech_sampler, write_audio

__all__ = [
    "Choice",
    "ResidualNoise",
    "ResidualNoiseLoss",
    "enhance",
    "mrs",
    "noise_first",
    "process_path",
    "read_audio",
    "remaining_grid",
    "remove",
    "residual_first",
    "select_objective",
    "speech_grid",
    "speech_sampler",
    "step_times",
    "write_audio",
]
