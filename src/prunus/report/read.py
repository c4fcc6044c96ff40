"""Read the facts of a saved directory again, and name whatever is damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from prunus.errors import ArtifactError, MeasureError
from prunus.report.facts import FORMAT, Facts

NAME = "report.json"
WEIGHTS = "model.safetensors"


def read_facts(directory: str | Path) -> Facts:
    """The facts that `save` wrote beside a model.

    Raises `ArtifactError` where they are missing, damaged, of another format, or about other weights.
    """
    path = Path(directory) / NAME
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is missing or no JSON ({error}); expected a directory written by prunus.save."
        ) from error
    if not isinstance(data, dict) or cast("Facts", data).get("format") != FORMAT:
        raise ArtifactError(f"{path} is not of the format {FORMAT!r}; it was written by something else.")
    facts = cast("Facts", data)
    if facts.get("kind") != "result":
        raise ArtifactError(f"{path} holds too few facts for a page: an older prunus wrote it. Save the model again.")
    weights = path.with_name(WEIGHTS)
    if weights.is_file() and hashlib.sha256(weights.read_bytes()).hexdigest() != facts.get("weights"):
        raise ArtifactError(f"{path} is about other weights than {WEIGHTS}: one of the files was changed.")
    return facts


@contextmanager
def damage_named(directory: str | Path) -> Generator[None]:
    """Whatever entries that are not as written lead to, while a page is made of them."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, MeasureError) as error:
        raise ArtifactError(
            f"{Path(directory) / NAME} is damaged ({type(error).__name__}: {error}): an entry is missing or not as "
            "prunus writes it. Copy or save the model again."
        ) from error
