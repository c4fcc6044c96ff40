"""Criteria, densities and loops side by side on Fashion-MNIST, each with the same training to recover.

    python benchmarks/criteria.py --data fashion-mnist/ --jobs 2
    python benchmarks/criteria.py --data fashion-mnist/ --only 'weights/taylor/*'
    python benchmarks/criteria.py --page docs/compared.md

DATA holds the four files of Fashion-MNIST as its authors publish them. Each run is a process of its own on one thread;
its row is added to the log as soon as it is there, and a killed benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results/criteria.json")
sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    given = arguments()
    if given.page:
        from compared import page

        page.write(given.log, given.into, given.page)
    elif given.one:
        from compared.one import row_of
        from compared.runs import every

        run = next(run for run in every() if run.name == given.one)
        print("\n" + json.dumps(row_of(run, given.data, given.log.parent)))
    else:
        run_all(given)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("fashion-mnist"), help="the folder of Fashion-MNIST")
    parser.add_argument("--only", default="*", help="runs whose name fits this glob, such as 'weights/*/0.05/0'")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--log", type=Path, default=Path("build/criteria.jsonl"), help="rows are added here")
    parser.add_argument(
        "--into", type=Path, default=Path("benchmarks/results/criteria.json"), help="results, for --page"
    )
    parser.add_argument("--page", type=Path, help="write the log as results and as a page of curves, and stop")
    parser.add_argument("--list", action="store_true", help="print the names of the runs, and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_all(given: argparse.Namespace) -> None:
    from compared import fashion
    from compared.runs import every

    names = [run.name for run in every() if fnmatch.fnmatch(run.name, given.only)]
    if given.list:
        print("\n".join(dict.fromkeys(names)))
        return
    fashion.load(given.data)  # says what is missing before anything runs
    given.log.parent.mkdir(parents=True, exist_ok=True)
    done = {row["name"] for row in read_log(given.log)}
    left = [name for name in dict.fromkeys(names) if name not in done]
    firsts = [name for name in left if name.startswith("dense/")]  # others need the networks that these leave
    with ThreadPoolExecutor(given.jobs) as pool:
        for part in (firsts, [name for name in left if name not in firsts]):
            for row in pool.map(partial(measured, given), part):
                with given.log.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                print(line(row), flush=True)


def measured(given: argparse.Namespace, name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--data", str(given.data), "--log", str(given.log)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{name} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return json.loads(ended.stdout.rsplit("\n", 2)[-2])


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in path.read_text().splitlines()] if path.exists() else []


def line(row: dict[str, Any]) -> str:
    parts = [f"{what} {100 * row[what]['accuracy']:.2f}" for what in ("whole", "cut", "recovered") if what in row]
    return f"{row['name']:45} {', '.join(parts)}  ({row['seconds']} s)"


if __name__ == "__main__":
    main()
