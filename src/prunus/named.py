"""What a name in a recipe or a command stands for: a built-in, or `package.module:attr` of the user's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.nn import functional as F

from prunus import criteria, densities, schedules
from prunus.errors import RecipeError

LOSSES: Mapping[str, Callable[..., Any]] = {
    "cross_entropy": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    "mse": lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
}
"""Of batches (inputs, targets)."""
CRITERIA = tuple(name for name in criteria.__all__ if name.islower() and name != "needing")
DENSITIES = ("uniform", "erk", "owl", "arithmetic")
SCHEDULES = ("constant", "linear", "cubic", "cosine", "one_cycle")


def named(target: str) -> Any:
    """What `package.module:attr` names, looked for from the current folder too."""
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise RecipeError(f"{target!r} is not of the form package.module:attr, such as my_nets:make.")
    if module.endswith(".py"):
        raise RecipeError(f"{target!r} names a file; expected its module: {module.removesuffix('.py')}:{attribute}.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise RecipeError(
            f"{target!r}: no module {missing.name!r} here or installed; run from its folder."
        ) from missing
    if not hasattr(found, attribute):
        near = get_close_matches(attribute, dir(found), n=1)
        raise RecipeError(
            f"{target!r}: module {module!r} has no {attribute!r}.{f' Did you mean {near[0]!r}?' if near else ''}"
        )
    return getattr(found, attribute)


def chosen(name: str, known: Mapping[str, Any], what: str) -> Any:
    """A built-in by its name, or what `package.module:attr` names."""
    return named(name) if ":" in name else known[one_of(name, known, f"{what} (or package.module:function)")]


def made(target: str) -> tuple[nn.Module, Any]:
    """Call the `make` that `module:attr` names."""
    make = named(target)
    if not callable(make):
        raise RecipeError(f"{target} is a {type(make).__name__}; expected a function make() -> (model, inputs).")
    pair = make()
    if not isinstance(pair, tuple) or len(pair) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise RecipeError(f"{target}() returned a {type(pair).__name__}; expected (model, inputs).")
    return cast("tuple[nn.Module, Any]", pair)


def criterion(name: str) -> Any:
    return chosen(name, {built_in: getattr(criteria, built_in) for built_in in CRITERIA}, "criterion")


def schedule(name: str) -> Any:
    return chosen(name, {built_in: getattr(schedules, built_in) for built_in in SCHEDULES}, "schedule")


def densities_of(name: str | None) -> Any:
    known = {built_in: getattr(densities, built_in) for built_in in DENSITIES}
    return None if name is None else chosen(name, known, "densities")


def loss(name: str) -> Any:
    return chosen(name, LOSSES, "loss")


def batches_of(target: str | None) -> Any:
    """Batches: what the name holds, or what it returns when called without arguments."""
    if target is None:
        return None
    found = named(target)
    return found() if callable(found) and not hasattr(found, "__iter__") else found


def one_of(value: Any, known: Iterable[str], where: str) -> str:
    names = list(known)
    if value in names:
        return value
    near = get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise RecipeError(f"{where} is {value!r}; expected one of {', '.join(names)}.{hint}")
