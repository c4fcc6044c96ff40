"""An exported file computes what the model computes, in another runtime, at any batch; otherwise there is no file."""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from nets import Recipe, Step, Stubborn, build
from torch import Tensor, nn

import prunus
from prunus.errors import ExportError, MeasureError
from prunus.export import convert, write
from prunus.export.check import ACCEPTED
from prunus.types import Inputs

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Tokens(nn.Module):
    """As in transformers: keyword arguments, a mapping for a result, the head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> dict[str, Any]:
        hidden = self.mix(self.embed(ids) * scale, src_key_padding_mask=None if mask is None else mask == 0)
        return {"logits": self.head(hidden), "hidden": [hidden, hidden.mean(1)], "cache": object(), "loss": None}


class Fn(nn.Module):
    """A function after a linear layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor, *more: Any) -> Any:
        return self.function(self.layer(x), *more)


def recipe(start: str, *steps: str) -> tuple[nn.Module, Tensor]:
    return build(Recipe(start, tuple(Step(s.split()[0], *map(int, s.split()[1:])) for s in steps)))


def words(batch: int = 2, length: int = 7) -> dict[str, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, 5:] = 0
    return {"ids": torch.randint(0, 50, (batch, length)), "mask": mask}


def heads_cut() -> tuple[nn.Module, Tensor]:
    model, x = Stubborn(), torch.randn(2, 5, 16)
    groups = prunus.group(prunus.trace(model, x)).only(kind="head")
    scores = prunus.score(model, groups, prunus.criteria.magnitude)
    small = prunus.shrink(model, prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5)))
    assert isinstance(small, prunus.GraphModel)
    return small, x


def cut(made: tuple[nn.Module, Any]) -> tuple[nn.Module, Any]:
    groups = prunus.group(prunus.trace(*made))
    scores = prunus.score(made[0], groups, prunus.criteria.magnitude)
    plan = prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5), scope="layer")
    return prunus.shrink(made[0], plan), made[1]


def masked(made: tuple[nn.Module, Any]) -> tuple[nn.Module, Any]:
    """Half of the values of each matrix are set to zero."""
    with torch.no_grad():
        for weight in made[0].parameters():
            if weight.ndim > 1:
                weight.mul_(torch.rand(weight.shape) < 0.5)
    return made


def cnn() -> tuple[nn.Module, Tensor]:
    return recipe("image", "conv 5 1", "norm", "activation 1 1", "residual 3", "gate 3", "pool", "pooled", "linear 2 1")


def encoder() -> tuple[nn.Module, Tensor]:
    return recipe("ids", "attention 1 0", "mlp 4 1 2", "norm 1", "attention 3 1 1", "shared 2 3", "averaged")


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "cnn": cnn,
    "cnn cut": lambda: cut(cnn()),
    "cnn masked": lambda: masked(cnn()),
    "shuffle": lambda: recipe("image", "depthwise 1", "split 0 0", "shuffle 1 1", "concat 2", "twice 1", "flat"),
    "encoder masked": lambda: masked(encoder()),
    "heads cut, a graph": heads_cut,
    "batch of one": lambda: (nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1)), torch.randn(1, 4)),
    "keywords": lambda: masked((Tokens(), {"scale": 2.0, **words()})),
    "lengths": lambda: (Tokens(), [words(), words(3, 9)]),
    "half": lambda: (nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).half(), torch.randn(3, 8).half()),
    "double": lambda: (
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).double(),
        torch.rand(3, 8).double(),
    ),
}


class Case(NamedTuple):
    model: nn.Module
    examples: list[Inputs]
    exported: prunus.Exported
    before: Any
    after: Any


def everything(model: nn.Module) -> Any:
    """All that an export must leave as it is."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: (id(t), t._version, t.detach().clone(), t.requires_grad) for name, t in tensors.items()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    return (
        values,
        grads,
        [m.training for m in model.modules()],
        [dir(m) for m in model.modules()],
        torch.get_rng_state(),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Each case is exported once."""

    @cache
    def export(name: str) -> Case:
        torch.manual_seed(0)
        model, inputs = CASES[name]()
        next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
        model.train()
        next(model.children()).eval()
        before = everything(model)
        exported = prunus.export(model, inputs, tmp_path_factory.mktemp("export") / "net.onnx")
        return Case(model, Inputs.examples(inputs), exported, before, everything(model))

    return export


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, made: Callable[[str], Case]) -> Case:
    return made(request.param)


