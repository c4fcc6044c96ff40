"""What a criterion may look at: weights, gradients, and what the weights read; each is computed when it is touched."""

from prunus.stats.stats import Stats

__all__ = ["Stats"]
