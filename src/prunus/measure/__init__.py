"""What a model costs and how good it is, measured here and now."""

from prunus.measure.metrics import measure
from prunus.measure.onnx_latency import onnx_latency

__all__ = ["measure", "onnx_latency"]
