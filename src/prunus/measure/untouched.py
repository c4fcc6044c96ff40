"""How a model is run without leaving a trace on it, on its inputs or on the process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.types import Inputs


@contextmanager
def untouched(*models: nn.Module) -> Generator[None, None, None]:
    """Models in eval mode inside; training flags, buffers and torch's random state as before afterwards."""
    modules = list(dict.fromkeys(module for model in models for module in model.modules()))
    roots = [model.training for model in models]
    training = [module.training for module in modules]
    buffers = [_buffers(module) for module in modules]
    try:
        for model in models:
            model.eval()
        with same_random(*models):
            yield
    finally:
        for model, was in zip(models, roots, strict=True):
            model.train(was)  # some modules act on this call (adapters that merge), so it comes before the flags
        for module, flag, kept in zip(modules, training, buffers, strict=True):
            module.training = flag
            _restore(module, kept)


def same_random(*models: nn.Module) -> AbstractContextManager[None]:
    """Whatever is drawn inside is drawn again by the next such block: torch's random state is put back."""
    on = {p.device for model in models for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    if not on:
        return torch.random.fork_rng(devices=())
    kind = min(device.type for device in on)  # one kind of accelerator at a time
    return torch.random.fork_rng(devices=[d.index or 0 for d in on if d.type == kind], device_type=kind)


def fresh(example: Inputs) -> Inputs:
    """A copy of the example call, as a model may write into what it is given."""
    return Inputs(mapped(example.args, _copied), mapped(dict(example.kwargs), _copied))


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts, in reading order."""
    found: list[Tensor] = []
    mapped(value, lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None)
    return found


def mapped(value: Any, act: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts again, with `act` of each leaf in its place."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(v, act) for v in value))  # a named tuple
    if type(value) in (tuple, list):
        return type(value)(mapped(v, act) for v in value)
    if type(value) is dict:
        return {k: mapped(v, act) for k, v in value.items()}
    return act(value)


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else copy.deepcopy(leaf)


def _buffers(module: nn.Module) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    held: Any = vars(module).get("_buffers")
    if not isinstance(held, dict):
        return {}  # a TorchScript module keeps its buffers elsewhere
    return {name: (buffer, buffer.clone() if _is_plain(buffer) else None) for name, buffer in held.items()}


def _is_plain(buffer: Tensor | None) -> bool:
    return buffer is not None and buffer.layout is torch.strided and not (buffer.is_meta or buffer.is_quantized)


def _restore(module: nn.Module, kept: dict[str, tuple[Tensor | None, Tensor | None]]) -> None:
    held: Any = vars(module).get("_buffers")
    if isinstance(held, dict):
        held.clear()
        held.update({name: buffer for name, (buffer, _) in kept.items()})
    for buffer, value in kept.values():
        # Only where it changed: a write would spoil a backward pass that the caller has yet to run.
        if buffer is not None and value is not None and not torch.equal(buffer, value):
            with torch.no_grad():
                buffer.copy_(value)
