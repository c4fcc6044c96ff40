"""Nothing fused: within this context every product is an operation of its own, which a dispatch mode sees."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def unfused() -> Generator[None, None, None]:
    """No fused Transformer layer and no compiled graph."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _eager(), warnings.catch_warnings():
            # what a compiled module says of the counter's hooks
            warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _eager() -> AbstractContextManager[None]:
    """Compiled code steps aside. Left alone it would too, under a counter, but for good: it would stay slow."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and asking would import it, which takes long
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
