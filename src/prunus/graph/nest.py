"""Tensors in nested calls and results: take them out in order, and put them back."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from torch import Tensor

from prunus.errors import TraceError
from prunus.types import Inputs

Path: TypeAlias = tuple[str | int, ...]
Spec: TypeAlias = "dict[str, Any]"
"""A JSON description of a nested result; `{"tensor": i}` stands for the i-th tensor."""

_PLAIN = (bool, int, float, str, type(None))


class Output(dict[str, Any]):
    """A mapping result whose entries are attributes too, as in transformers."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this output has no {name!r}; it has {', '.join(self)}") from None


def input_tensors(inputs: Inputs) -> dict[Path, Tensor]:
    """Every tensor of a call by its place: `("args", 0)`, `("kwargs", "mask")`, deeper through lists and dicts."""
    found = _walk(("args",), inputs.args) | _walk(("kwargs",), inputs.kwargs)
    return {path: value for path, value in found.items() if isinstance(value, Tensor)}


def input_settings(inputs: Inputs) -> dict[Path, Any]:
    """Every value of a call that is not a tensor, by its place."""
    found = _walk(("args",), inputs.args) | _walk(("kwargs",), inputs.kwargs)
    return {path: value for path, value in found.items() if not isinstance(value, Tensor)}


def with_tensors(inputs: Inputs, tensors: Mapping[Path, Tensor]) -> Inputs:
    """The same call with other tensors in the same places."""
    args = tuple(_replace(("args", i), value, tensors) for i, value in enumerate(inputs.args))
    return Inputs(args, {key: _replace(("kwargs", key), value, tensors) for key, value in inputs.kwargs.items()})


def take_outputs(result: Any, only: Sequence[str] | None = None) -> tuple[list[Tensor], Spec, list[str]]:
    """Take the tensors out of a result: (tensors, how to put them back, names of entries left out).

    `only` names the entries of a mapping result that count; caches and other objects are left out and named.
    """
    tensors: list[Tensor] = []
    skipped: list[str] = []
    if only is not None:
        if not isinstance(result, Mapping) or any(name not in result for name in only):
            raise TraceError(
                f"outputs={list(only)} names entries of a mapping result, but the model returned {_describe(result)}."
            )
        skipped.extend(str(k) for k in cast("Mapping[str, Any]", result) if k not in only)
        result = {name: result[name] for name in only}
    spec = _take(result, "output", tensors, skipped)
    if spec is None or not tensors:
        raise TraceError(f"The model returned no tensor that could be followed, but {_describe(result)}.")
    return tensors, spec, skipped


def put_outputs(spec: Spec, tensors: Sequence[Tensor]) -> Any:
    """Rebuild the result that `take_outputs` took apart."""
    if "tensor" in spec:
        return tensors[spec["tensor"]]
    if "value" in spec:
        return spec["value"]
    if "list" in spec:
        return [put_outputs(s, tensors) for s in spec["list"]]
    if "dict" in spec:
        return Output({key: put_outputs(s, tensors) for key, s in spec["dict"].items()})
    values = [put_outputs(s, tensors) for s in spec["tuple"]]
    return _named(spec["fields"], values) if "fields" in spec else tuple(values)


def _named(fields: Sequence[str], values: Sequence[Any]) -> Any:
    return namedtuple("Output", fields)(*values)  # pyright: ignore[reportUntypedNamedTuple] the names come at run time


def _take(value: Any, name: str, tensors: list[Tensor], skipped: list[str]) -> Spec | None:
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, _PLAIN):
        return {"value": value}
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value).items()
        taken = {str(k): _take(v, f"{name}.{k}", tensors, skipped) for k, v in entries}
        return {"dict": {k: s for k, s in taken.items() if s is not None}}
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        specs = [_take(v, f"{name}[{i}]", tensors, skipped) or {"value": None} for i, v in enumerate(items)]
        if isinstance(value, list):
            return {"list": specs}
        fields = getattr(cast("Any", value), "_fields", None)
        return {"tuple": specs, "fields": list(fields)} if fields else {"tuple": specs}
    skipped.append(f"{name} ({type(value).__name__})")
    return None


def _walk(path: Path, value: Any) -> dict[Path, Any]:
    if isinstance(value, Mapping):
        items = list(cast("Mapping[str, Any]", value).items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(cast("Sequence[Any]", value)))
    else:
        return {path: value}
    found: dict[Path, Any] = {}
    for key, item in items:
        found |= _walk((*path, key), item)
    return found


def _replace(path: Path, value: Any, tensors: Mapping[Path, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return tensors[path]
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value).items()
        return {k: _replace((*path, k), v, tensors) for k, v in entries}
    if isinstance(value, list | tuple):
        items = [_replace((*path, i), v, tensors) for i, v in enumerate(cast("Sequence[Any]", value))]
        return items if isinstance(value, list) else tuple(items)
    return value


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with entries {', '.join(map(str, cast('Mapping[Any, Any]', value)))}"
    return f"an object of type {type(value).__name__}"
