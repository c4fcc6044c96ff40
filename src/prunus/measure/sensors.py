"""Energy counters of the machine: RAPL of the processor, NVML of an NVIDIA GPU, where they can be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
_DOMAINS = re.compile(r"package-\d+|dram")
"""Summed up. `core` and `uncore` are part of a package, and `psys` holds the packages."""


@dataclass(frozen=True, eq=False)
class Sensor:
    """Counters that rise: `read` gives microjoules, one a counter, which begins again at 0 at its entry in `wraps`."""

    name: str
    read: Callable[[], tuple[int, ...]]
    wraps: tuple[int, ...]

    def joules(self, start: Sequence[int], end: Sequence[int]) -> float:
        """What was spent between two readings, less than one full turn of a counter apart.

        >>> Sensor("two", lambda: (0, 0), (1_000_000, 1_000_000)).joules((900_000, 0), (100_000, 300_000))
        0.5
        """
        turned = zip(start, end, self.wraps, strict=True)
        return sum(b - a if b >= a else b - a + wrap for a, b, wrap in turned) / 1e6


def sensor_of(device: torch.device) -> Sensor | str:
    """The counter that a device's work shows in, or why there is none."""
    if device.type == "cuda":
        return nvml(device)
    return rapl() if device.type == "cpu" else f"no counter for {device.type}"


def rapl(folder: Path | None = None) -> Sensor | str:
    """All processor packages, and their memory where it has a counter (Running Average Power Limit, Linux powercap).

    Source: Linux, Documentation/power/powercap/powercap.rst; zone names from drivers/powercap/intel_rapl_common.c.
    """
    folder = POWERCAP if folder is None else folder
    try:
        zones = {zone: (zone / "name").read_text().strip() for zone in sorted(folder.glob("intel-rapl:*"))}
        named = {zone: name for zone, name in zones.items() if _DOMAINS.fullmatch(name)}
        wraps = tuple(int((zone / "max_energy_range_uj").read_text()) for zone in named)
        sensor = Sensor(f"RAPL {' + '.join(named.values())}", lambda: _microjoules(list(named)), wraps)
        sensor.read()
    except PermissionError:
        return f"RAPL may not be read here; as root: chmod a+r {folder}/intel-rapl:*/energy_uj"
    except (OSError, ValueError) as error:
        return f"RAPL cannot be read: {error}"
    return sensor if named else "no RAPL on this machine"


def _microjoules(zones: Sequence[Path]) -> tuple[int, ...]:
    return tuple(int((zone / "energy_uj").read_text()) for zone in zones)


def nvml(device: torch.device) -> Sensor | str:
    """The whole GPU, through nvidia-ml-py (`pynvml`), which counts since the driver was loaded."""
    try:
        library: Any = import_module("pynvml")
    except ImportError:
        return "no NVML; pip install 'prunus[energy]'"
    try:
        library.nvmlInit()
        handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        name = str(library.nvmlDeviceGetName(handle))
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError as error:
        return f"NVML cannot be read: {error}"
    return Sensor(
        f"NVML {name}", lambda: (int(library.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1000,), (1 << 64,)
    )
