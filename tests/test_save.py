"""A saved model comes back bit for bit, in a fresh process too, and a damaged file is refused with its reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Stubborn
from torch import Tensor, nn

import prunus
from prunus.errors import ArtifactError
from prunus.save import class_of, load_inputs

INPUTS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SETTINGS: dict[str, Any] = {"budget": prunus.Budget("units", at_most=0.5), "scope": "layer", "inexact": True}


class Net(nn.Module):
    """A residual net with a tied layer, a plain tensor and a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.mix = nn.GroupNorm(4, 16)
        self.offset = torch.linspace(-1, 1, 10)
        self.head = nn.Linear(16, 10)
        self.again = self.head

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.stem(x)))
        h = h + self.mix(self.grouped(h))
        return self.again(h.mean((2, 3))) + self.head(h.amax((2, 3))) + self.offset


def pruned(model: nn.Module | None = None) -> prunus.Result:
    torch.manual_seed(1)
    return prunus.prune(model or Net(), INPUTS, **SETTINGS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[prunus.Result, Path]:
    folder = tmp_path_factory.mktemp("slim")
    result = pruned()
    prunus.save(result, folder)
    return result, folder


@pytest.fixture
def folder(saved: tuple[prunus.Result, Path], tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    for path in saved[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def outputs(model: nn.Module, inputs: Tensor = INPUTS) -> Tensor:
    with torch.no_grad():
        return model.eval()(inputs)


@pytest.mark.parametrize("make", [None, Net])
def test_round_trip_is_bit_identical(saved: tuple[prunus.Result, Path], make: Callable[[], nn.Module] | None) -> None:
    result, folder = saved
    loaded = prunus.load(folder, make)
    assert isinstance(loaded, prunus.GraphModel if make is None else Net)
    assert torch.equal(outputs(result.model), outputs(loaded))
    assert torch.equal(outputs(result.model, INPUTS[:3]), outputs(loaded, INPUTS[:3]))
    assert set(loaded.state_dict()) == set(result.model.state_dict())


def test_ties_survive(saved: tuple[prunus.Result, Path]) -> None:
    for make in (None, Net):
        loaded = prunus.load(saved[1], make)
        assert loaded.get_parameter("head.weight") is loaded.get_parameter("again.weight")


def test_channels_last_survives(tmp_path: Path) -> None:
    result = pruned(Net().to(memory_format=torch.channels_last))
    prunus.save(result, tmp_path)
    for make in (None, Net):
        weight = prunus.load(tmp_path, make).get_parameter("stem.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_fresh_process(saved: tuple[prunus.Result, Path], tmp_path: Path) -> None:
    """The graph alone needs no code of the user's."""
    result, folder = saved
    code = (
        "import sys, torch, prunus; from safetensors.torch import load_file, save_file\n"
        "torch.set_num_threads(1)\n"
        "x = load_file(sys.argv[2])['x']\n"
        "with torch.no_grad(): save_file({'y': prunus.load(sys.argv[1])(x)}, sys.argv[3])"
    )
    from safetensors.torch import load_file, save_file

    save_file({"x": INPUTS}, tmp_path / "x")
    subprocess.run([sys.executable, "-c", code, folder, tmp_path / "x", tmp_path / "y"], check=True)
    assert torch.equal(load_file(tmp_path / "y")["y"], outputs(result.model))


def test_loaded_graph_trains(saved: tuple[prunus.Result, Path]) -> None:
    model = prunus.load(saved[1]).train()
    before = model.get_buffer("norm.running_mean").clone()
    model(INPUTS).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not torch.equal(before, model.get_buffer("norm.running_mean"))


def test_no_pickle(saved: tuple[prunus.Result, Path]) -> None:
    assert {p.suffix for p in saved[1].iterdir()} == {".json", ".safetensors"}


def test_class_that_cannot_be_cut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 16)
    model = Stubborn()
    graph = prunus.trace(model, tokens)
    groups = prunus.group(graph).only(kind="head")
    plan = prunus.allocate(groups, prunus.score(model, groups, prunus.criteria.magnitude), SETTINGS["budget"])
    small = prunus.shrink(model, plan)
    assert isinstance(small, prunus.GraphModel)
    prunus.save(prunus.Result(small, graph, plan, (), ()), tmp_path)
    assert torch.equal(outputs(prunus.load(tmp_path), tokens), outputs(small, tokens))
    with pytest.raises(ArtifactError, match="could not be cut"):
        prunus.load(tmp_path, Stubborn)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def first_operation(graph: Any) -> Any:
    return next(n for n in graph["programs"]["eval"]["nodes"] if n["op"].startswith("aten."))


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "nothing there": ("graph", lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "cut short": (
        "graph",
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        "damaged or cut short",
    ),
    "a changed weight": (
        "graph",
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1] + b"\x07"),
        "other weights",
    ),
    "no graph": ("graph", lambda f: (f / "graph.json").unlink(), "missing or no JSON"),
    "no JSON": ("graph", lambda f: (f / "graph.json").write_text('{"format": '), "missing or no JSON"),
    "foreign": ("graph", lambda f: edit(f / "graph.json", lambda g: g.update(format="other 3")), "not of the format"),
    "operation off the list": (
        "graph",
        lambda f: edit(f / "graph.json", lambda g: first_operation(g).update(op="aten.from_file.default")),
        "not on the list",
    ),
    "operation of another library": (
        "graph",
        lambda f: edit(f / "graph.json", lambda g: first_operation(g).update(op="builtins.eval.default")),
        "not on the list",
    ),
    "a value nobody makes": (
        "graph",
        lambda f: edit(f / "graph.json", lambda g: first_operation(g).update(args=[{"ref": "ghost"}])),
        "nothing before it makes",
    ),
    "an argument of unknown kind": (
        "graph",
        lambda f: edit(f / "graph.json", lambda g: first_operation(g)["args"].append({"call": "x"})),
        "unknown",
    ),
    "no surgery": ("class", lambda f: (f / "surgery.json").unlink(), "missing or no JSON"),
    "an entry that grows": (
        "class",
        lambda f: edit(f / "surgery.json", lambda s: s["entries"][0].update(new=s["entries"][0]["old"] + 1)),
        "only shrink",
    ),
    "an entry that is no integer": (
        "class",
        lambda f: edit(f / "surgery.json", lambda s: s["entries"][0].update(new=True)),
        "sizes are integers",
    ),
    "an attribute that is not there": (
        "class",
        lambda f: edit(f / "surgery.json", lambda s: s["entries"][0].update(attribute="__class__")),
        "is None",
    ),
    "a module that is not there": (
        "class",
        lambda f: edit(f / "surgery.json", lambda s: s["entries"][0].update(module="nowhere")),
        "not there",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(folder: Path, name: str) -> None:
    how, damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ArtifactError, match=message):
        prunus.load(folder, Net if how == "class" else None)


def test_another_class_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="expected the original model, a Net"):
        prunus.load(folder, Stubborn)


def test_another_size_is_refused(folder: Path) -> None:
    def narrow() -> nn.Module:
        model = Net()
        model.stem = nn.Conv2d(3, 4, 3)
        return model

    with pytest.raises(ArtifactError, match=r"stem\.out_channels of make_model\(\) is 4"):
        prunus.load(folder, narrow)


def test_saving_again_replaces_all_files(folder: Path) -> None:
    other = pruned()
    prunus.save(other, folder)
    assert torch.equal(outputs(prunus.load(folder)), outputs(other.model))
    assert not list(folder.glob(".part-*"))


UNREADABLE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no channels_last": ("graph", lambda f: edit(f / "graph.json", lambda g: g.pop("channels_last"))),
    "channels_last a number": ("graph", lambda f: edit(f / "graph.json", lambda g: g.update(channels_last=3))),
    "no aliases": ("class", lambda f: edit(f / "graph.json", lambda g: g.pop("aliases"))),
    "no class": ("class", lambda f: edit(f / "surgery.json", lambda s: s.pop("class"))),
    "no entries": ("class", lambda f: edit(f / "surgery.json", lambda s: s.pop("entries"))),
    "entries a number": ("class", lambda f: edit(f / "surgery.json", lambda s: s.update(entries=3))),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_of_the_format_that_lack_something_are_damaged(folder: Path, name: str) -> None:
    how, damage = UNREADABLE[name]
    damage(folder)
    with pytest.raises(ArtifactError, match=r"json.* damaged .*save the model again"):
        prunus.load(folder, Net if how == "class" else None)


def test_errors_of_the_users_function_are_the_users(folder: Path) -> None:
    def broken() -> nn.Module:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        prunus.load(folder, broken)


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "too few": ({"args": [], "kwargs": {}}, "lacks"),
    "too many": ({"args": [1] * 30}, "has 30 arguments"),
    "unknown": ({"kwargs": {"ghost": 1}}, "no argument 'ghost'"),
    "no overload": ({"op": "aten.relu.__class__"}, "has no operation"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_do_not_fit_the_operation_are_refused(folder: Path, name: str) -> None:
    change, message = ARGUMENTS[name]
    edit(folder / "graph.json", lambda g: first_operation(g).update(change))
    with pytest.raises(ArtifactError, match=message):
        prunus.load(folder)


def test_the_figures_in_the_report_are_those_of_the_result(saved: tuple[prunus.Result, Path]) -> None:
    report, result = json.loads((saved[1] / "report.json").read_text()), saved[0]
    for side in ("before", "after"):
        assert tuple(prunus.Measurement.of(entries) for entries in report[side]) == getattr(result, side)
    assert len(report["after"][-1]["samples"]) == 300 or report["after"][-1]["repeats"] < 300


def test_the_report_names_its_weights(saved: tuple[prunus.Result, Path]) -> None:
    report, graph = (json.loads((saved[1] / name).read_text()) for name in ("report.json", "graph.json"))
    assert report["weights"] == graph["weights"]


def test_a_directory_replaced_in_part_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, done = Path.replace, list[str]()

    def stop_before_the_weights(self: Path, target: Path) -> Path:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(self.name)
        return replace(self, target)

    torch.manual_seed(2)
    other = prunus.prune(Net(), INPUTS, **SETTINGS)
    monkeypatch.setattr(Path, "replace", stop_before_the_weights)
    with pytest.raises(KeyboardInterrupt):
        prunus.save(other, folder)
    with pytest.raises(ArtifactError, match="belongs to other weights"):
        prunus.load(folder)


def test_no_operation_is_listed_twice() -> None:
    from prunus.graph.encode import _WITHOUT_RULE
    from prunus.graph.rules import RULES

    assert not _WITHOUT_RULE & {name.partition(".")[0] for name in RULES}


def test_a_cut_kernel_of_one_pixel_keeps_its_layout() -> None:
    from prunus.graph.layout import is_channels_last

    one, three = (torch.randn(4, 4, k, k).to(memory_format=torch.channels_last) for k in (1, 3))
    assert not is_channels_last(one)
    assert is_channels_last(three)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(memory_format=torch.channels_last)
    small = pruned(model).model
    assert is_channels_last(small.get_parameter("0.weight"))
    assert small.get_parameter("2.weight").is_contiguous()


class Tokens(nn.Module):
    """Indices, a mask of whole numbers, and flags."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, ids: Tensor, mask: Tensor, flags: Tensor) -> Tensor:
        return self.head((self.embed(ids) * mask[..., None] * flags[..., None]).sum(1))


def test_inputs_are_drawn_from_the_range_of_those_that_were_traced(tmp_path: Path) -> None:
    """A mask of zeros alone, or an index that no table has, would be no call of this model."""
    ids, mask = torch.randint(7, 40, (4, 6)), torch.tensor([[1, 1, 1, 1, 0, 0]] * 4)
    inputs = {"ids": ids, "mask": mask, "flags": torch.ones(4, 6, dtype=torch.bool)}
    prunus.save(prunus.prune(Tokens(), inputs, budget=prunus.Budget("macs", at_most=0.5)), tmp_path)
    drawn = load_inputs(tmp_path)
    assert {name: (t.shape, t.dtype) for name, t in drawn.kwargs.items()} == {
        name: (t.shape, t.dtype) for name, t in inputs.items()
    }
    assert int(drawn.kwargs["ids"].min()) >= int(ids.min())
    assert int(drawn.kwargs["ids"].max()) <= int(ids.max())
    assert bool((drawn.kwargs["mask"] == 1).all())
    assert bool(drawn.kwargs["flags"].all())
    assert bool(prunus.load(tmp_path)(**drawn.kwargs).any())
    assert not torch.equal(drawn.kwargs["ids"], load_inputs(tmp_path, seed=1).kwargs["ids"])


def test_the_class_a_directory_can_be_loaded_onto(tmp_path: Path) -> None:
    prunus.save(pruned(), tmp_path / "cut")
    assert class_of(tmp_path / "cut") == type(pruned().model).__name__
    heads = prunus.prune(Stubborn(), torch.randn(2, 5, 16), only="qkv:head", budget=prunus.Budget("units", at_most=0.5))
    prunus.save(heads, tmp_path / "graph")
    assert class_of(tmp_path / "graph") is None
    assert "The code of Stubborn computes sizes" in str(heads)
    assert "The code of" not in str(pruned())


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    prunus.save(pruned(), tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
