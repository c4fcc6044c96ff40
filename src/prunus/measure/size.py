"""How big is a model: parameters, those that are not zero, and bytes of its state on disk."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prunus.errors import MeasureError

CHUNK = 1 << 20
GZIP = 16 + zlib.MAX_WBITS  # zlib's way of asking for the gzip format; its header then holds no name and no time


def params(model: nn.Module) -> int:
    """Count the parameters; a tied tensor counts once, and a zero counts like any other.

    >>> params(nn.Linear(4, 3))
    15
    """
    return sum(parameter.numel() for _, parameter in _distinct(model.named_parameters()))


def nonzeros(model: nn.Module) -> int:
    """Count the parameters that are not zero; a tied tensor counts once, -0.0 is zero, and NaN is not.

    Raises MeasureError for a parameter on the meta device, where tensors have no values.

    >>> linear = nn.Linear(4, 3)
    >>> linear.bias.data.zero_()
    tensor([0., 0., 0.])
    >>> nonzeros(linear)
    12
    """
    count = 0
    for name, parameter in _distinct(model.named_parameters()):
        if parameter.is_meta:
            raise MeasureError(f"'nonzeros' reads values, but {name!r} is on the meta device. Load the model first.")
        count += int(_countable(parameter.detach()).count_nonzero())
    return count


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters in memory; a tied tensor counts once, and a zero takes what any other number takes.

    >>> weight_bytes(nn.Linear(4, 3))
    60
    """
    return sum(parameter.numel() * parameter.element_size() for _, parameter in _distinct(model.named_parameters()))


def file_bytes(model: nn.Module) -> int:
    """Bytes of the model's state (parameters and persistent buffers) as a safetensors file, header included.

    The file is really written, to a temporary directory; a tied tensor is written once.

    Raises MeasureError if an entry cannot go into such a file: on the meta device, sparse, quantized or no tensor.

    >>> file_bytes(nn.Linear(4, 3)) > 4 * 15
    True
    """
    with _written(model, "bytes") as path:
        return path.stat().st_size


def compressed_bytes(model: nn.Module) -> int:
    """Bytes of the file of `file_bytes` after gzip (DEFLATE, level 6, no time stamp): what a download of it takes.

    The file is read and compressed by the MiB. The last few bytes depend on the zlib that Python was built with.

    Raises MeasureError as `file_bytes` does.

    >>> norm = nn.LayerNorm(1024)  # ones and zeros
    >>> compressed_bytes(norm) < file_bytes(norm) / 10
    True
    """
    pack = zlib.compressobj(6, zlib.DEFLATED, GZIP)
    with _written(model, "compressed_bytes") as path, path.open("rb") as file:
        return sum(len(pack.compress(chunk)) for chunk in iter(lambda: file.read(CHUNK), b"")) + len(pack.flush())


@contextmanager
def _written(model: nn.Module, metric: str) -> Generator[Path, None, None]:
    """The state as a safetensors file that is gone afterwards."""
    state = {name: _storable(name, entry, metric) for name, entry in model.state_dict(keep_vars=True).items()}
    with TemporaryDirectory(prefix="prunus-") as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: _dense(tensor) for name, tensor in _distinct(state.items())}, path)
        yield path


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


def _storable(name: str, entry: object, metric: str) -> Tensor:
    if not isinstance(entry, Tensor):
        what = f"a {type(entry).__name__}, not a tensor"
    elif entry.is_meta:
        what = "on the meta device, where tensors have no values"
    elif entry.layout is not torch.strided or entry.is_quantized:
        what = "a quantized tensor" if entry.is_quantized else f"a tensor of layout {entry.layout}"
    else:
        return entry
    raise MeasureError(
        f"{metric!r} writes the state to a safetensors file, but {name!r} is {what}. Leave {metric!r} out of metrics, "
        "or measure the model before this entry was converted."
    )


def _countable(tensor: Tensor) -> Tensor:
    """The same values in a layout and a dtype whose zeros torch can count: not sparse, no 8-bit floats."""
    plain = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return plain.float() if plain.is_floating_point() and plain.element_size() == 1 else plain


def _dense(tensor: Tensor) -> Tensor:
    """The tensor with memory of its own, as safetensors refuses a part of another's."""
    plain = tensor.detach().contiguous()
    return plain if _is_whole(plain) else plain.clone()
