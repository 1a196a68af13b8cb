"""Exact denoisers: closed forms that everything else is measured against."""

from tweed.core.exact.empirical import EmpiricalDenoiser
from tweed.core.exact.interpolant import MixtureInterpolantDenoiser
from tweed.core.exact.mixture import GaussianDenoiser, MixtureDenoiser
from tweed.core.exact.modalities import GaussianModalities
from tweed.core.exact.posterior import MixturePosterior
from tweed.core.exact.principal import PrincipalGaussian, fit_class_gaussians, fit_gaussian, fit_mixture, psi
from tweed.core.exact.sphere import SphereDenoiser
from tweed.core.exact.subspace import SubspaceDenoiser

__all__ = [
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "GaussianModalities",
    "MixtureDenoiser",
    "MixtureInterpolantDenoiser",
    "MixturePosterior",
    "PrincipalGaussian",
    "SphereDenoiser",
    "SubspaceDenoiser",
    "fit_class_gaussians",
    "fit_gaussian",
    "fit_mixture",
    "psi",
]
