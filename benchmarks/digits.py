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
    print("\n".join(aligned([_HEADINGS, *(_row(name, runs) for name in runs[0].rows)])))


_HEADINGS = (
    "model",
    "(effective) MACs",
    "KiB (gzip)",
    "latency of dense",
    "accuracy, %",
    "95 %",
    "drop, points",
    "95 %",
    "p",
    "n",
)


def _row(name: str, runs: list[Demo]) -> tuple[str, ...]:
    rows = [run.rows[name] for run in runs]
    correct = torch.cat([row.correct for row in rows])
    change = paired(torch.cat([run.rows[DENSE].correct for run in runs]), correct)
    low, high = accuracy_interval(correct)
    ratios = [row.figures["latency_ms"].value / row.figures["dense_latency_ms"].value for row in rows]
    return (
        name,
        f"{_mean(rows, 'macs', 'effective_macs') / BATCH:,.0f}",
        f"{_mean(rows, 'compressed_bytes', 'bytes') / 1024:,.0f}",
        f"{median_quartiles(ratios)[0]:.2f}x",
        f"{float(correct.mean()) * 100:.2f}",
        f"{low * 100:.2f} to {high * 100:.2f}",
        f"{change.drop * 100:+.2f}",
        f"{change.low * 100:+.2f} to {change.high * 100:+.2f}",
        f"{change.p:.2g}",
        str(change.n),
    )


def _mean(rows: list[Row], *metrics: str) -> float:
    """The mean of the first of these metrics that was measured."""
    name = next(name for name in metrics if name in rows[0].figures)
    return sum(row.figures[name].value for row in rows) / len(rows)


if __name__ == "__main__":
    main()
