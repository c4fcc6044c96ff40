"""Joules: the estimate by hand, counters that wrap or cannot be read, and the idle that is taken off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import MeasureError
from prunus.measure import energy, measure, sensors
from prunus.measure.sensors import Sensor, nvml, rapl, sensor_of
from prunus.types import Measurement

x = torch.ones(5, 4)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def powercap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of energy counters in place of the machine's; empty at first."""
    folder = tmp_path / "powercap"
    folder.mkdir()
    monkeypatch.setattr(sensors, "POWERCAP", folder)
    return folder


def zone(powercap: Path, path: str, name: str, microjoules: int = 0, wraps: int = 1_000_000_000) -> Path:
    made = powercap / f"intel-rapl:{path}"
    made.mkdir()
    for entry, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", wraps)):
        (made / entry).write_text(f"{value}\n")
    return made


def add(made: Path, joules: float) -> None:
    """Let the counter rise, and begin again at 0 where it must."""
    wraps = int((made / "max_energy_range_uj").read_text())
    (made / "energy_uj").write_text(str((int((made / "energy_uj").read_text()) + round(joules * 1e6)) % wraps))


def only(measurements: tuple[Measurement, ...]) -> Measurement:
    (one,) = measurements
    return one


# The estimate


def test_the_estimate_by_hand() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    figure = only(measure(model, x, "energy_j"))
    macs, weights = 5 * (4 * 3 + 3 * 2), 4 * 3 + 3 + 3 * 2
    assert figure.value == pytest.approx((macs * 4.6 + weights * 640) * 1e-12, rel=1e-12)
    assert (figure.unit, figure.estimated, figure.spread, figure.repeats) == ("J", True, None, 1)
    assert "4.6 pJ per MAC" in figure.method
    assert "640 pJ per 32-bit DRAM access of weights" in figure.method
    assert "(Horowitz 2014, ISSCC, 45 nm); not measured: no RAPL on this machine" in figure.method


def test_zeros_save_nothing() -> None:
    dense, zeros = nn.Linear(4, 3), nn.Linear(4, 3)
    for parameter in zeros.parameters():
        nn.init.zeros_(parameter)
    model, against = measure(zeros, x, "energy_j", against=dense)
    assert model.value == against.value > 0


def test_weights_of_half_the_width_take_half_the_way() -> None:
    wide, narrow = nn.Embedding(6, 4), nn.Embedding(6, 4, dtype=torch.bfloat16)
    model, against = measure(narrow, torch.tensor([1, 2]), "energy_j", against=wide)
    assert (model.value, against.value) == pytest.approx((12 * 640e-12, 24 * 640e-12))


def test_the_estimate_follows_the_batch() -> None:
    one, two = measure(nn.Linear(4, 3, bias=False), x, "energy_j", batch=(1, 2))
    assert two.value - one.value == pytest.approx(12 * 4.6e-12)


# Counters


def test_joules_between_two_readings_also_over_the_turn() -> None:
    sensor = Sensor("", lambda: (0, 0), (1000, 5_000_000))
    assert sensor.joules((900, 1_000_000), (100, 3_000_000)) == pytest.approx(2.0002)
    assert sensor.joules((5, 5), (5, 5)) == 0


def test_packages_and_memory_are_summed_but_not_their_parts(powercap: Path) -> None:
    zone(powercap, "0", "package-0", 7)
    zone(powercap, "0:0", "core", 100)
    zone(powercap, "0:1", "dram", 20)
    zone(powercap, "1", "package-1", 3)
    zone(powercap, "2", "psys", 1000)
    sensor = sensor_of(CPU)
    assert isinstance(sensor, Sensor)
    assert (sensor.name, sensor.read()) == ("RAPL package-0 + dram + package-1", (7, 20, 3))


