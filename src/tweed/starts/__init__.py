"""Starts: a state and the time it belongs to, from which any solver goes on."""

from tweed.core.starts import Start, noised, stack
from tweed.starts.gaussian_jump import gaussian_jump, skip

__all__ = ["Start", "gaussian_jump", "noised", "skip", "stack"]
