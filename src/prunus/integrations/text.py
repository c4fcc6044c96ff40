"""State as text, for checkpoints that are JSON: tensors as safetensors in base64, all else as it is."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

_TENSOR = "tensor of this number"


def to_text(state: Any) -> dict[str, Any]:
    """What `json.dumps` takes, of a state of tensors, numbers, strings, lists and dicts with strings as keys.

    >>> import json, torch
    >>> text = json.dumps(to_text({"step": 3, "kept": {"weight": torch.tensor([5, 0])}}))
    >>> from_text(json.loads(text))
    {'step': 3, 'kept': {'weight': tensor([5, 0])}}
    """
    tensors: dict[str, Tensor] = {}
    plain = _without(state, tensors)
    return {"state": plain, "tensors": b64encode(save(tensors)).decode()}


def from_text(text: Mapping[str, Any]) -> Any:
    """The inverse of `to_text`."""
    return _with(text["state"], load(b64decode(text["tensors"])))


def _without(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        number = str(len(tensors))
        tensors[number] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: number}
    if isinstance(value, Mapping):
        return {key: _without(item, tensors) for key, item in value.items()}
    return [_without(item, tensors) for item in value] if isinstance(value, list | tuple) else value


def _with(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and value.keys() == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if isinstance(value, dict):
        return {key: _with(item, tensors) for key, item in value.items()}
    return [_with(item, tensors) for item in value] if isinstance(value, list) else value
