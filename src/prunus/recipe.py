"""`Recipe`: a pruning run written down as YAML, with strict keys; `package.module:attr` names what is the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_args

from prunus.allocate import Scope
from prunus.errors import BudgetError, GroupError, RecipeError
from prunus.named import one_of
from prunus.patterns import Block, Channel, Element, NofM, Pattern
from prunus.score import Reduce
from prunus.types import BUDGETS, Budget


@dataclass(frozen=True)
class Training:
    """The settings of `finetune` after each round; `distill` is the weight (0 to 1) of following the unpruned model."""

    epochs: int
    lr: float = 1e-3
    max_grad_norm: float | None = None
    bf16: bool = False
    channels_last: bool = False
    distill: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """What `prunus run recipe.yaml` does. Names: `model` is make() -> (model, inputs); `data`, `validate` and
    `evaluate` as in `prune` and `finetune` (`data` may be a function that returns the batches)."""

    model: str
    pattern: Pattern = field(default_factory=Channel)
    budget: Budget | None = None
    criterion: str = "magnitude"
    scope: Scope = "global"
    densities: str | None = None
    reduce: Reduce = "sum"
    keep_at_least: float | None = None
    schedule: str = "linear"
    rounds: int = 1
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    inexact: bool = False
    data: str | None = None
    loss: str = "cross_entropy"
    validate: str | None = None
    evaluate: str | None = None
    recover: Training | str | None = None
    seed: int = 0


def read(path: str | Path) -> Recipe:
    """Read a recipe. Raises `RecipeError` for a missing file, unknown or missing keys, and wrong values, by name."""
    path = Path(path)
    try:
        import yaml
    except ModuleNotFoundError:
        raise RecipeError("Recipes need PyYAML: pip install 'prunus[cli]'.") from None
    try:
        found: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_strict(yaml.SafeLoader))
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read ({error.strerror}). `prunus init` writes one to begin with."
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text ({error.reason}).") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no YAML: {error}") from None
    return parse(found, str(path))


def _strict(safe: Any) -> Any:
    """A safe loader that refuses a key given twice."""

    class Strict(safe):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
            twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
            if twice is not None:
                raise RecipeError(f"The key {twice!r} is given twice{node.start_mark}.")
            return super().construct_mapping(node, deep=deep)

    return Strict


def parse(found: Any, where: str) -> Recipe:
    """Check the entries of a recipe one by one."""
    given = _entries(found, [f.name for f in fields(Recipe)], where)
    if "model" not in given:
        raise RecipeError(f"{where} names no model; expected `model: package.module:make`, make() -> (model, inputs).")
    values = {key: _read(key, value, f"{where}: {key}") for key, value in given.items()}
    recipe = Recipe(**values)
    if recipe.budget is None and not isinstance(recipe.pattern, NofM):
        raise RecipeError(f"{where} has no budget; expected such as `budget: {{macs: 0.5}}` (at most half the MACs).")
    _check_ranges(recipe, where)
    if isinstance(recipe.recover, Training) and recipe.data is None:
        raise RecipeError(f"{where}: `recover` trains, but there is no `data: package.module:batches`.")
    return recipe


def _check_ranges(recipe: Recipe, where: str) -> None:
    """Numbers that would fail only once the run is under way."""
    train = recipe.recover if isinstance(recipe.recover, Training) else Training(1)
    wrong = {
        f"rounds: {recipe.rounds}; expected at least 1": recipe.rounds < 1,
        f"recover: epochs: {train.epochs}; expected at least 1": train.epochs < 1,
        f"recover: lr: {train.lr}; expected a positive number": not train.lr > 0,
        f"recover: distill: {train.distill}; expected a weight from 0 (off) to 1": not 0 <= train.distill <= 1,
        f"validate: {recipe.validate}, which only `recover: {{epochs: ...}}` asks for": recipe.validate is not None
        and not isinstance(recipe.recover, Training),
    }
    for message, is_so in wrong.items():
        if is_so:
            raise RecipeError(f"{where}: {message}.")


def _entries(found: Any, known: Iterable[str], where: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise RecipeError(f"{where} holds a {type(found).__name__}; expected entries `key: value`.")
    names = list(known)
    for key in found:  # pyright: ignore[reportUnknownVariableType]
        if key not in names:
            near = get_close_matches(str(key), names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known are {', '.join(names)}."
            raise RecipeError(f"{where}: unknown key {key!r}.{hint}")
    return dict(cast("Mapping[str, Any]", found))


def _read(key: str, value: Any, where: str) -> Any:
    if key in _SPECIAL:
        return _SPECIAL[key](value, where)
    if key in ("only", "skip"):
        items: Any = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise RecipeError(f"{where} is {value!r}; expected a glob, or a list of globs, of group names.")
        return tuple(items)
    return _plain(value, _KINDS[key], where)


def _plain(value: Any, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise RecipeError(f"{where} is {value!r}; expected {_ARTICLES[kind]}.")
    return value


_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("model", "criterion", "densities", "schedule", "data", "loss", "validate", "evaluate"), str),
    **dict.fromkeys(("rounds", "seed", "epochs"), int),
    **dict.fromkeys(("keep_at_least", "lr", "max_grad_norm", "distill"), float),
    **dict.fromkeys(("inexact", "bf16", "channels_last"), bool),
}
_ARTICLES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _pattern(value: Any, where: str) -> Pattern:
    """`element`, `channel`, `{channel: {round_to: 16}}`, `{n_of_m: [2, 4]}` or `{block: [4, 1]}`."""
    name, options = (value, None) if isinstance(value, str) else _single(value, where)
    makers = {"channel": _channel, "element": _element, "n_of_m": _pair(NofM), "block": _pair(Block)}
    return makers[one_of(name, makers, where)](options, where)


def _channel(options: Any, where: str) -> Pattern:
    given = _entries(options or {}, ["round_to"], f"{where}: channel")
    try:
        return Channel(round_to=_plain(given.get("round_to", 1), int, f"{where}: channel: round_to"))
    except GroupError as error:
        raise RecipeError(f"{where}: {error}") from None


def _element(options: Any, where: str) -> Pattern:
    if options:
        raise RecipeError(f"{where}: element takes no options, but {options!r} is given.")
    return Element()


def _pair(make: Callable[[int, int], Pattern]) -> Callable[[Any, str], Pattern]:
    def made(options: Any, where: str) -> Pattern:
        if not isinstance(options, list) or [type(n) for n in options] != [int, int]:  # pyright: ignore[reportUnknownVariableType]
            raise RecipeError(f"{where} is given {options!r}; expected two numbers, such as `n_of_m: [2, 4]`.")
        try:
            return make(*options)
        except GroupError as error:
            raise RecipeError(f"{where}: {error}") from None

    return made


def _budget(value: Any, where: str) -> Budget:
    """`{macs: 0.5}`, or `{params: 100000, relative: false}`."""
    given = _entries(value, [*BUDGETS, "relative"], where)
    relative = _plain(given.pop("relative", True), bool, f"{where}: relative")
    metric, most = _single(given, where)
    try:
        return Budget(metric, _plain(most, float, f"{where}: {metric}"), relative)
    except BudgetError as error:
        raise RecipeError(f"{where}: {error}") from None


def _recover(value: Any, where: str) -> Training | str:
    """`{epochs: 5, lr: 0.001}`, or `package.module:function`, which trains the model it is given."""
    if isinstance(value, str):
        return value
    given = _entries(value, [f.name for f in fields(Training)], where)
    if "epochs" not in given:
        raise RecipeError(f"{where} names no epochs; expected such as `recover: {{epochs: 5, lr: 0.001}}`.")
    return Training(**{key: _plain(entry, _KINDS[key], f"{where}: {key}") for key, entry in given.items()})


def _single(value: Any, where: str) -> tuple[str, Any]:
    if not isinstance(value, Mapping) or len(value) != 1:  # pyright: ignore[reportUnknownArgumentType]
        raise RecipeError(f"{where} is {value!r}; expected one entry `name: value`.")
    ((name, options),) = cast("Mapping[str, Any]", value).items()
    return name, options


_SPECIAL: Mapping[str, Callable[[Any, str], Any]] = {
    "pattern": _pattern,
    "budget": _budget,
    "recover": _recover,
    "scope": lambda value, where: one_of(value, get_args(Scope), where),
    "reduce": lambda value, where: one_of(value, get_args(Reduce), where),
}