def tensors_of(example: Inputs) -> list[Tensor]:
    return [t for t in (*example.args, *example.kwargs.values()) if isinstance(t, Tensor)]


def run(file: Any, *tensors: Tensor) -> list[Tensor]:
    session = runtime.InferenceSession(str(Path(file)), providers=["CPUExecutionProvider"])
    feeds = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feeds)]


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    values = result.values() if isinstance(result, dict) else result if isinstance(result, list | tuple) else []
    return [tensor for value in values for tensor in flat(value)]


@torch.no_grad()
def answer(model: nn.Module, example: Inputs) -> list[Tensor]:
    return flat(copy.deepcopy(model).eval()(*example.args, **example.kwargs))


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_the_file_computes_what_the_model_computes_at_any_batch(case: Case, batch: int) -> None:
    for example in case.examples:
        rows = lambda t: t[torch.randint(len(t), (batch,))] if isinstance(t, Tensor) else t  # noqa: E731
        other = Inputs(tuple(map(rows, example.args)), {key: rows(t) for key, t in example.kwargs.items()})
        expected, found = answer(case.model, other), run(case.exported, *tensors_of(other))
        assert len(expected) == len(found) == len(case.exported.outputs)
        for a, b in zip(expected, found, strict=True):
            assert a.dtype == b.dtype
            assert len(a) == batch
            torch.testing.assert_close(b, a, rtol=0, atol=ACCEPTED[a.dtype] * float(a.abs().max()))


def test_the_model_is_left_as_it_was(case: Case) -> None:
    values, grads, *rest = case.before
    values_after, grads_after, *rest_after = case.after
    assert {k: v[:2] + v[3:] for k, v in values.items()} == {k: v[:2] + v[3:] for k, v in values_after.items()}
    assert all(torch.equal(v[2], values_after[k][2]) for k, v in values.items())
    assert all(grads[k] is grads_after[k] for k in grads)
    assert rest[:2] == rest_after[:2]
    assert torch.equal(rest[2], rest_after[2])


def test_it_is_one_file_that_says_nothing_of_this_computer(case: Case) -> None:
    path = case.exported.path
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert case.exported.bytes == path.stat().st_size
    data = path.read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in data
    assert b".py" not in data


def test_what_is_returned_is_what_the_file_holds(case: Case) -> None:
    held = onnx.load(case.exported.path, load_external_data=False)
    exported = case.exported
    assert [(o.domain, o.version) for o in held.opset_import] == [("", exported.opset)] == [("", write.OPSET)]
    assert [i.name for i in held.graph.input] == list(exported.inputs)
    assert [o.name for o in held.graph.output] == list(exported.outputs)
    assert exported.weights == sum(math.prod(shape) for shape in exported.shapes.values())
    assert all(shape[0] == "batch" for shape in exported.inputs.values())
    assert 0 <= exported.worst_error < 1e-3
    assert exported.batches[0] == 1
    assert len(exported.batches) >= 2
    assert f"{exported.weights:,} weights" in str(exported)


def test_zeros_survive(case: Case) -> None:
    matrices = [p for p in case.model.parameters() if p.ndim > 1]
    assert case.exported.zeros >= sum(int((p == 0).sum()) for p in matrices)
    assert case.exported.weights >= sum(p.numel() for p in matrices)


def test_weights_and_zeros_are_counted_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[2].bias[1] = 0
    exported = prunus.export(model, torch.randn(4, 8), tmp_path / "net.onnx")
    assert (exported.weights, exported.zeros) == (8 * 6 + 6 + 6 * 3 + 3, 2 * 8 + 1)
    assert dict(exported.shapes) == {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert "75 weights in 4 tensors, 17 of them zero (22.7%)" in str(exported)
    assert Path(exported) == exported.path == tmp_path / "net.onnx"


def test_a_cut_model_has_smaller_tensors_and_a_smaller_file(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1)), torch.randn(2, 3, 6, 6)
    small, _ = cut((model, x))
    dense, cut_file = (prunus.export(m, x, tmp_path / f"{i}.onnx") for i, m in enumerate((model, small)))
    assert dense.shapes["0.weight"] == (16, 3, 3, 3)
    assert cut_file.shapes["0.weight"] == (8, 3, 3, 3)
    assert cut_file.bytes < dense.bytes


