"""A private copy of the user's model: parameters shared, everything else its own, so that tracing touches nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunus.errors import TraceError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


@dataclass(frozen=True, eq=False)
class State:
    """Every tensor a model holds: name -> tensor, tied names apart (`aliases`: other name -> name in `tensors`)."""

    tensors: dict[str, Tensor]
    aliases: dict[str, str]
    parameters: frozenset[str]
    hidden: frozenset[str]
    """Names that are not in the state dict: buffers that are not persistent, tensors kept as plain attributes."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, `DataParallel`, `DistributedDataParallel` or an `AveragedModel`."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            f"{type(model).__name__} is a ScriptModule, whose code cannot be captured. Pass the nn.Module it was "
            "scripted from."
        )
    inner = getattr(model, "_orig_mod", None)
    if inner is None and isinstance(model, _WRAPPERS):
        inner = model.module
    return unwrap(inner) if isinstance(inner, nn.Module) else model


def private_copy(model: nn.Module, *, share: bool = True) -> nn.Module:
    """Copy a model; its parameters are shared (or cloned, `share=False`), buffers and plain tensors cloned."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()} if share else {}
    return copy.deepcopy(model, memo | own_tensors(model))


def own_tensors(model: nn.Module) -> dict[int, Tensor]:
    """A clone of every buffer and plain tensor, by the id of the tensor: what `deepcopy` is to take for it."""
    memo = {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
    for module in model.modules():
        for attribute, value in vars(module).items():
            if attribute not in ("_parameters", "_buffers", "_modules"):
                memo |= {id(t): t.detach().clone() for t in _held(value, set()) if not isinstance(t, nn.Parameter)}
    return memo


def _held(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in an attribute, those nested in dicts, lists and tuples included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, Mapping) else value:  # pyright: ignore[reportUnknownVariableType]
            yield from _held(item, seen)


def plain_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(state name, owner, attribute, tensor) of every tensor kept as a plain attribute."""
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{path}.{attribute}".lstrip("."), module, attribute, value


def adopt_plain_tensors(copy: nn.Module) -> frozenset[str]:
    """Turn plain tensor attributes of a private copy into buffers, so that they are state like any other."""
    found = list(plain_tensors(copy))
    for _, module, attribute, value in found:
        delattr(module, attribute)
        module.register_buffer(attribute, value, persistent=False)
    return frozenset(name for name, *_ in found)


def state_of(model: nn.Module) -> State:
    """Every tensor of a model by the name it has there."""
    plain = {name: value for name, _, _, value in plain_tensors(model)}
    return _gather(model, plain)


def _gather(model: nn.Module, plain: dict[str, Tensor]) -> State:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    every = {**parameters, **dict(model.named_buffers(remove_duplicate=False)), **plain}
    first: dict[int, str] = {}
    aliases = {name: first[id(t)] for name, t in every.items() if first.setdefault(id(t), name) != name}
    tensors = {name: t for name, t in every.items() if name not in aliases}
    hidden = frozenset(every) - set(model.state_dict())
    return State(tensors, aliases, frozenset(parameters), hidden)


def slots_of(model: nn.Module, state: State) -> dict[str, str]:
    """Every place of a model that holds a tensor, each once, by one name -> the name of its tensor in `state`.

    A module registered twice has two names for one place, which `functional_call` would swap twice.
    """
    names = {**{name: name for name in state.tensors}, **state.aliases}
    seen: set[tuple[int, str]] = set()
    slots: dict[str, str] = {}
    for name, source in names.items():
        path, _, leaf = name.rpartition(".")
        place = (id(model.get_submodule(path)), leaf)
        if place not in seen:
            seen.add(place)
            slots[name] = source
    return slots


def on_each_call(model: nn.Module, enter: Callable[[str], None], leave: Callable[[], None]) -> None:
    """Call `enter(path)` and `leave()` around every forward of every submodule."""
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda _m, _a, path=path: enter(path), prepend=True)
        module.register_forward_hook(lambda _m, _a, _o: leave(), always_call=True)
