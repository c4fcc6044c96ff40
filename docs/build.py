"""`build/docs`: the pages of docs/, the reference filled in from the docstrings. `make docs` runs this first."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import prunus

DOCS = Path(__file__).parent
BUILT = DOCS.parent / "build" / "docs"
ROW = re.compile(r"^\| `(?P<name>\w+)` \|")
ENTRY = re.compile(r"^ {4}(?P<names>[\w, ]+): (?P<text>.*)$")
SECTION = re.compile(r"^(Args|Raises|Returns):\s*$")
CODE = re.compile(r"(`[^`]*`)")


def main() -> None:
    shutil.rmtree(BUILT, ignore_errors=True)
    shutil.copytree(DOCS, BUILT, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    page = BUILT / "api.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str) -> str:
    """The reference page, with what each table names described below it."""
    done: list[str] = []
    waiting: list[str] = []
    for line in [*page.splitlines(), ""]:
        row = ROW.match(line)
        if row is None and waiting and not line.startswith("|"):
            done += ["", *(text for name in waiting for text in described(name))]
            waiting = []
        if row is not None:
            waiting.append(row["name"])
            line = line.replace(f"`{row['name']}`", f"[`{row['name']}`](#{anchor(row['name'])})", 1)
        done.append(line)
    return "\n".join(done)


def anchor(name: str) -> str:
    return f"prunus-{name}"


def described(name: str) -> Iterator[str]:
    """One public name: its signature, its docstring, and below it what it holds."""
    value = getattr(prunus, name)
    yield f"### {name} {{ #{anchor(name)} }}\n"
    yield from entry(f"prunus.{name}", value)
    for inner, held in sorted(held_by(value)):
        yield f"#### {name}.{inner} {{ #{anchor(name)}-{inner} }}\n"
        yield from entry(f"prunus.{name}.{inner}", held)


def entry(path: str, value: Any) -> Iterator[str]:
    if callable(value) and not (inspect.isclass(value) and issubclass(value, BaseException)):
        yield f"```python\n{signature(path, value)}\n```\n"
    yield from markdown(inspect.getdoc(value) or "")
    yield ""


def held_by(value: Any) -> list[tuple[str, Any]]:
    """The public functions and classes of a module; the methods of a class that say what they do."""
    if isinstance(value, ModuleType):
        return [(n, v) for n, v in vars(value).items() if defined(n, v) and within(v.__module__, value.__name__)]
    if not inspect.isclass(value) or issubclass(value, BaseException):
        return []
    return [(n, v) for n, v in vars(value).items() if defined(n, v) or (isinstance(v, property) and v.__doc__)]


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def defined(name: str, value: Any) -> bool:
    return not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)) and bool(value.__doc__)


def signature(path: str, value: Any) -> str:
    """As it is written, on one line where that is short, else an argument a line."""
    given = inspect.signature(value)
    parameters: list[str] = []
    for p in given.parameters.values():
        if p.name == "self":
            continue
        if p.kind is p.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        parameters.append(shown(p))
    back = "" if given.return_annotation in (given.empty, None, "None") else f" -> {given.return_annotation}"
    short = f"{path}({', '.join(parameters)}){back}"
    return short if len(short) <= 88 else "\n".join([f"{path}(", *(f"    {p}," for p in parameters), f"){back}"])


def shown(p: inspect.Parameter) -> str:
    """A parameter with its annotation and default; a function by its name, what a factory makes as `...`."""
    name = str(p.replace(default=p.empty, annotation=p.empty))
    kind = "" if p.annotation is p.empty else f": {p.annotation}"
    if p.default is p.empty:
        return name + kind
    default = getattr(p.default, "__name__", None) or repr(p.default)
    return f"{name}{kind} = {'...' if default.startswith('<') else default}"


def markdown(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: doctests and trees fenced, arguments a list, nothing else read as markup."""
    section = fenced = False
    for line in docstring.splitlines():
        if fenced:
            if line.strip():
                yield line
                continue
            yield "```"
            fenced = False
        found = ENTRY.match(line) if section else None
        if line.startswith(">>> ") or (line.startswith("    ") and not section):
            yield f"\n```{'pycon' if line.startswith('>>> ') else 'text'}\n{line}"
            fenced = True
        elif SECTION.match(line):
            section = True
            yield f"\n**{line.strip(': ')}**\n"
        elif found is not None:
            yield f"- {', '.join(f'`{n.strip()}`' for n in found['names'].split(','))}: {escaped(found['text'])}"
        else:
            section = section and (not line.strip() or line.startswith("    "))
            yield f"  {escaped(line.strip())}" if section and line.strip() else escaped(line)
    if fenced:
        yield "```"


def escaped(text: str) -> str:
    """Brackets, stars and underscores outside of code stand for themselves; the bars of a table stay."""
    parts = CODE.split(text)
    return "".join(p if p.startswith("`") else re.sub(r"([\[\]*_<])", r"\\\1", p) for p in parts)


if __name__ == "__main__":
    main()
