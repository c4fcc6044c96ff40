"""What tells one run from another: the names of functions, and a digest of settings and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def name_of(function: Any) -> str:
    """Module and name of a function, as far as it has them.

    >>> name_of(json.dumps)
    'json.dumps'
    """
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"


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
