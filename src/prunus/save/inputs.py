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
    """Draw an example call: floating inputs from a normal distribution, whole numbers from the range of those it was
    traced with (a mask of 0 and 1 is all 1), flags True.

    Raises `ArtifactError` for a directory that `save` did not write.
    """
    folder = Path(directory)
    graph = described(folder, "graph.json")
    draw = torch.Generator().manual_seed(seed)
    with damage_named(folder, "graph.json"):
        tensors = [_drawn(shape, getattr(torch, dtype), span, draw) for shape, dtype, *span in graph["examples"]]
        places = [tuple(path) for path in graph["paths"]]
        values = {**dict(zip(places, tensors, strict=True)), **{tuple(p): v for p, v in graph["settings"]}}
        call = cast("dict[str, Any]", _nested(values))
        return Inputs(tuple(call.get("args", ())), call.get("kwargs", {}))


def _drawn(shape: list[int], dtype: torch.dtype, span: list[int], draw: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=draw).to(dtype)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    low, high = span or (0, 0)
    low = high if (low, high) == (0, 1) else low
    return torch.randint(low, high + 1, shape, generator=draw).to(dtype)


def _nested(values: Mapping[Place, Any]) -> Any:
    """Values by their places, as the lists (integer keys) and dicts (names) they were taken from."""
    if () in values:
        return values[()]
    parts: dict[str | int, dict[Place, Any]] = {}
    for (key, *rest), value in values.items():
        parts.setdefault(key, {})[tuple(rest)] = value
    made = {key: _nested(part) for key, part in parts.items()}
    return [made[i] for i in range(len(made))] if all(isinstance(key, int) for key in made) else made