def test_names_are_those_of_the_call(made: Callable[[str], Case]) -> None:
    exported = made("keywords").exported
    assert dict(exported.inputs) == {"ids": ("batch", 7), "mask": ("batch", 7)}
    assert list(exported.outputs) == ["logits", "hidden", "hidden_1"]
    assert exported.outputs["logits"] == ("batch", 7, 50)
    assert exported.left_out == ("output.cache (object)",)
    assert [name for name, shape in exported.shapes.items() if shape == (50, 16)] == ["head.weight"]  # tied: held once


def test_nested_inputs_and_outputs_without_keys_are_numbered(tmp_path: Path) -> None:
    model = Fn(lambda x, pair, flag: (x + pair[0], [pair[1] * x], flag))
    exported = prunus.export(model, (x := torch.randn(3, 4), [x, x + 1], True), tmp_path / "net.onnx")
    assert list(exported.inputs) == ["x", "input", "input_1"]
    assert list(exported.outputs) == ["output", "output_1"]


def test_sizes_in_which_the_examples_differ_are_free(made: Callable[[str], Case]) -> None:
    exported = made("lengths").exported
    assert exported.outputs["logits"] == ("batch", "ids_1", 50)
    assert run(exported, *words(4, 12).values())[0].shape == (4, 12, 50)


def test_only_the_inputs_that_share_the_batch_are_free(tmp_path: Path) -> None:
    model = Fn(lambda x, table, gain: (x @ table) * gain)
    exported = prunus.export(model, (torch.randn(3, 4), torch.randn(4, 5), torch.tensor(2.0)), tmp_path / "net.onnx")
    assert list(exported.inputs.values()) == [("batch", 4), (4, 5), ()]


def test_an_input_with_a_size_like_the_batch_by_chance_stays_fixed(tmp_path: Path) -> None:
    model = Fn(lambda x, table: x @ table)
    exported = prunus.export(model, (torch.randn(4, 4), torch.randn(4, 5)), tmp_path / "net.onnx")
    assert list(exported.inputs.values()) == [("batch", 4), (4, 5)]


def test_a_fixed_batch(tmp_path: Path) -> None:
    model = Fn(lambda x: x.reshape(3, 2, 2) + torch.zeros(3, 1, 1))
    exported = prunus.export(model, torch.randn(3, 4), tmp_path / "net.onnx", dynamic_batch=False)
    assert (exported.inputs["x"], exported.batches) == ((3, 4), ())


class Root(nn.Module):
    """Takes no negative numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x) + 1


def test_inputs_that_only_the_example_fits_are_compared_at_all_batches(tmp_path: Path) -> None:
    exported = prunus.export(Root(), torch.zeros(3, 64), tmp_path / "net.onnx")
    assert (exported.compared, exported.batches) == (3, (1, 3, 4))


@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    exported = prunus.export(model, torch.randn(3, 4), tmp_path / "net.onnx", opset=opset)
    assert exported.opset == opset == onnx.load(exported.path).opset_import[0].version


# What cannot be exported


def spoiled(change: Callable[[Any], None]) -> Callable[..., Any]:
    """`convert`, and then a change to what it made."""
    right = convert.convert

    def wrong(*args: Any) -> Any:
        proto = right(*args)
        change(proto)
        return proto

    return wrong


def other_weight(proto: Any) -> None:
    held = next(t for t in proto.graph.initializer if t.name.endswith("weight"))
    held.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(held) * 1.05, held.name))


def nan_weight(proto: Any) -> None:
    held = next(t for t in proto.graph.initializer if t.name.endswith("weight"))
    held.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(held) * math.nan, held.name))


def no_such_operation(proto: Any) -> None:
    proto.graph.node[0].op_type = "Nowhere"


def unknown_to_the_runtime(proto: Any) -> None:
    proto.graph.node[0].domain = "ghost"
    proto.opset_import.append(onnx.helper.make_opsetid("ghost", 1))


SPOILED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a weight": (other_weight, r"computes something else: output 'output' differs from PyTorch by 0\.0\d+ of its larg"),
    "NaN": (nan_weight, "gives NaN where PyTorch gives numbers: output 'output', the example"),
    "an invalid file": (no_such_operation, "wrote an invalid file"),
    "no session": (unknown_to_the_runtime, "ONNX Runtime cannot run 'net.onnx'"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_wrong_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    change, message = SPOILED[name]
    (tmp_path / "net.onnx").write_text("the one before")
    monkeypatch.setattr(write, "convert", spoiled(change))
    with pytest.raises(ExportError, match=message):
        prunus.export(nn.Linear(4, 2), torch.randn(3, 4), tmp_path / "net.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "the one before"


class OneBatch(nn.Module):
    """Looks at the batch where capturing does not see it."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor and len(x) != 3:
            raise ValueError("expected a batch of 3")
        return x + 1


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

