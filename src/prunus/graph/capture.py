"""Capture a model's call as one flat list of ATen operations, where possible without computing anything.

`make_fx` runs the private copy on fake tensors (shapes only), before autograd and with gradients enabled, which keeps
readable operations (`linear`, `conv2d`, `layer_norm`, `scaled_dot_product_attention`, `view`). Where the model refuses
shapes alone, because its path depends on values, it runs on the example itself.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any, Literal

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from prunus.errors import TraceError
from prunus.graph.caches import caches_restored
from prunus.graph.dependent import value_read
from prunus.graph.nest import Path, Spec, input_tensors, take_outputs, with_tensors
from prunus.graph.node import Meta, Node, Out, Ref
from prunus.graph.private import State, on_each_call, slots_of
from prunus.graph.program import Program
from prunus.graph.shapes import shapes_known
from prunus.types import Inputs

_OVERLOAD = type(torch.ops.aten.relu.default)
_LOUD = ("torch._subclasses.fake_tensor", "torch.fx.experimental.proxy_tensor")
"""Loggers that print a traceback of torch's own for an error that `capture` explains."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A program and the constant tensors it holds."""

    program: Program
    constants: dict[str, Tensor]


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
        try:
            with caches_restored(model), shapes_known():
                module, refusal = _traced(call, values, fallback=not training)
        except TraceError:
            raise
        except Exception as error:
            raise _explain(error, model, inputs) from error
    spec, skipped = taken[-1]
    mode = "train" if training else "eval"
    keys = [("state", name) for name in state.tensors] + [("input", path) for path in tensors]
    captured = _read(module, mode, keys, spec, skipped)
    return captured if refusal is None else _depending(captured, refusal)


def _traced(
    call: Callable[..., Any], values: Sequence[Tensor], *, fallback: bool
) -> tuple[fx.GraphModule, Exception | None]:
    """The call on shapes alone; where it refuses these, on the values themselves, with the reason it gave.

    In training mode there is no falling back: what a model draws by other means than torch would become a constant.
    """
    try:
        module = _make(call, "fake")(*values)
        return _sized(module), None
    except TraceError:
        raise
    except Exception as refusal:
        if not fallback:
            raise
        own = [v if isinstance(v, nn.Parameter) else v.clone() for v in values]
        return _make(call, "real")(*own), refusal


def _make(call: Callable[..., Any], mode: Literal["fake", "real"]) -> Callable[..., fx.GraphModule]:
    return make_fx(
        call,
        tracing_mode=mode,
        pre_dispatch=True,
        _allow_non_fake_inputs=True,  # tables held in lists or globals
        _error_on_data_dependent_ops=False,
    )


def _sized(module: fx.GraphModule) -> fx.GraphModule:
    """The same, unless a shape depends on values, for which torch then has a symbol."""
    for node in module.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        if any(type(size) is not int for size in shape):
            raise RuntimeError(f"The shape of {node.name} depends on values")
    return module


def _depending(captured: Captured, refusal: Exception) -> Captured:
    """Say of a program that was captured on values where it depends on them, if it does."""
    read = value_read(captured.program)
    if read is None:  # it only met an operation that does not run on shapes
        return captured
    frames = traceback.extract_tb(refusal.__traceback__)
    line = next((f for f in reversed(frames) if not _foreign(f.filename) and f.line), None)
    where = f" ({File(line.filename).name}:{line.lineno}: {line.line})" if line else ""
    depends = f"{read.op} in module {read.module or '(root)'!r} reads values{where}"
    return replace(captured, program=replace(captured.program, depends=depends))


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


def _foreign(file: str) -> bool:
    """Is a file torch's own or ours, and so not where the user's model branches?"""
    return "/torch/" in file or file.startswith(str(File(__file__).parent))


def _read(
    module: fx.GraphModule, mode: str, keys: Sequence[tuple[str, str | Path]], spec: Spec, skipped: Sequence[str]
) -> Captured:
    nodes: list[Node] = []
    constants: dict[str, Tensor] = {}
    pending = iter(keys)
    results: tuple[str, ...] = ()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            kind, key = next(pending)
            nodes.append(Node(node.name, kind, (key,), out=_out(node.meta["val"])))
        elif node.op == "get_attr":
            key = f"{mode}:{node.name}"
            constants[key] = _constant(module, node)
            nodes.append(Node(node.name, "constant", (key,), out=_out(constants[key])))
        elif node.op == "output":
            results = tuple(n.name for n in node.args[0])
        elif isinstance(node.target, _OVERLOAD) or node.target.__name__ == "getitem":
            nodes.append(_operation(node))
        elif node.target.__name__ != "_set_grad_enabled":
            raise TraceError(f"The model calls {node.target}, which cannot be followed. Please report it.")
    return Captured(Program(tuple(nodes), results, spec, tuple(skipped)), constants)


def _operation(node: fx.Node) -> Node:
    op = str(node.target) if isinstance(node.target, _OVERLOAD) else "getitem"
    module = (node.meta.get("custom") or {}).get("module", "")
    kwargs = {key: _argument(value) for key, value in node.kwargs.items()}
    return Node(node.name, op, tuple(_argument(a) for a in node.args), kwargs, _out(node.meta.get("val")), module)


def _argument(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return Ref(value.name)
    if isinstance(value, list | tuple):
        return [_argument(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _constant(module: fx.GraphModule, node: fx.Node) -> Tensor:
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach()


def _out(value: Any) -> Out:
    if isinstance(value, Tensor):
        return Meta(tuple(value.shape), value.dtype)
    if isinstance(value, list | tuple):
        metas = [_out(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        return tuple(m for m in metas if isinstance(m, Meta))
    return None


def _explain(error: Exception, model: nn.Module, inputs: Inputs) -> TraceError:
    """Tell a model that refuses its inputs from one whose path depends on values."""
    name, shapes = type(model).__name__, _shapes(input_tensors(inputs))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            own = with_tensors(inputs, {path: t.clone() for path, t in input_tensors(inputs).items()})
            model(*own.args, **own.kwargs)
    except Exception as own:  # noqa: BLE001
        named = inputs.kwargs and not inputs.args
        hint = " Here a dict is read as keyword arguments; for one dict argument pass ({...},)." if named else ""
        return TraceError(
            f"{name} refuses the example inputs ({shapes}): {type(own).__name__}: {_first_line(own)} "
            f"Pass inputs the model runs on: a tensor, a tuple of arguments, or a dict of keyword arguments.{hint}"
        )
    return TraceError(
        f"{name} runs on the example inputs ({shapes}) but cannot be captured, most likely because its path depends "
        f"on the values of tensors (an `if` on a tensor, `.item()`, `.tolist()`): {type(error).__name__}: "
        f"{_first_line(error)} Prune the part that does not branch, or rewrite the branch with torch.where."
    )


def _shapes(tensors: Mapping[Path, Tensor]) -> str:
    return ", ".join(f"{path[-1]}: {tuple(t.shape)} {t.dtype}" for path, t in tensors.items()) or "no tensors"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0].rstrip(".") + "."
