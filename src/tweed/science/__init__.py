"""Science: models of processes in time, and what is found in them."""

__all__ = []
