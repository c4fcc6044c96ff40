"""Every Python block in README.md and docs/*.md runs, in order, as a reader would paste it; so do quick commands."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import vision  # noqa: F401 (transformers imports torchvision, which needs help beside a CPU build of torch)

from prunus import cli
from prunus.cli import terminal

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MOST_SKIPPED = 3

# Commands that are slow, or not ours to run from a test, and the file and the text that show where CI checks them.
ELSEWHERE = {
    "make demo": ("Makefile", "prunus run digits"),
    "make test": (".ci/run", "make --silent test"),
    "pip install '.[demo]'": ("Makefile", "-e '.[demo]'"),
    "prunus run digits": ("tests/test_cli.py", 'call("run", "digits"'),
    "prunus run digits-sparse": ("tests/test_cli.py", 'call("run", "digits-sparse"'),
    "pip install -c constraints.txt '.[cli,onnx]'": ("Makefile", "-e '.[demo]'"),
    "prunus init": ("tests/test_cli.py", '("init",)'),
    "prunus run recipe.yaml": ("tests/test_cli.py", '("run", "recipe.yaml")'),
    "prunus run recipe.yaml --resume": ("tests/test_cli.py", '"run", "recipe.yaml", "--resume"'),
    "prunus run recipe.yaml --dry-run": ("tests/test_cli.py", '"run", "recipe.yaml", "--dry-run"'),
    "prunus measure runs/recipe my_task:make": ("tests/test_cli.py", '"measure", "runs/recipe", "my_task:make"'),
    "prunus export runs/recipe --to onnx": ("tests/test_cli.py", '"export", "runs/recipe"'),
}

FENCE = re.compile(r"\s*(?P<ticks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
COMMAND = re.compile(r"(make|pip|prunus|python) ")
INLINE = re.compile(r"`(prunus [a-z][^`]*)`")
SKIP = re.compile(r"\s*<!--\s*not run:\s*(?P<reason>\S.*?)\s*-->\s*$")


@dataclass(frozen=True)
class Block:
    """One fenced block: the line its code starts on (from 1), the code, why it is not run."""

    line: int
    code: str
    reason: str | None


PYTHON = ("python", "py", "python3")
SHELL = ("sh", "bash", "shell", "console", "")  # a block without a language may hold commands too


def blocks(text: str, languages: tuple[str, ...] = PYTHON) -> list[Block]:
    """The blocks of a Markdown text in one of these languages."""
    found: list[Block] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence is None:
            at += 1
            continue
        start = at + 1
        end = next((i for i in range(start, len(lines)) if lines[i].strip() == fence["ticks"]), None)
        if end is None:
            raise ValueError(f"the block opened on line {start} is never closed")
        if fence["language"].lower() in languages:
            found.append(Block(start + 1, textwrap.dedent("\n".join(lines[start:end])), reason_above(lines, at)))
        at = end + 1
    return found


def reason_above(lines: list[str], at: int) -> str | None:
    """The reason in a `not run` comment that stands before line `at`, blank lines apart."""
    above = next((line for line in reversed(lines[:at]) if line.strip()), "")
    comment = SKIP.match(above)
    return comment["reason"] if comment else None


def commands(text: str) -> list[str]:
    """The command lines in the blocks of a Markdown text, without what is said about them after `#`."""
    lines = [line for block in blocks(text, SHELL) for line in block.code.splitlines() if COMMAND.match(line)]
    return [line.partition(" #")[0].strip() for line in lines]


EVERY_COMMAND = sorted({line for path in PAGES for line in commands(path.read_text(encoding="utf-8"))})


def run(path: Path, found: list[Block], module: ModuleType) -> None:
    """Execute the blocks in one namespace; a failure shows the line of the page it stands on."""
    for block in found:
        padded = "\n" * (block.line - 1) + block.code
        exec(compile(padded, str(path), "exec"), vars(module))


@pytest.mark.filterwarnings("ignore::UserWarning:(pytorch_lightning|lightning_fabric)")  # such as: use more workers
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_block_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(path.read_text(encoding="utf-8"))
    assert found or path != README, "README.md has no Python block"
    page = ModuleType("page")  # a real module, so that a class defined on the page knows where it lives
    monkeypatch.setitem(sys.modules, page.__name__, page)
    monkeypatch.chdir(tmp_path)
    run(path, [block for block in found if block.reason is None], page)


def test_few_blocks_are_not_run() -> None:
    found = [block for path in PAGES for block in blocks(path.read_text(encoding="utf-8"))]
    skipped = [block for block in found if block.reason is not None]
    assert len(skipped) <= MOST_SKIPPED, [block.reason for block in skipped]
    assert len(skipped) < len(found)


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_command_runs_here_or_elsewhere(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command in ELSEWHERE:
        file, text = ELSEWHERE[command]
        assert text in (ROOT / file).read_text(encoding="utf-8")
        return
    words = shlex.split(command)
    assert words[0] == "prunus", f"{command!r} is run by no test: say in ELSEWHERE where it is checked"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(terminal.console, "file", sys.stdout)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == 0, capsys.readouterr().out


def test_commands_named_in_the_text_exist() -> None:
    known = {(c.name or c.callback.__name__) for c in cli.app.registered_commands if c.callback is not None}
    named = {words for path in PAGES for words in INLINE.findall(path.read_text(encoding="utf-8"))}
    assert named
    assert {words for words in named if words.split()[1] not in known} == set()


PAGE = """
```python
x = 1
```
- a list

  ```python
  y = x + 1
  ```

```text
```python is only mentioned here
```

<!-- not run: needs a GPU -->

```python
x = 1 / 0
```

```bash
prunus run digits
```
"""


def test_blocks_are_found_with_their_lines_and_reasons() -> None:
    assert blocks(PAGE) == [
        Block(3, "x = 1", None),
        Block(8, "y = x + 1", None),
        Block(18, "x = 1 / 0", "needs a GPU"),
    ]


def test_commands_are_found_in_shell_blocks_and_blocks_without_a_language() -> None:
    output = "```\nmake demo    # a comment\nparams 203,530\n```\n"
    assert commands(PAGE + output) == ["prunus run digits", "make demo"]


def test_a_skip_needs_a_reason() -> None:
    assert blocks("<!-- not run: -->\n```python\nx\n```")[0].reason is None


def test_a_block_left_open_is_an_error() -> None:
    with pytest.raises(ValueError, match="opened on line 2 is never closed"):
        blocks("text\n```python\nx = 1\n")


def test_one_namespace_and_a_failure_names_its_line() -> None:
    page = ModuleType("page")
    run(Path("page.md"), blocks(PAGE)[:2], page)
    assert page.y == 2
    with pytest.raises(ZeroDivisionError) as caught:
        run(Path("page.md"), blocks(PAGE)[2:], page)
    assert caught.traceback[-1].lineno == 18 - 1  # pytest counts from 0