REFUSED: dict[str, tuple[nn.Module, Any, dict[str, Any], str]] = {
    "format": (nn.Linear(4, 2), X, {"to": "onyx"}, "Unknown format to='onyx'; expected 'onnx'. Did you mean 'onnx'"),
    "old opset": (nn.Linear(4, 2), X, {"opset": 17}, "opset=17 cannot be written; expected 18"),
    "newest opset": (nn.GELU(), X, {"opset": 26}, "cannot write this model at opset=26"),
    "input": (nn.Linear(5, 2), X, {}, "Linear refuses the example inputs: RuntimeError"),
    "bfloat16": (nn.Linear(4, 2).bfloat16(), X.bfloat16(), {}, "bfloat16, which ONNX Runtime does not compute"),
    "not in the runtime": (nn.GELU().double(), X.double(), {}, "ONNX Runtime cannot run .*Erf.* or export model.float"),
    "branch": (Fn(lambda x: x if x.sum() > 0 else -x), X, {}, "cannot capture it, most likely because its path"),
    "no translation": (Fn(torch.linalg.svdvals), X, {}, "cannot translate the model: .*svd"),
    "fixed batch": (
        Fn(lambda x: x + torch.zeros(3, 1)),
        X,
        {},
        "with a dynamic batch: .*3 as a fixed.* Pass dynamic_b",
    ),
    "lazy": (nn.LazyLinear(2), X, {}, "'weight' has no values yet"),
    "meta": (nn.Linear(4, 2, device="meta"), X, {}, "'weight' has no values yet"),
    "one batch in PyTorch": (OneBatch(), X, {}, "The model itself refuses the example at batch 1.* dynamic_batch=F"),
    "random": (Fn(nn.functional.dropout), X, {}, "computes something else: .*draws random numbers"),
    "no batch": (nn.Identity(), torch.tensor(1.0), {}, "The example has no batch"),
    "empty batch": (nn.Linear(4, 2), X[:0], {}, "no or an empty dim 0"),
    "NaN": (Fn(lambda x: x.abs().neg().log()), X, {}, "The model itself gives NaN on the example"),
    "other sizes": (nn.ReLU(), [X, X[:2]], {"dynamic_batch": False}, "cannot run example 2: .*refuses the call .*2, 4"),
    "other dimensions": (
        nn.ReLU(),
        [X, X[0]],
        {},
        r"Example 2 holds tensors of \[1\] dimensions; the first holds input",
    ),
    "second example": (nn.Linear(4, 2), [X, X.repeat(1, 2)], {}, "The model refuses example 2: RuntimeError"),
    "no tensor": (Fn(lambda x: "text"), X, {}, "refuses the example inputs: TraceError: The model returned no tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, inputs, options, message = REFUSED[name]
    logged: list[str] = []
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda _, record: logged.append(record.getMessage()))
    with pytest.raises(ExportError, match=f"(?s){message}"):
        prunus.export(model, inputs, tmp_path / "net.onnx", **options)
    assert not list(tmp_path.iterdir())
    assert (logged, capfd.readouterr()) == ([], ("", ""))


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="is a directory; expected the name of a file"):
        prunus.export(nn.Linear(4, 2), X, tmp_path)
    with pytest.raises(ExportError, match=r"cannot be written: .* Choose another place"):
        prunus.export(nn.Linear(4, 2), X, tmp_path / "file" / "net.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"needs {package}; install it with: pip install 'prunus\[onnx\]'"):
        prunus.export(nn.Linear(4, 2), X, tmp_path / "net.onnx")


def test_a_model_beyond_one_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "LIMIT", 20)
    monkeypatch.setattr(write, "capture", lambda *_: pytest.fail("captured first"))
    with pytest.raises(ExportError, match=r"one ONNX file holds at most .* \(the limit of protobuf\).*model\.half"):
        prunus.export(nn.Linear(4, 2), X, tmp_path / "net.onnx")


