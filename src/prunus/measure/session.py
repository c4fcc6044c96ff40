"""Run an ONNX file: a session of ONNX Runtime on the CPU, which takes and gives tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.errors import MeasureError
from prunus.graph.nest import input_tensors
from prunus.types import Inputs

_ERRORS_ONLY = 3
"""ONNX Runtime's log level: it warns about its own choices, which nobody here can change."""


@dataclass(frozen=True, eq=False)
class Session:
    """An ONNX file, loaded. `inputs` and `outputs` are its names, in order."""

    runtime: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    refusals: tuple[type[Exception], ...]
    version: str

    def run(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The results, in the order of `outputs`. Raises MeasureError where ONNX Runtime refuses the call."""
        try:
            feeds = {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}
            return [torch.from_numpy(array) for array in self.runtime.run(None, feeds)]
        except (*self.refusals, TypeError, ValueError) as error:
            given = ", ".join(f"{name}: {tuple(t.shape)} {t.dtype}" for name, t in tensors.items())
            raise MeasureError(f"ONNX Runtime refuses the call ({given}): {_first_line(error)}") from error


def open_session(file: str | Path, *, threads: int = 1) -> Session:
    """Load an ONNX file for the CPU, to run in `threads` threads, which sleep between calls.

    Raises MeasureError where `onnxruntime` is not installed, the file is not there, or it cannot be run.
    """
    try:
        onnxruntime: Any = import_module("onnxruntime")
        state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except ImportError as error:
        raise MeasureError("This needs onnxruntime; install it with: pip install 'prunus[onnx]'.") from error
    errors = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    refusals = (*errors, RuntimeError)
    try:
        made: Any = onnxruntime.InferenceSession(
            str(file), _options(onnxruntime, threads), providers=["CPUExecutionProvider"]
        )
    except refusals as error:
        raise MeasureError(f"ONNX Runtime cannot run {Path(file).name!r}: {_first_line(error)}") from error
    inputs, outputs = (tuple(str(one.name) for one in ends) for ends in (made.get_inputs(), made.get_outputs()))
    return Session(made, inputs, outputs, refusals, str(onnxruntime.__version__))


def _options(onnxruntime: Any, threads: int) -> Any:
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take the cores from others
    return options


def named(session: Session, example: Inputs) -> dict[str, Tensor]:
    """The tensors of a call by the file's input names: keyword arguments by their own, the others in order.

    Raises MeasureError where there are more or fewer of them than the file takes.
    """
    tensors = input_tensors(example)
    known = {path: str(path[-1]) for path in tensors if path[0] == "kwargs" and path[-1] in session.inputs}
    rest = [name for name in session.inputs if name not in known.values()]
    others = [path for path in tensors if path not in known]
    if len(rest) != len(others):
        raise MeasureError(
            f"The file takes {len(session.inputs)} tensors ({', '.join(session.inputs)}), the call holds "
            f"{len(tensors)}. Call it as it was exported."
        )
    names = {**known, **dict(zip(others, rest, strict=True))}
    return {names[path]: tensor for path, tensor in tensors.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0].rstrip(".") + "."
