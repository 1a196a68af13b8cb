"""Analysis: what a learned field is made of, measured against what is known exactly."""

__all__ = []
