"""Kill a run with SIGKILL at random moments, let it go on, and compare its files with those of an undisturbed run.

python benchmarks/kill.py --kills 10            a recipe, killed so often, each time going on with --resume
python benchmarks/kill.py --kills 10 --loop     benchmarks/loop.py, a gradual run: so many runs, each killed once
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

LOOP = Path(__file__).with_name("loop.py").resolve()
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


def killed_loops(folder: Path, kills: int, draw: random.Random) -> bool:
    """Runs of loop.py, each killed after a random time and started again; do all end as an undisturbed one?"""

    def start(out: str) -> subprocess.Popen[str]:
        words = [sys.executable, str(LOOP), str(folder / out)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    begun = time.monotonic()
    start("whole").communicate()
    seconds = time.monotonic() - begun
    print(f"undisturbed {seconds:.1f} s")
    alike = [False] * kills
    for number in range(kills):
        process, wait = start(f"{number}"), draw.uniform(0.1, 0.95) * seconds
        time.sleep(wait)
        process.kill()
        process.communicate()
        said, _ = start(f"{number}").communicate()
        alike[number] = contents(folder / "whole") == contents(folder / f"{number}")
        print(
            f"killed after {wait:.1f} s, {said.strip()}; {'the same bits' if alike[number] else 'DIFFERS'}", flush=True
        )
    return all(alike)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in MEASURED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loop", action="store_true", help="a gradual run in a loop of one's own")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.loop:
            raise SystemExit(not killed_loops(folder, given.kills, random.Random(given.seed)))
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
