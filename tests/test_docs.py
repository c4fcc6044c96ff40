"""The site: every page is reached, every link leads somewhere, every public name is described."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from test_floors import TABLE
from test_readme import PAGES, ROOT

import prunus

DOCS = ROOT / "docs"
NAVIGATION = re.compile(r"^  - [^:]+: (\S+\.md)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,4} (.+)$", re.MULTILINE)
NAMED = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """docs/build.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(build: ModuleType) -> str:
    return build.filled((DOCS / "api.md").read_text(encoding="utf-8"))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """What the headings of a page can be linked by."""
    given = set(re.findall(r"\{ #(\S+) \}", text))
    return given | {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in HEADING.findall(text)}


def broken(page: Path, text: str, reference: str) -> list[str]:
    """The internal links of a page that lead nowhere."""
    found: list[str] = []
    for link in LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        held = reference if target.name == "api.md" else text_of(target) if target.is_file() else None
        if held is None or (anchor and anchor not in anchors(held)):
            found.append(link)
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    listed = NAVIGATION.findall(text_of(ROOT / "mkdocs.yml"))
    assert listed[0] == "index.md"
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_internal_link_leads_somewhere(page: Path, reference: str) -> None:
    assert broken(page, text_of(page), reference) == []


def test_a_broken_link_is_found(reference: str) -> None:
    page = DOCS / "numbers.md"
    text = "[a](nowhere.md) [b](zeros.md) [c](zeros.md#nowhere) [d](api.md#prunus-measure) [e](https://x.org/y.md)"
    assert broken(page, text, reference) == ["nowhere.md", "zeros.md#nowhere"]


def test_the_reference_names_every_public_name_once() -> None:
    assert sorted(NAMED.findall(text_of(DOCS / "api.md"))) == sorted(prunus.__all__)


def test_the_reference_shows_signatures_and_docstrings_as_they_are_written(reference: str) -> None:
    assert "    verify: bool | Precise = True,\n) -> nn.Module" in reference
    assert "criterion: Criterion = magnitude," in reference
    assert "- `data`, `loss`: batches and `loss(model, batch)`" in reference
    assert "### prunus.statistics" not in reference
    assert "#### statistics.wilson { #prunus-statistics-wilson }" in reference
    assert "\n>>> [round(bound, 4) for bound in wilson(90, 100)]\n[0.8256, 0.9448]\n```\n" in reference
    assert " at 0x" not in reference
    assert reference.count("```") % 2 == 0


def test_the_floors_on_the_page_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (\d) \w+ \| (.+) \|$", text_of(DOCS / "whole.md"), re.MULTILINE)
    assert [int(floor) for floor, _ in rows] == list(range(len(TABLE)))
    told = [re.findall(r"`(\w+)/?`", re.sub(r"\(.*?\)", "", names)) for _, names in rows]
    assert [sorted(names) for names in told] == [sorted(names) for names in TABLE]
