"""How many joules does one call take? From a counter of the machine, else an estimate that says so."""

from __future__ import annotations

import math
from time import perf_counter, sleep

import torch
from torch import nn

from prunus.errors import MeasureError
from prunus.measure.ask import Ask, Cell, Figure, Figures
from prunus.measure.facts import device_of
from prunus.measure.latency import threads_set, wait
from prunus.measure.macs import counted
from prunus.measure.sensors import Sensor, sensor_of
from prunus.measure.size import weight_bytes
from prunus.measure.untouched import fresh
from prunus.types import Inputs

ROUNDS = 3
IDLE_SECONDS = 1.0
SECONDS = 2.0
"""How long a model's calls of one round take together: the counters move only every millisecond."""

PICOJOULES_A_MAC = 4.6
PICOJOULES_A_WORD = 640.0
ESTIMATE = (
    f"{PICOJOULES_A_MAC} pJ per MAC (32-bit) + {PICOJOULES_A_WORD:.0f} pJ per 32-bit DRAM access of weights, each read "
    "once a call (Horowitz 2014, ISSCC, 45 nm)"
)


def energy(ask: Ask) -> Figures:
    """Joules a call, above what the machine takes when idle: median of the rounds, the least and the most.

    A round is a pause, then many calls of each model in turn; odd rounds go backwards.
    """
    found: Figures = {}
    for cell in ask.cells:
        sensor = sensor_of(_device(ask, cell))
        figures = _estimates(ask, cell, sensor) if isinstance(sensor, str) else _metered(ask, cell, sensor)
        for subject, figure in figures.items():
            found.setdefault(("energy_j", subject), []).append(figure)
    return found


def _device(ask: Ask, cell: Cell) -> torch.device:
    devices = {subject: device_of(model, cell.example) for subject, model in ask.subjects.items()}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{subject} on {device}" for subject, device in devices.items())
        raise MeasureError(f"'energy_j' compares models on one device, whose counter it reads; here are {where}.")
    return devices["model"]


def estimated_joules(model: nn.Module, example: Inputs) -> float:
    """What the multiplications and the weights' way from memory would take in a 45 nm chip; zeros count in full.

    >>> estimated_joules(nn.Linear(4, 3, bias=False), Inputs.of(torch.ones(5, 4))) == (60 * 4.6 + 12 * 640) * 1e-12
    True

    Source: Horowitz 2014, "Computing's energy problem (and what we can do about it)", ISSCC, figure 1.1.9 (3.7 + 0.9 pJ
    for a 32-bit floating multiplication and addition; DRAM 1.3 to 2.6 nJ for 64 bits, of which half of the least).
    """
    words = weight_bytes(model) / 4
    return (PICOJOULES_A_MAC * int(counted(model, example, "energy_j")) + PICOJOULES_A_WORD * words) * 1e-12


def _estimates(ask: Ask, cell: Cell, why: str) -> dict[str, Figure]:
    method = f"estimate: {ESTIMATE}; not measured: {why}"
    return {
        subject: Figure(cell, estimated_joules(model, cell.example), estimated=True, method=method)
        for subject, model in ask.subjects.items()
    }


def _metered(ask: Ask, cell: Cell, sensor: Sensor) -> dict[str, Figure]:
    method = f"{sensor.name}, less idle"
    with threads_set(cell.threads), torch.inference_mode():
        calls = {name: ask.repeats or _calls(model, cell.example) for name, model in ask.subjects.items()}
        rounds = [_round(ask, cell, sensor, calls, index) for index in range(ROUNDS)]
    figures: dict[str, Figure] = {}
    for subject in ask.subjects:
        joules = sorted(one[subject] for one in rounds)
        median = joules[ROUNDS // 2]
        figures[subject] = Figure(cell, median, (joules[0], joules[-1]), ROUNDS * calls[subject], method=method)
    return figures


def _round(ask: Ask, cell: Cell, sensor: Sensor, calls: dict[str, int], index: int) -> dict[str, float]:
    """Joules a call of every model; they may be below zero where the work is lost in the machine's own noise."""
    start, began = sensor.read(), perf_counter()
    sleep(IDLE_SECONDS)
    idle_watts = sensor.joules(start, sensor.read()) / (perf_counter() - began)
    order = list(ask.subjects) if index % 2 == 0 else list(ask.subjects)[::-1]
    joules: dict[str, float] = {}
    for subject in order:
        start, began = sensor.read(), perf_counter()
        _run(ask.subjects[subject], cell.example, calls[subject])
        spent = sensor.joules(start, sensor.read()) - idle_watts * (perf_counter() - began)
        joules[subject] = spent / calls[subject]
        if ask.progress is not None and subject == order[-1]:
            ask.progress("energy_j", index + 1, ROUNDS)
    return joules


def _calls(model: nn.Module, example: Inputs) -> int:
    """As many as fill the time of a round, after one to warm up."""
    _run(model, example, 1)
    began = perf_counter()
    _run(model, example, 1)
    return max(1, math.ceil(SECONDS / max(perf_counter() - began, 1e-6)))


def _run(model: nn.Module, example: Inputs, calls: int) -> None:
    device = device_of(model, example)
    wait(device)
    for _ in range(calls):
        call = fresh(example)
        model(*call.args, **call.kwargs)
    wait(device)
