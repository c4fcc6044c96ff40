"""The shape of the package: who may import whom, and what every file owes its reader."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "prunus"
FILES = sorted(SRC.rglob("*.py"))

# A file imports from its own floor or from lower ones. A folder's files are all on the folder's floor.
TABLE = (
    ("errors", "fingerprint", "types"),
    ("graph", "patterns"),
    ("stats", "distributions", "statistics", "measure"),
    ("criteria", "cost", "score", "scores", "densities", "allocate", "plan", "from_zeros", "schedules", "steps"),
    ("apply", "recover", "regularize"),
    ("result", "save", "export", "report"),
    ("rounds", "pipeline", "lottery", "named", "recipe", "running", "table", "cli", "tasks", "integrations"),
)
FLOORS = {name: floor for floor, names in enumerate(TABLE) for name in names}
ROOT = len(TABLE)  # prunus/__init__.py imports everything, so it stands above everything

DOORS = {"cli", "integrations", "table", "tasks"}  # these may need the extras as soon as they are imported
ALWAYS_THERE = {*sys.stdlib_module_names, "prunus", "torch", "safetensors"}
EXTRAS = (
    *("rich", "typer", "sklearn", "transformers", "torchvision", "pynvml"),
    *("onnx", "onnxscript", "onnxruntime", "jinja2", "plotly", "accelerate", "lightning", "pytorch_lightning"),
)


def module_of(path: Path) -> str:
    """The dotted name of a file under src/; a package's `__init__` keeps that last part."""
    return ".".join(path.relative_to(SRC.parent).with_suffix("").parts)


def floor_of(module: str) -> int | None:
    """The floor of a dotted name such as `prunus.graph.axes`, None when the table has no place for it."""
    parts = [part for part in module.split(".")[1:] if part != "__init__"]
    return FLOORS.get(parts[0]) if parts else ROOT


def absolute(node: ast.ImportFrom, module: str) -> str:
    """What `from x import ...` names, read inside `module`: relative imports are resolved."""
    if not node.level:
        return node.module or ""
    package = module.split(".")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def imported(node: ast.AST, module: str) -> list[str]:
    """The dotted names that one import statement reaches; nothing for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    source = absolute(node, module)
    if source != "prunus":
        return [source]
    return [f"prunus.{alias.name}" if alias.name in FLOORS else "prunus" for alias in node.names]


def upward(source: str, module: str) -> list[str]:
    """Each import in `source`, at whatever depth, that reaches above the floor of `module`."""
    floor = floor_of(module)
    if floor is None:
        return [f"{module} is on no floor: give it a place in TABLE"]
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        for name in imported(node, module):
            above = floor_of(name) if name.split(".")[0] == "prunus" else 0
            if above is None or above > floor:
                found.append(f"{module} line {getattr(node, 'lineno', 0)}: floor {floor} imports {name}, floor {above}")
    return found


def on_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: not the bodies of functions, not `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from on_import(child)


def not_always_there(source: str, module: str) -> list[str]:
    """The packages that importing `source` needs beyond the standard library, torch and safetensors."""
    names = [name for node in on_import(ast.parse(source)) for name in imported(node, module)]
    return sorted({name.split(".")[0] for name in names} - ALWAYS_THERE)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_imports_upward(path: Path) -> None:
    assert upward(path.read_text(encoding="utf-8"), module_of(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import prunus.pipeline",
        "import torch, prunus.plan",
        "from prunus.apply.mask import mask",
        "from prunus import save",
        "from prunus import Budget",
        "from ..criteria import magnitude",
        "from .. import prune",
        "def late() -> None:\n    from prunus.plan import Plan",
        "if TYPE_CHECKING:\n    from prunus.stats import Stats",
        "from prunus.nowhere import anything",
    ],
)
def test_an_upward_import_is_caught(line: str) -> None:
    (complaint,) = upward(f"import torch\nfrom prunus.types import Inputs\n{line}\n", "prunus.graph.axes")
    assert "prunus.graph.axes line" in complaint


@pytest.mark.parametrize(
    "line",
    ["import prunus.errors", "from prunus.patterns import Channel", "from . import node", "from prunus import types"],
)
def test_an_import_of_the_same_floor_or_a_lower_one_is_not(line: str) -> None:
    assert upward(line, "prunus.graph.axes") == []


def test_a_file_without_a_floor_is_caught() -> None:
    assert upward("import torch", "prunus.utils") == ["prunus.utils is on no floor: give it a place in TABLE"]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_every_file_says_on_its_first_line_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert tree.body, "an empty file"
    assert tree.body[0].lineno == 1
    assert (ast.get_docstring(tree, clean=False) or "").partition("\n")[0].strip()


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p).split(".")[1] not in DOORS], ids=module_of)
def test_no_file_outside_the_doors_needs_an_extra_on_import(path: Path) -> None:
    assert not_always_there(path.read_text(encoding="utf-8"), module_of(path)) == []


def test_a_heavy_import_is_caught_and_a_late_one_is_not() -> None:
    heavy = "try:\n    from rich.table import Table\nexcept ImportError:\n    import numpy.linalg\n"
    late = "import torch\nif TYPE_CHECKING:\n    import rich\ndef run() -> None:\n    import sklearn\n"
    assert not_always_there(heavy, "prunus.save") == ["numpy", "rich"]
    assert not_always_there(late, "prunus.save") == []


def test_importing_prunus_imports_no_extra() -> None:
    code = f"import sys, prunus; print([name for name in {EXTRAS!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_public_names_are_sorted_and_exist() -> None:
    prunus = importlib.import_module("prunus")
    assert prunus.__all__
    assert list(prunus.__all__) == sorted(set(prunus.__all__))
    assert [name for name in prunus.__all__ if not hasattr(prunus, name)] == []
