"""Integrators for neural differential equations: ordinary and stochastic, with a choice of gradients.

The survey is Kidger, "On neural differential equations" (thesis, Oxford, 2022; arXiv 2202.02435).
"""

from tweed.solvers.differential.brownian import BrownianPath
from tweed.solvers.differential.brownian_interval import BrownianInterval
from tweed.solvers.differential.brownian_tree import VirtualBrownianTree
from tweed.solvers.differential.controller import PIDController
from tweed.solvers.differential.memory import Meter, saved_bytes
from tweed.solvers.differential.ode import ODE_METHODS, odeint
from tweed.solvers.differential.sde import SDE_METHODS, ito_to_stratonovich, sdeint, stratonovich_to_ito

__all__ = [
    "ODE_METHODS",
    "SDE_METHODS",
    "BrownianInterval",
    "BrownianPath",
    "Meter",
    "PIDController",
    "VirtualBrownianTree",
    "ito_to_stratonovich",
    "odeint",
    "saved_bytes",
    "sdeint",
    "stratonovich_to_ito",
]
