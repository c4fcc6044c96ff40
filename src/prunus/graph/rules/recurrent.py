"""Recurrent layers and cells: rows of a weight are (gate, hidden), and every gate has the same hidden units.

All layers and directions of one call are equally wide, for one tensor holds their states. They may lose different
units where that tensor is zeros and nobody reads how it ends; else they index alike. Packed sequences are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunus.graph.axes import Axes, Axis, concat, fresh, like, product
from prunus.graph.node import Node
from prunus.graph.see import Place, See, Value

_APART = "torch tells a projected LSTM by a hidden_size that is not its proj_size"
_STEPS = "the steps of a sequence"
_STACK = "the layers and directions of a recurrent network"


@dataclass(frozen=True, eq=False)
class _Layer:
    """One direction of one layer: its memory (c of an LSTM), and what it hands on: the same, or a projection of it."""

    hidden: Axis
    out: Axis


def layers(gates: int) -> Callable[..., tuple[Axes, ...] | None]:
    """x: (n, t, in) or (t, n, in), h and c: (layers·directions, n, hidden) -> y: (n, t, directions·hidden), h (and c).

    `params` holds for every layer and direction w_ih (gates·hidden, in), w_hh (gates·hidden, out), their biases if
    any, and the projection w_hr (out, hidden) if any.
    """

    def rule(
        see: See,
        hx: Value | list[Value],
        params: list[Value],
        num_layers: int,
        bidirectional: bool,
        input: Value | None = None,
        batch_first: bool = False,
        **_: object,
    ) -> tuple[Axes, ...] | None:
        if input is None:  # of packed sequences
            return None
        batch, steps = input.axes[:2] if batch_first else reversed(input.axes[:2])
        see.fix(steps, _STEPS)
        states = hx if isinstance(hx, list) else [hx]
        directions, made = 2 if bidirectional else 1, list[_Layer]()
        each = len(params) // (num_layers * directions)
        above = input.axes[-1]
        see.read(input, -1)
        for start in range(0, len(params), each * directions):
            pair = [params[start + each * d : start + each * (d + 1)] for d in range(directions)]
            made += [_layer(see, gates, above, weights) for weights in pair]
            above = concat([layer.out for layer in made[-directions:]])
        ends = [[layer.out for layer in made], [layer.hidden for layer in made]][: len(states)]
        last = [
            _stacked(see, batch, state, n, axes) for n, (state, axes) in enumerate(zip(states, ends, strict=True), 1)
        ]
        _count(see, (batch, steps), params)
        return ((*map(like, input.axes[:2]), like(above)), *last)

    return rule


def _layer(see: See, gates: int, above: Axis, weights: Sequence[Value]) -> _Layer:
    """One direction of one layer, of which `above` is read."""
    inner, outer, *rest = weights
    hidden = fresh(inner.shape[0] // gates)
    rows = product([see.fixed(gates, "the gates of a recurrent layer"), hidden])
    for value in (inner, outer, *(v for v in rest if v.ndim == 1)):
        see.unify(value.axes[0], rows)
    see.unify(inner.axes[1], above)
    see.read(inner, 1)
    out = hidden
    for projection in (v for v in rest if v.ndim == 2):
        see.unify(projection.axes[1], hidden)
        see.read(projection, 1)
        out = projection.axes[0]
        see.note.apart.append((hidden, out, _APART))
    see.unify(outer.axes[1], out)
    see.read(outer, 1)
    see.note.inner += [hidden, out]
    return _Layer(hidden, out)


def _stacked(see: See, batch: Axis, state: Value, result: int, axes: Sequence[Axis]) -> Axes:
    """The state of all layers, (layers·directions, n, hidden), as it is after the last step."""
    see.unify(state.axes[1], batch)
    see.unify(state.axes[2], axes[0])
    if len(axes) > 1:
        see.fix(state.axes[0], _STACK)
    if state.blank and result not in see.used:
        see.together([*axes])
    else:
        for other in axes[1:]:
            see.unify(axes[0], other)
    return see.fixed(len(axes), _STACK), like(batch), like(axes[0])


def cell(gates: int) -> Callable[..., Axes | tuple[Axes, ...]]:
    """One step; x: (n, in), h and c: (n, hidden) -> h (and c)."""

    def rule(
        see: See,
        input: Value,
        hx: Value | list[Value],
        w_ih: Value,
        w_hh: Value,
        b_ih: Value | None,
        b_hh: Value | None,
    ) -> Axes | tuple[Axes, ...]:
        weights = [value for value in (w_ih, w_hh, b_ih, b_hh) if value is not None]
        see.read(input, -1)
        layer = _layer(see, gates, input.axes[-1], weights)
        states = hx if isinstance(hx, list) else [hx]
        for state in states:
            see.unify(state.axes[0], input.axes[0])
            see.unify(state.axes[1], layer.hidden)
        _count(see, input.axes[:1], weights)
        made = tuple((like(input.axes[0]), like(layer.hidden)) for _ in states)
        return made if isinstance(hx, list) else made[0]

    return rule


def _count(see: See, times: Sequence[Axis], weights: Sequence[Value]) -> None:
    """Every element of every weight is multiplied once a step and sample."""
    see.macs(*times, concat([product(value.axes) for value in weights if value.ndim == 2]))
    see.note.each = tuple(times)


def first_weights(node: Node) -> list[Place]:
    """The weights that a node multiplies its input by; all others multiply states."""
    bound = node.bound()
    if "params" not in bound:
        return [Place("w_ih")]
    directions = 2 if bound["bidirectional"] else 1
    each = len(bound["params"]) // (bound["num_layers"] * directions)
    return [Place("params", each * d) for d in range(directions)]


_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
RULES = {
    **{name: layers(gates) for name, gates in _GATES.items()},
    **{f"{name}_cell": cell(gates) for name, gates in _GATES.items()},
}
