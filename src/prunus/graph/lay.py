"""`lay`: groups of single weights, N:M cells or blocks, laid over each weight of a model, traced or not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

from torch import nn

from prunus.errors import GroupError
from prunus.graph.axes import Atom
from prunus.graph.graph import Graph
from prunus.graph.grid import Grid
from prunus.graph.groups import Group, Groups, Member
from prunus.graph.node import Node, Ref, find_refs
from prunus.graph.private import state_of, unwrap
from prunus.patterns import Laid, block_of, multiples_of

_Sheets = Mapping[str, Grid]
"""State name of each weight -> its shape, and which dimensions are its outputs and inputs."""
_BESIDE = ("bias", "attn_mask")
"""Arguments of a product that are added, not multiplied."""
_NO_PRODUCTS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
_PRODUCTS = (nn.Linear, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]
_TRANSPOSED = nn.modules.conv._ConvTransposeNd  # pyright: ignore[reportPrivateUsage]


def lay(model: Graph | nn.Module, pattern: Laid, only: Sequence[str], skip: Sequence[str]) -> Groups:
    """One group a weight. Raises `GroupError` for weights that the pattern does not divide and `skip` does not name."""
    if isinstance(model, Graph):
        source, sheets, total = model, _read_by_graph(model), _parameters_of(model)
    else:
        model = unwrap(model)
        source, sheets, total = None, _read_by_module(model), sum(p.numel() for p in model.parameters())
    if not sheets:
        raise GroupError(f"{pattern} finds no weight of two dimensions or more in this model; there is nothing to lay.")
    chosen = _matching(sheets, only, "only") if only else list(sheets)
    out = {*_matching(sheets, skip, "skip")}
    laid = {name: grid for name, grid in sheets.items() if name in chosen and name not in out}
    _check_divides(laid, pattern)
    items = tuple(_group(name, grid, pattern) for name, grid in laid.items())
    return Groups(
        source,
        pattern,
        items,
        every=items,
        parameters=total,
        left_out={name: prod(grid.shape) for name, grid in sheets.items() if name not in laid},
        digest=_digest(sheets, pattern),
    )


def _group(name: str, sheet: Grid, pattern: Laid) -> Group:
    grid = Grid(sheet.shape, block_of(pattern), sheet.outputs, sheet.inputs)
    kind = "element" if grid.elements == 1 else "block"
    return Group(name, kind, grid.size, (Member(name, grid.outputs, False),), True, "", 1, Atom(grid.size), grid)


def _read_by_module(model: nn.Module) -> _Sheets:
    """Weights of products, as far as the kinds of the modules tell: no lookup tables, norms or single rows."""
    first = {id(tensor): name for name, tensor in state_of(model).tensors.items()}
    found: dict[str, Grid] = {}
    for module in model.modules():
        for _, weight in module.named_parameters(recurse=False):
            if weight.ndim > 1 and _may_multiply(module, weight):
                found.setdefault(first[id(weight)], Grid(tuple(weight.shape), (1, 1), *_sides(module)))
    return {name: found[name] for name in first.values() if name in found}


def _may_multiply(module: nn.Module, weight: nn.Parameter) -> bool:
    return isinstance(module, _PRODUCTS) or (weight.shape[0] > 1 and not isinstance(module, _NO_PRODUCTS))


def _sides(module: nn.Module) -> tuple[int, int]:
    """(dimension of the outputs, dimension of the inputs); transformers' Conv1D keeps (in, out)."""
    turned = isinstance(module, _TRANSPOSED) or type(module).__name__ == "Conv1D"
    return (1, 0) if turned else (0, 1)


def _read_by_graph(graph: Graph) -> _Sheets:
    """Every parameter of two dimensions or more that some product of the graph multiplies by."""
    found: dict[str, Grid] = {}
    multiplied, turned = {*_multiplied(graph)} & graph.parameters, {*_inputs_first(graph)}
    for name in (n for n, meta in graph.state.items() if n in multiplied and len(meta.shape) > 1):
        axes = graph.state_axes[name]
        summed = [d for d, a in enumerate(axes) if any((name, leaf) in graph.leaves.consumed for leaf in a.leaves())]
        inputs_first = summed == [0] if len(summed) == 1 else name in turned
        found[name] = Grid(graph.state[name].shape, (1, 1), *((1, 0) if inputs_first else (0, 1)))
    return found


def _inputs_first(graph: Graph) -> Iterator[str]:
    """Weights that a product reads as they are, inputs along the first dimension.

    The axes tell as much, but for those of one unit and where a residual makes inputs and outputs the same.
    """
    for mode in graph.modes:
        state = {node.name: str(node.args[0]) for node in mode.program.nodes if node.op == "state"}
        for node in mode.program.nodes:
            weights = ("weight",) if "conv_transpose" in node.op else ("mat2", "other")
            for ref in map(node.bound().get, weights):
                if isinstance(ref, Ref) and ref.name in state:
                    yield state[ref.name]


def _multiplied(graph: Graph) -> Iterator[str]:
    for mode in graph.modes:
        for node in mode.program.nodes:
            note = mode.inferred.notes.get(node.name)
            if (note is not None and note.macs is not None) or node.op in {u.op for u in mode.inferred.unruled}:
                yield from multiplied_by(node, mode.inferred.roots)


def multiplied_by(node: Node, roots: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """The state that a product multiplies by, whatever was done to it alone before."""
    for argument, value in node.bound().items():
        if argument not in _BESIDE:
            for ref in find_refs(value):
                yield from roots.get(ref.name, ())


def _parameters_of(graph: Graph) -> int:
    return sum(prod(graph.state[name].shape) for name in graph.parameters if name in graph.state)


def _matching(sheets: _Sheets, globs: Sequence[str], option: str) -> list[str]:
    found: dict[str, None] = {}
    for glob in globs:
        named = [n for n in sheets if fnmatchcase(n, glob) or fnmatchcase(n.rpartition(".")[0], glob)]
        if not named:
            raise GroupError(
                f"No weight matches {glob!r} of {option}. Globs are held against the names of weights and of their "
                f"modules, such as {', '.join(map(repr, list(sheets)[:3]))}."
            )
        found.update(dict.fromkeys(named))
    return list(found)


def _check_divides(sheets: _Sheets, pattern: Laid) -> None:
    outputs, inputs = multiples_of(pattern)
    bad: dict[str, str] = {}
    for name, grid in sheets.items():
        for dim, many in ((grid.outputs, outputs), (grid.inputs, inputs)):
            if grid.shape[dim] % many:
                bad[name] = f"{name!r} is {grid.shape}; {pattern} needs a multiple of {many} along dim {dim}"
    if bad:
        more = f"; and {len(bad) - 4} more" if len(bad) > 4 else ""
        raise GroupError(
            f"{'; '.join(list(bad.values())[:4])}{more}. Leave such weights dense with skip={list(bad)}; they stay "
            "counted in the density that is reported."
        )


def _digest(sheets: _Sheets, pattern: Laid) -> str:
    """What a plan is bound to without a graph: names, shapes, and the blocks that were laid over them."""
    digest = hashlib.sha256(str(block_of(pattern)).encode())
    for name, grid in sheets.items():
        digest.update(f"{name}{grid.shape}{grid.outputs}{grid.inputs}".encode())
    return digest.hexdigest()
