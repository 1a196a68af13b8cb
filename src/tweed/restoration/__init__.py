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

__all__ = [
    "Choice",
    "ResidualNoise",
    "ResidualNoiseLoss",
    "mrs",
    "noise_first",
    "process_path",
    "remaining_grid",
    "remove",
    "residual_first",
    "select_objective",
    "step_times",
]
