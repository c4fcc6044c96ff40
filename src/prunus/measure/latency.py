"""How long does one call take? Two models are timed call by call in turn, so that drift hits both alike."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

import torch
from torch import nn

from prunus.errors import MeasureError
from prunus.measure.facts import device_of
from prunus.measure.untouched import fresh
from prunus.types import Inputs, Progress

WARM_UP = 6  # even, so that the first round that counts comes after one that went backwards
ROUNDS_AT_LEAST = 30
ROUNDS_AT_MOST = 10_000
SECONDS = 3.0
SAMPLES = 300
"""Single timings that a Measurement holds at most."""


def latencies_ms(
    models: Sequence[nn.Module],
    example: Inputs,
    *,
    threads: int | None = None,
    repeats: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[float], ...]:
    """Time `repeats` calls of every model, in milliseconds: one list a model, in the order of the calls.

    A round calls each model once, on a fresh copy of the inputs; odd rounds go backwards (a b, b a, a b, ...), so that
    neither always follows the other. Some rounds of warm-up come first. By default there are as many rounds as fill
    about 3 s, but at least 30. Autograd is off (`torch.inference_mode`), an accelerator is waited for, `threads` is set
    for the time being. Making the copies and waiting for earlier work are not timed.

    Raises MeasureError for a model on the meta device.

    >>> (times,) = latencies_ms([nn.Linear(4, 2)], Inputs.of(torch.ones(3, 4)), repeats=3)
    >>> len(times), min(times) > 0
    (3, True)
    """
    timed = [_Timed(model, _timeable(device_of(model, example)), example) for model in models]
    with threads_set(threads):
        with torch.no_grad():
            for one in timed:  # what a model caches in its first call must not be an inference tensor
                one.call_ms()
        with torch.inference_mode():
            fastest_ms = min(sum(_round(timed, i)) for i in range(WARM_UP))
            rounds = repeats or _rounds(fastest_ms)
            times = [_told(_round(timed, i), i + 1, rounds, progress) for i in range(rounds)]
    return tuple(list(column) for column in zip(*times, strict=True))


def kept(times: Sequence[float], most: int = SAMPLES) -> tuple[float, ...]:
    """At most `most` of the timings, spread evenly, in order; the same rounds of every list of that length.

    Rounds are kept in pairs of one forward and one backward, so that no model is the first in more of them.

    >>> kept([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], most=4)
    (0.0, 1.0, 4.0, 5.0)
    """
    if len(times) <= most:
        return tuple(times)
    pairs, wanted = len(times) // 2, most // 2
    starts = [2 * (i * pairs // wanted) for i in range(wanted)]
    return tuple(times[start + step] for start in starts for step in (0, 1))


@dataclass(frozen=True, eq=False)
class _Timed:
    model: nn.Module
    device: torch.device
    example: Inputs

    def call_ms(self) -> float:
        call = fresh(self.example)
        wait(self.device)
        start = perf_counter_ns()
        output = self.model(*call.args, **call.kwargs)
        wait(self.device)
        end = perf_counter_ns()
        del output  # held until here, so that freeing it is not timed
        return (end - start) / 1e6


def _rounds(round_ms: float) -> int:
    filling = round(SECONDS * 1000 / max(round_ms, 1e-6))
    return min(max(filling, ROUNDS_AT_LEAST), ROUNDS_AT_MOST)


def _round(timed: Sequence[_Timed], index: int) -> list[float]:
    """One time a model, in the order of `timed`, whichever went first."""
    if index % 2 == 0:
        return [one.call_ms() for one in timed]
    return [one.call_ms() for one in reversed(timed)][::-1]


def _timeable(device: torch.device) -> torch.device:
    if device.type == "meta":
        raise MeasureError("'latency_ms' needs a model that computes; this one is on the meta device. Load it first.")
    return device


def wait(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _told(times: list[float], done: int, total: int, progress: Progress | None) -> list[float]:
    """Tell about every twentieth of the work, as a terminal that is written to between calls disturbs them."""
    if progress is not None and done * 20 // total > (done - 1) * 20 // total:
        progress("latency_ms", done, total)
    return times


@contextmanager
def threads_set(count: int | None) -> Generator[None, None, None]:
    """torch's thread count inside; as before afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
