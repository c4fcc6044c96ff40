"""Handwritten digits over several seeds, pooled: the rows of `prunus run digits` with paired intervals.

python benchmarks/digits.py --seeds 0 1 2
python benchmarks/digits.py --task digits-sparse --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import platform

import torch

from prunus.result import aligned
from prunus.statistics import accuracy_interval, median_quartiles, paired
from prunus.tasks import demo, sparse
from prunus.tasks.rows import BATCH, DENSE, Demo, Row

TASKS = {"digits": demo.run, "digits-sparse": sparse.run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--task", choices=TASKS, default="digits")
    given = parser.parse_args()
    seeds: list[int] = given.seeds
    torch.set_num_threads(1)
    runs = [TASKS[given.task](seed) for seed in seeds]
    print(f"{given.task}, seeds {seeds}, torch {torch.__version__}, {platform.machine()}, 1 thread, batch {BATCH}")
    costs = _COSTS[given.task]
    heads = ("model", *(_NAMES[cost] for cost in costs), *_QUALITY)
    print("\n".join(aligned([heads, *(_row(name, runs, *costs) for name in runs[0].rows)])))


_COSTS = {"digits": ("macs", "bytes"), "digits-sparse": ("effective_macs", "compressed_bytes")}
_NAMES = {"macs": "MACs", "effective_macs": "effective MACs", "bytes": "KiB", "compressed_bytes": "KiB, gzip"}
_QUALITY = ("torch, of dense", "ONNX, of dense", "accuracy, %", "95 %", "drop, points", "95 %", "p", "n")


def _row(name: str, runs: list[Demo], macs: str, size: str) -> tuple[str, ...]:
    rows = [run.rows[name] for run in runs]
    correct = torch.cat([row.correct for row in rows])
    change = paired(torch.cat([run.rows[DENSE].correct for run in runs]), correct)
    low, high = accuracy_interval(correct)
    return (
        name,
        f"{_mean(rows, macs) / BATCH:,.0f}",
        f"{_mean(rows, size) / 1024:,.0f}",
        f"{_of_dense(rows, 'latency_ms'):.2f}x",
        f"{_of_dense(rows, 'onnx_latency_ms'):.2f}x",
        f"{float(correct.mean()) * 100:.2f}",
        f"{low * 100:.2f} to {high * 100:.2f}",
        f"{change.drop * 100:+.2f}",
        f"{change.low * 100:+.2f} to {change.high * 100:+.2f}",
        f"{change.p:.2g}",
        str(change.n),
    )


def _mean(rows: list[Row], metric: str) -> float:
    return sum(row.figures[metric].value for row in rows) / len(rows)


def _of_dense(rows: list[Row], metric: str) -> float:
    """The median over the seeds of a latency, over that of the dense network which was timed in turn with it."""
    return median_quartiles([row.figures[metric].value / row.figures[f"dense_{metric}"].value for row in rows])[0]


if __name__ == "__main__":
    main()
