"""Which tensors of a call come from the model's weights alone, whatever the inputs are?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from prunus.measure.untouched import tensors


class Kind(Enum):
    """What memory that does not depend on the inputs holds.

    WEIGHT: a parameter, or what was made of it without a product: masked, rescaled, cast, copied.
    CONSTANT: a buffer, or what the call made of nothing or of buffers.
    COMPUTED: what a product made, and what was made of that: zeros in it are those of an activation.
    """

    WEIGHT = auto()
    CONSTANT = auto()
    COMPUTED = auto()


class Constants(TorchDispatchMode):
    """Watches a call, and knows at each moment which memory depends on no input.

    The result of an operation does if none of its tensors does, for whatever else it is given. It is COMPUTED if the
    operation is a product or one of its tensors is; but for a COMPUTED single number, a norm perhaps, that only scales.
    Else it is a WEIGHT if one of them is, or a CONSTANT. What is written into with something that depends on the inputs
    depends on them too. The tensors found are held as long as the watch, so that no other takes their place in memory.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, is_product: Callable[[Any], bool]) -> None:
        super().__init__()
        self._is_product = is_product
        self._held: dict[int, tuple[Kind, Tensor]] = {}
        self._hold(Kind.CONSTANT, model.buffers())
        self._hold(Kind.WEIGHT, model.parameters())

    def is_weight(self, tensor: Tensor) -> bool:
        """Is all that the tensor shows part of a weight's memory? True for views, slices and transposes too."""
        return self._kind(tensor) is Kind.WEIGHT

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [tensor for tensor in tensors((args, kwargs or {})) if tensor.numel()]
        kind = self._made(getattr(func, "overloadpacket", func), given)
        result = func(*args, **(kwargs or {}))
        if kind is None:
            self._drop(_written(func, args, kwargs or {}))
        else:
            self._hold(kind, tensors(result))
        return result

    def _made(self, kernel: Any, given: Sequence[Tensor]) -> Kind | None:
        """What the kernel makes of these tensors; None: something that depends on the inputs."""
        kinds = [self._kind(tensor) for tensor in given]
        if None in kinds:
            return None
        spoilt = any(kind is Kind.COMPUTED and not _is_number(t) for kind, t in zip(kinds, given, strict=True))
        if spoilt or self._is_product(kernel):
            return Kind.COMPUTED
        return Kind.WEIGHT if Kind.WEIGHT in kinds else Kind.CONSTANT

    def _kind(self, tensor: Tensor) -> Kind | None:
        held = self._held.get(_memory(tensor))
        return None if held is None else held[0]

    def _hold(self, kind: Kind, found: Iterable[Tensor]) -> None:
        self._held.update({_memory(tensor): (kind, tensor) for tensor in found if _memory(tensor)})

    def _drop(self, found: Iterable[Tensor]) -> None:
        for tensor in found:
            self._held.pop(_memory(tensor), None)


def _memory(tensor: Tensor) -> int:
    """The same for two tensors that share memory; 0 for one without memory of its own, or without values."""
    if tensor.layout is not torch.strided or is_traceable_wrapper_subclass(tensor):
        return 0
    return tensor.untyped_storage().data_ptr()


def _is_number(tensor: Tensor) -> bool:
    """One number with memory of its own, and not one cut out of many."""
    return tensor.untyped_storage().nbytes() == tensor.element_size()


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation such as add_ or copy_ changes."""
    schema = getattr(func, "_schema", None)  # torch.cond and its like have none
    arguments: Sequence[Any] = () if schema is None else schema.arguments
    values = [args[i] if i < len(args) else kwargs.get(argument.name) for i, argument in enumerate(arguments)]
    changed = [argument.alias_info is not None and argument.alias_info.is_write for argument in arguments]
    return tensors([value for value, is_changed in zip(values, changed, strict=True) if is_changed])
