"""`export`: capture, translate, write, check in the other runtime, and only then put the file in its place."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunus.errors import ExportError, MeasureError
from prunus.export.batch import free_sizes, with_batch
from prunus.export.capture import FIXED, brief, capture
from prunus.export.check import Agreement, agreement
from prunus.export.convert import check_size, convert, sizes, tidy
from prunus.export.exported import Exported
from prunus.export.prepare import Subject, prepare
from prunus.measure.session import open_session
from prunus.measure.untouched import same_random

if TYPE_CHECKING:
    from onnx import ModelProto

FORMATS = ("onnx",)
OPSET = 20
"""The default opset: GELU is one operation from here on, and ONNX Runtime reads it since 1.17 (2024)."""
OLDEST_OPSET = 18
"""torch.onnx translates to this one or later."""


def export(
    model: nn.Module,
    inputs: Any,
    path: str | PathLike[str],
    *,
    to: str = "onnx",
    opset: int = OPSET,
    dynamic_batch: bool = True,
) -> Exported:
    """Write `model`, in eval mode, as one ONNX file, weights inside; returns what the file holds.

    `inputs` is an example call: a tensor, a tuple (arguments), a dict (keyword arguments), `Inputs`, or a list of these
    (several examples of one kind). Inputs of the file are named as the arguments of `forward`; outputs by the keys of a
    mapping result, others `output`, `output_1`, ... Values that are no tensors are fixed to those of the example.

    The batch, dim 0 of every input that shares it with the first, is free in the file, and so is every size in which
    the examples differ; the others are fixed. `dynamic_batch=False` fixes all to those of the first example.

    Before the file is put in its place it is checked (`onnx.checker`), loaded in ONNX Runtime on the CPU, and compared
    with PyTorch: on the examples, on redrawn inputs of the same kind, and at two other batch sizes. Zeros stay zeros
    and count in the result, but no runtime known to us runs faster for them. The model, torch's random state and,
    where anything fails, a file that is already there, stay as they are.

    Raises ExportError for an unknown format or opset, a path that cannot be written, a missing extra, a model that
    cannot be captured, translated or run in ONNX Runtime (as bfloat16 cannot), a file beyond protobuf's 2 GiB, and a
    file that computes something else.

    >>> export(nn.Linear(4, 2), torch.ones(3, 4), "net.onnx", to="onx")
    Traceback (most recent call last):
        ...
    prunus.errors.ExportError: Unknown format to='onx'; expected 'onnx'. Did you mean 'onnx'?
    """
    _check_options(to, opset)
    with _room_beside(Path(path)) as part, same_random(model), torch.no_grad():
        subject = prepare(model, inputs, dynamic_batch)
        proto = _translate(subject, opset)
        _write(proto, part)
        agreed, runtime = _check(subject, proto, part)
        part.replace(path)
    return _exported(Path(path), subject, proto, agreed, runtime)


def _check_options(to: str, opset: int) -> None:
    if to not in FORMATS:
        near = get_close_matches(to, FORMATS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ExportError(f"Unknown format to={to!r}; expected {', '.join(map(repr, FORMATS))}.{hint}")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _need(package)
    from onnx.defs import onnx_opset_version

    newest = onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ExportError(
            f"opset={opset} cannot be written; expected {OLDEST_OPSET} (the oldest that torch.onnx translates to) to "
            f"{newest} (the newest that the installed onnx knows)."
        )


def _need(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ExportError(f"to='onnx' needs {package}; install it with: pip install 'prunus[onnx]'.") from error


@contextmanager
def _room_beside(path: Path) -> Generator[Path]:
    """A file to write to in the same directory, gone afterwards unless it was moved."""
    if path.is_dir():
        raise ExportError(f"{str(path)!r} is a directory; expected the name of a file, such as 'net.onnx' in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-")
    except OSError as error:
        raise ExportError(f"{str(path)!r} cannot be written: {brief(error)} Choose another place.") from error
    with folder:
        yield Path(folder.name) / path.name


def _translate(subject: Subject, opset: int) -> ModelProto:
    call, places = subject.calls[0], subject.places
    if places and len(call[places[0]]) == 1:  # torch.export takes a size of one as fixed
        call = with_batch(call, places, 2)
    free = free_sizes(subject.calls) if subject.dynamic else [set[int]() for _ in call]
    proto = convert(capture(subject.flats[0], call, free), subject.inputs, subject.outputs, opset)
    batched = [subject.inputs[i] for i in places]
    tidy(proto, batched)
    if batched and not isinstance(sizes(proto.graph.input)[batched[0]][0], str):
        raise ExportError(
            f"{type(subject.flats[0].model).__name__} cannot be exported with a dynamic batch: it computes with the "
            f"example's {len(call[places[0]])} as a fixed number. {FIXED} compute sizes from x.shape."
        )
    return proto


def _write(proto: ModelProto, part: Path) -> None:
    import onnx

    check_size(proto.ByteSize())
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"torch.onnx wrote an invalid file: {brief(error)} Try another opset=.") from error
    try:
        part.write_bytes(proto.SerializeToString())
    except OSError as error:
        raise ExportError(f"{part.name!r} cannot be written: {brief(error)} Choose another place.") from error


def _check(subject: Subject, proto: ModelProto, part: Path) -> tuple[Agreement, str]:
    shapes = sizes(proto.graph.input)
    free = [i for i in subject.places if isinstance(shapes[subject.inputs[i]][0], str)]
    try:
        session = open_session(part)
    except MeasureError as error:
        raise ExportError(f"{error} Try another opset=, or export model.float().") from error
    return agreement(session, subject.flats, subject.calls, free), f"ONNX Runtime {session.version}"


def _exported(path: Path, subject: Subject, proto: ModelProto, agreed: Agreement, runtime: str) -> Exported:
    from onnx.numpy_helper import to_array

    arrays = {t.name: to_array(t) for t in proto.graph.initializer}
    weights = {name: array for name, array in arrays.items() if array.dtype.kind == "f" and array.ndim}
    return Exported(
        path=path,
        opset=next(entry.version for entry in proto.opset_import if not entry.domain),
        bytes=path.stat().st_size,
        weights=sum(array.size for array in weights.values()),
        zeros=sum(int((array == 0).sum()) for array in weights.values()),
        worst_error=agreed.worst_error,
        compared=agreed.compared,
        batches=agreed.batches,
        blind=agreed.blind,
        runtime=runtime,
        inputs=sizes(proto.graph.input),
        outputs=sizes(proto.graph.output),
        shapes={name: array.shape for name, array in weights.items()},
        left_out=tuple(subject.left_out),
    )
