"""Starts: a state and the time it belongs to, from which any solver goes on."""

from tweed.core.starts import Start, noised, stack

__all__ = ["Start", "noised", "stack"]
