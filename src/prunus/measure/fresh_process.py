"""The process that `memory_bytes` looks at: `python -m prunus.measure.fresh_process FOLDER THREADS` prints its peak.

Nothing imports this file: what is imported in a process is part of its floor.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from pathlib import Path

import torch

from prunus.measure.call_files import read_call

_PROC = Path("/proc/self")


def peak_of_a_call(folder: Path, threads: int) -> dict[str, int | str]:
    """Bytes resident before the model is there (`floor`), and at most until its call is over (`peak`)."""
    torch.set_num_threads(threads)
    _set_up()
    gc.collect()
    forgot = forget_peak()
    floor = status_bytes("VmRSS") if forgot else None
    floor = peak_bytes() if floor is None else floor
    model, inputs = read_call(folder)
    with torch.no_grad():
        model.run(inputs)
    return {"floor": floor, "peak": peak_bytes(), "method": _method(forgot)}


def _set_up() -> None:
    """Let torch load what it loads at the first product and the first convolution: it is no part of the model."""
    with torch.no_grad():
        torch.nn.functional.linear(torch.ones(4, 32), torch.ones(32, 32))
        torch.nn.functional.conv2d(torch.ones(1, 16, 8, 8), torch.ones(16, 16, 3, 3))
        torch.ones(1, 2, 4, 4).softmax(-1).relu_().mean()


def forget_peak(proc: Path = _PROC) -> bool:
    """Let the high-water mark begin again at what is resident now, where the kernel allows it (Linux 4.0 and later)."""
    try:
        (proc / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(proc: Path = _PROC) -> int:
    """The most that was ever resident. `ru_maxrss` only where there is no /proc: on Linux it starts at the parent's."""
    mark = status_bytes("VmHWM", proc)
    if mark is not None:
        return mark
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def status_bytes(key: str, proc: Path = _PROC) -> int | None:
    """A line such as `VmHWM:    8784 kB`; None where there is none."""
    try:
        lines = (proc / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _method(forgot: bool) -> str:
    mark = "ru_maxrss" if status_bytes("VmHWM") is None else "VmHWM"
    if forgot:
        return f"{mark} of a fresh process, set back after its imports"
    return f"{mark} of a fresh process, not set back: what the imports had given back again is missing"


if __name__ == "__main__":
    print(json.dumps(peak_of_a_call(Path(sys.argv[1]), int(sys.argv[2]))))
