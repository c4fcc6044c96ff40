"""Whole layers go: what is left computes what the original does when they are passed by; its config rebuilds it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hugs import HUGS, IDS
from torch import Tensor, nn
from vision import models

import prunus
from prunus.errors import GroupError, ProofError, TraceError

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
VECTOR = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """Adds `gain` times what it was given; its weight is there to be counted."""

    def __init__(self, gain: float, place: int = 0) -> None:
        super().__init__()
        self.gain, self.block_idx, self.linear = gain, place, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * x.flip(-1)


class Stack(nn.Module):
    """Blocks in a list, run by the function given."""

    def __init__(self, run: Callable[[nn.ModuleList, Tensor], Any], gains: Sequence[float] = (0.5, 3.0, 0.1)) -> None:
        super().__init__()
        self.run, self.n_blocks = run, len(gains)
        self.blocks = nn.ModuleList(Block(gain, place) for place, gain in enumerate(gains))

    def forward(self, x: Tensor) -> Any:
        return self.run(self.blocks, x)


def in_turn(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any) -> Tensor:
    result = model.eval()(**inputs) if isinstance(inputs, dict) else model.eval()(inputs)
    return result if isinstance(result, Tensor) else result[0] if isinstance(result, tuple) else result["logits"]


def passed_by(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy whose layers of these names give back what they are given; no part of prunus."""
    mine = copy.deepcopy(model)
    for name in names:

        def skip(_m: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            return (given, *result[1:]) if isinstance(result, tuple) else given

        mine.get_submodule(name).register_forward_hook(skip, with_kwargs=True)
    return mine


# What is found, and its score


def test_influence_is_one_less_the_mean_cosine() -> None:
    found = prunus.layers(Stack(in_turn), VECTOR)
    x, expected = VECTOR, []
    for gain in (0.5, 3.0, 0.1):
        y = x + gain * x.flip(-1)
        expected.append(1 - float((x * y).sum(-1).div(x.norm(dim=-1) * y.norm(dim=-1)).mean()))
        x = y
    assert found.names == ("blocks.0", "blocks.1", "blocks.2")
    assert list(found.scores.values()) == pytest.approx(expected, abs=1e-6)
    assert "blocks.1  " in str(found)


def test_influence_is_taken_over_all_examples() -> None:
    """A position more is a position more, whichever call it came with."""
    one = prunus.layers(Stack(in_turn), VECTOR).scores
    split = prunus.layers(Stack(in_turn), [VECTOR[:1], VECTOR[1:]]).scores
    assert dict(split) == pytest.approx(dict(one), abs=1e-6)


def test_channels_of_convolutions_are_dimension_one() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([1.0, 2.0, 3.0])[:, None, None]

    x = torch.ones(2, 3, 4, 5)
    scores = prunus.layers(nn.Sequential(Scaled(), Scaled()), x).scores
    assert scores["0"] == pytest.approx(1 - 6 / (3**0.5 * 14**0.5))


def test_a_layer_that_changes_nothing_has_no_influence() -> None:
    assert prunus.layers(Stack(in_turn, (0.0, 0.0)), torch.zeros(2, 8)).scores == {"blocks.0": 0, "blocks.1": 0}


def test_what_changes_shape_is_fixed_and_says_so() -> None:
    found = prunus.layers(models.resnet18(), IMAGE)
    assert found.names == ("layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1")
    assert "(2, 64, 8, 8) torch.float32 into (2, 128, 4, 4)" in found.fixed["layer2.0"]


def test_stages_and_parts_are_no_layers() -> None:
    """A stage whose blocks follow one another is none itself; the expert or convolution in a block is a part of it."""
    stages = prunus.layers(nn.Sequential(*(nn.Sequential(Block(0.1), Block(0.1)) for _ in range(2))), VECTOR)
    assert stages.names == ("0.0", "0.1", "1.0", "1.1")
    assert "stage" in stages.fixed["0"]
    sides = Stack(lambda blocks, x: x + blocks[0](x) + blocks[1](x), (0.1, 0.2))
    parts = prunus.layers(nn.Sequential(sides, copy.deepcopy(sides)), VECTOR)
    assert parts.names == ("0", "1")
    assert "a part of 0" in parts.fixed["0.blocks.0"]


# What is left


VISION: dict[str, tuple[Callable[[], nn.Module], str, list[str]]] = {
    "resnet18": (models.resnet18, "layer[12].1", ["layer1.1", "layer2.1"]),
    "resnet50": (models.resnet50, "layer3.[24]", ["layer3.2", "layer3.4"]),
    "vit": (
        lambda: models.VisionTransformer(32, 8, 4, 4, 32, 64, num_classes=10),
        "*layer_[02]",
        ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_2"],
    ),
}


@pytest.mark.parametrize("name", VISION)
def test_what_is_left_passes_the_dropped_layers_by(name: str) -> None:
    torch.manual_seed(0)
    make, glob, gone = VISION[name]
    model = make().eval()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    small = prunus.drop_layers(model, IMAGE, names=glob)
    assert type(small) is type(model)
    torch.testing.assert_close(outputs(small, IMAGE), outputs(passed_by(model, gone), IMAGE))
    assert sum(p.numel() for p in small.parameters()) == sum(
        p.numel() for key, p in model.named_parameters() if not any(key.startswith(f"{g}.") for g in gone)
    )
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in before.items())
    assert not {id(p) for p in small.parameters()} & {id(p) for p in model.parameters()}


