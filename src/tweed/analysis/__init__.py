"""Analysis: what a learned field is made of, measured against what is known exactly."""

from tweed.analysis.explained_variance import ExplainedVariance, explained_variance

__all__ = ["ExplainedVariance", "explained_variance"]
