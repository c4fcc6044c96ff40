"""Half of the hidden units of an LSTM and a GRU: is it proven, and how much faster is what is left?

    python benchmarks/recurrent.py

Random weights, units chosen by magnitude; a linear layer, two recurrent layers, a linear layer; calls of both models
take turns, so that neither has the quieter minutes of the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import prunus
from prunus.result import aligned
from prunus.statistics import compare_timings

LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
HEADINGS = (
    "layer",
    "groups",
    "params",
    "MACs",
    "result",
    "worst error",
    "control",
    "ms before",
    "ms after",
    "speed-up",
)


class Tagger(nn.Module):
    """A label for each step of a sequence."""

    def __init__(self, kind: str, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 128)
        self.rnn = LAYERS[kind](128, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {given.batch} sequences of {given.steps} steps, hidden {given.hidden}")
    rows = [HEADINGS]
    for kind in LAYERS:
        torch.manual_seed(0)
        model = Tagger(kind, given.hidden).eval()
        rows.append((kind, *row(model, torch.randn(given.batch, given.steps, 64))))
    print("\n".join(aligned(rows)))


def row(model: nn.Module, inputs: Tensor) -> tuple[str, ...]:
    groups = prunus.group(prunus.trace(model, inputs)).only("rnn*")
    scores = prunus.score(model, groups, prunus.criteria.magnitude)
    plan = prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5), scope="layer")
    small = prunus.shrink(model, plan, verify=False)
    proof = prunus.verify(model, small, plan)
    shares = [f"{after / before:.2f}x" for before, after in (plan.costs["params"], plan.costs["macs"])]
    worst = max(error for check, error in proof.errors.items() if check != "module")
    return (
        *(str(len(groups)), *shares, str(small.rnn), f"{worst:.0e}", f"{proof.control:.0e}"),
        *times(model, small, inputs),
    )


def times(model: nn.Module, small: nn.Module, inputs: Tensor) -> tuple[str, ...]:
    """Median milliseconds of a call before and after, and how often the one goes into the other (95 % interval)."""
    after, before = prunus.measure(small, inputs, "latency_ms", against=model, threads=1)
    change = compare_timings(before.samples, after.samples)
    faster = f"{1 / change.ratio:.2f}x ({1 / change.high:.2f} to {1 / change.low:.2f})"
    return f"{before.value:.2f}", f"{after.value:.2f}", faster


if __name__ == "__main__":
    main()
