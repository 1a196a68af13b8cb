"""Exact denoisers: closed forms that everything else is measured against."""

from tweed.core.exact.empirical import EmpiricalDenoiser
from tweed.core.exact.interpolant import MixtureInterpolantDenoiser
from tweed.core.exact.mixture import GaussianDenoiser, MixtureDenoiser

__all__ = ["EmpiricalDenoiser", "GaussianDenoiser", "MixtureDenoiser", "MixtureInterpolantDenoiser"]
