"""What did a model get and give, each time it was called? Watched from outside, by hooks that go again."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.errors import RecoverError
from prunus.types import Batch


@dataclass(frozen=True, eq=False)
class Call:
    """`model(*args, **kwargs)` gave `output`; `inner`: module name -> what it gave during that call, each time.

    Arguments and `inner` are copies, as they were before anything changed them in place.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    inner: Mapping[str, list[Tensor]]


@contextmanager
def watched(model: nn.Module, names: Iterable[str] = ()) -> Generator[list[Call]]:
    """Yield a list that fills with the finished calls of `model` while the context lasts.

    `names` are submodules whose outputs are caught as well: a tensor, or the first of a tuple or list. The hooks are
    removed at the end, also on errors.

    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> with watched(model, ["0"]) as calls:
    ...     y = model(torch.ones(3, 2))
    >>> calls[0].output is y, calls[0].inner["0"][0].shape
    (True, torch.Size([3, 1]))
    """
    calls: list[Call] = []
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append(_copied((args, kwargs), {}))
        for values in seen.values():
            values.clear()

    def end(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        calls.append(Call(*given.pop(), output, {name: list(values) for name, values in seen.items()}))

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(begin, with_kwargs=True))
        hooks.enter_context(model.register_forward_hook(end))
        for name, module in _inside(model).named_modules(remove_duplicate=False):
            if name in seen:
                hooks.enter_context(module.register_forward_hook(_catch(name, seen[name])))
        yield calls


def repeated(model: nn.Module, call: Call, names: Iterable[str] = ()) -> Call:
    """Call another model with the same arguments: in eval mode, without gradients, leaving it as it was.

    Each module has its own mode again afterwards, and buffers are those of before: the call works on copies of them.
    """
    modes = {module: module.training for module in model.modules()}
    copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        for module in modes:
            module.training = False
        with torch.no_grad(), watched(model, names) as calls:
            functional_call(model, copies, call.args, dict(call.kwargs))
    finally:
        for module, training in modes.items():
            module.training = training
    return calls[-1]


def hookable(model: nn.Module) -> nn.Module:
    """Take off `torch.compile` and `DataParallel`, under which hooks of submodules are skipped or see parts only.

    `DistributedDataParallel` stays, since it is what averages the gradients; `watched` looks inside it.
    """
    inner = model.module if isinstance(model, nn.DataParallel) else getattr(model, "_orig_mod", None)
    return hookable(inner) if isinstance(inner, nn.Module) else model


def feed(model: nn.Module, batch: Batch) -> Any:
    """Call the model on a tensor, the first element of a tuple or list, or a dict of keyword arguments."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list) and batch:
        return model(batch[0])
    raise RecoverError(
        f"A batch is a {type(batch).__name__}; without a task loss expected a tensor, a tuple or list whose first "
        "element is the input, or a dict of keyword arguments. Pass a task loss that feeds it to the model."
    )


def logits_of(output: Any) -> Tensor:
    """The output itself if it is a tensor, else its `logits`, an attribute or a key."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise RecoverError(
        f"The model returns a {type(output).__name__}; expected a tensor, or something with a tensor `logits`. "
        "Pass output=lambda y: ... that picks the logits out of it."
    )


def hidden_of(output: Any, name: str) -> Tensor:
    """What the layer `name` gave: a tensor, or the first of a tuple or list."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(first, Tensor):
        return first
    raise RecoverError(
        f"The layer {name!r} returns a {type(output).__name__}; expected a tensor, or a tuple that begins with one. "
        "Choose another layer, such as one inside it."
    )


def _inside(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _copied(value: Any, copies: dict[int, Tensor]) -> Any:
    """The same arguments with a copy of every tensor; one that is given twice stays one. Other objects stay."""
    if isinstance(value, Tensor):
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone()
        return copies[id(value)]
    if isinstance(value, dict | UserDict | list):
        same: Any = copy(cast("Any", value))
        for key in range(len(same)) if isinstance(value, list) else list(same):
            same[key] = _copied(same[key], copies)
        return same
    if type(value) is tuple:
        return tuple(_copied(item, copies) for item in cast("tuple[Any, ...]", value))
    if isinstance(value, tuple) and hasattr(cast("Any", value), "_make"):  # a named tuple
        named = cast("Any", value)
        return named._make(_copied(item, copies) for item in named)
    return value


def _catch(name: str, values: list[Tensor]) -> Any:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        values.append(hidden_of(output, name).clone())

    return keep
