"""`Graph`: a model as an executable graph, with every axis of every tensor factorised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from prunus.graph.axes import Atom, Axes
from prunus.graph.configuration import Place
from prunus.graph.dependent import before
from prunus.graph.infer import Inferred, Unruled
from prunus.graph.node import Meta
from prunus.graph.program import Program
from prunus.graph.whole import Whole
from prunus.graph.width import positions
from prunus.types import Inputs


@dataclass(frozen=True, eq=False)
class Mode:
    """One captured mode (eval or train) of a model, with its axes."""

    program: Program
    inferred: Inferred
    whole: Whole = field(default_factory=Whole)
    """Means that do not count what is kept, but go on dividing by the whole count."""

    @cached_property
    def proven(self) -> Program:
        """The part of the program that holds for every input: all of it, or what comes before it depends on values."""
        return before(self.program) if self.program.depends else self.program


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
    least: dict[Atom, int]
    """Leaves of which so many units must stay: a router that chooses k experts needs k."""


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
    config: Mapping[Place, int | None]
    """The numbers of the model's own configuration, if it holds one, and what is not set there."""
    state_axes: Mapping[str, Axes]
    floats: Mapping[str, Mapping[str, float]]
    """Module path -> its attributes that are floats: what an eps in the user's code may come from."""
    constants: Mapping[str, Tensor]
    constant_axes: Mapping[str, Axes]
    examples: tuple[Inputs, ...]
    inputs: Inputs
    leaves: Leaves

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        return (self.eval,) if self.train is None else (self.eval, self.train)

    @cached_property
    def rms_axes(self) -> dict[str, Axes]:
        """Weights that take the share of a root mean square that goes on dividing by the whole count -> its axes."""
        inferred = self.eval.inferred
        read = {name: note.reads for name, note in inferred.notes.items()}
        return {fold.weight: tuple(r.over for r in read[fold.mean]) for fold in self.eval.whole.folds}

    @property
    def depends(self) -> str:
        """Where the path of a call depends on values; empty where it does not."""
        return self.eval.program.depends

    @property
    def unruled(self) -> tuple[Unruled, ...]:
        """Operations without a rule; what they touch is fixed."""
        return tuple(u for mode in self.modes for u in mode.inferred.unruled)

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
        for node in self.eval.proven.nodes:
            digest.update(f"{node.op}<{[r.name for r in node.refs()]}".encode())
        digest.update(b"whole" if self.eval.whole.nodes else b"")
        return digest.hexdigest()

    def __str__(self) -> str:
        nodes = sum(node.op.startswith("aten.") for node in self.eval.program.nodes)
        lines = [f"{self.model_class}: {nodes} operations, {len(self.state)} state tensors"]
        if self.depends:
            lines.append(f"the path depends on values: {self.depends}")
        if self.unruled:
            lines.append(f"operations without a rule: {', '.join(sorted({u.op for u in self.unruled}))}")
        if self.unreached:
            lines.append(f"state never read: {', '.join(self.unreached)}")
        skipped = self.eval.program.skipped
        return "\n".join([*lines, *([f"results left out: {', '.join(skipped)}"] if skipped else [])])
