"""Run a captured program: the small interpreter behind proofs, artifacts and `GraphModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import TraceError
from prunus.graph.nest import Path, input_settings, input_tensors, put_outputs
from prunus.graph.node import Node, Ref, overload
from prunus.graph.program import Program
from prunus.graph.wide import WIDE
from prunus.types import Inputs

Call = Callable[[Node, list[Any], dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class Outside:
    """What a program takes from outside: state, constants and inputs, each by its key."""

    state: Callable[[str], Tensor]
    constants: Mapping[str, Tensor]
    inputs: Mapping[Path, Tensor]

    def __call__(self, node: Node) -> Tensor:
        if node.op == "state":
            return self.state(node.args[0])
        return self.constants[node.args[0]] if node.op == "constant" else self.inputs[tuple(node.args[0])]


def execute(program: Program, outside: Outside, call: Call | None = None) -> list[Tensor]:
    """Run a program and return its results; values are taken when first read, and dropped after their last use.

    `call` computes a node from its arguments, instead of the operation itself.
    """
    call = call or operate
    sizes = [tuple(t.shape) for t in outside.inputs.values()]
    device = next((t.device for t in outside.inputs.values()), torch.device("cpu"))
    dying = last_uses(program)
    waiting = {node.name: node for node in program.nodes if node.op in ("state", "constant", "input")}
    values: dict[str, Any] = {}

    def read(name: str) -> Any:
        if name in waiting:  # one layer's weights at a time are held as they are read, which may be in float64
            values[name] = outside(waiting.pop(name))
        return values[name]

    def resolve(value: Any) -> Any:
        if isinstance(value, Ref):
            return read(value.name)
        if isinstance(value, list):
            return [resolve(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, dict):
            return evaluate(value, sizes)  # pyright: ignore[reportUnknownArgumentType]
        return device if isinstance(value, torch.device) else value

    for node in program.nodes:
        if node.name in waiting:
            continue
        if node.op == "getitem":
            values[node.name] = read(node.args[0].name)[node.args[1]]
        elif node.op not in ("state", "constant", "input"):
            values[node.name] = call(
                node, [resolve(a) for a in node.args], {k: resolve(v) for k, v in node.kwargs.items()}
            )
        for name in dying.get(node.name, ()):
            del values[name]
    return [read(name) for name in program.outputs]


def operate(node: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Compute a node by its own operation, or as that does it where it knows no float64."""
    if node.op in WIDE and args[0].dtype == torch.float64:
        return WIDE[node.op](*args, **kwargs)
    return overload(node.op)(*args, **kwargs)


def evaluate(size: dict[str, Any], inputs: Sequence[tuple[int, ...]]) -> int:
    """A size that follows the inputs, as a number.

    >>> evaluate({"times": [3, {"input": 0, "dim": 1}]}, [(2, 5)])
    15
    """
    if "input" in size:
        return inputs[size["input"]][size["dim"]]
    parts = [evaluate(p, inputs) if isinstance(p, dict) else p for p in size.get("times", size.get("plus"))]  # type: ignore[union-attr]
    if "plus" in size:
        return sum(parts)
    product = 1
    for part in parts:
        product *= part
    return product


def last_uses(program: Program) -> dict[str, list[str]]:
    """Node -> values that nothing reads after it."""
    last: dict[str, str] = {}
    for node in program.nodes:
        last.update({ref.name: node.name for ref in node.refs()})
    dying: dict[str, list[str]] = {}
    for name, reader in last.items():
        if name not in program.outputs:
            dying.setdefault(reader, []).append(name)
    return dying


class GraphModel(nn.Module):
    """A captured model, run operation by operation, under the state names of the user's model.

    It trains like any module: in training mode it runs the program captured in training mode. `programs` are those
    of eval and train mode (None where the model could not be called in train mode).
    """

    def __init__(
        self,
        programs: tuple[Program, Program | None],
        state: Mapping[str, Tensor],
        parameters: Iterable[str],
        constants: Mapping[str, Tensor],
        aliases: Mapping[str, str],
        hidden: Iterable[str],
        paths: Sequence[Path],
        settings: Mapping[Path, Any],
    ) -> None:
        """`aliases`: second name of tied state -> first; `hidden`: state kept out of the state dict.

        `paths` are the places of the tensors in a call, `settings` the other values it was traced with.
        """
        super().__init__()
        self.programs = programs
        self.paths = list(paths)
        self.settings = dict(settings)
        self._constants = dict(constants)
        self._moved: dict[torch.device, dict[str, Tensor]] = {}
        self._hidden = frozenset(hidden)
        trainable = set(parameters)
        for name, tensor in state.items():
            self._place(name, tensor, name in trainable)
        for name, source in aliases.items():
            self._place(name, self.tensor(source), source in trainable)

    def _place(self, name: str, tensor: Tensor, parameter: bool) -> None:
        owner: nn.Module = self
        *path, leaf = name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            child = owner._modules[part]
            assert child is not None
            owner = child
        if not parameter:
            owner.register_buffer(leaf, tensor, persistent=name not in self._hidden)
            return
        given = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, tensor.requires_grad)
        owner.register_parameter(leaf, given)

    def tensor(self, name: str) -> Tensor:
        """A state tensor by its name in the user's model."""
        path, _, leaf = name.rpartition(".")
        found = getattr(self.get_submodule(path), leaf)  # as any module reads it: it may be gated
        assert isinstance(found, Tensor), name
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = Inputs(args, kwargs)
        tensors = input_tensors(inputs)
        self._check(inputs, tensors)
        return self.run(tensors)

    def run(self, tensors: Mapping[Path, Tensor]) -> Any:
        """The result of the call that holds these tensors at these places."""
        program = self.programs[0] if not self.training else self.programs[1]
        if program is None:
            raise TraceError(
                "This model could not be captured in training mode; call .eval() on it, or train your own class."
            )
        ordered = {path: tensors[path] for path in self.paths}
        results = execute(program, Outside(self.tensor, self._constants_on(ordered), ordered))
        return put_outputs(program.spec, results)

    def _constants_on(self, inputs: Mapping[Path, Tensor]) -> dict[str, Tensor]:
        device = next((t.device for t in inputs.values()), torch.device("cpu"))
        if device in self._moved:
            return self._moved[device]
        moved = {name: t.to(device) for name, t in self._constants.items()}
        if all(type(t) is Tensor for t in moved.values()):  # not while it is captured, on fake tensors
            self._moved[device] = moved
        return moved

    def _check(self, inputs: Inputs, tensors: Mapping[Path, Tensor]) -> None:
        if set(tensors) != set(self.paths):
            raise TraceError(
                f"Called with tensors at {_places(tensors)}, but the graph was traced with {_places(self.paths)}. "
                "Call it as the example inputs did."
            )
        for path, value in input_settings(inputs).items():
            if path in self.settings and self.settings[path] != value:
                raise TraceError(
                    f"Called with {_places([path])} = {value!r}, but the graph was traced with "
                    f"{self.settings[path]!r}, which is part of its structure. Trace again with the other value."
                )


def _places(paths: Iterable[Path]) -> str:
    return ", ".join("".join(f"[{p!r}]" if i else str(p) for i, p in enumerate(path)) for path in paths) or "nothing"
