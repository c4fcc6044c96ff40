"""`prune` as one call: budget met, the user's model untouched, a killed run resumed to the same end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.errors import ArtifactError, BudgetError, GroupError

DRAW = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.randn(48, 1, 8, 8, generator=DRAW), torch.randint(0, 4, (48,), generator=DRAW)
BATCHES = [(IMAGES[i : i + 16], LABELS[i : i + 16]) for i in (0, 16, 32)]
INPUTS = IMAGES[:4]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def correct(model: nn.Module) -> Tensor:
    return (model(IMAGES).argmax(1) == LABELS).float()


def recover(model: nn.Module) -> nn.Module:
    return prunus.finetune(model, BATCHES, loss, epochs=1, bf16=False, channels_last=False)


def pruned(model: nn.Module, **given: Any) -> prunus.Result:
    settings: dict[str, Any] = {
        "budget": prunus.Budget("macs", at_most=0.4),
        "criterion": prunus.criteria.taylor,
        "data": BATCHES,
        "loss": loss,
        "recover": recover,
        "evaluate": correct,
        "rounds": 3,
    }
    return prunus.prune(model, INPUTS, **{**settings, **given})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_budget_is_met_and_the_model_untouched() -> None:
    model = net()
    before = state(model)
    result = pruned(model)
    costs = {m.metric: (m.value, n.value) for m, n in zip(result.before, result.after, strict=True)}
    assert costs["macs"][1] <= 0.4 * costs["macs"][0]
    assert [entry["round"] for entry in result.history] == [1, 2, 3]
    assert same(before, state(model))
    assert model.training
    assert result.change is not None
    assert result.change.n == 48
    assert "McNemar" in str(result)


def test_same_seed_same_model() -> None:
    assert same(state(pruned(net()).model), state(pruned(net()).model))


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_killed_run_goes_on_to_the_same_end(tmp_path: Path, killed_in: int) -> None:
    calls = 0

    def killed(model: nn.Module) -> nn.Module:
        nonlocal calls
        calls += 1
        if calls == killed_in:
            raise KeyboardInterrupt
        return recover(model)

    with pytest.raises(KeyboardInterrupt):
        pruned(net(), recover=killed, run_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == killed_in - 1
    resumed, whole = pruned(net(), run_dir=tmp_path), pruned(net())
    assert same(state(resumed.model), state(whole.model))
    assert resumed.history == whole.history


def test_rounds_of_another_run_are_refused(tmp_path: Path) -> None:
    pruned(net(), run_dir=tmp_path, rounds=1)
    with pytest.raises(ArtifactError, match="another run"):
        pruned(net(), run_dir=tmp_path, rounds=1, seed=1)


def test_round_to_and_skip() -> None:
    result = pruned(net(), pattern=prunus.Channel(round_to=8), skip=["0"], rounds=1, recover=None)
    assert {name: int(mask.sum()) for name, mask in result.plan.keep.items()} == {"3": 8}


def test_inexact_groups_wait_to_be_asked_for() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    settings: dict[str, Any] = {"budget": prunus.Budget("units", at_most=0.5)}
    with pytest.raises(GroupError, match="inexact=True"):
        prunus.prune(model, torch.randn(4, 8), **settings)
    assert prunus.prune(model, torch.randn(4, 8), inexact=True, **settings).plan.keep["0"].sum() == 8


def test_a_bare_number_is_shown_without_interval() -> None:
    result = pruned(net(), evaluate=lambda _: 0.75, rounds=1, recover=None)
    assert result.change is None
    assert result.after[-1].spread is None
    assert "75.0 %" in str(result)


def test_progress_names_each_step() -> None:
    told: list[tuple[str, int, int]] = []
    pruned(net(), rounds=2, progress=lambda *step: told.append(step))
    assert [what for what, _, _ in told][:4] == [
        *("round 1: score and cut", "round 1: recover", "round 2: score and cut", "round 2: recover"),
    ]


def test_no_rounds_is_an_error() -> None:
    with pytest.raises(BudgetError, match="rounds=0"):
        pruned(net(), rounds=0)
