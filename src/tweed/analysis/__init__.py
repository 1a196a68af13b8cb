"""Analysis: what a learned field is made of, measured against what is known exactly."""

from tweed.analysis.commitment import Commitment, commitment
from tweed.analysis.explained_variance import ExplainedVariance, explained_variance
from tweed.analysis.gaussian_phase import (
    GaussianPhase,
    emergence,
    endpoint_coefficients,
    gaussian_phase,
    sensitivity,
    settled_variance,
)
from tweed.analysis.ode_sde_gap import Gap, GaussianLaws, gaussian_laws, ode_sde_gap
from tweed.analysis.trajectory import (
    Geometry,
    endpoint_estimates,
    order_of_emergence,
    trajectory_geometry,
    variance_by_time,
)

__all__ = [
    "Commitment",
    "ExplainedVariance",
    "Gap",
    "GaussianLaws",
    "GaussianPhase",
    "Geometry",
    "commitment",
    "emergence",
    "endpoint_coefficients",
    "endpoint_estimates",
    "explained_variance",
    "gaussian_laws",
    "gaussian_phase",
    "ode_sde_gap",
    "order_of_emergence",
    "sensitivity",
    "settled_variance",
    "trajectory_geometry",
    "variance_by_time",
]
