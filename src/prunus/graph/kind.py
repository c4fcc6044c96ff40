"""What sort of structure a leaf is, what it is called, and which leaves must stay equally many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from prunus.graph.axes import Atom
from prunus.graph.graph import Graph


def kinds_of(graph: Graph, leaves: Collection[Atom]) -> dict[Atom, str]:
    """`expert`, `head`, `kv_head`, `head_dim`, `conv_group`, `trunk`, else `channel`."""
    tags = graph.leaves.tags
    outer = _outer_heads(graph)
    found: dict[Atom, str] = {}
    for leaf in leaves:
        order = ("expert", "conv_group", "head", "head_dim", "trunk")
        kind = next((tag for tag in order if tag in tags.get(leaf, ())), "channel")
        found[leaf] = "kv_head" if kind == "head" and leaf in outer else kind
    return found


def _outer_heads(graph: Graph) -> set[Atom]:
    """Heads that hold several query heads: the outer one where a state axis has two."""
    outer: set[Atom] = set()
    for axes in graph.state_axes.values():
        for axis in axes:
            heads = [atom for atom in axis.atoms if "head" in graph.leaves.tags.get(atom, ())]
            outer.update(heads[:-1])
    return outer


def named(producers: Mapping[Atom, Sequence[str]], kinds: Mapping[Atom, str]) -> dict[Atom, str]:
    """Name each leaf by the module that makes it, with its kind where that is not enough."""
    short = {leaf: _module(states) for leaf, states in producers.items()}
    often = Counter(short.values())
    names: dict[Atom, str] = {}
    taken: Counter[str] = Counter()
    for leaf, name in short.items():
        plain = often[name] == 1 and kinds[leaf] in ("channel", "trunk")
        full = name if plain else f"{name}:{kinds[leaf]}"
        taken[full] += 1
        names[leaf] = full if taken[full] == 1 else f"{full}#{taken[full]}"
    return names


def _module(states: Sequence[str]) -> str:
    weights = [s for s in states if s.endswith("weight")] or list(states)
    first = weights[0] if weights else "(consumer)"
    return first.rpartition(".")[0] or first


def ties_of(graph: Graph, leaves: Collection[Atom]) -> list[tuple[Atom, ...]]:
    """Sets of leaves that must keep equally many units: pieces of one split, or sizes from one integer of a module."""
    sets = [set(tie) & set(leaves) for tie in (*graph.leaves.together, *_shared_integers(graph))]
    merged: list[set[Atom]] = []
    for tie in sets:
        for other in [m for m in merged if m & tie]:
            merged.remove(other)
            tie = tie | other
        merged.append(tie)
    order = {leaf: place for place, leaf in enumerate(leaves)}
    return [tuple(sorted(tie, key=order.__getitem__)) for tie in merged if len(tie) > 1]


def _shared_integers(graph: Graph) -> list[tuple[Atom, ...]]:
    """Leaves of one tag whose size is passed by one module that has an attribute of that value."""
    found: dict[tuple[str, int, str], set[Atom]] = {}
    for mode in graph.modes:
        for node in mode.program.nodes:
            note = mode.inferred.notes.get(node.name)
            for axis in note.sizes.values() if note else ():
                atoms = axis.atoms
                if len(atoms) == 1 and atoms[0].size in graph.integers.get(node.module, {}).values():
                    tag = ",".join(sorted(graph.leaves.tags.get(atoms[0], ())))
                    found.setdefault((node.module, atoms[0].size, tag), set()).add(atoms[0])
    return [tuple(leaves) for leaves in found.values()]
