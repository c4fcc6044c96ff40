"""Recipes: what they mean, and that every wrong entry is named with what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunus.cli.init import RECIPE
from prunus.errors import RecipeError
from prunus.named import CRITERIA, SCHEDULES, criterion, made, named, schedule
from prunus.patterns import Block, Channel, Element, NofM
from prunus.recipe import Recipe, Training, parse, read
from prunus.types import Budget

LEAST: dict[str, Any] = {"model": "nets:make", "budget": {"macs": 0.5}}


def parsed(**entries: Any) -> Recipe:
    return parse({**LEAST, **entries}, "recipe.yaml")


def test_the_recipe_of_init_holds_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert read(tmp_path / "recipe.yaml") == Recipe(
        model="my_task:make",
        data="my_task:batches",
        validate="my_task:validated",
        evaluate="my_task:correct",
        pattern=Channel(round_to=8),
        budget=Budget("macs", 0.5),
        criterion="taylor",
        rounds=2,
        recover=Training(epochs=3, lr=0.001),
    )


def test_defaults() -> None:
    assert parsed() == Recipe("nets:make", budget=Budget("macs", 0.5))


READ: dict[str, tuple[Any, Any]] = {
    "pattern element": ("element", Element()),
    "pattern channel": ("channel", Channel()),
    "pattern round_to": ({"channel": {"round_to": 16}}, Channel(16)),
    "pattern block": ({"block": [4, 1]}, Block(4, 1)),
    "pattern n_of_m": ({"n_of_m": [2, 4]}, NofM(2, 4)),
    "budget count": ({"params": 1000, "relative": False}, Budget("params", 1000.0, relative=False)),
    "only one": ("layer1.*", ("layer1.*",)),
    "skip two": (["head", "stem"], ("head", "stem")),
    "recover settings": (
        {"epochs": 2, "lr": "1e-4", "bf16": True, "distill": 0.5},
        Training(2, 1e-4, bf16=True, distill=0.5),
    ),
    "recover own": ("my_task:recover", "my_task:recover"),
    "keep_at_least whole": (1, 1.0),
}


@pytest.mark.parametrize("name", READ)
def test_an_entry_is_read(name: str) -> None:
    key = name.split(maxsplit=1)[0]
    given, expected = READ[name]
    others = {"data": "nets:batches"} if key == "recover" else {}
    assert getattr(parsed(**{key: given}, **others), key) == expected


def test_n_of_m_needs_no_budget() -> None:
    assert parse({"model": "nets:make", "pattern": {"n_of_m": [2, 4]}}, "r").budget is None


def test_every_built_in_has_its_function() -> None:
    for name in CRITERIA:
        assert criterion(parsed(criterion=name).criterion).__name__ == name
    for name in SCHEDULES:
        assert schedule(parsed(schedule=name).schedule).__name__ == name
    assert criterion("prunus.criteria:taylor").__name__ == "taylor"


WRONG: dict[str, tuple[Any, str]] = {
    "no mapping": (["model"], "holds a list"),
    "unknown key": ({**LEAST, "critrion": "taylor"}, r"unknown key 'critrion'. Did you mean 'criterion'"),
    "no model": ({"budget": {"macs": 0.5}}, "names no model"),
    "no budget": ({"model": "nets:make"}, "has no budget"),
    "budget metric": ({**LEAST, "budget": {"mac": 0.5}}, "Did you mean 'macs'"),
    "budget share": ({**LEAST, "budget": {"macs": 1.5}}, r"recipe.yaml: budget: .*outside \(0, 1\]"),
    "budget text": ({**LEAST, "budget": {"macs": "half"}}, "budget: macs is 'half'; expected a number"),
    "budget two": ({**LEAST, "budget": {"macs": 0.5, "params": 0.5}}, "expected one entry"),
    "pattern name": ({**LEAST, "pattern": "chanel"}, "Did you mean 'channel'"),
    "pattern option": ({**LEAST, "pattern": {"channel": {"round": 8}}}, "unknown key 'round'. Did you mean 'round_to'"),
    "pattern element": ({**LEAST, "pattern": {"element": 3}}, "takes no options"),
    "pattern pair": ({**LEAST, "pattern": {"block": [4]}}, "expected two numbers"),
    "pattern n of m": ({**LEAST, "pattern": {"n_of_m": [4, 2]}}, "expected n < m"),
    "scope": ({**LEAST, "scope": "local"}, "expected one of global, layer, row"),
    "reduce": ({**LEAST, "reduce": "summ"}, "Did you mean 'sum'"),
    "rounds": ({**LEAST, "rounds": 2.5}, "rounds is 2.5; expected a whole number"),
    "flag": ({**LEAST, "inexact": 1}, "inexact is 1; expected true or false"),
    "text": ({**LEAST, "data": 3}, "data is 3; expected a text"),
    "globs": ({**LEAST, "skip": [1]}, "expected a glob"),
    "recover key": ({**LEAST, "data": "a:b", "recover": {"epoch": 3}}, "Did you mean 'epochs'"),
    "recover epochs": ({**LEAST, "data": "a:b", "recover": {"lr": 0.1}}, "names no epochs"),
    "rounds below one": ({**LEAST, "rounds": 0}, "rounds: 0; expected at least 1"),
    "epochs below one": ({**LEAST, "data": "a:b", "recover": {"epochs": 0}}, "epochs: 0; expected at least 1"),
    "lr below zero": ({**LEAST, "data": "a:b", "recover": {"epochs": 1, "lr": -1}}, "lr: -1.0; expected a positive"),
    "distill beyond one": (
        {**LEAST, "data": "a:b", "recover": {"epochs": 1, "distill": 2}},
        "expected a weight from 0",
    ),
    "validate without epochs": ({**LEAST, "validate": "a:b", "recover": "a:c"}, "validate: a:b, which only"),
    "round_to zero": ({**LEAST, "pattern": {"channel": {"round_to": 0}}}, "recipe.yaml: pattern: .*positive integers"),
    "recover without data": ({**LEAST, "recover": {"epochs": 3}}, "there is no `data"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_entry_is_named(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(RecipeError, match=message):
        parse(given, "recipe.yaml")


def test_what_is_no_yaml_and_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: [")
    with pytest.raises(RecipeError, match="is no YAML"):
        read(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="prunus init"):
        read(tmp_path / "other.yaml")


def test_tags_that_would_run_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: !!python/object/apply:os.getcwd []")
    with pytest.raises(RecipeError, match="is no YAML"):
        read(tmp_path / "recipe.yaml")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: a:b\nseed: 1\nseed: 2\n")
    with pytest.raises(RecipeError, match="'seed' is given twice"):
        read(tmp_path / "recipe.yaml")


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(RecipeError, match="is not UTF-8"):
        read(tmp_path / "recipe.yaml")


def test_make_must_be_a_function_that_gives_a_pair() -> None:
    with pytest.raises(RecipeError, match="is a float; expected a function make"):
        made("math:pi")
    with pytest.raises(RecipeError, match="returned a str; expected"):
        made("platform:machine")


NAMES = {
    "file": ("nets.py:make", "names a file; expected its module: nets:make"),
    "no colon": ("torch", "not of the form"),
    "no module": ("no_such_module:make", "no module 'no_such_module'"),
    "no attribute": ("prunus.criteria:tailor", "Did you mean 'taylor'"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_name_is_explained(name: str) -> None:
    target, message = NAMES[name]
    with pytest.raises(RecipeError, match=message):
        named(target)


def test_an_unknown_built_in_is_explained() -> None:
    with pytest.raises(RecipeError, match=r"expected one of .*taylor.*Did you mean 'taylor'"):
        criterion("tailor")
