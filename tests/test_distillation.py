"""Distillation: the terms are the formulas, the student comes nearer, and the teacher is never touched."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import distillation
from prunus.errors import RecoverError
from prunus.recover import finetune


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net(width: int = 6, seed: int = 0) -> nn.Sequential:
    """Images (n, 2, 4, 4) to 3 logits; `block` keeps its 4 channels whatever the width."""
    torch.manual_seed(seed)
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(2, width, 3, padding=1),
        "norm": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
        "drop": nn.Dropout(0.2),
        "block": nn.Conv2d(width, 4, 3),
        "flat": nn.Flatten(),
        "head": nn.Linear(16, 3),
    }
    return nn.Sequential(OrderedDict(layers))


def batches(n: int = 4, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n * size, 2, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (n * size,), generator=generator)
    return list(zip(images.split(size), labels.split(size), strict=True))


def task(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def bits(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def temperate(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """T² sum p log(p / q), written out with exponentials."""
    q, p = (torch.exp(x / t) / torch.exp(x / t).sum(-1, keepdim=True) for x in (student, teacher))
    return t * t * (p * (p / q).log()).sum(-1).mean()


class Returns(nn.Module):
    """Wraps logits of shape (n, 3) by `wrap`."""

    def __init__(self, wrap: Callable[[Tensor], Any], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(2, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.head(x))


# the terms -----------------------------------------------------------------------------------------------------------


def test_logits_by_hand() -> None:
    """Teacher (1/2, 1/4, 1/4), student uniform: 1/2 ln 3/2 + 2 · 1/4 ln 3/4; at T = 2 the same softmax, times 4."""
    teacher = torch.tensor([[math.log(2.0), 0.0, 0.0]])
    expected = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert distillation.logits(torch.zeros(1, 3), teacher, temperature=1.0).item() == pytest.approx(expected, abs=1e-6)
    hot = distillation.logits(torch.ones(1, 3), 2 * teacher, temperature=2.0).item()
    assert hot == pytest.approx(4 * expected, abs=1e-6)


def test_logits_are_averaged_over_all_leading_dims() -> None:
    student, teacher = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    each = [distillation.logits(s, t) for s, t in zip(student.reshape(10, 3), teacher.reshape(10, 3), strict=True)]
    torch.testing.assert_close(distillation.logits(student, teacher), torch.stack(each).mean())


@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_logits_and_their_gradient_are_the_formula(t: float) -> None:
    """The gradient of T² KL is T (softmax(s / T) - softmax(t / T)) / n."""
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    value = distillation.logits(student, teacher, temperature=t)
    torch.testing.assert_close(value, temperate(student, teacher, t))
    value.backward()
    torch.testing.assert_close(student.grad, t * ((student / t).softmax(1) - (teacher / t).softmax(1)) / 6)
    assert teacher.grad is None


def test_features_by_hand_and_at_any_scale() -> None:
    """((3 - 1)² + (4 - 2)²) / (1² + 2²) = 8 / 5."""
    student, teacher = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    for scale in (1.0, 100.0):
        assert distillation.features(scale * student, scale * teacher).item() == pytest.approx(1.6)
    assert distillation.features(torch.zeros(2), teacher).item() == 1
    assert distillation.features(torch.tensor([1e-3]), torch.zeros(1)).item() == pytest.approx(1.0)


def test_the_gradient_of_features_is_the_formula() -> None:
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    distillation.features(student, teacher).backward()
    torch.testing.assert_close(student.grad, (2 * (student - teacher) / (teacher**2).sum()).detach())
    assert teacher.grad is None


@pytest.mark.parametrize("term", [distillation.logits, distillation.features])
def test_terms_are_zero_when_equal_and_in_float32(term: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = torch.randn(4, 3).bfloat16()
    assert term(x, x).item() == pytest.approx(0.0, abs=1e-7)
    y = torch.randn(4, 3).bfloat16()
    assert term(x, y).dtype == torch.float32
    assert term(x, y) == term(x.float(), y.float())


# the loss ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum() -> None:
    teacher, student, batch = net(8).eval(), net(5, seed=1).eval(), batches()[0]
    ours, theirs = student(batch[0]), teacher(batch[0])
    near, far = student[:5](batch[0]), teacher[:5](batch[0])
    hint = (near - far).square().sum() / far.square().sum()
    expected = 0.7 * F.cross_entropy(ours, batch[1]) + 0.3 * temperate(ours, theirs, 2.0) + 5.0 * hint
    follow = distillation.loss(teacher, task, temperature=2.0, weight=0.3, features=["block"], feature_weight=5.0)
    torch.testing.assert_close(follow(student, batch), expected)


def test_the_gradient_is_that_of_the_weighted_sum() -> None:
    teacher, student, batch = net(8).eval(), net(5, seed=1).eval(), batches()[0]
    logits = student(batch[0])
    value = 0.1 * F.cross_entropy(logits, batch[1]) + 0.9 * temperate(logits, teacher(batch[0]).detach(), 4.0)
    expected = torch.autograd.grad(value, list(student.parameters()))
    given = torch.autograd.grad(distillation.loss(teacher, task)(student, batch), list(student.parameters()))
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", ["tensor", "tuple", "list", "dict"])
def test_without_a_task_only_the_teacher_counts(shape: str) -> None:
    teacher, student, (x, labels) = net(8).eval(), net(5, seed=1).eval(), batches()[0]
    batch: Any = {"tensor": x, "tuple": (x, labels), "list": [x, labels], "dict": {"input": x}}[shape]
    follow = distillation.loss(teacher, features=["block"], weight=0.25)
    hint = distillation.features(student[:5](x), teacher[:5](x))
    torch.testing.assert_close(follow(student, batch), distillation.logits(student(x), teacher(x)) + hint)


def test_every_call_counts_with_its_own_arguments() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, x: Tensor, *, shift: float) -> Tensor:
            return self.head(x + shift)

    def twice(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x, shift=1.0) + model(x, shift=-1.0)).square().mean()

    student, teacher, x = Shifted(), Shifted(), torch.randn(4, 2)
    parts = [distillation.logits(student(x, shift=s), teacher(x, shift=s)) for s in (1.0, -1.0)]
    expected = 0.5 * twice(student, x) + 0.5 * (parts[0] + parts[1]) / 2
    torch.testing.assert_close(distillation.loss(teacher, twice, weight=0.5)(student, x), expected)


def test_layers_of_other_names_are_paired() -> None:
    teacher, student, x = net(8).eval(), net(5, seed=1).eval(), batches()[0][0]
    plain = distillation.loss(teacher, features=["block"])(student, x)
    renamed = nn.Sequential(OrderedDict({("hidden" if k == "block" else k): m for k, m in student.named_children()}))
    follow = distillation.loss(teacher, features={"hidden": "block"})
    torch.testing.assert_close(follow(renamed.eval(), x), plain)


def test_features_are_the_mean_over_layers_and_runs() -> None:
    class Loop(nn.Module):
        """One shared layer, run twice, whose output is a tuple; and a head."""

        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.cell, self.head = nn.RNN(2, 2, batch_first=True), nn.Linear(2, 3)

        def hidden(self, x: Tensor) -> list[Tensor]:
            first = self.cell(x)[0]
            second = self.cell(first)[0]
            return [first, second, self.head(second)]

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden(x)[-1]

    student, teacher, x = Loop(0), Loop(1), torch.randn(3, 4, 2)
    pairs = zip(student.hidden(x), teacher.hidden(x), strict=True)
    expected = sum(distillation.features(a, b) for a, b in pairs) / 3
    follow = distillation.loss(teacher, lambda m, x: m(x).mean(), weight=0.0, features=["cell", "head"])
    torch.testing.assert_close(follow(student, x), student(x).mean() + expected)


def test_calls_of_parts_outside_the_model_do_not_count() -> None:
    def warmed(model: Any, batch: Any) -> Tensor:
        model.block(torch.randn(1, model.block.in_channels, 4, 4))
        return task(model, batch)

    teacher, student, batch = net(8).eval(), net(5, seed=1).eval(), batches()[0]
    given = distillation.loss(teacher, warmed, features=["block"])(student, batch)
    torch.testing.assert_close(given, distillation.loss(teacher, task, features=["block"])(student, batch))


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda y: SimpleNamespace(logits=y), None),
        (lambda y: {"logits": y, "loss": None}, None),
        (lambda y: (None, y), lambda out: out[1]),
    ],
    ids=["attribute", "key", "selector"],
)
def test_logits_are_found_in_the_output(wrap: Any, output: Any) -> None:
    x = torch.randn(5, 2)
    student, teacher = Returns(wrap), Returns(wrap, seed=1)
    expected = distillation.logits(student.head(x), teacher.head(x))
    torch.testing.assert_close(distillation.loss(teacher, output=output)(student, x), expected)


def test_with_weight_0_logits_are_not_compared() -> None:
    teacher, student, batch = net(8).eval(), net(5, seed=1).eval(), batches()[0]
    teacher.head = nn.Linear(16, 7)  # other classes
    follow = distillation.loss(teacher, task, weight=0.0, features=["block"])
    hint = distillation.features(student[:5](batch[0]), teacher[:5](batch[0]))
    torch.testing.assert_close(follow(student, batch), task(student, batch) + hint)


class InPlace(nn.Module):
    """Changes its input, and what its layer gave."""

    def __init__(self, seed: int = 0, gate: Callable[[Tensor], Tensor] = F.relu_) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.head, self.gate = nn.Linear(2, 4), nn.Linear(4, 3), gate

    def forward(self, x: Tensor, more: Any = ()) -> Tensor:
        for each in (x, *more):
            each.sub_(1.0)
        return self.head(self.gate(self.layer(x + sum(more))))


def test_inputs_changed_in_place_are_given_to_the_teacher_as_they_were() -> None:
    def call(model: nn.Module, x: Tensor) -> Tensor:
        return model(x, more=[x.clone(), x.clone()]).mean()

    student, teacher, x = InPlace(), InPlace(), torch.randn(5, 2)
    assert distillation.loss(teacher)(student, x.clone()).item() == pytest.approx(0.0, abs=1e-7)
    given = x.clone()
    assert distillation.loss(teacher, call, weight=1.0)(student, given).item() == pytest.approx(0.0, abs=1e-7)
    assert torch.equal(given, x - 1)  # once: the teacher has its own


def test_the_teacher_gets_arguments_of_the_same_kinds() -> None:
    class Pair(NamedTuple):
        x: Tensor
        again: Tensor

    class Takes(Returns):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            got.append((args, kwargs))
            return self.head(args[0].x)

    got: list[Any] = []
    x, mark = torch.ones(2, 2), object()
    given = (Pair(x, x), OrderedDict(a=[x], b=torch.Size([2])), UserDict(c=x)), {"d": mark, "e": (1, None)}
    follow = distillation.loss(Takes(nn.Identity()), lambda model, _: model(*given[0], **given[1]).mean())
    follow(Takes(nn.Identity()), None)
    (pair, ordered, user), kwargs = got[1]
    assert (type(pair), type(ordered), type(user)) == (Pair, OrderedDict, UserDict)
    assert pair.x is pair.again is ordered["a"][0] is user["c"] is not x
    assert ordered["b"] == (2,)
    assert kwargs["d"] is mark
    assert given[0][1]["a"][0] is given[0][2]["c"] is x


def test_features_changed_in_place_are_compared_as_the_layer_gave_them() -> None:
    student, teacher, plain, x = InPlace(), InPlace(1), InPlace(gate=F.relu), torch.randn(5, 2)
    follow = distillation.loss(teacher, features=["layer"])
    value = follow(student, x.clone())
    hint = distillation.features(student.layer(x - 1), teacher.layer(x - 1))
    torch.testing.assert_close(value, distillation.logits(plain(x.clone()), teacher(x.clone())) + hint)
    given, expected = (
        torch.autograd.grad(follow(model, x.clone()), list(model.parameters())) for model in (student, plain)
    )
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other)


# with fine-tuning ----------------------------------------------------------------------------------------------------


def distance(student: nn.Module, teacher: nn.Module) -> float:
    x = torch.cat([x for x, _ in batches()])
    with torch.no_grad():
        return float(distillation.logits(student.eval()(x), teacher.eval()(x), temperature=1.0))


@pytest.mark.parametrize("with_task", [False, True])
@pytest.mark.parametrize("features", [(), ["block"]])
@pytest.mark.parametrize(("bf16", "channels_last"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_student_comes_nearer(with_task: bool, features: Any, bf16: bool, channels_last: bool) -> None:
    """Labels are those of the teacher, so the task does not pull away."""
    teacher, student = net(8).eval(), net(5, seed=1)
    data = [(x, teacher(x).argmax(1)) for x, _ in batches()]
    follow = distillation.loss(teacher, task if with_task else None, features=features)
    before = distance(student, teacher)
    finetune(student, data, follow, epochs=15, lr=2e-2, bf16=bf16, channels_last=channels_last)
    assert distance(student, teacher) < before / 2


def test_a_pruned_network_follows_its_whole_self() -> None:
    teacher, data = net(8).eval(), batches()
    graph = prunus.trace(teacher, data[0][0])
    groups = prunus.group(graph, pattern=prunus.Channel())
    scores = prunus.score(teacher, groups, prunus.criteria.magnitude)
    plan = prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5), scope="layer")
    student = prunus.shrink(teacher, plan)
    before = distance(student, teacher)
    finetune(student, data, prunus.distillation.loss(teacher), epochs=15, lr=2e-2)
    assert distance(student, teacher) < before / 2


def test_precision_may_be_timed_with_it() -> None:
    follow = distillation.loss(net(8), task, features=["block"])
    assert isinstance(prunus.recover.fastest(net(5), batches(), follow), prunus.recover.Precision)


@pytest.mark.parametrize("features", [(), ["block"]])
@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compile", "dp"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_wrapped_models_are_compared_as_plain_ones(wrap: Any, features: Any) -> None:
    teacher, student, batch = net(8).eval(), net(5, seed=1).eval(), batches()[0]
    expected = distillation.loss(teacher, task, features=features)(student, batch)
    wrapped = wrap(student)
    follow = distillation.loss(wrap(teacher), task, features=features)
    for _ in range(2):
        torch.testing.assert_close(follow(wrapped, batch), expected)


def test_a_graph_model_may_be_the_student_or_the_teacher() -> None:
    from prunus.apply.build import graph_model

    teacher, student, batch = net(8).eval(), net(5, seed=1).eval(), batches()[0]
    made = [graph_model(prunus.trace(m, batch[0]), m, {}, {}).eval() for m in (teacher, student)]
    expected = distillation.loss(teacher, task)(student, batch)
    torch.testing.assert_close(distillation.loss(made[0], task)(made[1], batch), expected)


# what stays ----------------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Counts its calls in buffers, in place and by assignment, in eval mode too, as a quantisation observer does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("others", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.others = self.others + 1
        return x


def test_the_teacher_is_untouched() -> None:
    teacher, student = net(8).train(), net(5, seed=1)
    teacher.add_module("count", Restless())
    teacher.norm.eval()
    teacher.conv.weight.grad = torch.ones_like(teacher.conv.weight)
    before, modes, asks = bits(teacher), [m.training for m in teacher.modules()], hooks(teacher)
    buffers = list(teacher.buffers())
    loud = [p.requires_grad for p in teacher.parameters()]
    finetune(student, batches(), distillation.loss(teacher, task, features=["block"]), epochs=2)
    assert same(bits(teacher), before)
    assert [m.training for m in teacher.modules()] == modes
    assert all(a is b for a, b in zip(teacher.buffers(), buffers, strict=True))
    assert [float(b) for b in teacher.count.buffers()] == [0.0, 0.0]
    assert torch.equal(teacher.conv.weight.grad, torch.ones_like(teacher.conv.weight))
    assert [p.grad for p in teacher.parameters()][1:] == [None] * (len(loud) - 1)
    assert [p.requires_grad for p in teacher.parameters()] == loud
    assert hooks(teacher) == asks


def test_the_teacher_speaks_in_eval_mode_whatever_its_own() -> None:
    student, batch = net(5, seed=1).eval(), batches()[0]
    quiet, loud = net(8).eval(), net(8).train()
    for p in quiet.parameters():
        p.requires_grad_(False)
    values = [distillation.loss(teacher, task)(student, batch) for teacher in (quiet, loud)]
    assert torch.equal(*values)


def test_the_teacher_runs_without_gradients() -> None:
    seen: list[bool] = []
    teacher, student = net(8), net(5, seed=1)
    teacher.head.register_forward_hook(lambda _m, _a, y: seen.append(y.requires_grad))
    distillation.loss(teacher, task)(student, batches()[0]).backward()
    assert seen == [False]
    assert all(p.grad is not None for p in student.parameters())


def test_the_student_keeps_its_keys_modes_and_hooks() -> None:
    teacher, student = net(8), net(5, seed=1).train()
    student.drop.eval()
    student.head.register_forward_hook(lambda _m, _a, y: y)
    keys, modes = list(student.state_dict()), [m.training for m in student.modules()]
    distillation.loss(teacher, task, features=["block"])(student, batches()[0])
    assert list(student.state_dict()) == keys
    assert [m.training for m in student.modules()] == modes
    assert hooks(student) == 1


def test_the_student_trains_in_train_mode() -> None:
    """Its batch-norm statistics move, once a step."""
    student = net(5, seed=1).train()
    distillation.loss(net(8), task)(student, batches()[0])
    assert int(student.norm.num_batches_tracked) == 1


def test_hooks_go_when_the_task_fails() -> None:
    def failing(model: nn.Module, batch: Any) -> Tensor:
        task(model, batch)
        raise ValueError("task")

    teacher, student = net(8), net(5)
    with pytest.raises(ValueError, match="task"):
        distillation.loss(teacher, failing, features=["block"])(student, batches()[0])
    assert hooks(student) == hooks(teacher) == 0


def test_hooks_and_modes_are_put_back_when_the_teacher_fails() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("teacher")

    teacher, student = net(8).train(), net(5)
    teacher.add_module("count", Restless())
    teacher.add_module("failing", Failing())
    with pytest.raises(ValueError, match="teacher"):
        distillation.loss(teacher, task, features=["block"])(student, batches()[0])
    assert hooks(student) == hooks(teacher) == 0
    assert all(m.training for m in teacher.modules())
    assert float(teacher.count.calls) == 0


# errors --------------------------------------------------------------------------------------------------------------


def test_logits_of_other_shapes_are_refused() -> None:
    with pytest.raises(RecoverError, match=r"Logits have shape \(4, 3\) in the student and \(4, 5\) in the teacher"):
        distillation.logits(torch.zeros(4, 3), torch.zeros(4, 5))


@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_a_single_class_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RecoverError, match="hold one class"):
        distillation.logits(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(RecoverError, match=r"temperature=.*expected a positive number"):
        distillation.logits(torch.zeros(4, 3), torch.zeros(4, 3), temperature=temperature)
    with pytest.raises(RecoverError, match=r"temperature=.*expected a positive number"):
        distillation.loss(net(), task, temperature=temperature)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(RecoverError, match=r"weight=.*expected the share in \[0, 1\]"):
        distillation.loss(net(), task, weight=weight)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_negative_feature_weight_is_refused(weight: float) -> None:
    with pytest.raises(RecoverError, match=r"feature_weight=.*at least 0"):
        distillation.loss(net(), task, feature_weight=weight)


def test_features_of_other_shapes_are_refused() -> None:
    with pytest.raises(RecoverError, match=r"Features have shape \(4, 3\).*A pruned layer has fewer units"):
        distillation.features(torch.zeros(4, 3), torch.zeros(4, 1))


def test_a_pruned_layer_is_refused_by_name() -> None:
    with pytest.raises(RecoverError, match=r"'conv' have shape \(8, 5, 4, 4\) in the student and \(8, 8, 4, 4\)"):
        distillation.loss(net(8), task, features=["conv"])(net(5), batches()[0])


def test_a_layer_the_teacher_lacks_is_refused_at_once() -> None:
    with pytest.raises(RecoverError, match=r"the teacher \(Sequential\) has no layer 'blok'; did you mean 'block'\?"):
        distillation.loss(net(8), task, features=["blok"])


def test_a_layer_the_student_lacks_is_refused() -> None:
    follow = distillation.loss(net(8), task, features={"bloc": "block"})
    with pytest.raises(RecoverError, match=r"the student \(Sequential\) has no layer 'bloc'; did you mean 'block'\?"):
        follow(net(5), batches()[0])


def test_one_string_is_not_a_list_of_layers() -> None:
    with pytest.raises(RecoverError, match=r"features='block' is one string.*features=\['block'\]"):
        distillation.loss(net(8), task, features="block")


def test_the_teacher_itself_is_no_student() -> None:
    teacher = net()
    with pytest.raises(RecoverError, match="The student is the teacher itself"):
        distillation.loss(teacher, task)(teacher, batches()[0])
    distillation.loss(teacher, task)(copy.deepcopy(teacher), batches()[0])


def test_a_task_that_never_calls_the_model_is_refused() -> None:
    other = net(3)
    with pytest.raises(RecoverError, match="never called the model it was given"):
        distillation.loss(net(8), lambda _model, batch: task(other, batch))(net(5), batches()[0])


@pytest.mark.parametrize(("value", "given"), [(None, "NoneType"), (torch.zeros(3), r"a tensor of shape \(3,\)")])
def test_a_task_that_gives_no_scalar_is_refused(value: Any, given: str) -> None:
    def odd(model: nn.Module, batch: Any) -> Any:
        model(batch[0])
        return value

    with pytest.raises(RecoverError, match=f"The task loss returned {given}"):
        distillation.loss(net(8), odd)(net(5), batches()[0])


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: {"logit": y}], ids=["tuple", "dict"])
def test_an_output_without_logits_is_refused(wrap: Any) -> None:
    with pytest.raises(RecoverError, match=r"The model returns a (tuple|dict); expected a tensor"):
        distillation.loss(Returns(wrap))(Returns(wrap), torch.zeros(1, 2))


def test_a_selector_that_picks_no_tensor_is_refused() -> None:
    with pytest.raises(RecoverError, match="picked a tuple out of what the model returns"):
        distillation.loss(net(8), output=lambda y: (y,))(net(5), batches()[0])


def test_a_batch_of_unknown_kind_is_refused_without_a_task() -> None:
    with pytest.raises(RecoverError, match="A batch is a str; without a task loss"):
        distillation.loss(net(8))(net(5), "digits")


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Returns(lambda y: {"y": y})

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)["y"]

    with pytest.raises(RecoverError, match="The layer 'inner' returns a dict; expected a tensor"):
        distillation.loss(Deep(), features=["inner"])(Deep(), torch.zeros(1, 2))


@pytest.mark.parametrize("features", [(), ["block"]])
def test_a_teacher_of_another_dtype_is_refused(features: Any) -> None:
    teacher, student, x = net(8), net(5).bfloat16(), batches()[0][0].bfloat16()
    with pytest.raises(RecoverError, match=r"teacher holds torch.float32, the student torch.bfloat16.*teacher\.to\("):
        distillation.loss(teacher, features=features)(student, x)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(RecoverError, match="teacher holds"):
        distillation.loss(linear)(student, x)
    assert distillation.loss(teacher.bfloat16(), features=features)(student, x).isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        assert distillation.loss(linear)(student, x).isfinite()


def test_other_errors_of_a_teacher_of_another_dtype_are_its_own() -> None:
    class Failing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        distillation.loss(Failing(2, 3))(nn.Linear(2, 3).bfloat16(), torch.ones(1, 2).bfloat16())


def test_a_teacher_of_another_dtype_may_fit() -> None:
    def words() -> nn.Module:
        return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))

    assert distillation.loss(words())(words().bfloat16(), torch.arange(5)).isfinite()


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (1, 2)])
def test_a_layer_that_does_not_run_as_often_in_both_is_refused(ours: int, theirs: int) -> None:
    class Times(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.layer, self.times = nn.Linear(2, 2), times

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = self.layer(x)
            return x

    with pytest.raises(RecoverError, match=f"'layer' ran {ours} times in a call of the student and {theirs} times"):
        distillation.loss(Times(theirs), features=["layer"])(Times(ours), torch.zeros(1, 2))
