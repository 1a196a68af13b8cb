"""Restoration: from a degraded recording, picture or spectrogram to a clean one, given the degraded as an endpoint."""
