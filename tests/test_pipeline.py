"""`prune` as one call: budget met, the user's model untouched, a killed run resumed to the same end."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import result
from prunus.errors import ArtifactError, BudgetError, CriterionError, GroupError, MeasureError, RecoverError, TraceError
from prunus.pipeline import plan_for

DRAW = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.randn(48, 1, 8, 8, generator=DRAW), torch.randint(0, 4, (48,), generator=DRAW)
BATCHES = [(IMAGES[i : i + 16], LABELS[i : i + 16]) for i in (0, 16, 32)]
INPUTS = IMAGES[:4]


@pytest.fixture(autouse=True)
def costs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring latency takes seconds; tests/test_measure.py and the demonstration's test do that."""
    monkeypatch.setattr(result, "REPORTED", ("params", "macs", "bytes"))
    monkeypatch.setattr(result, "ZEROS_TOO", ("nonzeros", "effective_macs"))


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


FORMS: dict[str, dict[str, Any]] = {
    "channels": {},
    "elements": {"pattern": prunus.Element(), "scope": "layer"},
    "blocks": {"pattern": prunus.Block(4, 1), "reduce": "l2"},
    "2:4": {"pattern": prunus.NofM(2, 4), "skip": "0", "budget": None, "rounds": 1},
}


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


@pytest.mark.parametrize("form", FORMS)
def test_same_seed_same_model(form: str) -> None:
    assert same(state(pruned(net(), **FORMS[form]).model), state(pruned(net(), **FORMS[form]).model))


