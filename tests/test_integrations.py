"""Lightning, transformers' Trainer and Accelerate: pruning rides along, and their own checkpoints bring it back."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module, reload
from pathlib import Path
from typing import Any

import pytest
import torch
import vision  # noqa: F401 (transformers and torchmetrics import torchvision)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

import prunus
from prunus import Budget, Element, Gradual, Groups, criteria
from prunus.errors import PlanError
from prunus.integrations import accelerate as on_accelerate
from prunus.integrations.riders import Riders
from prunus.integrations.text import from_text, to_text

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import accelerate
    import pytorch_lightning
    import transformers
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from prunus.integrations import lightning as on_lightning
    from prunus.integrations import transformers as on_transformers

STEPS, KILLED = 12, 6
pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks about themselves


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 4))


def rows() -> tuple[Tensor, Tensor]:
    """Each of the 12 batches of 2 once."""
    draw = torch.Generator().manual_seed(7)
    return torch.randn(24, 4, generator=draw), torch.randn(24, 4, generator=draw)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def gradual_of(groups: Groups, **settings: Any) -> Gradual:
    x, y = rows()
    settings = {"steps": STEPS - 2, "every": 2, "data": [(x[:4], y[:4])], "loss": loss, **settings}
    return Gradual(groups, criteria.taylor, Budget("units", at_most=0.3), **settings)


def held_of(groups: Groups, seed: int) -> prunus.Plan:
    """Half of the second layer, another half for every seed."""
    scores = {g.name: torch.rand(g.size, generator=torch.Generator().manual_seed(seed)) for g in groups}
    return prunus.allocate(groups, scores, Budget("units", at_most=0.5))


def parts_of(model: nn.Module, seed: int) -> tuple[Gradual, prunus.Plan]:
    """What rides along: `Gradual` on one layer, a plan that holds on the other."""
    groups = prunus.group(model, pattern=Element())
    first, second = sorted(group.name for group in groups)
    return gradual_of(groups.only(first)), held_of(groups.only(second), seed)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def zeros(model: nn.Module) -> list[int]:
    return [int((p == 0).sum()) for p in model.parameters()]


# Lightning


class Module(pytorch_lightning.LightningModule):
    """A network of a seed, in Lightning's clothes. With `optimizers` = 2, each layer has its own, stepped by hand."""

    def __init__(self, seed: int = 0, optimizers: int = 1) -> None:
        super().__init__()
        self.net, self.optimizers_wanted = net(seed), optimizers
        self.automatic_optimization = optimizers == 1

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor | None:
        torch.manual_seed(1000 + index)  # dropout follows the batch, not what was drawn before
        found = loss(self.net, batch)
        if self.automatic_optimization:
            return found
        self.manual_backward(found)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        return None

    def configure_optimizers(self) -> Any:
        if self.optimizers_wanted == 2:
            return [SGD(self.net[0].parameters(), lr=0.1), AdamW(self.net[2].parameters(), lr=0.01)]
        optimizer = AdamW(self.parameters(), lr=0.02)
        return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, STEPS), "interval": "step"}]


def lightning_run(folder: Path, *callbacks: Any, model: Module, resume: Path | None = None, **settings: Any) -> None:
    settings = {"max_epochs": 1, **settings}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pytorch_lightning.Trainer(default_root_dir=folder, callbacks=list(callbacks), **quiet, **settings)
    trainer.fit(model, DataLoader(TensorDataset(*rows()), batch_size=2), ckpt_path=resume)


@pytest.mark.parametrize("within", ["", "net"])
def test_a_lightning_run_goes_on_from_its_own_checkpoint_to_the_same_bits(tmp_path: Path, within: str) -> None:
    def run(seed: int, resume: Path | None) -> tuple[Module, Gradual, prunus.Plan]:
        model = Module(seed)
        gradual, plan = parts_of(model.get_submodule(within), seed)
        prune = on_lightning.Prune(gradual, plan, within=within)
        keep = pytorch_lightning.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        lightning_run(tmp_path, prune, keep, model=model, resume=resume, max_epochs=2, limit_train_batches=KILLED)
        return model, gradual, prune.riders.riders[1].plan

    model, gradual, plan = run(0, None)
    assert gradual.step == STEPS
    again, anew, held = run(1, tmp_path / "epoch=0.ckpt")
    assert anew.step == STEPS
    assert same(weights(again), weights(model))
    assert same(list(anew.state_dict()["kept"].values()), list(gradual.state_dict()["kept"].values()))
    assert same(list(held.keep.values()), list(plan.keep.values()))
    assert zeros(model) == [32 - int(0.3 * 32), 0, 16, 0]


