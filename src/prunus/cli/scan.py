"""`prunus scan MODULE:make`: what can be pruned, what goes together, what is fixed and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from prunus.cli.terminal import console, given, print_json, say, working
from prunus.graph.graph import Graph
from prunus.graph.group import group
from prunus.graph.groups import Groups
from prunus.graph.trace import trace
from prunus.named import made
from prunus.report.report import report
from prunus.table import fixed_table, group_tree


def scan(
    target: Annotated[str, typer.Argument(metavar="MODULE:make", help="A function make() -> (model, inputs).")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a page about it to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what can be pruned in a model, what goes together, and what is fixed and why.

    Example: `prunus scan my_package.nets:make --html scan.html`
    """
    with working("make the model, trace, group"):
        graph = trace(*made(target))
        groups = group(graph)
    if html is not None:
        say(f"wrote {report(groups, html, command=given())}")
    if as_json:
        return print_json(found(graph, groups))
    console.print(escape(str(graph)), highlight=False)
    console.print(group_tree(groups))
    return console.print(fixed_table(graph))


def found(graph: Graph, groups: Groups) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "model": graph.model_class,
        "groups": [
            {
                "name": g.name,
                "kind": g.kind,
                "size": g.size,
                "exact": g.exact,
                "why": g.why,
                "members": [{"state": m.state, "dim": m.dim, "reads": m.consumer} for m in g.members],
            }
            for g in groups
        ],
        "fixed": dict(graph.fixed),
        "without_rule": sorted({u.op for u in graph.unruled}),
        "never_read": list(graph.unreached),
    }
