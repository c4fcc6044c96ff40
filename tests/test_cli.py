"""The command line: what it prints, and errors without tracebacks."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

import prunus
from prunus import cli
from prunus.tasks import demo, digits, sparse


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # noqa: ANN201
    """Run `prunus ...`; (exit code, output)."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["prunus", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def test_scan_shows_groups_and_what_is_fixed(call) -> None:  # noqa: ANN001
    code, out = call("scan", "prunus.tasks.demo:make")
    assert code == 0
    assert "DigitsCNN: 4 groups, 320 units" in out
    assert "block2.conv2.weight[0]" in out
    assert "an output of the model" in out


WRONG = {
    "no-colon": ("scan", "nets", "not of the form"),
    "no-module": ("scan", "no_such_module:make", "no module 'no_such_module'"),
    "no-attribute": ("scan", "prunus.tasks.demo:nothing", "has no 'nothing'"),
    "no-pair": ("scan", "prunus.tasks.demo:example", "expected (model, inputs)"),
    "no-task": ("run", "numbers", "expected one of digits"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_come_without_traceback(call, name: str) -> None:  # noqa: ANN001
    command, target, message = WRONG[name]
    code, out = call(command, target)
    assert code == 2
    assert message in " ".join(out.split())
    assert "Traceback" not in out


def test_run_digits_prints_every_row_and_saves(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    for name, value in {"EPOCHS": 1, "ROUND_EPOCHS": (1,)}.items():
        monkeypatch.setattr(demo, name, value)
    code, out = call("run", "digits", "--out", tmp_path)
    assert code == 0
    for row in ("dense", "random criterion", "smaller dense", "not recovered", "pruned, recovered"):
        assert row in out
    loaded = prunus.load(tmp_path, digits.digits_cnn)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in digits.digits_cnn().parameters()) / 2


def test_run_digits_sparse_prints_every_row_and_saves(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    for name in ("EPOCHS", "GRADUAL_EPOCHS", "RECOVER_EPOCHS"):
        monkeypatch.setattr(sparse, name, 1)
    code, out = call("run", "digits-sparse", "--out", tmp_path)
    assert code == 0
    for row in ("dense", "random zeros", "one shot", "not recovered", "pruned, recovered", "no dense runtime faster"):
        assert row in " ".join(out.split())
    loaded = prunus.load(tmp_path, digits.digits_cnn)
    weights = [p for p in loaded.parameters() if p.ndim > 1]
    assert sum(int(p.count_nonzero()) for p in weights) <= 0.1 * sum(p.numel() for p in weights)


def test_brackets_in_errors_are_no_markup(call, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    def missing(_target: str) -> None:
        raise prunus.errors.RecipeError("pip install 'prunus[demo]'")

    monkeypatch.setattr(cli, "made", missing)
    assert "'prunus[demo]'" in call("scan", "nets:make")[1]


def test_brackets_in_names_are_no_markup() -> None:
    from rich.console import Console
    from rich.tree import Tree

    from prunus.table import _branch, fixed_table

    class Fixed:
        fixed = {"a[red]": "because [bold] it is"}  # noqa: RUF012

    tree = Tree("root")
    _branch({"": tree}, "x[red]")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(fixed_table(Fixed()))
    console.print(tree)
    shown = console.export_text()
    assert all(text in shown for text in ("a[red]", "because [bold] it is", "x[red]"))


def test_an_error_in_the_users_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_that_fail.py").write_text("import math\nmath.nothing_of_that_name\ndef make(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        cli.made("nets_that_fail:make")
