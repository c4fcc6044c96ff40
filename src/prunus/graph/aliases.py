"""Which values may lie in the memory of others, and which operations write there."""

from __future__ import annotations

from prunus.graph.node import Node, find_refs, overload

_GIVE_BACK = frozenset("dropout feature_dropout alpha_dropout type_as einsum contiguous to reshape flatten".split())
"""Operations that may return what they were given, though their signature does not say so."""


def sharing(node: Node) -> list[str]:
    """The operands whose memory the result may be in."""
    if "." not in node.op or node.op.split(".")[1] in _GIVE_BACK:
        return [ref.name for ref in node.refs()]
    bound = node.bound()
    shared = [bound.get(a.name) for a in overload(node.op)._schema.arguments if a.alias_info is not None]
    return [ref.name for ref in find_refs(shared)]


def writes(node: Node) -> bool:
    """Does the operation write to the memory of an operand?"""
    return "." in node.op and overload(node.op)._schema.is_mutable


def written_to(node: Node) -> list[str]:
    """The operands that the operation writes to."""
    if not writes(node):
        return []
    bound = node.bound()
    arguments = overload(node.op)._schema.arguments
    return [
        ref.name
        for a in arguments
        if a.alias_info is not None and a.alias_info.is_write
        for ref in find_refs(bound.get(a.name))
    ]
