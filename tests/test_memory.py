"""Peak memory in a process of its own: known nets within their bands, what is refused, and how peaks are read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import MeasureError
from prunus.measure import measure, memory
from prunus.measure.call_files import read_call, write_call
from prunus.measure.fresh_process import forget_peak, peak_bytes, status_bytes
from prunus.types import Inputs

MB = 1_000_000


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process instead of three, as each takes seconds to import torch."""
    monkeypatch.setattr(memory, "PROCESSES", 1)


# Files of one call


class Odd(nn.Module):
    """Tied weights, a plain tensor, a buffer that is not saved, weights in channels-last order, nested inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        self.plain = torch.randn(4)
        self.register_buffer("scratch", torch.randn(4), persistent=False)
        self.drop = nn.Dropout()

    def forward(self, image: Tensor, extra: dict[str, list[Tensor]], scale: float = 1.0) -> dict[str, Tensor]:
        means = self.conv(image).mean((2, 3))
        added = extra["more"][0] + self.plain + self.scratch + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return {"out": self.drop(self.two(self.one(means).relu()) * scale + added)}


def test_a_call_read_back_computes_the_same(tmp_path: Path) -> None:
    model = Odd().eval()
    image, more = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last), torch.randn(2, 4)
    example = Inputs((image, {"more": [more]}), {"scale": 3.0})
    write_call(tmp_path, model, example, "memory_bytes")
    graph, tensors = read_call(tmp_path)
    with torch.no_grad():
        assert torch.equal(graph.run(tensors)["out"], model(*example.args, **example.kwargs)["out"])
    assert graph.tensor("conv.weight").is_contiguous(memory_format=torch.channels_last)
    assert graph.two.weight is graph.one.weight
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_the_model_is_left_alone(once: None) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    model.plain = torch.ones(2)
    state = {name: (id(t), t.tolist()) for name, t in model.state_dict(keep_vars=True).items()}
    inputs, random = torch.randn(3, 4), torch.get_rng_state()
    measure(model, inputs, "memory_bytes")
    assert {name: (id(t), t.tolist()) for name, t in model.state_dict(keep_vars=True).items()} == state
    assert all(module.training for module in model.modules())
    assert "plain" in vars(model)  # and not a buffer
    assert torch.equal(torch.get_rng_state(), random)


# Bands


def test_weights_are_in_the_net_figure_and_not_in_the_floor() -> None:
    model = nn.Linear(4000, 4000, bias=False)  # 64 MB
    figures = measure(model, torch.ones(1, 4000), ("memory_floor_bytes", "memory_bytes"), threads=1)
    floor, net = figures
    assert [m.metric for m in figures] == ["memory_floor_bytes", "memory_bytes"]
    assert 64 * MB <= net.value < 2 * 64 * MB + 64 * MB
    assert floor.value > 20 * MB  # Python and torch
    for figure in figures:
        assert figure.spread is not None
        assert figure.spread[0] <= figure.value <= figure.spread[1]
        assert (figure.repeats, figure.unit, figure.threads, figure.batch) == (3, "bytes", 1, 1)
        assert "fresh process" in figure.method


def test_activations_count_and_grow_with_the_batch(once: None) -> None:
    model = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 1)), nn.Linear(1, 4000, bias=False), nn.ReLU())
    one, two = (m.value for m in measure(model, torch.ones(2000, 1), "memory_bytes", batch=(2000, 4000)))
    # a sample makes 4000 floats before the activation and 4000 after it, of which both are there at once
    assert 64 * MB <= one < 2 * 64 * MB
    assert 2 * 64 * MB <= two < 4 * 64 * MB
    assert 1.5 < two / one < 2.5


def test_this_process_plays_no_part(once: None) -> None:
    small = nn.Linear(4, 4)
    ballast = torch.ones(100 * MB // 4)
    net, floor = measure(small, torch.ones(1, 4), ("memory_bytes", "memory_floor_bytes"))
    assert net.value < ballast.nbytes / 2
    assert floor.value < (status_bytes("VmRSS") or peak_bytes())


def test_both_models_have_a_figure_and_share_the_runs(once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        memory, "_fresh_process", lambda *args: ran.append("") or {"floor": 10, "peak": 10 + len(ran), "method": "m"}
    )
    figures = measure(nn.ReLU(), torch.ones(1), ("memory_bytes", "memory_floor_bytes"), against=nn.ReLU())
    assert [(m.subject, m.value, m.spread) for m in figures] == [
        ("model", 1, None),
        ("model", 10, None),
        ("against", 2, None),
        ("against", 10, None),
    ]
    assert len(ran) == 2


def test_the_median_of_three_with_the_least_and_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([50, 20, 30])
    monkeypatch.setattr(memory, "_fresh_process", lambda *args: {"floor": 10, "peak": next(peaks), "method": "somehow"})
    (net,) = measure(nn.ReLU(), torch.ones(1), "memory_bytes")
    assert (net.value, net.spread, net.repeats, net.method) == (20, (10, 40), 3, "somehow")


def test_a_cuda_model_is_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the device: what torch would say is given, and what is made of it is checked."""
    model, seen = nn.Linear(1000, 10, bias=False), []
    monkeypatch.setattr(memory, "device_of", lambda *args: torch.device("cuda"))
    for name, value in (("memory_allocated", 50_000), ("max_memory_allocated", 90_000)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: seen.append(name))
    monkeypatch.setattr(memory, "_own_bytes", lambda *args: 44_000)
    net, floor = measure(model, torch.ones(1, 1000), ("memory_bytes", "memory_floor_bytes"))
    assert (net.value, floor.value, net.repeats) == (90_000 - 6_000, 6_000, 1)
    assert seen == ["synchronize", "reset_peak_memory_stats", "synchronize"]


