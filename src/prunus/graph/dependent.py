"""Where the path of a captured program begins to depend on values: what comes before is the same for every input."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor

from prunus.graph.node import Meta, Node, find_refs, overload
from prunus.graph.program import Program
from prunus.graph.recorded import Captured

_READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_SELECTS = set(
    (
        "nms qnms nonzero where.default nonzero_numpy masked_select _pack_padded_sequence _pad_packed_sequence "
        "tensor_split.tensor_indices_or_sections narrow.Tensor"
    ).split()
)
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


def first_dependent(captured: Captured, other: Captured | None) -> Node | None:
    """The first operation that depends on values, by what it is or by what became of it on `other` values."""
    read, apart = value_read(captured.program), None if other is None else _parting(captured, other)
    both = [node for node in (read, apart) if node is not None]
    return min(both, key=captured.program.nodes.index) if both else None


def _parting(one: Captured, other: Captured) -> Node | None:
    """The first operation that is another one, or takes another constant or number, in two recordings of a call."""
    odd = {name for name, t in one.constants.items() if not _alike(t, other.constants.get(name))}
    unlike = {node.name for node in one.program.nodes if node.op == "constant" and node.args[0] in odd}
    mine, theirs = ([n for n in c.program.nodes if n.op not in ("state", "input", "constant")] for c in (one, other))
    for a, b in zip_longest(mine, theirs):
        if a is None:
            return mine[-1] if mine else None
        same = b is not None and (a.op, a.args, dict(a.kwargs)) == (b.op, b.args, dict(b.kwargs))
        if not same or any(ref.name in unlike for ref in a.refs()):
            return a
    return None if one.program.outputs == other.program.outputs else mine[-1]


def _alike(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def other_values(tensor: Tensor) -> Tensor:
    """A tensor of other values: floating ones moved by as much as they spread, whole ones in another order."""
    draw = torch.Generator().manual_seed(tensor.numel())
    if tensor.dtype.is_floating_point:
        spread = tensor.detach().abs().mean() if tensor.numel() else 0.0
        return tensor.detach() + spread * torch.rand(tensor.shape, generator=draw, dtype=tensor.dtype).to(tensor.device)
    flat = tensor.detach().flatten()
    return flat[torch.randperm(flat.numel(), generator=draw).to(tensor.device)].view(tensor.shape)


def before(program: Program) -> Program:
    """The part of a program that holds for every input; its results are the values that something later reads."""
    at = next(i for i, node in enumerate(program.nodes) if node.name == program.until)
    head, tail = program.nodes[:at], program.nodes[at:]
    used = {ref.name for n in tail for ref in n.refs()} | set(program.outputs)
    made = (n for n in head if n.name in used and n.op not in ("state", "constant", "input"))
    return replace(program, nodes=head, outputs=tuple(n.name for n in made if isinstance(n.out, Meta)))


def _reads(node: Node, program: Program) -> bool:
    if "." not in node.op:
        return False
    name = node.op.partition(".")[2]
    if name.startswith("index."):
        picked = (program.named[ref.name].out for ref in find_refs(node.bound()["indices"]))
        return any(isinstance(out, Meta) and out.dtype == torch.bool for out in picked)
    if node.op in _TOLIST:  # `tolist` reads what nothing else does
        return node.name not in program.readers
    tagged = any(tag in overload(node.op).tags for tag in _READS)
    return tagged or name in _SELECTS or name.partition(".")[0] in _SELECTS
