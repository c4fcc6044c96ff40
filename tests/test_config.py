"""A configuration says the sizes of the smaller model, where it can: what is saved rebuilds and computes the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hugs import HUGS
from torch import Tensor, nn

import prunus
from prunus.errors import ArtifactError
from prunus.graph.configuration import changed, lists_cut, numbers_of

VECTOR = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


@cache
def traced(name: str) -> tuple[Any, prunus.Groups]:
    """A model, which no test changes, and its groups."""
    model = HUGS[name].make()
    return model, prunus.group(prunus.trace(model, HUGS[name].inputs))


def halved(name: str, *globs: str, kind: Any = None, uneven: bool = False) -> prunus.Result:
    """Half of the units of these groups go; a quarter of the first's where `uneven`."""
    model, groups = traced(name)
    groups = groups.only(*globs, kind=kind)
    keep = {g.name: torch.arange(g.size) >= g.size // (4 if uneven and i == 0 else 2) for i, g in enumerate(groups)}
    return cut(model, prunus.Plan(groups, keep))


def cut(model: nn.Module, plan: prunus.Plan) -> prunus.Result:
    """What a cut gives is not the matter here, so that it goes without proof."""
    return prunus.Result(prunus.shrink(model, plan, verify=False), plan.graph, plan, (), ())


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any) -> Tensor:
    result = model.eval()(**inputs) if isinstance(inputs, dict) else model.eval()(inputs)
    return result if isinstance(result, Tensor) else result["logits"]


def news(small: Any, model: Any) -> dict[str, Any]:
    """The entries of a configuration that are others, or were not there."""
    return {key: value for key, value in vars(small.config).items() if value != vars(model.config).get(key)}


# What each model may lose, and what its configuration says then. BERT, GPT-2 and Whisper compute the head dimension
# from the number of heads, so that no number says "half of the heads, each as wide as before".