def test_those_behind_move_up_in_their_names_and_indices() -> None:
    small = prunus.drop_layers(Stack(in_turn), VECTOR, names="blocks.1")
    assert set(small.state_dict()) == {f"blocks.{i}.linear.{w}" for i in (0, 1) for w in ("weight", "bias")}
    blocks: Any = small.get_submodule("blocks")
    assert [(b.gain, b.block_idx) for b in blocks] == [(0.5, 0), (0.1, 1)]
    assert vars(small)["n_blocks"] == 2


def test_a_smaller_vit_of_torchvision_takes_the_state() -> None:
    model = models.VisionTransformer(32, 8, 4, 4, 32, 64, num_classes=10)
    small = prunus.drop_layers(model, IMAGE, names="*layer_1")
    fresh = models.VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=10)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(outputs(fresh, IMAGE), outputs(small, IMAGE))


def test_the_lowest_scores_go_and_the_users_stand_in() -> None:
    def left(**how: Any) -> list[float]:
        blocks: Any = prunus.drop_layers(Stack(in_turn), VECTOR, **how).get_submodule("blocks")
        return [block.gain for block in blocks]

    assert left(count=1) == [0.5, 3.0]
    assert left(count=2) == [3.0]
    assert left(count=1, scores={"blocks.0": 2.0, "blocks.1": 1.0, "blocks.2": 3.0}) == [0.5, 0.1]
    assert left(count=1, names=["*.0", "*.1"]) == [3.0, 0.1]


def test_training_flags_and_frozen_weights_stay() -> None:
    model = Stack(in_turn).train()
    model.blocks[2].eval().requires_grad_(False)
    small: Any = prunus.drop_layers(model, VECTOR, names="blocks.1")
    assert [m.training for m in (small, *small.blocks)] == [True, True, False]
    assert [p.requires_grad for p in small.parameters()] == [True, True, False, False]


def test_a_tied_layer_elsewhere_keeps_its_weight() -> None:
    model = Stack(in_turn)
    model.blocks[2].linear.weight = model.blocks[0].linear.weight
    small: Any = prunus.drop_layers(model, VECTOR, names="blocks.1")
    assert small.blocks[1].linear.weight is small.blocks[0].linear.weight


