"""Where and with what figures were got: processor, cores, versions, day."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def machine() -> dict[str, str | int]:
    """The machine this process runs on."""
    found: dict[str, str | int] = {
        "cpu": _cpu(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Of prunus, torch and Python."""
    try:
        own = version("prunus")
    except PackageNotFoundError:
        own = "not installed, run from its source"
    return {"prunus": own, "torch": torch.__version__, "python": platform.python_version()}


def today() -> str:
    """The day in UTC, such as 2026-11-21."""
    return datetime.now(timezone.utc).date().isoformat()


def _cores() -> int:
    """Those this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    """The processor's name as the kernel tells it on Linux, else what Python knows."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
