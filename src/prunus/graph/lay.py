"""`lay`: groups of single weights, N:M cells or blocks, laid over each weight of a model, traced or not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod

from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from prunus.errors import GroupError
from prunus.graph.axes import Algebra, Atom, Axes, fresh
from prunus.graph.graph import Graph, Mode
from prunus.graph.grid import Grid
from prunus.graph.groups import Group, Groups, Member
from prunus.graph.infer import infer
from prunus.graph.node import Node, Ref, find_refs
from prunus.graph.private import state_of, unwrap
from prunus.graph.see import Place
from prunus.patterns import Laid, block_of, multiples_of

_Sheets = Mapping[str, Grid]
"""State name of each weight -> its shape, and which dimensions are its outputs and inputs."""
_BESIDE = ("bias", "attn_mask", "b_ih", "b_hh", "hx")
"""Arguments of a product that are no weights of it: they are added, or are a first state."""
_NO_PRODUCTS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
_PRODUCTS = (
    *(nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention),
    nn.modules.conv._ConvNd,  # pyright: ignore[reportPrivateUsage]
)
_TRANSPOSED = nn.modules.conv._ConvTransposeNd  # pyright: ignore[reportPrivateUsage]


def lay(model: Graph | nn.Module, pattern: Laid, only: Sequence[str], skip: Sequence[str]) -> Groups:
    """One group a weight. Raises `GroupError` for weights that the pattern does not divide and `skip` does not name.

    Without a trace, parameters of modules of unknown kinds are laid over only where `only` names them.
    """
    if isinstance(model, Graph):
        source, sheets, total = model, _read_by_graph(model), _parameters_of(model)
        unknown: set[str] = set()
    else:
        model = unwrap(model)
        source, total = None, sum(p.numel() for p in model.parameters())
        sheets, unknown = _read_by_module(model)
    _check_any(sheets, unknown, pattern, only)
    chosen = _chosen(sheets, unknown, only)
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
        dense={name: prod(grid.shape) for name, grid in sheets.items() if name not in laid},
        digest=_digest(sheets, pattern),
    )


def _check_any(sheets: _Sheets, unknown: set[str], pattern: Laid, only: Sequence[str]) -> None:
    if not sheets:
        raise GroupError(f"{pattern} finds no weight of two dimensions or more in this model; there is nothing to lay.")
    if not only and len(unknown) == len(sheets):
        raise GroupError(
            f"{pattern} finds no weight in a module of a kind that is known to multiply by it. Lay it over "
            f"prunus.trace(model, inputs), or name the weights of products with only={list(sheets)[:3]}."
        )


def _chosen(sheets: _Sheets, unknown: set[str], only: Sequence[str]) -> set[str]:
    """What `only` chooses: weights of unknown kinds where a glob is their very name, or matches no others."""
    known = [name for name in sheets if name not in unknown]
    if not only:
        return {*known}
    chosen: set[str] = set()
    for glob in only:
        named = _matching(sheets, [glob], "only")
        chosen.update([name for name in named if name not in unknown or name == glob] or named)
    return chosen


def _group(name: str, sheet: Grid, pattern: Laid) -> Group:
    grid = Grid(sheet.shape, block_of(pattern), sheet.outputs, sheet.inputs)
    kind = "element" if grid.elements == 1 else "block"
    return Group(name, kind, grid.size, (Member(name, grid.outputs, False),), True, "", 1, Atom(grid.size), grid)


def _read_by_module(model: nn.Module) -> tuple[_Sheets, set[str]]:
    """What the kinds of the modules tell of each weight, and those of which they do not: no tables, norms and gains."""
    first = {id(tensor): name for name, tensor in state_of(model).tensors.items()}
    found: dict[str, Grid] = {}
    unknown: dict[str, Grid] = {}
    for module, weight in _matrices(model):
        if not isinstance(module, _NO_PRODUCTS):
            kind = found if isinstance(module, _PRODUCTS) or _is_conv1d(module) else unknown
            kind.setdefault(first[id(weight)], Grid(tuple(weight.shape), (1, 1), *_sides(module)))
    sheets = {**unknown, **found}
    return {name: sheets[name] for name in first.values() if name in sheets}, unknown.keys() - found.keys()


def _matrices(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Parameters of two dimensions or more, each with the module that uses it; no biases, no gains of weight_norm."""
    for owner in model.modules():
        if not isinstance(owner, ParametrizationList):
            lists = owner.get_submodule("parametrizations").children() if is_parametrized(owner) else ()
            for part in (owner, *lists):
                for name, weight in part.named_parameters(recurse=False):
                    if weight.ndim > 1 and not name.startswith("bias") and not _is_gain(part, name):
                        yield owner, weight


