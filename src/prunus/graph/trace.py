"""`trace`: the model as an executable graph, every axis of every tensor factorised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus.errors import TraceError
from prunus.graph.axes import Algebra, Axes
from prunus.graph.capture import annotate_modules, capture
from prunus.graph.configuration import config_of, numbers_of
from prunus.graph.graph import Graph, Mode
from prunus.graph.infer import axes_of, infer
from prunus.graph.leaves import gather
from prunus.graph.nest import input_tensors, with_tensors
from prunus.graph.node import Meta, overload
from prunus.graph.private import State, adopt_plain_tensors, private_copy, state_of, unwrap
from prunus.graph.program import Program
from prunus.graph.recorded import Captured
from prunus.graph.whole import Whole, whole_means
from prunus.types import Inputs, Means


def trace(
    model: nn.Module,
    inputs: Any,
    *,
    outputs: Sequence[str] | None = None,
    means: Means = "kept",
) -> Graph:
    """Capture a model in eval and train mode and infer the factorisation of every axis.

    `inputs` is an example call: a tensor, a tuple (arguments), a dict (keyword arguments), `Inputs`, or a list of
    these; all are used in proofs, the first is traced. Examples of batch one are traced at batch two where the model
    allows, so that the batch stays free. `outputs` selects entries of a mapping result. The model is not touched.

    `means` says what a mean over units, and the mean square of an RMS norm, divide by once some are removed: by how
    many are kept; or with "whole" by how many the traced model has, so that removing them is exactly zeroing them.

    A model whose path depends on values (detectors) is traced on the example itself and marked: `Graph.depends`.

    Raises `TraceError` when the model refuses the inputs, draws random numbers in eval mode, or cannot have these
    `means`.

    >>> graph = trace(torch.nn.Linear(4, 3), torch.randn(2, 4))
    >>> graph.state_axes["weight"]
    ((3), (4))
    """
    examples = tuple(Inputs.examples(inputs))
    model = unwrap(model)
    _refuse_quantized(model)
    mine = private_copy(model)
    plain = adopt_plain_tensors(mine)
    annotate_modules(mine)
    state = state_of(mine)
    first, evaluated = _capture_eval(mine, state, examples[0], outputs)
    trained, train_error = _capture_train(mine, state, first, outputs)
    for number, example in enumerate(examples[1:] if not evaluated.program.depends else (), 2):
        _check_alike(number, mine, state, example, outputs, evaluated)
    whole = _whole(means, [each.program for each in (evaluated, trained) if each is not None])
    graph = _infer(type(model).__name__, state, plain, examples, first, evaluated, trained, train_error, whole)
    return replace(graph, integers=integers_of(model), floats=floats_of(model), config=numbers_of(config_of(model)))


def _whole(means: str, programs: Sequence[Program]) -> list[Whole]:
    if means not in ("kept", "whole"):
        raise TraceError(f'means={means!r}; expected "kept" or "whole".')
    if means == "kept":
        return [Whole() for _ in programs]
    if programs[0].depends:
        raise TraceError(
            f"The path of this model depends on values ({programs[0].depends}), and its means can only count what is "
            'kept. Leave out means="whole".'
        )
    return whole_means(programs)


def integers_of(model: nn.Module) -> dict[str, dict[str, int]]:
    """Module path -> its integer attributes: `{"groups": 4, "normalized_shape.0": 64}`; private ones left out."""
    found: dict[str, dict[str, int]] = {}
    for path, module in model.named_modules():
        entries: dict[str, Any] = {}
        for key, value in vars(module).items():
            entries |= {f"{key}.{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {key: value}
        found[path] = {k: v for k, v in entries.items() if type(v) is int and not k.startswith("_")}
    return found


def floats_of(model: nn.Module) -> dict[str, dict[str, float]]:
    """Module path -> its attributes that are floats; private ones left out."""
    every = ((path, vars(module).items()) for path, module in model.named_modules())
    return {path: {k: v for k, v in items if type(v) is float and not k.startswith("_")} for path, items in every}


def _capture_eval(
    mine: nn.Module, state: State, example: Inputs, outputs: Sequence[str] | None
) -> tuple[Inputs, Captured]:
    for inputs in _batched(example):
        try:
            captured = capture(mine, state, inputs, training=False, outputs=outputs)
        except TraceError:
            continue
        return inputs, _deterministic(captured)
    return example, _deterministic(capture(mine, state, example, training=False, outputs=outputs))


def _batched(example: Inputs) -> Iterator[Inputs]:
    """An example of batch one as one of batch two."""
    tensors = input_tensors(example)
    if tensors and all(t.ndim > 0 and t.shape[0] == 1 for t in tensors.values()):
        yield with_tensors(example, {path: torch.cat([t, t]) for path, t in tensors.items()})


def _capture_train(
    mine: nn.Module, state: State, inputs: Inputs, outputs: Sequence[str] | None
) -> tuple[Captured | None, str]:
    try:
        return capture(mine, state, inputs, training=True, outputs=outputs), ""
    except TraceError as error:
        return None, str(error)


def _check_alike(
    number: int, mine: nn.Module, state: State, example: Inputs, outputs: Sequence[str] | None, first: Captured
) -> None:
    """Every further example must run the same operations as the first."""
    hint = "A list means several examples; pass a tuple for several arguments."
    try:
        other = capture(mine, state, example, training=False, outputs=outputs)
    except TraceError as error:
        raise TraceError(f"Example {number}: {error} {hint}") from error
    if [node.op for node in other.program.nodes] != [node.op for node in first.program.nodes]:
        raise TraceError(
            f"Example {number} runs other operations than the first, so one graph cannot stand for both. Prune for one "
            f"kind of call at a time. {hint}"
        )


def _deterministic(captured: Captured) -> Captured:
    for node in captured.program.nodes:
        draws = "." in node.op and torch.Tag.nondeterministic_seeded in overload(node.op).tags
        switches = [value for key, value in node.bound().items() if key in ("train", "training", "dropout_p")]
        if draws and (any(switches) or not switches):
            raise TraceError(
                f"The model draws random numbers in eval mode: {node.op} in module {node.module or '(root)'!r}. No "
                "smaller model can be proven equal to it. Switch the randomness off in eval mode."
            )
    return captured


def _refuse_quantized(model: nn.Module) -> None:
    for name, tensor in state_of(model).tensors.items():
        if tensor.is_quantized:
            raise TraceError(f"{name!r} is quantized already; prune the floating-point model first, then quantize it.")


def _infer(
    model_class: str,
    state: State,
    plain: frozenset[str],
    examples: tuple[Inputs, ...],
    inputs: Inputs,
    evaluated: Captured,
    trained: Captured | None,
    train_error: str,
    whole: Sequence[Whole],
) -> Graph:
    algebra = Algebra()
    constants = {**evaluated.constants, **(trained.constants if trained else {})}
    outside: dict[tuple[str, Any], Axes] = {}
    for kind, tensors in (("state", state.tensors), ("input", input_tensors(inputs)), ("constant", constants)):
        outside.update({(kind, key): axes_of(tensor) for key, tensor in tensors.items()})
    for (kind, _), axes in outside.items():
        for axis in axes if kind == "input" else ():
            algebra.say(axis, "fixed", "an input of the model")
    programs = [each.program for each in (evaluated, trained) if each is not None]
    modes = [Mode(p, infer(p, outside, algebra, w.nodes), w) for p, w in zip(programs, whole, strict=True)]
    state_axes = {name: outside["state", name] for name in state.tensors}
    leaves = gather(algebra, outside, list(input_tensors(inputs)), modes)
    return Graph(
        model_class=model_class,
        eval=modes[0],
        train=modes[1] if trained else None,
        train_error=train_error,
        state={name: Meta(tuple(t.shape), t.dtype) for name, t in state.tensors.items()},
        aliases=state.aliases,
        parameters=state.parameters,
        hidden=state.hidden,
        plain=plain,
        integers={},
        config={},
        floats={},
        state_axes=state_axes,
        constants=constants,
        constant_axes={name: outside["constant", name] for name in constants},
        examples=examples,
        inputs=inputs,
        leaves=leaves,
    )
