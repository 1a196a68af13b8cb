"""Distances between sample sets, and judges of samples; all in float64, with bounded memory."""

from tweed.metrics.classifier import (
    Classifier,
    accuracy,
    confusion,
    entropy_score,
    features,
    load_classifier,
    log_probabilities,
    save_classifier,
    train_classifier,
)
from tweed.metrics.effective_samples import effective_sample_size
from tweed.metrics.frechet import Moments, frechet_distance, frechet_distance_of_moments
from tweed.metrics.kernel import energy_distance, median_bandwidth, mmd
from tweed.metrics.manifold import Manifold, coverage, density, manifold, precision, recall
from tweed.metrics.mode_mixture import doubtful_rate, mode_mixture_rate
from tweed.metrics.probe import linear_probe
from tweed.metrics.sequences import distinct, generative_perplexity, sequence_entropy
from tweed.metrics.transport import sliced_wasserstein, wasserstein

__all__ = [
    "Classifier",
    "Manifold",
    "Moments",
    "accuracy",
    "confusion",
    "coverage",
    "density",
    "distinct",
    "doubtful_rate",
    "effective_sample_size",
    "energy_distance",
    "entropy_score",
    "features",
    "frechet_distance",
    "frechet_distance_of_moments",
    "generative_perplexity",
    "linear_probe",
    "load_classifier",
    "log_probabilities",
    "manifold",
    "median_bandwidth",
    "mmd",
    "mode_mixture_rate",
    "precision",
    "recall",
    "save_classifier",
    "sequence_entropy",
    "sliced_wasserstein",
    "train_classifier",
    "wasserstein",
]