def _is_gain(part: nn.Module, name: str) -> bool:
    """The length of each row that `weight_norm` keeps apart, as a parametrization or in its old form."""
    if isinstance(part, ParametrizationList):
        return name == "original0" and any(isinstance(step, _WeightNorm) for step in part)
    return name.endswith("_g") and f"{name[:-2]}_v" in dict(part.named_parameters(recurse=False))


def _is_conv1d(module: nn.Module) -> bool:
    """Transformers' Conv1D, perhaps parametrized: a linear layer that keeps (in, out)."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _sides(module: nn.Module) -> tuple[int, int]:
    """(dimension of the outputs, dimension of the inputs)."""
    return (1, 0) if isinstance(module, _TRANSPOSED) or _is_conv1d(module) else (0, 1)


def _read_by_graph(graph: Graph) -> _Sheets:
    """Every parameter of two dimensions or more that some product of the graph multiplies by.

    Of several products of one weight the first says where its inputs lie, those with activations before others.
    """
    found: dict[str, int] = {}
    traces = [(mode, _followed(mode)) for mode in graph.modes]
    for among_state in (False, True):
        for mode, followed in traces:
            for node in _products(mode):
                if (node.name in mode.inferred.roots) is among_state:
                    for name, inputs in _factors(node, mode, followed):
                        found.setdefault(name, inputs)
    sheets: dict[str, Grid] = {}
    for name, meta in graph.state.items():
        if name in found and name in graph.parameters:
            inputs = found[name]
            sheets[name] = Grid(meta.shape, (1, 1), inputs - 1 if inputs else 1, inputs)
    return sheets


def _products(mode: Mode) -> Iterator[Node]:
    unruled = {u.op for u in mode.inferred.unruled}
    for node in mode.program.nodes:
        note = mode.inferred.notes.get(node.name)
        activation = node.name not in mode.inferred.roots
        if (note is not None and note.macs is not None) or (activation and node.op in unruled):
            yield node


def _followed(mode: Mode) -> dict[str, tuple[Axes, ...]]:
    """The axes of all that is made of state alone, as if nothing else were known of them.

    In the whole model a residual makes the inputs and the outputs of a square weight the same; here they stay apart.
    """
    nodes = tuple(node for node in mode.program.nodes if node.name in mode.inferred.roots)
    outside = {(n.op, n.args[0]): tuple(map(fresh, n.meta.shape)) for n in nodes if n.op in ("state", "constant")}
    made = infer(replace(mode.program, nodes=nodes, outputs=()), outside, Algebra()).axes
    return {**made, **{n.args[0]: made[n.name] for n in nodes if n.op == "state"}}


def _factors(node: Node, mode: Mode, followed: Mapping[str, tuple[Axes, ...]]) -> Iterator[tuple[str, int]]:
    """(state of two dimensions or more that a product multiplies by, the dimension of it that holds the inputs)."""
    note = mode.inferred.notes.get(node.name)
    for place, ref in _places(node):
        summed = [read.dim for read in note.reads if read.place == place] if note else []
        for name in mode.inferred.roots.get(ref.name, ()):
            ((state,), (factor, *_)) = followed[name], followed[ref.name]
            if len(state) > 1 and not _is_spread(state, factor):
                yield name, _inputs_of(state, factor, summed)


def _places(node: Node) -> Iterator[tuple[Place, Ref]]:
    """The arguments that a product multiplies."""
    for argument, value in node.bound().items():
        if argument not in _BESIDE:
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                yield from ((Place(argument, index if isinstance(value, list) else None), r) for r in find_refs(item))


def _is_spread(state: Axes, factor: Axes) -> bool:
    """Is a state of one row or column spread over a larger factor, such as the gain of each row of a weight?"""
    sizes = [axis.size for axis in state]
    return prod(sizes) == max(sizes) < prod(axis.size for axis in factor)


def _inputs_of(state: Axes, factor: Axes, summed: Sequence[int]) -> int:
    """The dimension of a state that the product sums over, where it reads the factor along the dimensions `summed`."""
    over, kept = _leaves(factor, summed), _leaves(factor, [d for d in range(len(factor)) if d not in summed])
    found = [dim for dim in range(len(state)) if _leaves(state, [dim]) & over]
    if len(found) == 1:
        return found[0]
    if len(summed) == 1 and [a.size for a in state] == [a.size for a in factor]:  # of one unit, or no rule tells
        return summed[0]
    return next((dim for dim in (1, 0) if not _leaves(state, [dim]) & kept), 1)


def _leaves(axes: Axes, dims: Sequence[int]) -> set[Atom]:
    return {leaf for dim in dims for leaf in axes[dim].leaves()}


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
    """What a plan is bound to without a graph: names, shapes, and the pattern that was laid over them."""
    digest = hashlib.sha256(str(pattern).encode())
    for name, grid in sheets.items():
        digest.update(f"{name}{grid.shape}{grid.outputs}{grid.inputs}".encode())
    return digest.hexdigest()
