"""Capture a model's call as one flat list of ATen operations, where possible without computing anything.

`make_fx` runs the private copy on fake tensors (shapes only), before autograd and with gradients enabled, which keeps
readable operations (`linear`, `conv2d`, `layer_norm`, `scaled_dot_product_attention`, `view`). Where the model refuses
shapes alone, because its path depends on values, it runs on the example itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from prunus.errors import TraceError
from prunus.graph.caches import caches_restored
from prunus.graph.dependent import first_dependent, other_values
from prunus.graph.nest import Spec, input_tensors, take_outputs, with_tensors
from prunus.graph.private import State, on_each_call, slots_of
from prunus.graph.recorded import Captured, has_values, read_recorded
from prunus.graph.refusal import explained, line_of
from prunus.graph.shapes import shapes_known
from prunus.types import Inputs

_LOUD = ("torch._subclasses.fake_tensor", "torch.fx.experimental.proxy_tensor")
"""Loggers that print a traceback of torch's own for an error that `capture` explains."""


def capture(
    model: nn.Module, state: State, inputs: Inputs, *, training: bool, outputs: Sequence[str] | None
) -> Captured:
    """Capture one call of a private copy in eval or train mode.

    Raises `TraceError` when the model refuses the inputs, or calls what cannot be followed.
    """
    model.train(training)
    tensors = input_tensors(inputs)
    values = [*state.tensors.values(), *tensors.values()]
    slots = slots_of(model, state)
    taken: list[tuple[Spec, list[str]]] = []

    def call(*flat: Tensor) -> list[Tensor]:
        given = dict(zip(state.tensors, flat, strict=False))
        placed = with_tensors(inputs, dict(zip(tensors, flat[len(given) :], strict=True)))
        named = {slot: given[name] for slot, name in slots.items()}
        returned = functional_call(model, named, placed.args, dict(placed.kwargs), tie_weights=False)
        result, spec, skipped = take_outputs(returned, outputs)
        taken.append((spec, skipped))
        return result

    with torch.enable_grad(), torch.random.fork_rng(devices=[]), fx_traceback.preserve_node_meta(), quieted(_LOUD):
        mode = "train" if training else "eval"
        keys = [("state", name) for name in state.tensors] + [("input", path) for path in tensors]

        def record(kind: Literal["fake", "real"], given: Sequence[Tensor]) -> Captured:
            with caches_restored(model), shapes_known():
                module = _make(call, kind)(*given)
            if kind == "fake" and not has_values(module):
                raise RuntimeError("A shape depends on values")
            return read_recorded(module, mode, keys, *taken[-1])

        try:
            return record("fake", values)
        except TraceError:
            raise
        except Exception as refusal:
            if training:  # what a model draws by other means than torch would become a constant
                raise explained(refusal, model, inputs) from refusal
            return _on_values(record, values, refusal, model, inputs)


def _make(call: Callable[..., Any], mode: Literal["fake", "real"]) -> Callable[..., fx.GraphModule]:
    return make_fx(
        call,
        tracing_mode=mode,
        pre_dispatch=True,
        _allow_non_fake_inputs=True,  # tables held in lists or globals
        _error_on_data_dependent_ops=False,
    )


def _on_values(
    record: Callable[..., Captured], values: Sequence[Tensor], refusal: Exception, model: nn.Module, inputs: Inputs
) -> Captured:
    """The call on the example itself, marked with where it first depends on values, if it does.

    It is recorded on other values too: what then differs was read by means that no operation shows.
    """
    try:
        captured = record("real", [v if isinstance(v, nn.Parameter) else v.clone() for v in values])
    except TraceError:
        raise
    except Exception as error:
        raise explained(error, model, inputs) from error
    try:
        other = record("real", [other_values(v) for v in values])
    except Exception as error:  # noqa: BLE001
        other = None
        refusal = refusal if first_dependent(captured, None) else error
    at = first_dependent(captured, other)
    if at is None and other is None:
        raise explained(refusal, model, inputs) from refusal
    if at is None:  # it only met an operation that does not run on shapes
        return captured
    depends = f"{at.op} in module {at.module or '(root)'!r} reads values{line_of(refusal)}"
    return replace(captured, program=replace(captured.program, depends=depends, until=at.name))


@contextmanager
def quieted(names: Iterable[str]) -> Generator[None]:
    """Inside, the loggers of these names say nothing."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def annotate_modules(model: nn.Module) -> None:
    """Let every captured node of this private copy carry the path of the module that issued it."""
    open_calls: list[AbstractContextManager[Any]] = []

    def enter(path: str) -> None:
        open_calls.append(fx_traceback.annotate({"module": path}))
        open_calls[-1].__enter__()

    def leave() -> None:
        open_calls.pop().__exit__(None, None, None)

    on_each_call(model, enter, leave)
