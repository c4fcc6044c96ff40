"""Where the path of a captured program begins to depend on values: what comes before is the same for every input."""

from __future__ import annotations

from dataclasses import replace

import torch

from prunus.graph.node import Meta, Node, Ref, find_refs, overload
from prunus.graph.program import Program

_READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_SELECTS = set("nms qnms nonzero where.default nonzero_numpy masked_select".split())
"""Operations that carry no such tag, and whose results are as long as the values say."""
_TOLIST = ("aten.resolve_neg.default", "aten.resolve_conj.default")


def value_read(program: Program) -> Node | None:
    """The first operation by which values of an input or of state reach the shape of a result, or Python.

    What is made of constants alone does not count: it is the same in every call.
    """
    given: set[str] = set()
    for node in program.nodes:
        if node.op in ("input", "state") or any(ref.name in given for ref in node.refs()):
            given.add(node.name)
            if _reads(node, program):
                return node
    return None


def before(program: Program, node: Node) -> Program:
    """The part of a program before `node`; its results are the values that something later reads."""
    at = program.nodes.index(node)
    head, tail = program.nodes[:at], program.nodes[at:]
    used = {ref.name for n in tail for ref in n.refs()} | set(program.outputs)
    made = (n for n in head if n.name in used and n.op not in ("state", "constant", "input"))
    return replace(program, nodes=head, outputs=tuple(n.name for n in made if isinstance(n.out, Meta)))


def _reads(node: Node, program: Program) -> bool:
    if "." not in node.op:
        return False
    name = node.op.partition(".")[2]
    if name.startswith("index."):
        return any(_is_mask(ref, program) for ref in find_refs(node.bound()["indices"]))
    if node.op in _TOLIST:  # `tolist` reads what nothing else does
        return not any(ref.name == node.name for later in program.nodes for ref in later.refs())
    tagged = any(tag in overload(node.op).tags for tag in _READS)
    return tagged or name in _SELECTS or name.partition(".")[0] in _SELECTS


def _is_mask(ref: Ref, program: Program) -> bool:
    return any(n.name == ref.name and isinstance(n.out, Meta) and n.out.dtype == torch.bool for n in program.nodes)
