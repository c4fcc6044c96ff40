"""What tells one run from another: the names of functions, and a digest of settings and weights."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from numbers import Number
from typing import Any

import torch
from torch import Tensor


def name_of(function: Any) -> str:
    """Module and name of a function, as far as it has them, and what `functools.partial` gave it.

    The outermost package that offers it counts. Objects go in by the name of their type: what they print may have a
    place in memory, which is another in every process.

    >>> name_of(json.JSONDecoder), name_of(partial(json.dumps, indent=1))
    ('json.JSONDecoder', 'json.dumps(indent=1)')
    """
    if isinstance(function, partial):
        options = [*map(_word, function.args), *(f"{name}={_word(value)}" for name, value in function.keywords.items())]
        return f"{name_of(function.func)}({', '.join(options)})"
    parts = getattr(function, "__module__", "?").split(".")
    name = getattr(function, "__qualname__", type(function).__name__)
    packages = [".".join(parts[: i + 1]) for i in range(len(parts))]
    offers = [p for p in packages if getattr(sys.modules.get(p), name, None) is function]
    return f"{(offers or packages[-1:])[0]}.{name}"


def _word(value: Any) -> str:
    if value is None or isinstance(value, str | bool | Number):
        return str(value)
    if isinstance(value, list | tuple):
        items: Iterable[Any] = value
        return f"[{', '.join(map(_word, items))}]"
    return name_of(value if callable(value) else type(value))


def fingerprint(settings: Mapping[str, Any], tensors: Iterable[Tensor]) -> str:
    """Hexadecimal SHA-256 of settings, which JSON can hold, and of the values, shapes and dtypes of tensors in order.

    >>> one = fingerprint({"lr": 0.1}, [torch.ones(2)])
    >>> one == fingerprint({"lr": 0.1}, [torch.ones(2)]), one == fingerprint({"lr": 0.1}, [torch.ones(2, 1)])
    (True, False)
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
