"""Analysis: what a learned field is made of, measured against what is known exactly."""

from tweed.analysis.commitment import Commitment, commitment
from tweed.analysis.conservativity import Conservativity, circulation, conservativity, planes
from tweed.analysis.explained_variance import ExplainedVariance, explained_variance
from tweed.analysis.gauge import Decomposition, decompose, gauge_residual, linear_gaussian
from tweed.analysis.gaussian_phase import (
    GaussianPhase,
    emergence,
    endpoint_coefficients,
    gaussian_phase,
    sensitivity,
    settled_variance,
)
from tweed.analysis.intrinsic_dimension import Dimensions, intrinsic_dimension
from tweed.analysis.jacobian import asymmetry, score_jacobian
from tweed.analysis.ode_sde_gap import Gap, GaussianLaws, gaussian_laws, ode_sde_gap
from tweed.analysis.subspace import ErrorBudget, error_budget, off_support, subspace_distance
from tweed.analysis.trajectory import (
    Geometry,
    endpoint_estimates,
    order_of_emergence,
    trajectory_geometry,
    variance_by_time,
)
from tweed.analysis.wasserstein_gradient_flow import (
    free_energy,
    gaussian_variance,
    jko_step,
    relative_fisher,
    wgf_velocity,
)

__all__ = [
    "Commitment",
    "Conservativity",
    "Decomposition",
    "Dimensions",
    "ErrorBudget",
    "ExplainedVariance",
    "Gap",
    "GaussianLaws",
    "GaussianPhase",
    "Geometry",
    "asymmetry",
    "circulation",
    "commitment",
    "conservativity",
    "decompose",
    "emergence",
    "endpoint_coefficients",
    "endpoint_estimates",
    "error_budget",
    "explained_variance",
    "free_energy",
    "gauge_residual",
    "gaussian_laws",
    "gaussian_phase",
    "gaussian_variance",
    "intrinsic_dimension",
    "jko_step",
    "linear_gaussian",
    "ode_sde_gap",
    "off_support",
    "order_of_emergence",
    "planes",
    "relative_fisher",
    "score_jacobian",
    "sensitivity",
    "settled_variance",
    "subspace_distance",
    "trajectory_geometry",
    "variance_by_time",
    "wgf_velocity",
]
