"""`Program`: a captured call as one flat list of operations."""

from __future__ import annotations

from dataclasses import dataclass

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
