"""Keep torch.export, torch.onnx and onnxscript from printing what our errors explain."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr

from prunus.graph.capture import quieted

_LOUD = ("torch.", "onnxscript.", "onnx_ir.")
"""Loggers below these tell, of an error that we explain, its traceback and the captured program."""

_LATER = ("torch.onnx._internal.exporter._registration",)
"""One that is made within, and tells of every operator of torchvision where that is not installed."""


@contextmanager
def quiet() -> Generator[None]:
    """Inside, these libraries log and print nothing, and their calls to deprecated functions are not warned of.

    torch.export prints the captured program straight to the standard error when a model branches on values.
    """
    with warnings.catch_warnings(), quieted(_loud()), redirect_stderr(io.StringIO()):
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        warnings.filterwarnings("ignore", ".*_flat_weights", UserWarning)  # the list torch's own recurrent layers keep
        yield


def _loud() -> list[str]:
    return [name for name in (*logging.root.manager.loggerDict, *_LATER) if name.startswith(_LOUD)]
