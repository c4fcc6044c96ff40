"""`finetune(run_dir=...)`: a killed training goes on after its last finished epoch, to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.errors import RecoverError

DRAW = torch.Generator().manual_seed(0)
INPUTS, TARGETS = torch.randn(24, 6, generator=DRAW), torch.randint(0, 3, (24,), generator=DRAW)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0]).square().mean()


def correct(model: nn.Module) -> Tensor:
    return (model(INPUTS).argmax(1) == TARGETS).float()


def shuffled(own: torch.Generator | None = None) -> DataLoader[Any]:
    return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8, shuffle=True, generator=own)


DATA: dict[str, Callable[[], Any]] = {
    "a list": lambda: [(INPUTS[i : i + 8], TARGETS[i : i + 8]) for i in (0, 8, 16)],
    "a shuffling loader": shuffled,
    "a loader with a generator of its own": lambda: shuffled(torch.Generator().manual_seed(5)),
}
OPTIMIZERS: dict[str, Any] = {
    "adamw": None,
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "amsgrad": lambda p, lr: torch.optim.Adam(p, lr, amsgrad=True),
}


def trained(model: nn.Module, data: Any, run_dir: Path | None = None, **given: Any) -> dict[str, Tensor]:
    settings: dict[str, Any] = {"epochs": 4, "lr": 0.05, "evaluate": correct, "bf16": False, "channels_last": False}
    prunus.finetune(model, data, cross_entropy, run_dir=run_dir, **{**settings, **given})
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def killed(after: int) -> Callable[[str, int, int], None]:
    def progress(_what: str, done: int, _total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("step", [1, 4, 8, 12])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, data: str, optimizer: str, step: int) -> None:
    settings = {"optimizer": OPTIMIZERS[optimizer]}
    whole = trained(net(), DATA[data](), **settings)
    with pytest.raises(KeyboardInterrupt):
        trained(net(), DATA[data](), tmp_path, progress=killed(step), **settings)
    assert len(list(tmp_path.glob("*.safetensors"))) == (step > 3)
    assert same(trained(net(), DATA[data](), tmp_path, **settings), whole)


@pytest.mark.parametrize("step", [3, 7])
def test_channels_last_resumes_to_the_same_bits(tmp_path: Path, step: int) -> None:
    """Weights and the optimizer's state go on in the layout they had."""

    def cnn() -> nn.Module:
        torch.manual_seed(0)
        convs = (nn.Conv2d(3, 19, 3), nn.BatchNorm2d(19), nn.ReLU(), nn.Conv2d(19, 21, 3, groups=1), nn.ReLU())
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(21, 3))

    draw = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 3, 9, 9, generator=draw), TARGETS[i : i + 8]) for i in (0, 8, 16)]
    settings: dict[str, Any] = {"channels_last": True, "evaluate": None, "epochs": 6}
    whole = trained(cnn(), data, **settings)
    with pytest.raises(KeyboardInterrupt):
        trained(cnn(), data, tmp_path, progress=killed(step + 1), **settings)
    assert same(trained(cnn(), data, tmp_path, **settings), whole)


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    whole = trained(net(), DATA["a list"](), tmp_path)
    steps: list[int] = []
    again = trained(net(), DATA["a list"](), tmp_path, progress=lambda _w, done, _t: steps.append(done))
    assert (same(again, whole), steps) == (True, [])


@pytest.mark.parametrize(
    "other", [{"lr": 0.01}, {"seed": 1}, {"optimizer": torch.optim.SGD}, {"evaluate": None}, {"max_grad_norm": 0.1}]
)
def test_another_call_trains_for_itself(tmp_path: Path, other: dict[str, Any]) -> None:
    trained(net(), DATA["a list"](), tmp_path)
    assert same(trained(net(), DATA["a list"](), tmp_path, **other), trained(net(), DATA["a list"](), **other))


def test_another_loss_trains_for_itself(tmp_path: Path) -> None:
    trained(net(), DATA["a list"](), tmp_path)
    models = [net(), net()]
    for model, run_dir in zip(models, (tmp_path, None), strict=True):
        prunus.finetune(model, DATA["a list"](), squared, epochs=4, lr=0.05, evaluate=correct, run_dir=run_dir)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_damage_is_named(tmp_path: Path) -> None:
    trained(net(), DATA["a list"](), tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(RecoverError, match=r"is no whole epoch .*remove it to train from the start"):
        trained(net(), DATA["a list"](), tmp_path)