def test_what_is_left_can_be_pruned_saved_and_loaded(tmp_path: Path) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3).eval()
    words = torch.randn(2, 5, 8)
    less = prunus.drop_layers(model, words, count=1)
    groups = prunus.group(less_graph := prunus.trace(less, words)).only("*linear1")
    scores = prunus.score(less, groups, prunus.criteria.magnitude)
    plan = prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5))
    result = prunus.Result(prunus.shrink(less, plan), less_graph, plan, (), ())
    prunus.save(result, tmp_path)

    def make() -> nn.Module:
        return prunus.drop_layers(model, words, count=1)

    assert torch.equal(outputs(prunus.load(tmp_path, make), words), outputs(result.model, words))


# Configurations


@pytest.mark.parametrize("name", [n for n in HUGS if HUGS[n].drop])
def test_a_configuration_rebuilds_what_is_left(name: str, tmp_path: Path) -> None:
    hug = HUGS[name]
    model = hug.make()
    config = copy.deepcopy(vars(model.config))
    small: Any = prunus.drop_layers(model, hug.inputs, names=list(hug.drop))
    torch.testing.assert_close(outputs(small, hug.inputs), outputs(passed_by(model, hug.drop), hug.inputs))
    assert {key: value for key, value in vars(small.config).items() if value != config[key]} == hug.left
    assert vars(model.config) == config
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path)
    assert torch.equal(outputs(again, hug.inputs), outputs(small, hug.inputs))


