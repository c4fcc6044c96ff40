"""Function caches of a model's code, emptied after a capture: what it left there are tensors without values."""

from __future__ import annotations

import functools
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import CellType
from typing import Any

from torch import nn

_CACHED = type(functools.lru_cache(len))


@contextmanager
def caches_restored(model: nn.Module) -> Generator[None]:
    """Inside, functions under `functools.lru_cache` may be called; those that kept a new result are emptied after."""
    caches = {id(cached): cached for cached in _caches(model)}.values()
    before = [cached.cache_info().misses for cached in caches]
    try:
        yield
    finally:
        for cached, misses in zip(caches, before, strict=True):
            if cached.cache_info().misses > misses:
                cached.cache_clear()


def _caches(model: nn.Module) -> Iterator[Any]:
    """Cached functions and methods of the classes of a model, and of the files these are written in."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    own = {cls for cls in classes if not cls.__module__.startswith(("torch.", "builtins"))}
    for names in (*map(vars, own), *(vars(sys.modules[file]) for file in {cls.__module__ for cls in own})):
        for value in list(names.values()):
            yield from _cached_in(value)


def _cached_in(value: Any) -> Iterator[Any]:
    """A cached function, also below the decorators that were put on it."""
    value = getattr(value, "__func__", value)
    if type(value) is _CACHED:
        yield value
    for cell in getattr(value, "__closure__", None) or ():
        if isinstance(cell, CellType) and type(content := _content(cell)) is _CACHED:
            yield content


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
