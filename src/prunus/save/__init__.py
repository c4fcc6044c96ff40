"""A pruned model as files that run no code: safetensors and JSON.

`model.safetensors` (weights), `graph.json` (the graph at its new sizes), `surgery.json` (which numbers of the user's
class change), `plan.json` and `plan.safetensors` (which units went), `report.json` (what was measured).
"""

from prunus.save.inputs import load_inputs
from prunus.save.load import class_of, load
from prunus.save.write import save

__all__ = ["class_of", "load", "load_inputs", "save"]