def trained_elsewhere(model: nn.Module) -> nn.Module:
    """A recovery that gives back another model, and writes to its weights without an optimizer."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    return other


@pytest.mark.parametrize("form", [name for name in FORMS if name != "channels"])
@pytest.mark.parametrize("way", [recover, trained_elsewhere])
def test_zeros_hold_through_recovery_whatever_trains(form: str, way: Any) -> None:
    model = net()
    before = state(model)
    result = pruned(model, **{**FORMS[form], "recover": way})
    assert same(before, state(model))
    assert type(result.model) is type(model)
    kept = sum(int(keep.sum()) * result.plan.groups[name].grid.elements for name, keep in result.plan.keep.items())  # type: ignore[union-attr]
    held = [p for name, p in result.model.named_parameters() if name in result.plan.keep]
    assert sum(int(p.count_nonzero()) for p in held) == kept
    assert not all(torch.equal(before[name], p) for name, p in result.model.named_parameters() if name in before)
    costs = {m.metric: m.value for m in result.after}
    assert costs["effective_macs"] == pytest.approx(result.plan.costs["macs"][1])
    if form != "2:4":
        assert costs["effective_macs"] <= 0.4 * result.plan.costs["macs"][0]
    assert "no dense runtime faster" in str(result)


@pytest.mark.parametrize("form", [name for name in FORMS if name != "channels"])
def test_a_model_with_zeros_is_saved_and_loaded(form: str, tmp_path: Path) -> None:
    result = pruned(net(), **FORMS[form])
    prunus.save(result, tmp_path)
    for loaded in (prunus.load(tmp_path), prunus.load(tmp_path, net)):
        assert state(loaded).keys() == state(result.model).keys()
        assert all(torch.equal(t, state(result.model)[name]) for name, t in state(loaded).items())
        assert torch.equal(loaded(INPUTS), result.model.eval()(INPUTS))
    groups = prunus.group(result.graph, pattern=FORMS[form]["pattern"], skip=FORMS[form].get("skip", ()))
    again = prunus.load_plan(tmp_path, groups)
    assert all(torch.equal(again.keep[name], keep) for name, keep in result.plan.keep.items())


def test_n_of_m_takes_neither_budget_nor_rounds() -> None:
    with pytest.raises(BudgetError, match="fixes its own density"):
        pruned(net(), **{**FORMS["2:4"], "budget": prunus.Budget("units", at_most=0.5)})
    with pytest.raises(BudgetError, match="in one round"):
        pruned(net(), **{**FORMS["2:4"], "rounds": 2})


def test_a_tenth_of_each_group_of_channels_stays_by_default_but_one_weight_of_a_layer_may_do() -> None:
    model = net()
    with torch.no_grad():
        model[3].weight.mul_(1e-6)
    settings: dict[str, Any] = {"criterion": prunus.criteria.magnitude, "rounds": 1, "recover": None}
    budget = prunus.Budget("units", at_most=0.03)
    element = pruned(model, pattern=prunus.Element(), budget=budget, **settings).plan
    assert int(element.keep["3.weight"].sum()) == 1
    channel = pruned(model, budget=prunus.Budget("units", at_most=0.3), **settings).plan
    assert int(channel.keep["3"].sum()) >= 3


@pytest.mark.parametrize(
    ("form", "killed_in"), [(form, r) for form in FORMS for r in range(1, FORMS[form].get("rounds", 3) + 1)]
)
def test_a_killed_run_goes_on_to_the_same_end(tmp_path: Path, form: str, killed_in: int) -> None:
    calls = 0

    def killed(model: nn.Module) -> nn.Module:
        nonlocal calls
        calls += 1
        if calls == killed_in:
            raise KeyboardInterrupt
        return recover(model)

    with pytest.raises(KeyboardInterrupt):
        pruned(net(), **FORMS[form], recover=killed, run_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == killed_in - 1
    resumed, whole = pruned(net(), **FORMS[form], run_dir=tmp_path), pruned(net(), **FORMS[form])
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
    assert list(dict.fromkeys(what for what, _, _ in told))[:4] == [
        *("round 1: score and cut", "round 1: recover", "round 2: score and cut", "round 2: recover"),
    ]


def test_no_rounds_is_an_error() -> None:
    with pytest.raises(BudgetError, match="rounds=0"):
        pruned(net(), rounds=0)


def _drop_a_name(round_dir: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(round_dir / "state.safetensors")
    state.pop(next(iter(state)))
    save_file(state, round_dir / "state.safetensors")


ROUND_DAMAGES: dict[str, Callable[[Path], object]] = {
    "state cut short": lambda r: (r / "state.safetensors").write_bytes((r / "state.safetensors").read_bytes()[:-9]),
    "no state": lambda r: (r / "state.safetensors").unlink(),
    "a name missing": _drop_a_name,
    "empty history": lambda r: (r / "history.json").write_text(""),
    "no history": lambda r: (r / "history.json").unlink(),
    "history of nothing": lambda r: (r / "history.json").write_text("{}"),
    "no plan": lambda r: (r / "plan.json").unlink(),
}


@pytest.fixture(scope="module")
def kept_round(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    pruned(net(), run_dir=folder, rounds=1)
    return folder


@pytest.mark.parametrize("name", ROUND_DAMAGES)
def test_a_damaged_round_is_named(kept_round: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(kept_round, folder)
    ROUND_DAMAGES[name](folder / "round-001")
    with pytest.raises(ArtifactError, match=r"round-001 .*remove it to go on from the round before"):
        pruned(net(), run_dir=folder, rounds=1)


def test_an_absolute_budget_is_reached_in_rounds_too() -> None:
    result = pruned(net(), budget=prunus.Budget("params", at_most=1000, relative=False), recover=None)
    counts = [entry["params"] for entry in result.history]
    assert counts[0] > counts[1] > counts[2]
    assert counts[2] <= 1000


def test_equal_scores_still_fill_the_budget() -> None:
    model = net()
    graph = prunus.trace(model, INPUTS)
    groups = prunus.group(graph)
    scores = {g.name: torch.ones(g.size) for g in groups}
    plan = prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5))
    assert {name: int(mask.sum()) for name, mask in plan.keep.items()} == {"0": 8, "3": 12}


def test_frozen_norms_stay_frozen() -> None:
    model = net()
    model[1].eval()
    result = pruned(model, rounds=1, recover=None)
    assert [m.training for m in model] == [m.training for m in result.model]
    assert not model[1].training


def test_frozen_and_half_parameters_have_taylor_scores() -> None:
    model = net()
    for p in model.parameters():
        p.requires_grad_(False)
    groups = prunus.group(prunus.trace(model, INPUTS))
    settings: dict[str, Any] = {"data": BATCHES, "loss": lambda net, batch: 0.01 * loss(net, batch)}
    whole = prunus.score(model, groups, prunus.criteria.taylor, **settings)
    assert all(bool((v > 0).any()) for v in whole.values())
    assert not any(p.requires_grad for p in model.parameters())
    half = [(images.half(), labels) for images, labels in BATCHES]
    low = prunus.score(model.half(), groups, prunus.criteria.taylor, **{**settings, "data": half})
    for name, values in whole.items():
        assert torch.corrcoef(torch.stack([values, low[name]]))[0, 1] > 0.99


def test_macs_are_those_of_the_example_as_given() -> None:
    one = prunus.trace(net(), INPUTS[:1])
    plan = prunus.Plan(prunus.group(one), {})
    from prunus.cost import predict

    assert predict(one, plan.left)["macs"][0] * 4 == predict(prunus.trace(net(), INPUTS), {})["macs"][0]


WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "budget": (BudgetError, "expected a Budget", {"budget": 0.5}),
    "criterion": (CriterionError, "expected a function", {"criterion": "magnitude"}),
    "recover": (RecoverError, "last loss", {"recover": lambda _: 0.3}),
    "evaluate": (MeasureError, "expected one score a sample", {"evaluate": lambda _: None}),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    error, message, given = WRONG[name]
    with pytest.raises(error, match=message):
        pruned(net(), **{"rounds": 1, **given})


def test_a_list_that_should_be_a_tuple_is_named() -> None:
    with pytest.raises(TraceError, match=r"Example 2: .*A list means several examples"):
        prunus.trace(nn.Linear(8, 4), [torch.randn(3, 8), torch.randn(3, 4)])
    with pytest.raises(TraceError, match=r"expected a torch\.nn\.Module"):
        prunus.prune([net()], INPUTS, budget=prunus.Budget("macs", at_most=0.5))  # type: ignore[arg-type]


def test_a_plan_of_some_groups_keeps_earlier_removals_when_saved(tmp_path: Path) -> None:
    model = net()
    groups = prunus.group(prunus.trace(model, INPUTS))
    scores = prunus.score(model, groups, prunus.criteria.magnitude)
    first = prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.7))
    small = prunus.shrink(model, first)
    rest = groups.at(first).only("3")
    second = prunus.allocate(
        rest, prunus.score(small, rest, prunus.criteria.magnitude), prunus.Budget("units", at_most=0.3)
    )
    second.save(tmp_path)
    both = prunus.shrink(model, prunus.load_plan(tmp_path, groups))
    assert same(state(both), state(prunus.shrink(small, second)))
    with pytest.raises(prunus.errors.PlanError, match="does not start where this one ends"):
        second.then(first)


def test_a_dry_run_makes_the_plan_of_the_run() -> None:
    settings: dict[str, Any] = {"budget": prunus.Budget("macs", at_most=0.4), "criterion": prunus.criteria.taylor}
    planned = plan_for(net(), INPUTS, **settings, data=BATCHES, loss=loss)
    done = pruned(net(), rounds=1, recover=None).plan
    assert planned.costs == done.costs
    assert all(torch.equal(planned.keep[name], kept) for name, kept in done.keep.items())
