"""Optimizers that torch does not have, as ordinary `torch.optim.Optimizer`s, and `choices` of any by name."""

from tweed.training.optimizers import choices
from tweed.training.optimizers.choices import OptimizerChoice
from tweed.training.optimizers.dual_adam import DualAdam, InvAdam, Mode, escape_exponent

__all__ = ["DualAdam", "InvAdam", "Mode", "OptimizerChoice", "choices", "escape_exponent"]
