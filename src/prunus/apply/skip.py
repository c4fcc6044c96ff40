"""The reference for dropped layers: the original, in which they pass on what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from prunus.apply.compare import REFUSALS, error_between, native_bound, results
from prunus.apply.layers import first_tensor
from prunus.apply.precision import ACCEPTED, Precision
from prunus.errors import ProofError
from prunus.graph.private import private_copy
from prunus.types import Inputs


@dataclass(frozen=True, eq=False)
class Skipped:
    """What a model computes on every example when some of its layers pass their input on.

    `double`: in float64. What such a layer returns beside its first tensor stays as it was.
    """

    layers: Sequence[str]
    examples: Sequence[Inputs]
    outputs: Sequence[str] | None
    double: bool
    expected: Sequence[Sequence[Tensor]]

    @staticmethod
    def of(
        model: nn.Module, layers: Sequence[str], examples: Sequence[Inputs], outputs: Sequence[str] | None
    ) -> Skipped:
        try:
            return _skipped(model, layers, examples, outputs, double=True)
        except REFUSALS:  # the user's code makes float32 tensors itself
            return _skipped(model, layers, examples, outputs, double=False)

    def prove(self, small: nn.Module) -> None:
        """Raise `ProofError` unless the model without the layers computes this."""
        try:
            found = _computed(small, self.examples, self.outputs, self.double)
        except REFUSALS as error:
            raise ProofError(
                f"The model without these layers does not run: {type(error).__name__}: {error} {self._likely}"
            ) from error
        error = max(error_between(a, b) for a, b in zip(self.expected, found, strict=True))
        accepted = ACCEPTED if self.double else native_bound(small)
        if not error <= accepted:
            raise ProofError(
                f"The model without these layers differs by {error:.1e} (relative) from the original in which they "
                f"pass their input on; accepted is {accepted:.0e}. {self._likely}"
            )

    def holds_for(self, small: nn.Module) -> bool:
        try:
            self.prove(small)
        except ProofError:
            return False
        return True

    @property
    def _likely(self) -> str:
        return (
            f"Dropped: {', '.join(self.layers)}. Most likely the code around needs one of them: by an index, by a "
            "result that only it computes, or because it collects the results of all. Leave it in; where hidden states "
            "of every layer are returned, switch that off or name the results that count with outputs=[...]."
        )


def _skipped(
    model: nn.Module, layers: Sequence[str], examples: Sequence[Inputs], outputs: Sequence[str] | None, *, double: bool
) -> Skipped:
    mine = private_copy(model)
    for name in layers:
        _pass_on(mine.get_submodule(name))
    return Skipped(layers, examples, outputs, double, _computed(mine, examples, outputs, double))


def _computed(
    model: nn.Module, examples: Sequence[Inputs], outputs: Sequence[str] | None, double: bool
) -> list[list[Tensor]]:
    mine = private_copy(model, share=False).double() if double else model
    return [results(mine, Precision().inputs(e) if double else e, outputs) for e in examples]


def _pass_on(layer: nn.Module) -> None:
    """Let a layer return what it was given, as that was before the layer could write to it."""
    given: list[Tensor] = []

    def keep(_layer: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(cast("Tensor", first_tensor((args, kwargs))).clone())

    def put_back(_layer: nn.Module, _args: Any, _kwargs: Any, result: Any) -> Any:
        return _replaced(result, first_tensor(result), given.pop())

    layer.register_forward_pre_hook(keep, with_kwargs=True)
    layer.register_forward_hook(put_back, with_kwargs=True)


def _replaced(value: Any, old: Tensor | None, new: Tensor) -> Any:
    """A nested result with one tensor replaced."""
    if value is old:
        return new
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value)
        return type(value)(**{key: _replaced(item, old, new) for key, item in entries.items()})
    if isinstance(value, list | tuple):
        items = [_replaced(item, old, new) for item in cast("Sequence[Any]", value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
