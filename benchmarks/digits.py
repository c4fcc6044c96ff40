"""Handwritten digits over several seeds, pooled: the rows of `prunus run digits` with paired intervals.

python benchmarks/digits.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import platform

import torch

from prunus.result import aligned
from prunus.statistics import accuracy_interval, median_quartiles, paired
from prunus.tasks import demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds: list[int] = parser.parse_args().seeds
    torch.set_num_threads(1)
    runs = [demo.run(seed) for seed in seeds]
    print(f"seeds {seeds}, torch {torch.__version__}, {platform.machine()}, 1 thread, batch {demo.BATCH}")
    print("\n".join(aligned([_HEADINGS, *(_row(name, runs) for name in runs[0].rows)])))


_HEADINGS = ("model", "MACs", "latency of dense", "accuracy, %", "95 %", "drop, points", "95 %", "p", "n")


def _row(name: str, runs: list[demo.Demo]) -> tuple[str, ...]:
    rows = [run.rows[name] for run in runs]
    correct = torch.cat([row.correct for row in rows])
    change = paired(torch.cat([run.rows[demo.DENSE].correct for run in runs]), correct)
    low, high = accuracy_interval(correct)
    ratios = [row.figures["latency_ms"].value / row.figures["dense_latency_ms"].value for row in rows]
    macs = [row.figures["macs"].value / demo.BATCH for row in rows]
    return (
        name,
        f"{sum(macs) / len(macs):,.0f}",
        f"{median_quartiles(ratios)[0]:.2f}x",
        f"{float(correct.mean()) * 100:.2f}",
        f"{low * 100:.2f} to {high * 100:.2f}",
        f"{change.drop * 100:+.2f}",
        f"{change.low * 100:+.2f} to {change.high * 100:+.2f}",
        f"{change.p:.2g}",
        str(change.n),
    )


if __name__ == "__main__":
    main()
