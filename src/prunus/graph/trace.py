"""`trace`: the model as an executable graph, every axis of every tensor factorised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import TraceError
from prunus.graph.axes import Algebra, Atom, Axes
from prunus.graph.capture import Captured, Program, annotate_modules, capture
from prunus.graph.exact import inexact_leaves
from prunus.graph.infer import Inferred, Unruled, axes_of, infer
from prunus.graph.nest import Path, input_tensors, with_tensors
from prunus.graph.node import Meta, overload
from prunus.graph.private import State, adopt_plain_tensors, private_copy, state_of, unwrap
from prunus.graph.width import positions
from prunus.types import Inputs


@dataclass(frozen=True, eq=False)
class Mode:
    """One captured mode (eval or train) of a model, with its axes."""

    program: Program
    inferred: Inferred


@dataclass(frozen=True, eq=False)
class Leaves:
    """What is known of each leaf, gathered from the facts once inference is done."""

    fixed: dict[Atom, str]
    inexact: dict[Atom, str]
    tags: dict[Atom, set[str]]
    moving: dict[Atom, tuple[int, int]]
    """Leaves that follow an input: (which input, which dimension)."""
    together: tuple[tuple[Atom, ...], ...]
    consumed: set[tuple[str, Atom]]
    """(state name, leaf) where that state reads the leaf: the in-channels of a weight."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A model as an executable graph. It holds structure and constants, never weights.

    `examples` are the example calls as given; `inputs` is the call that was traced (batch of at least two).
    `train` is None, with `train_error`, where the model cannot be called in training mode with these inputs.
    """

    model_class: str
    eval: Mode
    train: Mode | None
    train_error: str
    state: Mapping[str, Meta]
    aliases: Mapping[str, str]
    parameters: frozenset[str]
    hidden: frozenset[str]
    """State that is not in the state dict."""
    plain: frozenset[str]
    """State kept as plain attributes: neither parameters nor buffers."""
    integers: Mapping[str, Mapping[str, int]]
    """Module path -> its integer attributes: what sizes in the user's code may come from."""
    state_axes: Mapping[str, Axes]
    constants: Mapping[str, Tensor]
    constant_axes: Mapping[str, Axes]
    examples: tuple[Inputs, ...]
    inputs: Inputs
    leaves: Leaves

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        return (self.eval,) if self.train is None else (self.eval, self.train)

    @property
    def unruled(self) -> tuple[Unruled, ...]:
        """Operations without a rule; what they touch is fixed."""
        return tuple(u for mode in self.modes for u in mode.inferred.unruled)

    @property
    def data_dependent(self) -> bool:
        """Always False: a model whose path depends on values is refused by `trace`."""
        return False

    @property
    def fixed(self) -> dict[str, str]:
        """`state name[dim]` -> why (part of) that dimension cannot be pruned."""
        found: dict[str, str] = {}
        for name, axes in self.state_axes.items():
            for dim, axis in enumerate(axes):
                reasons = {self.leaves.fixed[leaf]: None for leaf in axis.leaves() if leaf in self.leaves.fixed}
                if reasons:
                    found[f"{name}[{dim}]"] = "; ".join(reasons)
        return found

    def owned(self, name: str, dim: int) -> dict[Atom, Tensor]:
        """For every leaf on a dimension of state, the indices that each of its units owns; (leaf.size, k)."""
        known = self._owned
        if (name, dim) not in known:
            known[name, dim] = positions(self.state_axes[name][dim])
        return known[name, dim]

    @cached_property
    def _owned(self) -> dict[tuple[str, int], dict[Atom, Tensor]]:
        return {}

    @cached_property
    def unreached(self) -> tuple[str, ...]:
        """State that no captured operation reads."""
        read = {ref.name for mode in self.modes for node in mode.program.nodes for ref in node.refs()}
        names = {n.args[0] for m in self.modes for n in m.program.nodes if n.op == "state" and n.name in read}
        return tuple(name for name in self.state if name not in names)

    @cached_property
    def structure(self) -> str:
        """A digest of operations, wiring and state shapes: what a plan is bound to. Weights play no part."""
        digest = hashlib.sha256()
        for name, meta in self.state.items():
            digest.update(f"{name}{meta.shape}".encode())
        for node in self.eval.program.nodes:
            digest.update(f"{node.op}<{[r.name for r in node.refs()]}".encode())
        return digest.hexdigest()

    def __str__(self) -> str:
        nodes = sum(node.op.startswith("aten.") for node in self.eval.program.nodes)
        lines = [f"{self.model_class}: {nodes} operations, {len(self.state)} state tensors"]
        if self.unruled:
            lines.append(f"operations without a rule: {', '.join(sorted({u.op for u in self.unruled}))}")
        if self.unreached:
            lines.append(f"state never read: {', '.join(self.unreached)}")
        skipped = self.eval.program.skipped
        return "\n".join([*lines, *([f"results left out: {', '.join(skipped)}"] if skipped else [])])