def test_lightning_counts_steps_and_not_batches(tmp_path: Path) -> None:
    model = Module()
    gradual = gradual_of(prunus.group(model.net, pattern=Element()), steps=3)
    lightning_run(tmp_path, on_lightning.Prune(gradual, within="net"), model=model, accumulate_grad_batches=4)
    assert gradual.step == 3
    assert sum(zeros(model)) == 64 - int(0.3 * 64)


def test_several_optimizers_in_lightning_are_counted_once_and_all_hold(tmp_path: Path) -> None:
    model, found = Module(optimizers=2), []

    class Watch(pytorch_lightning.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            found.append(sum(zeros(model)))

    gradual = gradual_of(prunus.group(model.net, pattern=Element()))
    lightning_run(tmp_path, on_lightning.Prune(gradual, within="net"), Watch(), model=model)
    assert gradual.step == STEPS
    assert found[-3:] == [64 - int(0.3 * 64)] * 3


def test_averaged_weights_that_lightning_puts_in_place_have_the_zeros_too(tmp_path: Path) -> None:
    model = Module()
    gradual = gradual_of(prunus.group(model, pattern=Element()))
    average = pytorch_lightning.callbacks.EMAWeightAveraging(decay=0.9)
    lightning_run(tmp_path, average, on_lightning.Prune(gradual), model=model)
    assert sum(zeros(model)) == 64 - int(0.3 * 64)


def test_nothing_is_held_after_a_lightning_run_that_failed(tmp_path: Path) -> None:
    model, optimizers = Module(), []

    class Fail(pytorch_lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            optimizers.extend(trainer.optimizers)
            raise ZeroDivisionError

    gradual = gradual_of(prunus.group(model, pattern=Element()))
    with pytest.raises(ZeroDivisionError):
        lightning_run(tmp_path, on_lightning.Prune(gradual), Fail(), model=model)
    assert not optimizers[0]._optimizer_step_post_hooks


# transformers


class Rows(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": rows()[0][index], "labels": rows()[1][index]}


class WithLoss(nn.Module):
    """What the Trainer trains: a module that gives its loss."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = net(seed)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return self.net(x) if labels is None else {"loss": loss(self.net, (x, labels))}


def trainer_of(folder: Path, model: nn.Module, *callbacks: Any, **settings: Any) -> transformers.Trainer:
    settings = {"max_steps": STEPS, "save_steps": KILLED, **settings}
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=2, learning_rate=0.02, use_cpu=True, report_to=[], disable_tqdm=True,
        logging_strategy="no", **settings,
    )  # fmt: skip
    data = {"train_dataset": Rows(), "eval_dataset": Rows()}
    return transformers.Trainer(model, arguments, callbacks=list(callbacks), **data)


@pytest.mark.parametrize("within", ["", "net"])
def test_a_trainer_goes_on_from_its_own_checkpoint_to_the_same_bits(tmp_path: Path, within: str) -> None:
    def run(seed: int, resume: str | None) -> tuple[WithLoss, Gradual, prunus.Plan]:
        model = WithLoss(seed)
        gradual, plan = parts_of(model.get_submodule(within), seed)
        prune = on_transformers.Prune(gradual, plan, within=within)
        trainer_of(tmp_path, model, prune).train(resume_from_checkpoint=resume)
        return model, gradual, prune.riders.riders[1].plan

    model, gradual, plan = run(0, None)
    again, anew, held = run(1, str(tmp_path / f"checkpoint-{KILLED}"))
    assert (gradual.step, anew.step) == (STEPS, STEPS)
    assert same(weights(again), weights(model))
    assert same(list(anew.state_dict()["kept"].values()), list(gradual.state_dict()["kept"].values()))
    assert same(list(held.keep.values()), list(plan.keep.values()))
    assert zeros(model) == [32 - int(0.3 * 32), 0, 16, 0]


def test_a_trainer_counts_steps_and_not_batches(tmp_path: Path) -> None:
    model = WithLoss(0)
    gradual = gradual_of(prunus.group(model, pattern=Element()), steps=3)
    settings = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 4, "save_strategy": "no"}
    trainer_of(tmp_path, model, on_transformers.Prune(gradual), **settings).train()
    assert gradual.step == 3
    assert sum(zeros(model)) == 64 - int(0.3 * 64)


def test_the_best_weights_that_a_trainer_puts_back_have_the_zeros_too(tmp_path: Path) -> None:
    model = WithLoss(0)
    gradual = gradual_of(prunus.group(model, pattern=Element()), steps=KILLED + 2)
    settings = {"eval_strategy": "steps", "eval_steps": KILLED, "load_best_model_at_end": True, "bf16": True}
    trainer = trainer_of(
        tmp_path,
        model,
        on_transformers.Prune(gradual),
        metric_for_best_model="step",
        greater_is_better=False,
        **settings,
    )
    trainer.compute_metrics = lambda _: {"step": trainer.state.global_step}
    trainer.train()
    assert trainer.state.best_global_step == KILLED  # when there were more
    assert sum(zeros(model)) == 64 - int(0.3 * 64)


def test_a_checkpoint_of_a_trainer_is_text(tmp_path: Path) -> None:
    model = WithLoss(0)
    gradual = gradual_of(prunus.group(model, pattern=Element()))
    trainer_of(tmp_path, model, on_transformers.Prune(gradual)).train()
    saved = json.loads((tmp_path / f"checkpoint-{KILLED}" / "trainer_state.json").read_text())
    (state,) = from_text(saved["stateful_callbacks"]["Prune"]["riders"])["riders"]
    assert state["step"] == KILLED
    assert state["kept"].keys() == {"net.0.weight", "net.2.weight"}


def test_pruning_may_begin_in_the_middle_of_a_training(tmp_path: Path) -> None:
    model = WithLoss(0)
    trainer_of(tmp_path, model).train()
    gradual = gradual_of(prunus.group(model, pattern=Element()), steps=4)
    resumed = trainer_of(tmp_path, model, on_transformers.Prune(gradual))
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{KILLED}"))
    assert gradual.step == STEPS - KILLED
    assert sum(zeros(model)) == 64 - int(0.3 * 64)


def test_a_trainer_that_would_make_the_callback_anew_is_refused(tmp_path: Path) -> None:
    model = WithLoss(0)
    prune = on_transformers.Prune(gradual_of(prunus.group(model, pattern=Element())))
    trainer_of(tmp_path, model, prune).train()
    again = trainer_of(tmp_path, model, prune, restore_callback_states_from_checkpoint=True)
    with pytest.raises(PlanError, match="leave restore_callback_states_from_checkpoint=False"):
        again.train(resume_from_checkpoint=True)


def test_two_callbacks_in_a_trainer_are_refused(tmp_path: Path) -> None:
    model = WithLoss(0)
    gradual, plan = parts_of(model, 0)
    both = on_transformers.Prune(gradual), on_transformers.Prune(plan)
    with pytest.raises(PlanError, match=r"several Prune callbacks; expected one.*Prune\(a, b\)"):
        trainer_of(tmp_path, model, *both).train()


# Accelerate


@pytest.fixture
def anew() -> Iterator[Callable[[], None]]:
    """Accelerate keeps one state a process."""

    def forget() -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    forget()
    yield forget
    forget()


def accelerate_run(folder: Path, seed: int, resume: bool, **settings: Any) -> tuple[nn.Module, Gradual, Riders]:
    accelerator = accelerate.Accelerator(cpu=True, **settings)
    model = net(seed)
    gradual, plan = parts_of(model, seed)
    optimizer = AdamW(model.parameters(), lr=0.02)
    scheduler = CosineAnnealingLR(optimizer, STEPS)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    x, y = rows()
    with on_accelerate.attach(accelerator, model, optimizer, riders=[gradual, plan]) as riders:
        if resume:
            accelerator.load_state(str(folder))
        for step in range(KILLED if resume else 0, STEPS):
            torch.manual_seed(step)
            if step == KILLED and not resume:
                accelerator.save_state(str(folder))
            with accelerator.accumulate(model):
                accelerator.backward(loss(model, (x[2 * step :][:2], y[2 * step :][:2])))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return model, gradual, riders


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 3}, {"mixed_precision": "bf16"}], ids=str)
def test_a_loop_with_accelerate_goes_on_from_its_own_checkpoint_to_the_same_bits(
    tmp_path: Path, settings: dict[str, Any], anew: Callable[[], None]
) -> None:
    model, gradual, riders = accelerate_run(tmp_path, 0, resume=False, **settings)
    assert gradual.step == STEPS // settings.get("gradient_accumulation_steps", 1)
    anew()
    again, other, held = accelerate_run(tmp_path, 1, resume=True, **settings)
    assert other.step == gradual.step
    assert same(weights(again), weights(model))
    assert same(list(other.state_dict()["kept"].values()), list(gradual.state_dict()["kept"].values()))
    assert same(list(held.riders[1].plan.keep.values()), list(riders.riders[1].plan.keep.values()))
    assert zeros(model)[2] == 16


# riders, and errors


TENSORS = torch.tensor([1, 2], dtype=torch.uint8), torch.zeros(0), torch.ones(2, 3).half().T, torch.tensor(0.1)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
STATES = st.recursive(
    PLAIN | st.sampled_from(TENSORS),
    lambda state: st.lists(state, max_size=3) | st.dictionaries(st.text(max_size=5), state, max_size=3),
    max_leaves=6,
)


@given(STATES)
def test_what_is_written_as_text_is_read_again(state: Any) -> None:
    def alike(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
        return all(map(alike, a, b)) and len(a) == len(b) if isinstance(a, list) else a == b and type(a) is type(b)

    assert alike(state, from_text(json.loads(json.dumps(to_text(state)))))


@pytest.mark.parametrize(
    "make", [on_lightning.Prune, on_transformers.Prune, lambda: Riders([])], ids=["lightning", "trainer", "riders"]
)
def test_nothing_that_rides_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(PlanError, match=r"Nothing was given to ride along; expected a Gradual, a Plan or the like"):
        make()


@pytest.mark.parametrize(
    "make", [on_lightning.Prune, on_transformers.Prune, lambda l0: Riders([l0])], ids=["lightning", "trainer", "riders"]
)
def test_gates_that_need_a_param_group_of_their_own_are_refused(make: Callable[[Any], Any]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    l0 = prunus.regularize.L0(prunus.group(prunus.trace(model, torch.ones(2, 4))))
    with pytest.raises(PlanError, match="L0 adds a param group to the optimizer"):
        make(l0)


def test_a_checkpoint_of_other_riders_is_refused() -> None:
    gradual, plan = parts_of(net(), 0)
    with pytest.raises(PlanError, match="holds the state of 2 riders, but 1 were given"):
        Riders([gradual]).load_state_dict(Riders([gradual, plan]).state_dict())


def test_an_optimizer_that_takes_no_hooks_is_refused() -> None:
    class Own(Optimizer):
        def __init__(self) -> None:
            self.param_groups = []

    with pytest.raises(PlanError, match=r"Own takes no hooks.*Pass the optimizer inside"):
        gradual_of(prunus.group(net(), pattern=Element())).attach(net(), Own())


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("lightning", ["lightning", "lightning.pytorch", "pytorch_lightning"]),
        ("transformers", ["transformers"]),
    ],
)
def test_a_missing_package_names_its_extra(extra: str, packages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'prunus\[{extra}\]'"):
        reload(import_module(f"prunus.integrations.{extra}"))
