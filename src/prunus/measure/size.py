"""How big is a model: parameters, and bytes of its state on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prunus.errors import MeasureError


def params(model: nn.Module) -> int:
    """Count the parameters; a tied tensor counts once, and a zero counts like any other.

    >>> params(nn.Linear(4, 3))
    15
    """
    return sum(parameter.numel() for _, parameter in _distinct(model.named_parameters()))


def file_bytes(model: nn.Module) -> int:
    """Bytes of the model's state (parameters and persistent buffers) as a safetensors file, header included.

    The file is really written, to a temporary directory; a tied tensor is written once.

    Raises MeasureError if an entry cannot go into such a file: on the meta device, sparse, quantized or no tensor.

    >>> file_bytes(nn.Linear(4, 3)) > 4 * 15
    True
    """
    state = {name: _storable(name, entry) for name, entry in model.state_dict(keep_vars=True).items()}
    with TemporaryDirectory(prefix="prunus-") as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: _dense(tensor) for name, tensor in _distinct(state.items())}, path)
        return path.stat().st_size


def _distinct(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The tensors without their repetitions, however named or transposed."""
    first: dict[object, tuple[str, Tensor]] = {}
    for name, tensor in named:
        first.setdefault(_elements(tensor), (name, tensor))
    return list(first.values())


def _elements(tensor: Tensor) -> object:
    """Equal for two tensors if and only if they are the same elements of the same memory."""
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.data_ptr():
        return id(tensor)
    view = None if _is_whole(tensor) else (tensor.shape, tensor.stride())
    return tensor.data_ptr(), tensor.dtype, view


def _is_whole(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _storable(name: str, entry: object) -> Tensor:
    if not isinstance(entry, Tensor):
        what = f"a {type(entry).__name__}, not a tensor"
    elif entry.is_meta:
        what = "on the meta device, where tensors have no values"
    elif entry.layout is not torch.strided or entry.is_quantized:
        what = "a quantized tensor" if entry.is_quantized else f"a tensor of layout {entry.layout}"
    else:
        return entry
    raise MeasureError(
        f"'bytes' writes the state to a safetensors file, but {name!r} is {what}. Leave 'bytes' out of metrics, or "
        "measure the model before this entry was converted."
    )


def _dense(tensor: Tensor) -> Tensor:
    """The tensor with memory of its own, as safetensors refuses a part of another's."""
    plain = tensor.detach().contiguous()
    return plain if _is_whole(plain) else plain.clone()
