"""`load_inputs`: an example call for a saved model, of the traced shapes; the user's own data are not kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from prunus.graph.nest import Path as Place
from prunus.save.load import damage_named, described
from prunus.types import Inputs


def load_inputs(directory: str | Path, *, seed: int = 0) -> Inputs:
    """Draw an example call: floating inputs from a normal distribution, whole numbers 0, flags True.

    Raises `ArtifactError` for a directory that `save` did not write.
    """
    folder = Path(directory)
    graph = described(folder, "graph.json")
    draw = torch.Generator().manual_seed(seed)
    with damage_named(folder, "graph.json"):
        tensors = [_drawn(shape, getattr(torch, dtype), draw) for shape, dtype in graph["examples"]]
        places = [tuple(path) for path in graph["paths"]]
        values = {**dict(zip(places, tensors, strict=True)), **{tuple(p): v for p, v in graph["settings"]}}
        call = cast("dict[str, Any]", _nested(values))
        return Inputs(tuple(call.get("args", ())), call.get("kwargs", {}))


def _drawn(shape: list[int], dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=draw).to(dtype)
    return torch.ones(shape, dtype=dtype) if dtype == torch.bool else torch.zeros(shape, dtype=dtype)


def _nested(values: Mapping[Place, Any]) -> Any:
    """Values by their places, as the lists (integer keys) and dicts (names) they were taken from."""
    if () in values:
        return values[()]
    parts: dict[str | int, dict[Place, Any]] = {}
    for (key, *rest), value in values.items():
        parts.setdefault(key, {})[tuple(rest)] = value
    made = {key: _nested(part) for key, part in parts.items()}
    return [made[i] for i in range(len(made))] if all(isinstance(key, int) for key in made) else made
