"""What a model's configuration says, value by value: the `config` that classes such as those of transformers hold."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from torch import nn

Place: TypeAlias = "tuple[str | int, ...]"
"""Where a value stands in a configuration: `("text_config", "hidden_size")`, `("depths", 2)`."""
Change: TypeAlias = Mapping[Place, Any]

COUNTS = re.compile(r"layer|block|depth")
"""What names say that hold something for each layer, or how many layers there are."""

_DEPTH = 2
"""So deep may configurations lie in one another; beyond are objects that they hold, which may hold them."""


def config_of(model: nn.Module) -> Any:
    """The configuration a module holds itself, None where it holds none."""
    config = vars(model).get("config")
    return config if _has_entries(config) else None


def configs_of(model: nn.Module) -> dict[str, Any]:
    """Module path -> the configuration it holds."""
    return {path: vars(m)["config"] for path, m in model.named_modules() if config_of(m) is not None}


def place_configs(model: nn.Module, configs: Mapping[str, Any]) -> None:
    """Give the modules of a model these configurations."""
    for path in configs_of(model):
        if path in configs:
            vars(model.get_submodule(path))["config"] = configs[path]


def numbers_of(config: Any) -> dict[Place, int | None]:
    """Every whole number, in lists and nested configurations too, and what is not set.

    >>> from types import SimpleNamespace
    >>> numbers_of(SimpleNamespace(width=8, depths=[2, 3], rate=0.5, inner=None))
    {('width',): 8, ('depths', 0): 2, ('depths', 1): 3, ('inner',): None}
    """
    return {place: value for place, value in _walk((), config) if value is None or type(value) is int}


def lists_cut(config: Any, length: int, stay: Sequence[int]) -> dict[Place, Any]:
    """Every list of this length that is named for layers, with the entries that stay."""
    found = [(place, value) for place, value in _walk((), config) if isinstance(value, list | tuple)]
    lists = [(place, value) for place, value in found if len(value) == length and COUNTS.search(str(place[-1]))]
    return {place: type(value)(value[i] for i in stay) for place, value in lists}


def say(model: nn.Module, change: Change) -> None:
    """Give a model configurations of its own, with other values in some places.

    Parts of a model may hold a changed copy of the whole one's configuration, so all of its type get the values.
    """
    if not change:
        return
    copies = copy.deepcopy(configs_of(model))
    once = {id(config): config for config in copies.values() if type(config) is type(copies[""])}
    for config in once.values():
        for place, value in change.items():
            put(config, place, value)
    place_configs(model, copies)


def changed(config: Any, change: Change) -> Any:
    """A copy of a configuration with other values in some places."""
    made = copy.deepcopy(config)
    for place, value in change.items():
        put(made, place, value)
    return made


def put(config: Any, place: Place, value: Any) -> None:
    """Change one value in place; the list it stands in, which others may hold too, is replaced."""
    way, last = [str(key) for key in place[:-1]], place[-1]
    if isinstance(last, int):
        items = list(_at(config, way))
        items[last] = value
        value = type(_at(config, way))(items)
        way, last = way[:-1], way[-1]
    vars(_at(config, way))[last] = value


def _at(config: Any, way: Sequence[str]) -> Any:
    for key in way:
        config = vars(config)[key]
    return config


def _walk(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    """Every value that is no configuration itself; a list comes before its numbers."""
    if _has_entries(value):
        for key, item in vars(value).items() if len(place) <= _DEPTH else ():
            if not key.startswith("_"):
                yield from _walk((*place, key), item)
    elif place:
        yield place, value
        if isinstance(value, list | tuple):
            items = cast("Sequence[Any]", value)
            yield from (((*place, i), item) for i, item in enumerate(items) if type(item) is int)


def _has_entries(value: Any) -> bool:
    """Is it an object that holds values by name, and computes nothing?"""
    return hasattr(value, "__dict__") and not callable(value)
