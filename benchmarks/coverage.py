"""Which models can be pruned? Each is cut to half of every group, and judged by a check that trusts no pruner.

    python benchmarks/coverage.py --only 'torchvision/resnet*' --resume
    python benchmarks/coverage.py --tool torch-pruning --limit 60
    python benchmarks/coverage.py --into benchmarks/results/coverage.json --table docs/coverage.md

Each model runs in a process of its own, under a time limit; its row is added to the log as soon as it is there.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]


def main() -> None:
    given = arguments()
    if given.one:
        from covered.one import row_of

        limit_memory(given.memory)
        print("\n" + json.dumps(row_of(*given.one)))
    elif given.table or given.into:
        from covered import table

        table.write(given.log, given.into, given.table)
    else:
        run_all(given)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="models whose title (family/name) or name fits this glob")
    parser.add_argument("--family", help="torch, transformers, diffusers or torchvision")
    parser.add_argument("--tool", default="prunus", help="prunus; torch-pruning; torch-pruning, heads declared")
    parser.add_argument("--limit", type=float, default=300, help="seconds a model")
    parser.add_argument("--memory", type=float, default=16, help="GiB a model, as Linux counts address space")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--resume", action="store_true", help="leave out models that the log has")
    parser.add_argument("--log", type=Path, default=Path("build/coverage.jsonl"), help="rows are added here")
    parser.add_argument("--into", type=Path, help="merge the log into this file of results, and stop")
    parser.add_argument("--table", type=Path, help="write the results as a page, and stop")
    parser.add_argument("--list", action="store_true", help="print the titles, and stop")
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "TITLE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_all(given: argparse.Namespace) -> None:
    from covered import table

    titles = chosen(given)
    if given.list:
        print("\n".join(titles))
        return
    given.log.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        for row in pool.map(partial(measured, given), titles):
            with given.log.open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(table.line(row), flush=True)
    rows = [row for row in table.read_log(given.log) if row["tool"] == given.tool]
    print(table.markdown(rows), table.summary(rows), sep="\n\n")


def chosen(given: argparse.Namespace) -> list[str]:
    from covered.one import all_entries
    from covered.table import read_log

    done = {row["model"] for row in read_log(given.log) if row["tool"] == given.tool} if given.resume else set()
    return [
        title
        for title, entry in all_entries().items()
        if title not in done
        and given.family in (None, entry.family)
        and any(fnmatch.fnmatch(name, given.only) for name in (title, entry.name))
    ]


def limit_memory(gib: float) -> None:
    """A model that needs more fails by itself, and leaves the rest of the machine alone."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30),) * 2)


def measured(given: argparse.Namespace, title: str) -> dict[str, Any]:
    """The row that a process of its own printed last, or what became of that process."""
    from covered.judge import CRASHED, SLOW

    row = {"tool": given.tool, "model": title}
    command = [sys.executable, __file__, "--memory", str(given.memory), "--one", given.tool, title]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given.limit, check=False)
    except subprocess.TimeoutExpired:
        return row | {"verdict": SLOW, "why": f"not done after {given.limit:.0f} s"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        return row | {"verdict": CRASHED, "why": f"process ended with {done.returncode}: {last[0][:200]}"}


if __name__ == "__main__":
    main()
