"""How much memory does one call take? Looked at in a fresh process, with what Python and torch take kept apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from prunus.errors import MeasureError
from prunus.measure.ask import Ask, Cell, Figure, Figures
from prunus.measure.call_files import write_call
from prunus.measure.facts import device_of
from prunus.measure.untouched import fresh, tensors
from prunus.types import Inputs

PROCESSES = 3
_PACKAGES = Path(__file__).parents[2]


def memory(ask: Ask) -> Figures:
    """The peak of a call less its floor, and the floor: the median of three processes, the least and the most.

    A model on a CUDA device is run here, once: what torch allocated there is counted exactly.
    """
    metric = "memory_bytes" if "memory_bytes" in ask.names else "memory_floor_bytes"
    found: Figures = {}
    for cell in ask.cells:
        for done, (subject, model) in enumerate(ask.subjects.items(), 1):
            runs = _runs(model, cell, metric)
            nets = [run["peak"] - run["floor"] for run in runs]
            found.setdefault(("memory_bytes", subject), []).append(_figure(cell, nets, runs[0]["method"]))
            floors = [run["floor"] for run in runs]
            found.setdefault(("memory_floor_bytes", subject), []).append(_figure(cell, floors, runs[0]["method"]))
            if ask.progress is not None:
                ask.progress(metric, done, len(ask.subjects))
    return found


def _figure(cell: Cell, values: list[int], method: str) -> Figure:
    ordered = sorted(values)
    spread = (ordered[0], ordered[-1]) if len(ordered) > 1 else None
    return Figure(cell, ordered[len(ordered) // 2], spread, len(ordered), method=method)


def _runs(model: nn.Module, cell: Cell, metric: str) -> list[dict[str, Any]]:
    device = device_of(model, cell.example)
    if device.type == "cuda":
        return [_on_cuda(model, cell.example, device)]
    if device.type != "cpu":
        raise MeasureError(f"{metric!r} knows the CPU and CUDA devices; this model is on {device}. Move it first.")
    with TemporaryDirectory(prefix="prunus-") as folder:
        write_call(Path(folder), model, cell.example, metric)
        return [_fresh_process(folder, cell.threads or 1, metric) for _ in range(PROCESSES)]


def _fresh_process(folder: str, threads: int, metric: str) -> dict[str, Any]:
    given = [str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    done = subprocess.run(
        [sys.executable, "-m", "prunus.measure.fresh_process", folder, str(threads)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_PACKAGES), *given]), "OMP_NUM_THREADS": str(threads)},
        cwd=folder,  # as Python would import what lies in the user's
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise MeasureError(
            f"{metric!r} runs the model in a process of its own, which ended with {done.returncode}: {said} (-9 often "
            f"means that the memory was not enough.) Leave {metric!r} out of metrics."
        )
    return json.loads(done.stdout.splitlines()[-1])


def _on_cuda(model: nn.Module, example: Inputs, device: torch.device) -> dict[str, Any]:
    """The model's own tensors and all that its call allocates; the floor is what else is there, other models say."""
    call = fresh(example)
    floor = torch.cuda.memory_allocated(device) - _own_bytes(model, call, device)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.no_grad():
        model(*call.args, **call.kwargs)
    torch.cuda.synchronize(device)
    return {"floor": floor, "peak": torch.cuda.max_memory_allocated(device), "method": "torch.cuda, this process"}


def _own_bytes(model: nn.Module, call: Inputs, device: torch.device) -> int:
    own = [*model.parameters(), *model.buffers(), *tensors((call.args, dict(call.kwargs)))]
    storages = [t.untyped_storage() for t in own if t.device == device]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