def trace(model: nn.Module, inputs: Any, *, outputs: Sequence[str] | None = None) -> Graph:
    """Capture a model in eval and train mode and infer the factorisation of every axis.

    `inputs` is an example call: a tensor, a tuple (arguments), a dict (keyword arguments), `Inputs`, or a list of
    these; all are used in proofs, the first is traced. Examples of batch one are traced at batch two where the model
    allows, so that the batch stays free. `outputs` selects entries of a mapping result. The model is not touched.

    Raises `TraceError` when the model refuses the inputs, branches on values, or draws random numbers in eval mode.

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
    graph = _infer(type(model).__name__, state, plain, examples, first, evaluated, trained, train_error)
    return replace(graph, integers=integers_of(model))


def integers_of(model: nn.Module) -> dict[str, dict[str, int]]:
    """Module path -> its integer attributes: `{"groups": 4, "normalized_shape.0": 64}`; private ones left out."""
    found: dict[str, dict[str, int]] = {}
    for path, module in model.named_modules():
        entries: dict[str, Any] = {}
        for key, value in vars(module).items():
            entries |= {f"{key}.{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {key: value}
        found[path] = {k: v for k, v in entries.items() if type(v) is int and not k.startswith("_")}
    return found


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
) -> Graph:
    algebra = Algebra()
    constants = {**evaluated.constants, **(trained.constants if trained else {})}
    outside: dict[tuple[str, Any], Axes] = {}
    for kind, tensors in (("state", state.tensors), ("input", input_tensors(inputs)), ("constant", constants)):
        outside.update({(kind, key): axes_of(tensor) for key, tensor in tensors.items()})
    for (kind, _), axes in outside.items():
        for axis in axes if kind == "input" else ():
            algebra.say(axis, "fixed", "an input of the model")
    modes = [Mode(c.program, infer(c.program, outside, algebra)) for c in (evaluated, trained) if c is not None]
    state_axes = {name: outside["state", name] for name in state.tensors}
    leaves = _gather(algebra, outside, list(input_tensors(inputs)), modes)
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
        state_axes=state_axes,
        constants=constants,
        constant_axes={name: outside["constant", name] for name in constants},
        examples=examples,
        inputs=inputs,
        leaves=leaves,
    )


def _gather(
    algebra: Algebra, outside: Mapping[tuple[str, Any], Axes], paths: list[Path], modes: Sequence[Mode]
) -> Leaves:
    """Resolve the facts to leaves."""
    moving = _moving(outside, paths)
    together = _together(algebra)
    fixed: dict[Atom, str] = {}
    inexact: dict[Atom, str] = {}
    tags: dict[Atom, set[str]] = {}
    for fact in algebra.facts:
        for leaf in fact.axis.leaves():
            if fact.kind == "fixed":
                fixed.setdefault(leaf, fact.reason)
            elif fact.kind == "inexact":
                inexact.setdefault(leaf, fact.reason)
            else:
                tags.setdefault(leaf, set()).add(fact.kind)
    for leaf, reason in inexact_leaves(modes[0].program, modes[0].inferred).items():
        inexact.setdefault(leaf, reason)
    reached = {leaf for mode in modes for leaf in _reached(mode)}
    for leaf in (leaf for axes in outside.values() for axis in axes for leaf in axis.leaves()):
        if leaf not in reached:
            fixed.setdefault(leaf, "no operation reads it with these inputs")
    _spread(fixed, together)
    consumed = {pair for mode in modes for pair in _consumed(mode)}
    return Leaves(fixed, inexact, tags, moving, together, consumed)


def _spread(fixed: dict[Atom, str], together: Sequence[tuple[Atom, ...]]) -> None:
    """What must stay as long as a fixed leaf is fixed too."""
    changed = True
    while changed:
        changed = False
        for tie in together:
            reason = next((fixed[leaf] for leaf in tie if leaf in fixed), None)
            free = [leaf for leaf in tie if leaf not in fixed]
            if reason is not None and free:
                fixed.update(dict.fromkeys(free, f"must stay as long as another piece of a split ({reason})"))
                changed = True


def _reached(mode: Mode) -> Iterator[Atom]:
    """Leaves that some value has which is not made of state alone."""
    for name, many in mode.inferred.axes.items():
        if name not in mode.inferred.roots:
            yield from (leaf for axes in many for axis in axes for leaf in axis.leaves())


def _consumed(mode: Mode) -> Iterator[tuple[str, Atom]]:
    for node in mode.program.nodes:
        note = mode.inferred.notes.get(node.name)
        bound = node.bound() if note and note.reads else {}
        for read in note.reads if note else ():
            value = bound[read.place.arg]
            ref = value if read.place.index is None else value[read.place.index]
            for state in mode.inferred.roots.get(ref.name, ()):
                yield from ((state, leaf) for leaf in read.over.leaves())


def _moving(outside: Mapping[tuple[str, Any], Axes], paths: list[Path]) -> dict[Atom, tuple[int, int]]:
    """Leaves that are a whole input dimension and no whole dimension of state: they follow the input."""
    still = {atom for (kind, _), axes in outside.items() if kind != "input" for axis in axes for atom in axis.atoms}
    moving: dict[Atom, tuple[int, int]] = {}
    for index, path in enumerate(paths):
        for dim, axis in enumerate(outside["input", path]):
            atoms = axis.atoms
            if len(atoms) == 1 and atoms[0].segments is None and atoms[0] not in still:
                moving.setdefault(atoms[0], (index, dim))
    return moving


def _together(algebra: Algebra) -> tuple[tuple[Atom, ...], ...]:
    """Leaves that must stay equally many; axes that do not factor alike are fixed instead."""
    tied: list[tuple[Atom, ...]] = []
    for axes in algebra.together:
        leaves = [list(axis.leaves()) for axis in axes]
        if len({tuple(leaf.size for leaf in row) for row in leaves}) == 1:
            tied.extend(t for t in zip(*leaves, strict=True) if len(set(t)) > 1)
        else:
            for axis in axes:
                algebra.say(axis, "fixed", "pieces of a split that must stay equally long")
    return tuple(tied)
