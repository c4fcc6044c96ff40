"""Kill a recipe run with SIGKILL at random moments, go on with --resume, and compare its files with an undisturbed run.

python benchmarks/kill.py --kills 10
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prunus.cli.init import RECIPE, TASK

MEASURED = ("report.json", "report.html")
"""These hold timings, which no two runs share."""


def run(folder: Path, out: str, *options: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "prunus.cli", "run", "recipe.yaml", "--out", out, *options]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def disturbed(folder: Path, out: str, seconds: float, kills: int, draw: random.Random) -> list[float]:
    """Run to the end in spite of `kills` kills, each after a random time; the times."""
    times: list[float] = []
    for number in range(kills + 1):
        process = run(folder, out, *(["--resume"] if number else []))
        try:
            wait = draw.uniform(0.1, 0.5) * seconds if number < kills else None
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            times.append(wait or 0.0)
            continue
        if process.returncode:
            raise SystemExit(errors.decode())
    return times


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in MEASURED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE.replace("epochs: 3", "epochs: 30"))
        (folder / "my_task.py").write_text(TASK)
        started = time.monotonic()
        if run(folder, "whole").wait():
            raise SystemExit("the undisturbed run failed")
        seconds = time.monotonic() - started
        times = disturbed(folder, "killed", seconds, given.kills, random.Random(given.seed))
        same = contents(folder / "whole") == contents(folder / "killed")
        print(f"undisturbed {seconds:.1f} s; killed after {', '.join(f'{t:.1f}' for t in times)} s")
        print(f"{len(contents(folder / 'whole'))} files {'are the same bit for bit' if same else 'DIFFER'}")
        raise SystemExit(not same)


if __name__ == "__main__":
    main()