# Reading a peak


def test_the_peak_is_that_of_the_process_and_not_of_its_parent(tmp_path: Path) -> None:
    """ru_maxrss of a child starts at its parent's, which is why VmHWM comes first."""
    ballast = torch.ones(100 * MB // 4)
    code = "from prunus.measure.fresh_process import peak_bytes as p; print(p())"
    path = {**os.environ, "PYTHONPATH": str(Path(memory.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=path)
    assert int(done.stdout) < peak_bytes()
    del ballast


def test_a_kernel_that_forgets_no_peak_is_told_apart(tmp_path: Path) -> None:
    assert not forget_peak(tmp_path / "nowhere")
    assert status_bytes("VmHWM", tmp_path) is None
    assert peak_bytes(tmp_path) > MB  # then from getrusage
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    8784 kB\nVmRSS:\t    7000 kB\n")
    assert peak_bytes(tmp_path) == 8784 * 1024
    assert status_bytes("VmRSS", tmp_path) == 7000 * 1024
    (tmp_path / "clear_refs").touch()
    assert forget_peak(tmp_path)
    assert (tmp_path / "clear_refs").read_text() == "5"


# Errors


class Rare(nn.Module):
    """An operation that no file may name."""

    def forward(self, value: Tensor) -> Tensor:
        return torch.linalg.svdvals(value)


@pytest.mark.parametrize("metric", ["memory_bytes", "memory_floor_bytes"])
def test_a_model_whose_graph_cannot_be_written_is_refused(metric: str) -> None:
    with pytest.raises(MeasureError, match=rf"'{metric}' runs the model's graph.*Or leave '{metric}' out of metrics"):
        measure(Rare(), torch.ones(3, 3), metric)


def test_a_process_that_fails_is_named(once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "write_call", lambda *args: None)
    with pytest.raises(MeasureError, match=r"which ended with 1: .*graph\.json.*Leave 'memory_bytes' out"):
        measure(nn.ReLU(), torch.ones(3), "memory_bytes")


def test_another_device_is_refused() -> None:
    with pytest.raises(MeasureError, match="this model is on meta"):
        measure(nn.Linear(2, 2, device="meta"), torch.ones(1, 2, device="meta"), "memory_bytes")
