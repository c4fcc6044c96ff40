"""Batches, threads and the null subject: who is called when, with what, and which timings are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import MeasureError
from prunus.measure import latency, measure
from prunus.measure.batch import with_batch
from prunus.measure.latency import SAMPLES, kept
from prunus.result import _change, shown
from prunus.types import Inputs, Measurement

x = torch.arange(12.0).reshape(3, 4)


class Recorder(nn.Module):
    """Writes its name, and what it is called with, into a shared list."""

    def __init__(self, name: str, seen: list[Any], see: Callable[[Tensor], Any] = lambda value: None) -> None:
        super().__init__()
        self.name, self.seen, self.see = name, seen, see

    def forward(self, value: Tensor) -> Tensor:
        self.seen.append((self.name, self.see(value)))
        return value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [0]
    monkeypatch.setattr(latency, "perf_counter_ns", lambda: now[0])
    return now


def taking(clock: list[int], *milliseconds: int) -> Recorder:
    """A model whose calls take these times in turn."""
    seen: list[Any] = []

    def pass_time(value: Tensor) -> None:
        clock[0] += milliseconds[len(seen) % len(milliseconds)] * 1_000_000

    return Recorder("", seen, pass_time)


# Batches


def test_each_batch_reaches_the_model_and_has_its_figure() -> None:
    seen: list[Any] = []
    figures = measure(Recorder("", seen, len), x, ("latency_ms", "throughput"), batch=(1, 3, 8), repeats=2)
    assert [(m.metric, m.batch) for m in figures] == [(n, b) for n in ("latency_ms", "throughput") for b in (1, 3, 8)]
    sizes = [size for _, size in seen]
    assert sizes == sorted(sizes)
    assert set(sizes) == {1, 3, 8}


def test_rows_are_repeated_or_cut_in_every_tensor_and_only_there() -> None:
    class Pair(NamedTuple):
        left: Tensor
        right: list[Tensor]

    call = Inputs((Pair(x, [x[:, 0]]), 7), {"mode": "a", "mask": x > 3})
    larger, smaller = with_batch(call, 7), with_batch(call, 2)
    assert torch.equal(larger.args[0].left, torch.cat([x, x, x[:1]]))
    assert torch.equal(larger.args[0].right[0], torch.cat([x, x, x[:1]])[:, 0])
    assert torch.equal(smaller.kwargs["mask"], x[:2] > 3)
    assert (larger.args[1], larger.kwargs["mode"]) == (7, "a")


def test_batch_and_threads_leave_the_counts_alone() -> None:
    figures = measure(nn.Linear(4, 2), x, ("macs", "params", "latency_ms"), batch=(1, 6), threads=(1, 2), repeats=1)
    assert [(m.metric, m.batch, m.threads) for m in figures] == [
        ("macs", 3, None),
        ("params", 3, None),
        *[("latency_ms", batch, threads) for batch in (1, 6) for threads in (1, 2)],
    ]
    assert figures[0].value == 3 * 4 * 2


def test_the_example_itself_is_the_default_and_is_left_alone() -> None:
    given = x.clone()
    seen: list[Any] = []
    measure(Recorder("", seen, len), given, "latency_ms", repeats=1)
    measure(nn.ReLU(inplace=True), given - 5, "latency_ms", batch=2, repeats=1)
    assert {size for _, size in seen} == {3}
    assert torch.equal(given, x)


# Threads


def test_each_number_of_threads_is_set_and_put_back() -> None:
    seen: list[Any] = []
    before = torch.get_num_threads()
    model = Recorder("", seen, lambda value: torch.get_num_threads())
    figures = measure(model, x, "latency_ms", threads=[before + 1, before + 2, before + 1], repeats=2)
    assert [m.threads for m in figures] == [before + 1, before + 2]
    assert list(dict.fromkeys(threads for _, threads in seen)) == [before + 1, before + 2]
    assert torch.get_num_threads() == before


# Null


def test_null_is_the_other_model_timed_twice() -> None:
    seen: list[Any] = []
    first, second = Recorder("a", seen), Recorder("b", seen)
    figures = measure(first, x, ("params", "latency_ms"), against=second, null=True, repeats=4)
    assert "".join(name for name, _ in seen).endswith("abba" * 4)
    assert [(m.subject, m.metric) for m in figures] == [
        ("model", "params"),
        ("model", "latency_ms"),
        ("against", "params"),
        ("against", "latency_ms"),
        ("null", "latency_ms"),
    ]


@pytest.mark.parametrize("null", [False, True])
def test_all_follow_themselves_equally_often(clock: list[int], null: bool) -> None:
    """A model that is faster right after itself: no subject may gain more from that than another."""
    seen: list[Any] = []

    def named(name: str) -> Recorder:
        def pass_time(value: Tensor) -> None:
            clock[0] += (1 if seen and seen[-1][0] == name else 3) * 1_000_000

        return Recorder(name, seen, pass_time)

    figures = measure(named("a"), x, "latency_ms", against=named("b"), null=null, repeats=6)
    assert all(sorted(m.samples) == [1.0] * 3 + [3.0] * 3 for m in figures)


# Samples


def test_samples_are_the_timings_in_order(clock: list[int]) -> None:
    (figure,) = measure(taking(clock, 5, 1, 3), x, "latency_ms", repeats=4)
    assert len(figure.samples) == 4
    assert set(figure.samples) == {1.0, 3.0, 5.0}
    assert "samples" not in repr(figure)


@pytest.mark.parametrize("count", [1, 299, 300, 301, 303, 600, 899, 3000, 10_000])
def test_at_most_300_are_kept_half_of_them_of_rounds_that_went_backwards(count: int) -> None:
    rounds = kept([float(i) for i in range(count)])
    assert len(rounds) == min(count, SAMPLES)
    assert list(rounds) == sorted(set(rounds))
    if count >= SAMPLES:
        assert sum(i % 2 for i in rounds) == SAMPLES // 2
        assert rounds[-1] > 0.97 * count


def test_a_figure_goes_through_json() -> None:
    figures = measure(nn.Linear(4, 2), x, ("latency_ms", "params", "energy_j"), repeats=7)
    assert tuple(Measurement.of(json.loads(json.dumps(asdict(m)))) for m in figures) == figures


# Throughput


def test_throughput_is_of_the_same_timings(clock: list[int]) -> None:
    seen_by = taking(clock, 2, 4, 8, 4)
    figures = {m.metric: m for m in measure(seen_by, x, ("throughput", "latency_ms"), repeats=4)}
    calls = len(seen_by.seen)
    fast, slow = figures["latency_ms"].spread or (0, 0)
    assert figures["latency_ms"].value == 4
    assert figures["throughput"].value == 3 / 0.004
    assert figures["throughput"].spread == pytest.approx((3000 / slow, 3000 / fast))
    assert (figures["throughput"].unit, figures["throughput"].repeats) == ("samples/s", 4)
    measure(seen_by, x, "latency_ms", repeats=4)
    assert len(seen_by.seen) == 2 * calls  # asking for both made no more calls


# Printing


def figure(value: float, samples: tuple[float, ...] = (), metric: str = "latency_ms", unit: str = "ms") -> Measurement:
    return Measurement(metric, value, unit, samples=samples)


def test_the_change_of_a_latency_is_shown_with_its_interval() -> None:
    old, new = tuple(2 + i / 100 for i in range(9)), tuple(1 + i / 200 for i in range(9))
    assert _change(figure(2.04, old), figure(1.02, new)) == "0.500x [0.500, 0.500]"
    assert _change(figure(2.0, old), figure(1.0, new[:-1])) == "0.500x"
    assert _change(figure(2.0, old[:5]), figure(1.0, new[:5])) == "0.500x"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            Measurement("memory_bytes", 72_380_416, "bytes", (72_000_000, 73_000_000)),
            "72,380,416 bytes [72,000,000, 73,",
        ),
        (Measurement("throughput", 2276.04, "samples/s", (1956.0, 2577.1)), "2,276.0 samples/s [1,956.0, 2,577.1]"),
        (Measurement("energy_j", 0.0026345, "J", estimated=True), "0.00263 J (estimate)"),
    ],
    ids=lambda value: value.metric if isinstance(value, Measurement) else "",
)
def test_large_and_small_figures_can_be_read(given: Measurement, text: str) -> None:
    assert shown(given).startswith(text)


# Errors


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        pytest.param((x, x[:2]), {"batch": 8}, r"batch=8 needs inputs .*these are \(3, 4\), \(2, 4\)", id="unequal"),
        pytest.param((x, torch.ones(())), {"batch": 8}, r"these are \(3, 4\), \(\)", id="scalar"),
        pytest.param((7,), {"batch": 8}, "these are no tensors", id="no-tensor"),
        pytest.param(x[:0], {"batch": 8}, r"these are \(0, 4\)", id="empty"),
        pytest.param(x, {"batch": (4, 0)}, r"batch=\(4, 0\) is too few", id="batch"),
        pytest.param(x, {"batch": ()}, r"batch=\(\) is too few", id="no-batch"),
        pytest.param(x, {"threads": (1, -1)}, r"threads=\(1, -1\) is too few", id="threads"),
        pytest.param(x, {"null": True}, "but there is none; pass against=", id="null"),
        pytest.param(torch.ones(()), {}, "'throughput' counts samples, but no tensor", id="throughput"),
    ],
)
def test_what_cannot_be_timed_is_refused(inputs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        measure(nn.Identity(), inputs, ("latency_ms", "throughput"), repeats=1, **options)
