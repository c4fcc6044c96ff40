"""`Program`: a captured call as one flat list of operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from prunus.graph.nest import Spec
from prunus.graph.node import Node


@dataclass(frozen=True, eq=False)
class Program:
    """A captured call: its nodes in order, the nodes that are its results, and how those nest."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    spec: Spec
    skipped: tuple[str, ...] = ()
    depends: str = ""
    """Where its path depends on values, so that it holds for the traced inputs alone; empty where it does not."""
    until: str = ""
    """The node from which on that is so."""

    @cached_property
    def named(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def readers(self) -> Mapping[str, Sequence[Node]]:
        """Value -> the nodes that read it, each once."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in {ref.name for ref in node.refs()}:
                found.setdefault(name, []).append(node)
        return found
