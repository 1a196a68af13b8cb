"""Optimizers that torch does not have, as ordinary `torch.optim.Optimizer`s."""

from tweed.training.optimizers.dual_adam import DualAdam, InvAdam, Mode, escape_exponent

__all__ = ["DualAdam", "InvAdam", "Mode", "escape_exponent"]