# Latency


@pytest.fixture
def files(made: Callable[[str], Case]) -> tuple[nn.Module, Path, Path]:
    one, other = made("keywords"), made("lengths")
    return one.model, one.exported.path, other.exported.path


def test_both_runtimes_are_timed_in_turn(files: tuple[nn.Module, Path, Path]) -> None:
    model, file, _ = files
    before = [module.training for module in model.modules()]
    mine, against = prunus.onnx_latency(file, words(), against=model, threads=1, repeats=7)
    assert (mine.subject, against.subject) == ("model", "against")
    assert list(mine.versions) == ["onnxruntime"]
    assert list(against.versions) == ["torch"]
    for row in (mine, against):
        assert (row.metric, row.unit, row.repeats, row.threads, row.batch, row.device) == (
            "latency_ms",
            "ms",
            7,
            1,
            2,
            "cpu",
        )
        assert 0 < row.spread[0] <= row.value <= row.spread[1]
    assert [module.training for module in model.modules()] == before


def test_two_files_are_timed_in_turn(files: tuple[nn.Module, Path, Path]) -> None:
    _, one, other = files
    rows = prunus.onnx_latency(one, (words()["ids"], words()["mask"]), against=str(other), repeats=3)
    assert [list(row.versions) for row in rows] == [["onnxruntime"]] * 2


def test_keyword_arguments_go_by_their_names(files: tuple[nn.Module, Path, Path]) -> None:
    from prunus.measure.session import named, open_session

    session, given = open_session(files[1]), words()
    fed = named(session, Inputs.of(dict(reversed(given.items()))))
    assert all(fed[name] is given[name] for name in given)


def test_latency_errors(files: tuple[nn.Module, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, file, _ = files
    with pytest.raises(MeasureError, match="threads=0 is too few"):
        prunus.onnx_latency(file, words(), threads=0)
    with pytest.raises(MeasureError, match=r"takes 2 tensors \(ids, mask\), the call holds 1"):
        prunus.onnx_latency(file, words()["ids"])
    with pytest.raises(MeasureError, match="inputs are elsewhere"):
        prunus.onnx_latency(file, {name: t.to("meta") for name, t in words().items()})
    with pytest.raises(MeasureError, match=r"refuses the call .*float32"):
        prunus.onnx_latency(file, {name: t.float() for name, t in words().items()})
    with pytest.raises(MeasureError, match=r"cannot run 'nowhere\.onnx'"):
        prunus.onnx_latency(file.with_name("nowhere.onnx"), words())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MeasureError, match=r"needs onnxruntime; install it with: pip install 'prunus\[onnx\]'"):
        prunus.onnx_latency(file, words())


def test_an_output_that_is_zero_throughout_is_said_to_be_unchecked(tmp_path: Path) -> None:
    """Of zeros alone no difference could be seen: an error of 0 would prove nothing."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    seen = prunus.export(model, torch.randn(3, 4), tmp_path / "seen.onnx")
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    blind = prunus.export(model, torch.randn(3, 4), tmp_path / "blind.onnx")
    assert (seen.blind, blind.blind) == ((), ("output",))
    assert "'output' was zero in every call" in str(blind)
    assert "zero in every call" not in str(seen)
