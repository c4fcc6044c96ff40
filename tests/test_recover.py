"""Recovery: fine-tuning leaves all but the weights as it was and never ends worse; statistics are plain averages."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.apply.build import graph_model
from prunus.errors import RecoverError
from prunus.recover import Precision, fastest, finetune, recalibrate
from prunus.recover.finetune import warm_cosine
from prunus.recover.precision import laid_out

plain = partial(finetune, bf16=False, channels_last=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many threads on busy cores wait for each other: a hundred times slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Stream:
    """Re-iterable batches without a length; counts the passes."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.batches)


class Epochs(list[Any]):
    """A list of batches that is told the epoch, as a distributed sampler is."""

    told: tuple[int, ...] = ()

    def set_epoch(self, epoch: int) -> None:
        self.told = (*self.told, epoch)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(6, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def examples(n: int = 4, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n * size, 2, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (n * size,), generator=generator)
    return list(zip(images.split(size), labels.split(size), strict=True))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


@torch.no_grad()
def likelihood(model: nn.Module) -> Tensor:
    images, labels = (torch.cat(part) for part in zip(*examples(), strict=True))
    return model(images).softmax(1).gather(1, labels[:, None])[:, 0]


def bits(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# fine-tuning ---------------------------------------------------------------------------------------------------------


def test_it_trains_the_model_it_is_given_and_returns_it() -> None:
    model = small_net()
    before = float(likelihood(model.eval()).mean())
    assert plain(model, examples(), loss, epochs=20, lr=1e-2) is model
    assert float(likelihood(model.eval()).mean()) > before + 0.1


@pytest.mark.parametrize("lr", [1e-3, 10.0])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_never_ends_worse_than_it_began(lr: float, channels_last: bool) -> None:
    model = plain(small_net(), examples(), loss, epochs=8, lr=1e-2)
    before = float(likelihood(model.eval()).double().mean())
    finetune(model, examples(), loss, epochs=3, lr=lr, evaluate=likelihood, bf16=False, channels_last=channels_last)
    assert float(likelihood(model.eval()).double().mean()) >= before


def test_without_a_better_epoch_the_model_is_bit_identical_to_before() -> None:
    model, scores = small_net(), iter([1.0, 0.5, 0.9])
    before = bits(model)
    plain(model, examples(), loss, epochs=2, evaluate=lambda _: next(scores))
    assert same(bits(model), before)


def test_of_equal_epochs_the_latest_is_kept() -> None:
    kept, last = small_net(), small_net()
    plain(kept, examples(), loss, epochs=2, evaluate=lambda _: 1.0)
    plain(last, examples(), loss, epochs=2)
    assert same(bits(kept), bits(last))


def test_evaluate_sees_eval_mode_and_no_gradients() -> None:
    seen: list[tuple[bool, bool]] = []

    def evaluate(model: nn.Module) -> float:
        seen.append((model.training, torch.is_grad_enabled()))
        return 0.0

    plain(small_net(), examples(), loss, epochs=2, evaluate=evaluate)
    assert seen == [(False, False)] * 3


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_same_seed_gives_the_same_bits(bf16: bool, channels_last: bool) -> None:
    ends: list[list[Tensor]] = []
    for caller in (1, 2):
        model = small_net()
        torch.manual_seed(caller)
        finetune(model, examples(), loss, epochs=2, bf16=bf16, channels_last=channels_last, seed=5)
        ends.append(bits(model))
    assert same(*ends)


def test_another_seed_gives_other_bits() -> None:
    one, other = (plain(small_net(), examples(), loss, epochs=2, seed=seed) for seed in (0, 1))
    assert not same(bits(one), bits(other))


def test_a_shuffling_loader_follows_the_seed() -> None:
    pairs = [(x, y) for images, labels in examples() for x, y in zip(images, labels, strict=True)]
    ends: list[list[Tensor]] = []
    for caller, seed in ((1, 0), (2, 0), (1, 1)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
        nn.init.zeros_(model[1].weight)
        nn.init.zeros_(model[1].bias)
        torch.manual_seed(caller)
        loader = torch.utils.data.DataLoader(pairs, batch_size=8, shuffle=True)
        ends.append(bits(plain(model, loader, loss, epochs=2, seed=seed)))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_the_timing_does_not_change_what_is_learned() -> None:
    class Unsure(nn.Module):
        """Fails in channels-last, so that only the plain layout is left."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop = nn.Conv2d(2, 6, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.conv(x)).view(len(x), 3, -1).mean(2)

    ends: list[list[Tensor]] = []
    for channels_last in (False, "auto"):
        torch.manual_seed(0)
        ends.append(bits(finetune(Unsure(), examples(50), loss, epochs=2, bf16=False, channels_last=channels_last)))
    assert same(*ends)


@pytest.mark.parametrize("auto", [False, True])
def test_the_callers_random_numbers_are_untouched(auto: bool) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    model, data = small_net(), examples(60)
    torch.manual_seed(3)
    choice: Any = "auto" if auto else False
    finetune(model, data, loss, epochs=2, bf16=choice, channels_last=choice, evaluate=likelihood)
    assert torch.equal(torch.rand(4), expected)


def test_memory_formats_are_put_back() -> None:
    model = small_net()
    model[4].weight.data = model[4].weight.data.contiguous(memory_format=torch.channels_last)
    strides = [p.stride() for p in model.parameters()]
    finetune(model, examples(), loss, epochs=1, bf16=False, channels_last=True, evaluate=likelihood)
    assert [p.stride() for p in model.parameters()] == strides


def test_channels_last_is_what_the_loss_sees_when_asked() -> None:
    seen: list[bool] = []

    def looking(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(model[0].weight.is_contiguous(memory_format=torch.channels_last))
        return loss(model, batch)

    finetune(small_net(), examples(), looking, epochs=1, bf16=False, channels_last=True)
    assert seen == [True] * 4


def test_bf16_is_what_the_loss_sees_when_asked_and_weights_stay_float32() -> None:
    seen: list[torch.dtype] = []

    def looking(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(model(batch[0]).dtype)
        return loss(model, batch)

    model = finetune(small_net(), examples(), looking, epochs=1, bf16=True, channels_last=False)
    assert seen == [torch.bfloat16] * 4
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_modes_are_put_back_module_by_module() -> None:
    model = small_net().eval()
    model[1].train()
    modes = [m.training for m in model.modules()]
    plain(model, examples(), loss, epochs=1, evaluate=likelihood)
    assert [m.training for m in model.modules()] == modes


def test_frozen_parameters_stay() -> None:
    model = small_net()
    model[0].weight.requires_grad_(False)
    frozen, free = model[0].weight.clone(), model[4].weight.clone()
    plain(model, examples(), loss, epochs=2)
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[4].weight, free)


def test_data_without_a_length_are_counted_in_one_more_pass() -> None:
    stream, model, counted = Stream(examples()), small_net(), small_net()
    plain(model, stream, loss, epochs=2)
    assert stream.passes == 3
    assert same(bits(model), bits(plain(counted, examples(), loss, epochs=2)))


def test_data_are_told_the_epoch() -> None:
    data = Epochs(examples())
    plain(small_net(), data, loss, epochs=3)
    assert data.told == (0, 1, 2)


def test_progress_counts_the_steps() -> None:
    seen: list[tuple[str, int, int]] = []
    plain(small_net(), examples(), loss, epochs=2, progress=lambda *step: seen.append(step))
    assert [(done, steps) for _, done, steps in seen] == [(i + 1, 8) for i in range(8)]
    assert {what for what, _, _ in seen} == {"fine-tuning (own dtype)"}


def test_an_optimizer_is_made_of_the_trainable_parameters_and_the_rate() -> None:
    """One step of SGD at the peak rate, by hand: w - lr * gradient, with y = w * x, (w * 2 - 0)^2 and w = 1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    data = [(torch.tensor([[2.0]]), torch.zeros(1, 1))]
    plain(model, data, lambda m, b: F.mse_loss(m(b[0]), b[1]), epochs=1, lr=0.1, optimizer=torch.optim.SGD)
    assert model.weight.item() == pytest.approx(1 - 0.1 * 8)


def test_gradients_are_clipped_when_asked() -> None:
    """The same step with the gradient 8 clipped to 1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    data = [(torch.tensor([[2.0]]), torch.zeros(1, 1))]
    clipped = partial(plain, optimizer=torch.optim.SGD, max_grad_norm=1.0)
    clipped(model, data, lambda m, b: F.mse_loss(m(b[0]), b[1]), epochs=1, lr=0.1)
    assert model.weight.item() == pytest.approx(0.9, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 100, 1000])
def test_the_rate_rises_to_its_peak_then_falls(steps: int) -> None:
    rates = [warm_cosine(step, steps) for step in range(steps)]
    peak = rates.index(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0
    assert max(rates) == 1


# errors of fine-tuning -----------------------------------------------------------------------------------------------


def test_a_generator_is_refused_before_training() -> None:
    model = small_net()
    before = bits(model)
    with pytest.raises(RecoverError, match="generator, which can be read only once"):
        plain(model, (batch for batch in examples()), loss, epochs=1)
    assert same(bits(model), before)


def test_data_that_run_dry_are_refused() -> None:
    class Once(Stream):
        def __iter__(self) -> Iterator[Any]:
            batches, self.batches = self.batches, []
            return iter(batches)

        def __len__(self) -> int:
            return 4

    with pytest.raises(RecoverError, match="gave no batch in epoch 2"):
        plain(small_net(), Once(examples()), loss, epochs=2)


def test_no_data_are_refused() -> None:
    with pytest.raises(RecoverError, match="gave no batch in epoch 1"):
        plain(small_net(), [], loss, epochs=1)


def test_no_data_to_time_are_refused() -> None:
    with pytest.raises(RecoverError, match="gave no batch"):
        fastest(small_net(), [], loss)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}])
def test_no_epochs_or_no_rate_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecoverError, match="at least one epoch and a positive, finite lr"):
        plain(small_net(), examples(), loss, **{"epochs": 1, **wrong})


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(RecoverError, match="no trainable parameter"):
        plain(small_net().requires_grad_(False), examples(), loss, epochs=1)


def test_a_loss_that_is_not_finite_is_reported_with_its_rate_and_all_is_put_back() -> None:
    model = small_net().eval()
    strides = [p.stride() for p in model.parameters()]
    with pytest.raises(RecoverError, match=r"nan in step 1 of epoch 1, at learning rate 0\.5.*smaller lr"):
        finetune(
            model, examples(), lambda m, b: loss(m, b) * float("nan"), epochs=5, lr=1.0, bf16=False, channels_last=True
        )
    assert not any(m.training for m in model.modules())
    assert [p.stride() for p in model.parameters()] == strides


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(RecoverError, match=r"a tensor of shape \(8, 3\); expected a scalar"):
        plain(small_net(), examples(), lambda m, b: m(b[0]), epochs=1)


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(RecoverError, match="returned float; expected a scalar"):
        plain(small_net(), examples(), lambda m, b: loss(m, b).item(), epochs=1)


def test_a_detached_loss_is_refused() -> None:
    with pytest.raises(RecoverError, match="does not depend on any trainable parameter"):
        plain(small_net(), examples(), lambda m, b: loss(m, b).detach(), epochs=1)


@pytest.mark.parametrize("value", [float("nan"), torch.tensor([])], ids=["nan", "empty"])
def test_a_score_that_is_not_finite_is_refused(value: float | Tensor) -> None:
    with pytest.raises(RecoverError, match="mean score of nan"):
        plain(small_net(), examples(), loss, epochs=1, evaluate=lambda _: value)


# precision -----------------------------------------------------------------------------------------------------------


def test_timing_touches_neither_the_model_nor_its_gradients_nor_random_numbers() -> None:
    model = small_net()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    before, strides = bits(model), [p.stride() for p in model.parameters()]
    fastest(model, examples(), loss)
    assert same(bits(model), before)
    assert [p.stride() for p in model.parameters()] == strides
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.rand(4), expected)


def test_the_faster_precision_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {(False, False): 2.0, (True, False): 1.0, (False, True): 1.5, (True, True): 1.2}

    def seconds(_model: Any, _batch: Any, _loss: Any, precision: Precision) -> float:
        return cost[precision.bf16, precision.channels_last]

    monkeypatch.setattr("prunus.recover.precision._step_seconds", seconds)
    assert fastest(small_net(), examples(), loss) == Precision(bf16=True)
    assert fastest(small_net(), examples(), loss, bf16=False) == Precision(channels_last=True)
    cost[True, True] = 0.99
    assert fastest(small_net(), examples(), loss) == Precision(bf16=True)
    cost[True, False] = cost[True, True] = cost[False, True] = 1.95
    assert fastest(small_net(), examples(), loss) == Precision()


def test_what_fails_is_not_taken_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def fussy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not in bf16")
        return loss(model, batch)

    with caplog.at_level(logging.INFO, "prunus"):
        chosen = fastest(small_net(), examples(), fussy, channels_last=False)
    assert chosen == Precision()
    assert "bf16 not taken: not in bf16" in caplog.text
    assert "taken: own dtype" in caplog.text


def test_a_model_that_cannot_be_copied_is_trained_plainly() -> None:
    model = small_net()
    model[0].scaled = model[0].weight * 2  # a computed tensor, which torch refuses to copy
    assert fastest(model, examples(), loss) == Precision()


def test_explicit_choices_are_kept_and_cost_no_step() -> None:
    def never(_model: nn.Module, _batch: Any) -> Tensor:
        raise AssertionError

    assert fastest(small_net(), [], never, bf16=True, channels_last=True) == Precision(True, True)


def test_short_runs_are_not_timed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prunus"):
        finetune(small_net(), examples(), loss, epochs=1)
    assert not caplog.text


def test_values_survive_the_change_of_layout() -> None:
    model = small_net()
    before = bits(model)
    with laid_out(model, Precision(channels_last=True)):
        assert same(bits(model), before)
    assert same(bits(model), before)


# recalibration -------------------------------------------------------------------------------------------------------


def norm_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.BatchNorm1d(5, momentum=0.3), nn.ReLU(), nn.Linear(5, 2))


def vectors() -> list[Tensor]:
    return list(torch.randn(30, 3, generator=torch.Generator().manual_seed(2)).split(10))


def test_statistics_are_the_averages_over_the_batches() -> None:
    model = norm_net()
    hidden = [model[0](x).detach() for x in vectors()]
    assert recalibrate(model, vectors()) is model
    norm = model[2]
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert int(norm.num_batches_tracked) == 3


def test_recalibration_records_no_gradients() -> None:
    seen: list[bool] = []
    recalibrate(norm_net(), vectors(), call=lambda model, x: seen.append(model(x).requires_grad))
    assert seen == [False] * 3


def test_recalibrating_twice_is_recalibrating_once() -> None:
    once, twice = norm_net(), norm_net()
    recalibrate(once, vectors())
    recalibrate(recalibrate(twice, vectors()), vectors())
    assert same(bits(once), bits(twice))


def test_recalibration_changes_statistics_alone() -> None:
    model = norm_net().train()
    model[2].eval()
    weights, modes = [p.detach().clone() for p in model.parameters()], [m.training for m in model.modules()]
    recalibrate(model, vectors())
    assert same([p.detach() for p in model.parameters()], weights)
    assert [m.training for m in model.modules()] == modes
    assert model[2].momentum == 0.3
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("wrap", "call"),
    [
        (lambda x: (x, None), None),
        (lambda x: [x], None),
        (lambda x: {"input": x}, None),
        (lambda x: {"odd": x}, lambda model, batch: model(batch["odd"])),
    ],
    ids=["tuple", "list", "dict", "call"],
)
def test_batches_are_fed_as_they_come(wrap: Any, call: Any) -> None:
    fed, plainly = norm_net(), norm_net()
    recalibrate(fed, [wrap(x) for x in vectors()], call=call)
    assert same(bits(fed), bits(recalibrate(plainly, vectors())))


def test_a_model_without_statistics_is_returned_unread() -> None:
    model, stream = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, track_running_stats=False)), Stream(vectors())
    assert recalibrate(model, stream) is model
    assert stream.passes == 0


def test_nothing_to_recalibrate_on_is_refused_and_statistics_stay() -> None:
    model = recalibrate(norm_net(), vectors())
    before = bits(model)
    with pytest.raises(RecoverError, match="given no batches"):
        recalibrate(model, [])
    assert same(bits(model), before)
    assert model[2].momentum == 0.3


def test_statistics_that_are_not_finite_are_refused_and_put_back() -> None:
    model = recalibrate(norm_net(), vectors())
    before = bits(model)
    with pytest.raises(RecoverError, match="The statistics of '2' are not finite after 2 batches"):
        recalibrate(model, [vectors()[0], torch.full((4, 3), float("inf"))])
    assert same(bits(model), before)


def test_a_batch_of_unknown_kind_is_refused() -> None:
    with pytest.raises(RecoverError, match="A batch is a str"):
        recalibrate(norm_net(), ["digits"])


def test_recalibration_repairs_damaged_statistics() -> None:
    model = recalibrate(norm_net(), vectors()).eval()
    damaged = copy.deepcopy(model)
    nn.init.constant_(damaged[2].running_mean, 9.0)
    x = vectors()[0]
    assert not torch.allclose(damaged(x), model(x))
    torch.testing.assert_close(recalibrate(damaged, vectors())(x), model(x))


def test_a_graph_model_is_recalibrated_as_its_class_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).train()
    batches = [torch.randn(8, 1, 6, 6) for _ in range(3)]
    graph = prunus.trace(model, batches[0])
    made = graph_model(graph, model, {}, {})
    recalibrate(model, batches)
    recalibrate(made, batches)
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(made.tensor(name), model.get_buffer(name))
    assert made.training
    with pytest.raises(RecoverError, match="no batches"):
        recalibrate(made, [])