def test_why_there_is_no_counter(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rapl() == "no RAPL on this machine"
    assert sensor_of(torch.device("mps")) == "no counter for mps"
    made = zone(powercap, "0", "package-0")
    (made / "energy_uj").write_text("nonsense")
    assert str(rapl()).startswith("RAPL cannot be read: invalid literal")
    (made / "energy_uj").unlink()
    assert str(rapl()).startswith("RAPL cannot be read: [Errno 2]")
    read_text = Path.read_text

    def denied(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", denied)  # chmod would not stop root
    assert str(rapl()).startswith("RAPL may not be read here; as root: chmod a+r ")
    figure = only(measure(nn.ReLU(), x, "energy_j"))
    assert figure.estimated
    assert "not measured: RAPL may not be read here" in figure.method


# Metering


@pytest.fixture
def machine(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """A processor that takes 10 W whatever it does: `work(seconds, joules)` takes joules more."""
    made = zone(powercap, "0", "package-0", 999_000_000)  # soon to wrap
    now = [0.0]

    def work(seconds: float, joules: float = 0.0) -> None:
        now[0] += seconds
        add(made, 10 * seconds + joules)

    monkeypatch.setattr(energy, "perf_counter", lambda: now[0])
    monkeypatch.setattr(energy, "sleep", work)
    return work


class Worker(nn.Module):
    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def forward(self, value: Tensor) -> Tensor:
        self.act()
        return value


def test_idle_is_taken_off_and_the_turn_of_the_counter_does_not_show(machine: Callable[..., None]) -> None:
    model, against = Worker(lambda: machine(0.5, 2.0)), Worker(lambda: machine(0.25, 3.0))
    figures = measure(model, x, "energy_j", against=against)
    assert [(m.subject, m.value, m.spread) for m in figures] == [
        ("model", pytest.approx(2.0, abs=1e-4), pytest.approx((2.0, 2.0), abs=1e-4)),
        ("against", pytest.approx(3.0, abs=1e-4), pytest.approx((3.0, 3.0), abs=1e-4)),
    ]
    assert [m.repeats for m in figures] == [3 * 4, 3 * 8]  # 2 s of calls in each of 3 rounds
    assert {(m.method, m.estimated) for m in figures} == {("RAPL package-0, less idle", False)}


def test_rounds_alternate_and_the_median_is_taken(machine: Callable[..., None]) -> None:
    seen: list[str] = []

    def acting(name: str, *joules: float) -> Worker:
        def act() -> None:
            machine(1.0, joules[seen.count(name) % len(joules)])
            seen.append(name)

        return Worker(act)

    model, _ = measure(acting("a", 1.0, 9.0, 2.0), x, "energy_j", against=acting("b", 1.0), repeats=1)
    assert "".join(seen) == "abbaab"
    assert (model.value, model.spread) == (pytest.approx(2.0, abs=1e-4), pytest.approx((1.0, 9.0), abs=1e-4))


def test_work_below_the_noise_is_not_made_positive(machine: Callable[..., None]) -> None:
    figure = only(measure(Worker(lambda: machine(1.0, -0.5)), x, "energy_j", repeats=2))
    assert figure.value == pytest.approx(-0.5, abs=1e-4)


def test_metering_sets_threads_and_eval_mode(machine: Callable[..., None]) -> None:
    seen: set[Any] = set()
    before = torch.get_num_threads()

    def act() -> None:
        machine(1.0)
        seen.add((torch.get_num_threads(), model.training, torch.is_grad_enabled()))

    model = Worker(act).train()
    assert only(measure(model, x, "energy_j", threads=before + 1, repeats=1)).threads == before + 1
    assert seen == {(before + 1, False, False)}
    assert (torch.get_num_threads(), model.training) == (before, True)


# NVML


class NVMLError(Exception):
    pass


def library(counted: Callable[[], int]) -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetName=lambda handle: f"card {handle}",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counted(),
    )


def refuse() -> int:
    raise NVMLError("Not Supported")


def test_an_nvidia_card_counts_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    monkeypatch.setattr(sensors, "import_module", lambda name: library(lambda: 1500))
    sensor = sensor_of(torch.device("cuda", 0))
    assert isinstance(sensor, Sensor)
    assert (sensor.name, sensor.read(), sensor.joules((0,), sensor.read())) == (
        "NVML card GPU-12-34",
        (1_500_000,),
        1.5,
    )
    monkeypatch.setattr(sensors, "import_module", lambda name: library(refuse))
    assert nvml(torch.device("cuda")) == "NVML cannot be read: Not Supported"


def test_without_its_package_there_is_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(sensors, "import_module", missing)
    assert nvml(torch.device("cuda")) == "no NVML; pip install 'prunus[energy]'"


# Errors


def test_a_kernel_without_a_formula_has_no_estimate() -> None:
    with pytest.raises(MeasureError, match=r"'energy_j' has no formula for aten\._trilinear"):
        measure(nn.Bilinear(4, 4, 2), (x, x), "energy_j")


def test_models_on_two_devices_have_no_common_counter() -> None:
    with pytest.raises(MeasureError, match="here are model on cpu, against on meta"):
        measure(nn.Linear(4, 2), x, "energy_j", against=nn.Linear(4, 2, device="meta"))
