"""Which leaves can be removed by zeroing parameters alone, and why the others cannot.

Follows, operation by operation, at which units a value is zero once all state of those units is zero. A leaf is
inexact when something adds up values of its units that are not zero, or divides by a zero of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunus.graph.axes import Atom, Axes
from prunus.graph.infer import Inferred
from prunus.graph.node import Node, Ref, find_refs
from prunus.graph.program import Program
from prunus.graph.rules import recurrent
from prunus.graph.see import Place

_ZERO_AT_ZERO = set(
    (
        "relu relu6 gelu silu tanh hardswish leaky_relu elu selu celu mish neg sin tan erf sqrt square "
        "abs glu sign floor ceil round trunc expm1 log1p asin atan sinh softshrink hardshrink positive "
        "nan_to_num prelu dropout alpha_dropout feature_dropout clone contiguous alias detach lift_fresh_copy "
        "lift_fresh to type_as _to_copy zeros_like zero view reshape _unsafe_view "
        "flatten unflatten ravel permute transpose swapaxes swapdims t mT numpy_T movedim moveaxis unsqueeze squeeze "
        "expand expand_as broadcast_to repeat tile repeat_interleave cat concat concatenate stack split "
        "split_with_sizes chunk unbind select slice narrow pixel_shuffle pixel_unshuffle channel_shuffle sum mean norm "
        "linalg_vector_norm frobenius_norm max amax min amin median flip roll triu tril gather "
        "index_select index max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d "
        "upsample_bilinear2d upsample_bicubic2d upsample_linear1d"
    ).split()
)
_SUMS = set("add sub rsub maximum minimum lerp where".split())
_PRODUCTS = set("mul multiply mm bmm matmul mv dot einsum __and__ logical_and".split())
_POLES = set("reciprocal rsqrt log log2 log10".split())


def inexact_leaves(program: Program, inferred: Inferred) -> dict[Atom, str]:
    """Leaf -> why zeroing its parameters is not the same as removing it."""
    zeros: dict[str, set[Atom]] = {}
    reasons: dict[Atom, str] = {}
    for node in program.nodes:
        here = _leaves(inferred.axes[node.name])
        if node.op == "state":
            zeros[node.name] = here if node.meta.dtype.is_floating_point else set()
            continue
        if "." not in node.op:
            zeros[node.name] = here & zeros[node.args[0].name] if node.op == "getitem" else set()
            continue
        for leaf, reason in _broken(node, inferred, zeros) if node.name in inferred.live else ():
            reasons.setdefault(leaf, reason)
        zeros[node.name] = here if node.name in inferred.blank else here & _zero_after(node, inferred, zeros)
    return reasons


def _zero_after(node: Node, inferred: Inferred, zeros: dict[str, set[Atom]]) -> set[Atom]:
    """The leaves at whose units the result is zero."""
    name = node.plain
    bound = node.bound()
    operands = [zeros[r.name] for r in node.refs()]

    def at(*args: str) -> list[set[Atom]]:
        return [zeros[bound[a].name] for a in args if isinstance(bound.get(a), Ref)]

    if name in ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        return _every([_any(at("input", "weight")), *at("bias")])
    if name in ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"):
        return _every([_any(at("weight")) if at("weight") else _any(at("input")), *at("bias")])
    if name in ("addmm", "addmv", "baddbmm"):
        return _every([operands[0], _any(operands[1:])])
    if name == "scaled_dot_product_attention":
        return _any(at("value"))
    if name == "embedding":
        return _any(at("weight"))
    if name in _PRODUCTS:
        return _any(operands)
    if name in recurrent.RULES:
        return _zero_states(node, inferred, zeros)
    if name in ("div", "divide", "true_divide"):
        return at("self")[0] - _any(at("other")) if at("self") else set()
    return _elementwise(name, node, inferred, zeros)


def _zero_states(node: Node, inferred: Inferred, zeros: dict[str, set[Atom]]) -> set[Atom]:
    """A hidden unit whose rows of all weights and whose first state are zero stays zero, whatever its gates are."""
    refs = [ref for argument, value in node.bound().items() if argument != "input" for ref in find_refs(value)]
    lost = {leaf for ref in refs for leaf in _leaves(inferred.axes[ref.name]) - zeros[ref.name]}
    return {leaf for ref in refs for leaf in zeros[ref.name]} - lost


def _elementwise(name: str, node: Node, inferred: Inferred, zeros: dict[str, set[Atom]]) -> set[Atom]:
    bound = node.bound()
    if name in _SUMS:
        scalars = [v for k, v in bound.items() if k in ("self", "other", "end") and not isinstance(v, Ref)]
        refs = [bound[k] for k in ("self", "other", "end") if isinstance(bound.get(k), Ref)]
        return set() if any(scalars) else _every([zeros[r.name] for r in refs])
    if name in ("pow", "pad", "constant_pad_nd", "masked_fill"):
        key = {"pow": "exponent", "masked_fill": "value"}.get(name, "value")
        value = bound.get(key)
        kept = isinstance(value, int | float | None) and ((value or 0) > 0 if name == "pow" else not value)
        return zeros[bound["self"].name] if kept else set()
    if name in ("hardtanh", "clamp", "clamp_min", "clamp_max"):
        low, high = (
            (bound.get(k) for k in ("min_val", "max_val"))
            if name == "hardtanh"
            else (bound.get("min"), bound.get("max"))
        )
        around = (low is None or low <= 0) and (high is None or high >= 0)
        return zeros[bound["self"].name] if around else set()
    if name in _ZERO_AT_ZERO:
        lost = {leaf for r in node.refs() for leaf in _leaves(inferred.axes[r.name]) - zeros[r.name]}
        return {leaf for r in node.refs() for leaf in zeros[r.name]} - lost
    return set()


def _broken(node: Node, inferred: Inferred, zeros: dict[str, set[Atom]]) -> Iterable[tuple[Atom, str]]:
    """Leaves whose removal is more than zeroing, because of this operation."""
    bound = node.bound()
    where = f" in {node.module!r}" if node.module else ""
    sources = {place: ref.name for place, ref in _places(bound)}
    read: dict[Atom, bool] = {}
    for entry in inferred.notes[node.name].reads:
        for leaf in entry.over.leaves():
            read[leaf] = read.get(leaf, False) or leaf in zeros[sources[entry.place]]
    for leaf, zero in read.items():
        if not zero:
            yield leaf, f"{node.plain}{where} adds up values that are not zero where parameters are"
    name = node.plain
    poles = bound.get("self") if name in _POLES else bound.get("other") if name in ("div", "divide") else None
    if isinstance(poles, Ref):
        for leaf in zeros[poles.name]:
            yield leaf, f"{name}{where} divides by values that are zero where parameters are"


def _places(bound: dict[str, object]) -> Iterable[tuple[Place, Ref]]:
    for name, value in bound.items():
        if isinstance(value, Ref):
            yield Place(name), value
        elif isinstance(value, list):
            yield from ((Place(name, i), ref) for i, item in enumerate(value) for ref in find_refs(item))


def _leaves(many: Sequence[Axes]) -> set[Atom]:
    return {leaf for axes in many for axis in axes for leaf in axis.leaves()}


def _every(sets: Sequence[set[Atom]]) -> set[Atom]:
    return set.intersection(*sets) if sets else set()


def _any(sets: Sequence[set[Atom]]) -> set[Atom]:
    return set.union(*sets) if sets else set()
