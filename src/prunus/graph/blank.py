"""Which values of a program are zero whatever it is given: zeros made in the code, as a first hidden state is."""

from __future__ import annotations

from prunus.graph.aliases import sharing, writes
from prunus.graph.program import Program

_MADE = frozenset("zeros new_zeros zeros_like".split())
_CARRIED = frozenset(
    "getitem to _to_copy contiguous clone alias detach lift_fresh expand broadcast_to "
    "repeat view reshape flatten unflatten permute transpose t unsqueeze squeeze select slice narrow cat stack chunk "
    "split unbind dropout feature_dropout alpha_dropout".split()
)


def blank_values(program: Program) -> frozenset[str]:
    """Names of the values that are all zero, without those whose memory an operation in place may write to."""
    blank: set[str] = set()
    sources: dict[str, set[str]] = {}
    written: set[str] = set()
    for node in program.nodes:
        name, refs = node.plain, {ref.name for ref in node.refs()}
        if writes(node):
            written.update(*(sources.get(ref, ()) for ref in refs))
        if name in _MADE:
            blank.add(node.name)
            sources[node.name] = {node.name}
        elif refs and name in _CARRIED and refs <= blank:
            blank.add(node.name)
        shared = refs if name in _CARRIED else sharing(node)
        sources.setdefault(node.name, set()).update(*(sources.get(ref, ()) for ref in shared))
    return frozenset(name for name in blank if not sources[name] & written)