def test_lists_with_an_entry_a_layer_are_cut_alike(tmp_path: Path) -> None:
    """Sliding attention in the first two layers of four: the one that is left must stay the first."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]
    config = Qwen2Config(
        num_hidden_layers=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=2,
        layer_types=kinds,
        **sizes,
    )
    model: Any = Qwen2ForCausalLM(config).eval()
    small: Any = prunus.drop_layers(model, {"input_ids": IDS}, names="*layers.[03]")
    assert (small.config.num_hidden_layers, small.config.layer_types) == (2, kinds[1:3])
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path)
    assert torch.equal(outputs(again, {"input_ids": IDS}), outputs(small, {"input_ids": IDS}))


def test_words_can_still_be_generated_with_a_cache() -> None:
    small: Any = prunus.drop_layers(HUGS["llama"].make(), HUGS["llama"].inputs, names="*layers.0")
    with_cache, without = (
        small.generate(IDS, max_new_tokens=4, use_cache=use, do_sample=False) for use in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_a_model_cast_after_it_was_built_is_described_too() -> None:
    """Casting takes the tables of rotary positions along, which building anew makes in float32."""
    hug = HUGS["llama"]
    small: Any = prunus.drop_layers(hug.make().bfloat16(), hug.inputs, count=1)
    assert small.config.num_hidden_layers == 2


def test_where_no_configuration_says_it_a_warning_does(tmp_path: Path) -> None:
    """Every second block of Swin shifts its windows: which ones follows from their place."""
    hug = HUGS["swin"]
    model = hug.make()
    with pytest.warns(UserWarning, match="No configuration of SwinForImageClassification describes"):
        small: Any = prunus.drop_layers(model, hug.inputs, names="*1.blocks.0")
    assert small.config.depths == model.config.depths
    assert small.config is not model.config


def test_a_class_of_the_users_with_a_configuration_of_its_own() -> None:
    class Sizes:
        def __init__(self) -> None:
            self.depth, self.width = 3, 3

    class Mine(Stack):
        def __init__(self, config: Sizes) -> None:
            super().__init__(in_turn, [0.5] * config.depth)
            self.config = config
            self.other = nn.Linear(config.width, 2)

    model = Mine(Sizes())
    small: Any = prunus.drop_layers(model, VECTOR, count=1)
    assert vars(small.config) == {"depth": 2, "width": 3}
    assert vars(model.config) == {"depth": 3, "width": 3}


# What is refused


def collected(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    every = [x := block(x) for block in blocks]
    return torch.stack(every).sum(0)


def by_index(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    return blocks[2](blocks[1](blocks[0](x)))


def weighed_by_place(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for place, block in enumerate(blocks):
        x = block(x) * (place + 1)
    return x


@pytest.mark.parametrize("run", [collected, weighed_by_place])
def test_code_that_needs_the_layer_is_found_out(run: Callable[..., Tensor]) -> None:
    with pytest.raises(ProofError, match=r"differs by .*Dropped: blocks\.0\. Most likely the code around"):
        prunus.drop_layers(Stack(run), VECTOR, names="blocks.0")


def test_code_that_does_not_run_without_the_layer_is_found_out() -> None:
    with pytest.raises(ProofError, match=r"does not run: IndexError: .*Dropped: blocks\.0"):
        prunus.drop_layers(Stack(by_index), VECTOR, names="blocks.0")


def test_a_small_difference_is_seen_in_float64() -> None:
    model = Stack(lambda blocks, x: in_turn(blocks, x) + 1e-7 * len(blocks))
    with pytest.raises(ProofError, match="accepted is 1e-09"):
        prunus.drop_layers(model, VECTOR, count=1)


def test_code_that_makes_tensors_of_its_own_is_proven_in_its_own_precision() -> None:
    def in_float32(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        return in_turn(blocks, x) @ torch.eye(8)

    small: Any = prunus.drop_layers(Stack(in_float32), VECTOR, count=1)
    assert len(small.blocks) == 2


def test_what_a_layer_computes_for_others_is_missed() -> None:
    """The first block of T5 holds the position biases of all."""
    hug = HUGS["t5"]
    with pytest.raises(ProofError, match="by a result that only it computes"):
        prunus.drop_layers(hug.make(), hug.inputs, names="encoder.block.0")


def test_results_that_count_are_chosen() -> None:
    class Named(Stack):
        def forward(self, x: Tensor) -> Any:
            every = [x := block(x) for block in self.blocks]
            return {"last": x, "every": torch.stack(every)}

    with pytest.raises(ProofError, match="name the results that count"):
        prunus.drop_layers(Named(in_turn), VECTOR, count=1)
    small: Any = prunus.drop_layers(Named(in_turn), VECTOR, count=1, outputs=["last"])
    assert len(small.blocks) == 2


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing said": ({}, "neither names nor count"),
    "a name of nothing": (
        {"names": "blocks.7"},
        r"'blocks.7', which is no layer .*No layer is called that.*'blocks.0'",
    ),
    "too many": ({"count": 4}, "count=4; expected between 1 and the layers that may go here, 3"),
    "none": ({"count": 0}, "count=0; expected between 1"),
    "scores of others": ({"count": 1, "scores": {"head": 1.0}}, "scores names 'head'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_choices_are_refused(name: str) -> None:
    how, message = WRONG[name]
    with pytest.raises(GroupError, match=message):
        prunus.drop_layers(Stack(in_turn), VECTOR, **how)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(GroupError, match=r"may go here, 0\..*several modules of one class"):
        prunus.drop_layers(nn.Linear(8, 8), VECTOR, count=1)


def test_a_layer_that_is_fixed_is_refused_with_its_reason() -> None:
    with pytest.raises(GroupError, match=r"layer2\.0 cannot go: it turns"):
        prunus.drop_layers(models.resnet18(), IMAGE, names="layer2.0")


def test_a_layer_that_an_example_does_not_reach_is_fixed() -> None:
    model = Stack(lambda blocks, x: blocks[1](blocks[0](x)))
    assert prunus.layers(model, VECTOR).fixed == {"blocks.2": "an example call does not reach it"}


def test_a_layer_registered_twice_is_no_layer() -> None:
    model = Stack(in_turn)
    model.blocks[2] = model.blocks[0]
    assert prunus.layers(model, VECTOR).names == ("blocks.1",)
    small = prunus.drop_layers(model, VECTOR, names="blocks.1")
    assert torch.equal(outputs(small, VECTOR), outputs(passed_by(model, ["blocks.1"]), VECTOR))


def test_inputs_that_the_model_refuses() -> None:
    with pytest.raises(TraceError, match="Stack refuses example 1: "):
        prunus.layers(Stack(lambda blocks, x: blocks[0](x @ x)), VECTOR)