Case = tuple[str, tuple[str, ...], Any, dict[str, Any]]
SAID: dict[str, Case] = {
    "feed-forward of BERT": ("bert", ("*intermediate*",), None, {"intermediate_size": 32}),
    "feed-forward of GPT-2": ("gpt2", ("*c_fc",), None, {"n_inner": 64}),
    "feed-forward of LLaMA": ("llama", (), "channel", {"intermediate_size": 32}),
    "feed-forward of ViT": ("vit", (), "channel", {"intermediate_size": 32}),
    "feed-forward of T5": ("t5", (), "channel", {"d_ff": 32}),
    "feed-forward of Whisper": ("whisper", ("*fc1",), None, {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}),
    "groups of heads of LLaMA": ("llama", (), "kv_head", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "heads of T5": ("t5", (), "head", {"num_heads": 2}),
    "head dimension of T5": ("t5", (), "head_dim", {"d_kv": 4}),
    "heads of ViT": ("vit", (), "head", {"num_attention_heads": 2, "head_dim": 8}),
    "hidden size of LLaMA": ("llama", (), "trunk", {"hidden_size": 16}),
    "all of LLaMA": (
        *("llama", (), ("trunk", "kv_head", "channel")),
        {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "all of BERT": (
        *("bert", (), ("trunk", "head", "channel")),
        {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
    ),
    "all of GPT-2": ("gpt2", (), ("trunk", "head", "channel"), {"n_embd": 16, "n_head": 2}),
    "all of Swin": ("swin", (), ("trunk", "head", "channel"), {"embed_dim": 8, "num_heads": [1, 2]}),
}


@pytest.mark.parametrize("case", SAID)
def test_a_model_rebuilt_from_what_is_saved_computes_the_same(case: str, tmp_path: Path) -> None:
    name, globs, kind, expected = SAID[case]
    model = traced(name)[0]
    before = copy.deepcopy(vars(model.config))
    small: Any = halved(name, *globs, kind=kind).model
    assert news(small, model) == expected
    assert vars(model.config) == before
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path)
    assert torch.equal(outputs(again, HUGS[name].inputs), outputs(small, HUGS[name].inputs))


def test_every_module_holds_the_new_configuration() -> None:
    """T5's decoder holds a copy of its own, which says that it decodes."""
    small: Any = halved("t5", kind="channel").model
    assert {m.config.d_ff for m in small.modules() if "config" in vars(m)} == {32}
    assert (small.encoder.config.is_decoder, small.decoder.config.is_decoder) == (False, True)


SILENT: dict[str, tuple[str, dict[str, Any]]] = {
    "heads of BERT": ("bert", {"kind": "head"}),
    "layers cut unevenly": ("llama", {"kind": "channel", "uneven": True}),
}


@pytest.mark.parametrize("case", SILENT)
def test_where_no_number_says_it_nothing_is_said_and_rebuilding_fails(case: str, tmp_path: Path) -> None:
    name, how = SILENT[case]
    model = traced(name)[0]
    small: Any = halved(name, **how).model
    assert type(small) is type(model)
    assert news(small, model) == {}
    small.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        type(small).from_pretrained(tmp_path)


def test_two_rounds_say_both() -> None:
    first = halved("llama", "*gate_proj")
    groups = first.plan.groups.at(first.plan)
    keep = {g.name: torch.arange(g.size) >= 40 for g in groups}
    assert news(cut(first.model, prunus.Plan(groups, keep)).model, traced("llama")[0]) == {"intermediate_size": 24}


@pytest.mark.parametrize("case", ["feed-forward of T5", "feed-forward of GPT-2", "heads of ViT"])
def test_what_is_loaded_says_it_too(case: str, tmp_path: Path) -> None:
    name, globs, kind, expected = SAID[case]
    result = halved(name, *globs, kind=kind)
    prunus.save(result, tmp_path / "slim")
    loaded: Any = prunus.load(tmp_path / "slim", HUGS[name].make)
    assert news(loaded, traced(name)[0]) == expected
    assert [vars(m.config) for m in loaded.modules() if "config" in vars(m)] == [
        vars(m.config) for m in result.model.modules() if "config" in vars(m)
    ]
    loaded.save_pretrained(tmp_path / "hub")
    again = type(loaded).from_pretrained(tmp_path / "hub")
    assert torch.equal(outputs(again, HUGS[name].inputs), outputs(result.model, HUGS[name].inputs))


# A class of the user's own


class Mlp(nn.Module):
    """A configuration with more numbers than one that are 16, and none that a layer of its own could say."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(config.wide, config.inner), nn.Linear(config.inner, config.labels)
        self.scale = config.seed / 16

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu()) * self.scale


def config() -> SimpleNamespace:
    return SimpleNamespace(seed=16, labels=3, wide=8, inner=16)


def narrowed(model: nn.Module) -> prunus.Result:
    """Half of the neurons go."""
    groups = prunus.group(prunus.trace(model, VECTOR)).only("up")
    return cut(model, prunus.Plan(groups, {"up": torch.arange(16) >= 8}))


def test_of_several_numbers_the_one_that_the_class_builds_from_is_changed() -> None:
    small: Any = narrowed(model := Mlp(config())).model
    assert news(small, model) == {"inner": 8}


def test_a_configuration_that_others_hold_stays_theirs(tmp_path: Path) -> None:
    shared = config()
    result = narrowed(Mlp(shared))
    prunus.save(result, tmp_path)
    loaded: Any = prunus.load(tmp_path, lambda: Mlp(shared))
    assert loaded.config.inner == 8
    assert shared == config()


class Scaled(Mlp):
    """Rebuilt from a narrower configuration it would compute something else."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scale = config.inner / 16


def test_a_configuration_that_builds_another_function_is_not_believed() -> None:
    small: Any = narrowed(model := Scaled(config())).model
    assert (small.up.out_features, small.scale) == (8, 1.0)
    assert news(small, model) == {}


class Picky(Mlp):
    def __init__(self, config: Any, extra: int) -> None:
        super().__init__(config)
        self.extra = extra


def test_a_class_that_needs_more_than_its_configuration_keeps_it() -> None:
    small: Any = narrowed(model := Picky(config(), 1)).model
    assert small.up.out_features == 8
    assert news(small, model) == {}


def test_random_numbers_and_training_flags_stay_as_they_were() -> None:
    model = Mlp(config()).train()
    torch.manual_seed(3)
    small = narrowed(model).model
    assert small.training
    drawn = torch.rand(1)
    assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(3)))


# Files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    prunus.save(narrowed(Mlp(config())), tmp_path)
    return tmp_path


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "grows": ({"new": 32}, "only shrink"),
    "no integer": ({"new": True}, "sizes are integers"),
    "nothing left": ({"new": 0}, "only shrink"),
    "private": ({"place": ["__class__"]}, "only shrink"),
    "nowhere": ({"place": []}, "only shrink"),
    "of another model": ({"old": 20, "new": 8}, r"config\.inner of make_model\(\) is 16; the saved model started"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_width_is_refused(saved: Path, name: str) -> None:
    change, message = DAMAGES[name]
    surgery = json.loads((saved / "surgery.json").read_text())
    surgery["config"][0].update(change)
    (saved / "surgery.json").write_text(json.dumps(surgery))
    with pytest.raises(ArtifactError, match=message):
        prunus.load(saved, lambda: Mlp(config()))


def test_files_without_widths_are_read(saved: Path) -> None:
    surgery = json.loads((saved / "surgery.json").read_text())
    del surgery["config"]
    (saved / "surgery.json").write_text(json.dumps(surgery))
    loaded: Any = prunus.load(saved, lambda: Mlp(config()))
    assert (loaded.up.out_features, loaded.config.inner) == (8, 16)


# Reading and writing a configuration


def nested() -> SimpleNamespace:
    inner = SimpleNamespace(width=4, _private=4, kinds=("a", "b"))
    return SimpleNamespace(flag=True, text=inner, layer_kinds=["x", "y"], depths=[2, 4], names={"a": 1}, none=None)


def test_numbers_are_found_in_lists_and_nested_configurations() -> None:
    assert numbers_of(nested()) == {("text", "width"): 4, ("depths", 0): 2, ("depths", 1): 4, ("none",): None}
    assert numbers_of(None) == {}


def test_a_configuration_that_holds_itself_is_read() -> None:
    one = SimpleNamespace(width=8)
    one.whole = one
    assert numbers_of(one)["width",] == 8


def test_only_lists_named_for_layers_are_cut() -> None:
    assert lists_cut(nested(), 2, [1]) == {("layer_kinds",): ["y"], ("depths",): [4]}


@pytest.mark.parametrize(
    ("place", "read"),
    [
        (("depths", 1), lambda c: c.depths[1]),
        (("text", "width"), lambda c: c.text.width),
        (("none",), lambda c: c.none),
    ],
)
def test_a_change_is_made_in_a_copy(place: tuple[str | int, ...], read: Callable[[Any], Any]) -> None:
    one = nested()
    assert read(changed(one, {place: 1})) == 1
    assert one == nested()
