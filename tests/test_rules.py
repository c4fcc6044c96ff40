"""Every op rule against brute force: a unit of an argument is changed, and only what the rule says may change does.

Where a rule says that a unit of an argument is a unit of the result, changing it must leave all other units of the
result alone. Where it says that the operation adds the unit up, or counts it in a statistic, anything may change.
Where it says neither, and does not fix the axis, nothing may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import vision  # noqa: F401, defines torchvision's operations
from torch import Tensor

from prunus.graph.axes import Algebra, Atom, Axes
from prunus.graph.infer import axes_of, infer
from prunus.graph.node import Meta, Node, Ref, overload
from prunus.graph.program import Program
from prunus.graph.rules import RULES, find_rule
from prunus.graph.width import positions


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) + 0.1


def flags(*shape: int) -> Tensor:
    return draw(*shape) > 0.5


def names(*shape: int, below: int) -> Tensor:
    return (draw(*shape) * 100).long() % below


def recurrent(gates: int) -> tuple[Any, ...]:
    weights = [draw(gates * 4, 3), draw(gates * 4, 4), draw(gates * 4), draw(gates * 4)]
    return weights, True, 1, 0.0, False, False, False


X, Y, IMAGE = draw(4, 6), draw(6, 5), draw(2, 6, 4, 4)
STATE = torch.zeros(1, 5, 4)
OFFSETS = torch.tensor([2, 5, 7], dtype=torch.int32)
CASES: dict[str, tuple[str, tuple[Any, ...]]] = {
    # contractions
    "linear": ("linear.default", (X, draw(5, 6), draw(5))),
    "matmul": ("matmul.default", (draw(2, 4, 6), Y)),
    "mm": ("mm.default", (X, Y)),
    "bmm": ("bmm.default", (draw(2, 4, 6), draw(2, 6, 5))),
    "mv": ("mv.default", (X, draw(6))),
    "dot": ("dot.default", (draw(6), draw(6))),
    "addmm": ("addmm.default", (draw(5), X, Y)),
    "addmv": ("addmv.default", (draw(4), X, draw(6))),
    "baddbmm": ("baddbmm.default", (draw(2, 4, 5), draw(2, 4, 6), draw(2, 6, 5))),
    "einsum": ("einsum.default", ("...d,hd->...h", [draw(2, 4, 6), draw(5, 6)])),
    "sum": ("sum.dim_IntList", (X, [1])),
    "norm": ("norm.ScalarOpt_dim", (X, 2, [1])),
    "linalg_vector_norm": ("linalg_vector_norm.default", (X, 2, [1])),
    "frobenius_norm": ("frobenius_norm.dim", (X, [0, 1])),
    "scaled_dot_product_attention": (
        "scaled_dot_product_attention.default",
        (draw(2, 3, 4, 6), draw(2, 3, 5, 6), draw(2, 3, 5, 7)),
    ),
    **{
        f"conv{n}d": (
            f"conv{n}d.default",
            (draw(2, 6, *[3] * n), draw(4, 3, *[2] * n), draw(4), [1] * n, [0] * n, [1] * n, 2),
        )
        for n in (1, 2, 3)
    },
    **{
        f"conv_transpose{n}d": (
            f"conv_transpose{n}d.{'default' if n == 1 else 'input'}",
            (draw(2, 6, *[3] * n), draw(6, 2, *[2] * n), draw(4), [1] * n, [0] * n, [0] * n, 2),
        )
        for n in (1, 2, 3)
    },
    # statistics
    "batch_norm": ("batch_norm.default", (IMAGE, draw(6), draw(6), draw(6), draw(6), False, 0.1, 1e-5, False)),
    "instance_norm": ("instance_norm.default", (IMAGE, draw(6), draw(6), None, None, True, 0.1, 1e-5, False)),
    "layer_norm": ("layer_norm.default", (X, [6], draw(6), draw(6))),
    "rms_norm": ("rms_norm.default", (X, [6], draw(6))),
    "group_norm": ("group_norm.default", (IMAGE, 3, draw(6), draw(6))),
    "mean": ("mean.dim", (X, [1])),
    "_weight_norm": ("_weight_norm.default", (X, draw(4, 1), 0)),
    # shapes
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), ("view.default", (draw(4, 6), [2, 2, 3, 2]))),
    "flatten": ("flatten.using_ints", (IMAGE, 1, 2)),
    "unflatten": ("unflatten.int", (X, 1, [2, 3])),
    "ravel": ("ravel.default", (X,)),
    "permute": ("permute.default", (IMAGE, [0, 2, 3, 1])),
    "transpose": ("transpose.int", (IMAGE, 1, -1)),
    "swapaxes": ("swapaxes.default", (IMAGE, 1, -1)),
    "swapdims": ("swapdims.default", (IMAGE, 1, -1)),
    "t": ("t.default", (X,)),
    "numpy_T": ("numpy_T.default", (draw(2, 3, 4),)),
    "mT": ("mT.default", (draw(2, 3, 4),)),
    "movedim": ("movedim.int", (IMAGE, 1, 3)),
    "moveaxis": ("moveaxis.int", (IMAGE, 1, 3)),
    "unsqueeze": ("unsqueeze.default", (X, 1)),
    "squeeze": ("squeeze.dim", (draw(4, 1, 6), 1)),
    "expand": ("expand.default", (draw(4, 1, 6), [4, 3, 6])),
    "broadcast_to": ("broadcast_to.default", (draw(4, 1, 6), [4, 3, 6])),
    "expand_as": ("expand_as.default", (draw(4, 1, 6), draw(4, 3, 6))),
    "repeat": ("repeat.default", (X, [2, 3])),
    "tile": ("tile.default", (X, [2, 3])),
    "repeat_interleave": ("repeat_interleave.self_int", (X, 2, 1)),
    **{name: (f"{name}.default", ([X, draw(4, 3)], 1)) for name in ("cat", "concat", "concatenate")},
    "stack": ("stack.default", ([X, draw(4, 6)], 1)),
    "split": ("split.Tensor", (X, 2, 1)),
    "split_with_sizes": ("split_with_sizes.default", (X, [1, 5], 1)),
    "chunk": ("chunk.default", (X, 3, 1)),
    "glu": ("glu.default", (X, 1)),
    "unbind": ("unbind.int", (X, 0)),
    "select": ("select.int", (X, 0, 1)),
    "slice": ("slice.Tensor", (X, 1, 1, 4)),
    "narrow": ("narrow.default", (X, 1, 1, 3)),
    "pad": ("pad.default", (X, [1, 2])),
    "constant_pad_nd": ("constant_pad_nd.default", (X, [1, 2])),
    "pixel_shuffle": ("pixel_shuffle.default", (draw(2, 8, 3, 3), 2)),
    "pixel_unshuffle": ("pixel_unshuffle.default", (IMAGE, 2)),
    "channel_shuffle": ("channel_shuffle.default", (IMAGE, 3)),
    # positions
    **{
        f"{name}{n}d": (f"{name}{n}d.default", (draw(2, 6, *[4] * n), [2] * n))
        for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
        for n in (1, 2, 3)
    },
    **{
        f"max_pool{n}d_with_indices": (f"max_pool{n}d_with_indices.default", (draw(2, 6, *[4] * n), [2] * n))
        for n in (2, 3)
    },
    **{f"upsample_nearest{n}d": (f"upsample_nearest{n}d.default", (draw(2, 6, *[3] * n), [5] * n)) for n in (1, 2, 3)},
    **{
        f"upsample_{kind}{n}d": (f"upsample_{kind}{n}d.default", (draw(2, 6, *[3] * n), [5] * n, False))
        for kind, n in (("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3))
    },
    **{name: (f"{name}.int", (X, 1)) for name in ("softmax", "log_softmax")},
    **{name: (f"{name}.default", (X, 1, False)) for name in ("_softmax", "_log_softmax")},
    "flip": ("flip.default", (X, [1])),
    "roll": ("roll.default", (X, [1], [1])),
    **{name: (f"{name}.default", (X,)) for name in ("triu", "tril")},
    **{name: (f"{name}.default", (X, 1)) for name in ("cumsum", "cumprod", "logcumsumexp")},
    **{name: (f"{name}.dim", (X, 1)) for name in ("max", "min", "median", "all", "any")},
    **{name: (f"{name}.default", (X, [1])) for name in ("amax", "amin", "logsumexp")},
    **{name: (f"{name}.default", (X, 1)) for name in ("argmax", "argmin")},
    **{name: (f"{name}.dim", (X, [1])) for name in ("var", "std", "var_mean", "std_mean")},
    "prod": ("prod.dim_int", (X, 1)),
    "aminmax": ("aminmax.default", (X,)),
    "count_nonzero": ("count_nonzero.default", (X, 1)),
    "embedding": ("embedding.default", (X, names(2, 3, below=4))),
    "index_select": ("index_select.default", (X, 1, names(3, below=6))),
    "gather": ("gather.default", (X, 1, names(4, 3, below=6))),
    # routers
    "topk": ("topk.default", (X, 2, 1)),
    "sort": ("sort.default", (X, 1)),
    "argsort": ("argsort.default", (X, 1)),
    "histc": ("histc.default", (X, 4, 0, 3)),
    "index": ("index.Tensor", (X, [None, names(3, below=6)])),
    "index_put": ("index_put.default", (X, [names(3, below=4)], draw(3, 6))),
    "_grouped_mm": ("_grouped_mm.default", (draw(7, 8), draw(3, 8, 4), OFFSETS)),
    # special
    "meshgrid": ("meshgrid.default", ([draw(3), draw(4)],)),
    "diff": ("diff.default", (X,)),
    "view_as_complex": ("view_as_complex.default", (draw(4, 6, 2),)),
    "view_as_real": ("view_as_real.default", (torch.complex(X, X),)),
    "reshape_as": ("reshape_as.default", (draw(24), X)),
    "view_as": ("view_as.default", (draw(24), X)),
    "grid_sampler": ("grid_sampler.default", (IMAGE, draw(2, 3, 3, 2), 0, 0, False)),
    "im2col": ("im2col.default", (IMAGE, [2, 2], [1, 1], [0, 0], [1, 1])),
    "col2im": ("col2im.default", (draw(2, 24, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1])),
    "unfold": ("unfold.default", (X, 1, 3, 1)),
    "one_hot": ("one_hot.default", (names(4, below=3), 3)),
    "scatter": ("scatter.src", (X, 1, names(4, 6, below=6), draw(4, 6))),
    "scatter_add": ("scatter_add.default", (X, 1, names(4, 6, below=6), draw(4, 6))),
    "where": ("where.self", (flags(4, 6), X, draw(4, 6))),
    "prelu": ("prelu.default", (IMAGE, draw(6))),
    "copy": ("copy.default", (X, draw(6))),
    "fill.Scalar": ("fill.Scalar", (X, 2.0)),
    "fill": ("fill.Tensor", (X, torch.tensor(2.0))),
    "clamp": ("clamp.default", (X, 0.3, 0.8)),
    "threshold": ("threshold.default", (X, 0.5, 0.0)),
    "to": ("to.dtype", (X, torch.float64)),
    "full_like": ("full_like.default", (X, 2)),
    "type_as": ("type_as.default", (X, draw(1))),
    "masked_fill": ("masked_fill.Scalar", (X, flags(6), 2.0)),
    "max.other": ("max.other", (X, draw(6))),
    "min.other": ("min.other", (X, draw(6))),
    **{name: (f"{name}.default", (flags(4, 6),)) for name in ("bitwise_not",)},
    **{
        name: (f"{name}.Tensor", (flags(4, 6), flags(6)))
        for name in ("bitwise_and", "bitwise_or", "__and__", "__or__", "__xor__")
    },
    # recurrent layers
    "lstm": ("lstm.input", (draw(5, 2, 3).transpose(0, 1).contiguous(), [STATE[:, :5], STATE[:, :5]], *recurrent(4))),
    "gru": ("gru.input", (draw(2, 5, 3), STATE, *recurrent(3))),
    **{name: (f"{name}.input", (draw(2, 5, 3), STATE, *recurrent(1))) for name in ("rnn_tanh", "rnn_relu")},
    "lstm_cell": ("lstm_cell.default", (draw(5, 3), [STATE[0], STATE[0]], *recurrent(4)[0])),
    "gru_cell": ("gru_cell.default", (draw(5, 3), STATE[0], *recurrent(3)[0])),
    **{
        name: (f"{name}.default", (draw(5, 3), STATE[0], *recurrent(1)[0]))
        for name in ("rnn_tanh_cell", "rnn_relu_cell")
    },
    "torchvision.roi_align": (
        "torchvision.roi_align.default",
        (IMAGE, torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 1, 3, 3]]), 1.0, 2, 2, 2, True),
    ),
}
WITHOUT_UNITS = set(
    (
        "zeros ones full empty rand randn new_zeros new_ones new_full new_empty arange scalar_tensor linspace "
        "tril_indices triu_indices where.default"
    ).split()
)
"""Operations that make a tensor from sizes, or from where values stand: no argument has units that reach the result."""
DRAWN = set("dropout alpha_dropout feature_dropout rand_like randn_like bernoulli normal uniform empty_like".split())
"""Operations that draw their result: the shape is all there is to say."""


def elementwise(name: str) -> tuple[str, tuple[Any, ...]] | None:
    """A call of an operation on each element, with the arguments that its signature asks for."""
    packet = getattr(torch.ops.aten, name)
    for kind in sorted(packet.overloads(), key=lambda o: ("out" in o, o != "Tensor", o)):
        schema = getattr(packet, kind)._schema
        needed = [str(a.type) for a in schema.arguments if not a.has_default_value() and not a.kwarg_only]
        if needed[:1] != ["Tensor"]:
            continue
        values: dict[str, Any] = {"Tensor": X, "number": 0.5, "float": 0.5, "int": 1, "bool": False}
        args = tuple(draw(6) if i and t == "Tensor" else values.get(t) for i, t in enumerate(needed))
        try:
            overload(f"aten.{name}.{kind}")(*args)
        except (RuntimeError, TypeError, NotImplementedError):  # this overload takes others, or is not for the CPU
            continue
        return f"{name}.{kind}", args
    return None


def calls() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    for name in (n for n in RULES if n not in WITHOUT_UNITS | DRAWN):
        found = CASES.get(name) or elementwise(name)
        assert found is not None, f"no call of {name} is written here"
        yield (name, *found)


@pytest.mark.parametrize(("name", "op", "args"), [pytest.param(*call, id=call[0]) for call in calls()])
def test_units_stay_apart_where_the_rule_says_so(name: str, op: str, args: tuple[Any, ...]) -> None:
    op = op if op.startswith("torchvision") else f"aten.{op}"
    if name not in ("reshape", "_unsafe_view"):
        assert find_rule(op) is RULES[name]
    inputs, made = list(flat(args)), outputs(op, args)
    axes, results, free, mixed = inferred(op, args, inputs, made)
    for leaf in free:
        for unit in (0, leaf.size - 1):
            changed = [
                differs(a, b) for a, b in zip(made, outputs(op, changed_at(args, axes, leaf, unit)), strict=True)
            ]
            for mask, mine in zip(changed, results, strict=True):
                if leaf not in mixed:
                    assert not bool((mask & ~own(mask, mine, leaf, unit)).any()), f"{leaf} of {axes} reaches others"


def flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for item in value if isinstance(value, list | tuple) else ():
        yield from flat(item)


def outputs(op: str, args: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return list(flat(overload(op)(*args)))


def inferred(
    op: str, args: tuple[Any, ...], inputs: list[Tensor], made: list[Tensor]
) -> tuple[list[Axes], list[Axes], list[Atom], set[Atom]]:
    """Axes of arguments and results, the leaves that nothing fixes, and those that the operation adds up or counts."""
    refs = {id(t): Ref(f"x{i}") for i, t in enumerate(inputs)}
    metas = tuple(Meta(tuple(t.shape), t.dtype) for t in made)
    several = len(made) > 1 or "[]" in str(overload(op)._schema.returns[0].type)
    node = Node("y", op, tuple(referring(a, refs) for a in args), {}, metas if several else metas[0])
    given = [Node(f"x{i}", "input", (i,), out=Meta(tuple(t.shape), t.dtype)) for i, t in enumerate(inputs)]
    algebra, outside = Algebra(), {("input", i): axes_of(t) for i, t in enumerate(inputs)}
    found = infer(Program((*given, node), ("y",), {}), outside, algebra)
    stuck = {
        leaf
        for f in algebra.facts
        if f.kind in ("fixed", "weighed") and f.reason != "an output of the model"
        for leaf in f.axis.leaves()
    }
    counted = {leaf for f in algebra.facts if f.kind == "inexact" for leaf in f.axis.leaves()}
    added = {leaf for read in found.notes["y"].reads for leaf in read.over.leaves()}
    axes = [outside["input", i] for i in range(len(inputs))]
    leaves = dict.fromkeys(leaf for many in axes for axis in many for leaf in axis.leaves() if leaf.size > 1)
    inner = {leaf for axis in found.notes["y"].inner for leaf in axis.leaves()}
    return axes, list(found.axes["y"]), [leaf for leaf in leaves if leaf not in stuck], counted | added | inner


def referring(value: Any, refs: dict[int, Ref]) -> Any:
    if isinstance(value, Tensor):
        return refs[id(value)]
    return [referring(v, refs) for v in value] if isinstance(value, list | tuple) else value


def changed_at(args: tuple[Any, ...], axes: list[Axes], leaf: Atom, unit: int) -> tuple[Any, ...]:
    """The arguments with other values at all that a unit owns."""
    pending = iter(axes)

    def change(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(change(v) for v in value)
        if not isinstance(value, Tensor):
            return value
        mask, mine = torch.ones(value.shape, dtype=torch.bool), next(pending)
        mask = own(mask, mine, leaf, unit)
        if value.dtype == torch.bool:
            return value ^ mask
        return value + mask * draw(*value.shape) if value.is_floating_point() or value.is_complex() else value

    return tuple(change(a) for a in args)


def own(like: Tensor, axes: Axes, leaf: Atom, unit: int) -> Tensor:
    """Where the slices of a unit lie in a tensor."""
    mask = torch.zeros(like.shape, dtype=torch.bool)
    for dim, axis in enumerate(axes):
        rows = positions(axis).get(leaf)
        if rows is not None:
            mask.index_fill_(dim, rows[unit].flatten(), True)
    return mask


def differs(a: Tensor, b: Tensor) -> Tensor:
    return ~((a == b) | ((a != a) & (b != b)))


def test_a_rule_that_claims_too_much_is_seen() -> None:
    """The law can fail: a softmax that leaves units apart, a sum that adds nothing up."""

    def wrong(see: Any, self: Any, **_: Any) -> Axes:
        return RULES["relu"](see, self=self)

    for name in ("softmax", "flip", "cumprod"):
        rule: Callable[..., Any] = RULES[name]
        RULES[name] = wrong
        try:
            with pytest.raises(AssertionError, match="reaches others"):
                test_units_stay_apart_where_the_rule_says_so(name, *CASES[name])
        finally:
            RULES[name] = rule
