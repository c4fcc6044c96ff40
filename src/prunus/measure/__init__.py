"""What a model costs and how good it is, measured here and now."""

from prunus.measure.metrics import measure

__all__ = ["measure"]
