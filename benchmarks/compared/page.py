"""The rows of the log as results in JSON, and as a page of tables and curves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from compared.chart import Line, drawn
from compared.one import unpacked
from compared.runs import BEST, CURVE, DENSE_STEPS, FEW, GRADUAL, LONG, PUSHES, RECOVERY, SCRATCH, SEEDS, every
from prunus.statistics import paired

Rows = dict[str, dict[str, Any]]
NETS = ("whole", "cut", "by layer", "recovered")


def write(log: Path, into: Path, page: Path) -> None:
    rows: Rows = {row["name"]: row for row in map(json.loads, log.read_text().splitlines())}
    bare = [{k: _bare(v) if k in NETS else v for k, v in row.items()} for row in rows.values()]
    differences = compared(rows)
    results = {"torch": str(torch.__version__), "compared": differences, "runs": bare}
    into.write_text(json.dumps(results, indent=1) + "\n")
    picture = page.parent / "assets" / f"{page.stem}.svg"
    picture.write_text(_curves(rows))
    page.write_text(text(rows, differences, f"assets/{picture.name}"))


def _bare(net: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in net.items() if k != "right"}


def compared(rows: Rows) -> list[dict[str, Any]]:
    """Paired differences over the images of all seeds: how much less the second way has than the first."""
    dense, longer = "dense/trained/1", "dense, longer/trained/1"
    pairs = [(dense, f"weights/{what}/{kept:g}") for what in ("random", *BEST) for kept in CURVE]
    pairs += [(dense, f"layer by layer/magnitude/{kept:g}") for kept in (0.1, 0.05, 0.01)]
    pairs += [("densities/uniform/0.05", f"densities/{what}/0.05") for what in ("erk", "lamp", "arithmetic", "owl")]
    pairs += [(against, f"while training/{what}/0.05") for what in GRADUAL for against in (dense, longer)]
    pairs += [("while training/one shot/0.05", f"while training/{what}/0.05") for what in GRADUAL[:2]]
    pairs += [(dense, f"from scratch/{what}/0.05") for what in SCRATCH]
    pairs += [(dense, "dense, narrow/trained/0.25")]
    found = [_difference(rows, first, second) for first, second in pairs]
    return [each for each in found if each]


def _difference(rows: Rows, first: str, second: str) -> dict[str, Any] | None:
    """Over the seeds that both ways have been run with."""
    both = [
        (rows[f"{first}/{s}"], rows[f"{second}/{s}"]) for s in SEEDS if {f"{first}/{s}", f"{second}/{s}"} <= {*rows}
    ]
    if not both:
        return None
    before, after = (
        torch.cat([unpacked(pair[side]["recovered"]["right"]) for pair in both]).double() for side in (0, 1)
    )
    change = paired(before, after)
    found = {"drop": change.drop, "low": change.low, "high": change.high, "n": change.n}
    return {"of": second, "against": first, "seeds": len(both), **found}


def text(rows: Rows, differences: Sequence[dict[str, Any]], picture: str) -> str:
    parts = [
        "# Criteria compared",
        _intro(),
        "## Curves",
        f"![Accuracy against zeros, for six criteria and random]({picture})",
        "Mean of three seeds, with the lowest and the highest; the gray band is the dense network, trained on as long.",
        "## Every criterion, one seed",
        "Accuracy in percent, before and after recovery.",
        _every(rows),
        "## Differences, pooled over seeds",
        "Points of accuracy lost after recovery, with a 95 % interval, over the test images of all seeds. *Dense* is "
        "the network that the pruning began with, after the same steps to recover; *dense, longer* is that network "
        "after the three epochs that what prunes while it trains takes. What begins from scratch trains for two "
        "epochs; to find a ticket takes three such trainings before.",
        _differences(differences),
        "## Before training",
        "One weight of two hundred, chosen before training; *emptied* are layers with one weight or none (`allocate` "
        "leaves one weight in each). The skip of a residual block goes around its convolutions; nothing goes around "
        "the head.",
        _before(rows),
        "## Pushed before the cut",
        "An epoch more with and without group lasso of several strengths, then cut to a quarter of the MACs by "
        "`magnitude_l2`, without recovery.",
        _pushed(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _intro() -> str:
    return (
        f"A ResNet of eight layers (78 thousand weights) on Fashion-MNIST: 55,000 images to train, {DENSE_STEPS} steps "
        f"of 64; 10,000 test images. Each way gets {RECOVERY} steps to recover, and {LONG} where it prunes while it "
        "trains; what is compared with it gets the same. Statistics of batch norms are not counted anew before the "
        "recovery. Weights are ranked globally, except for `random` (layer by layer) and `wanda`, `ria` and `obc` (by "
        "rows); channels go layer by layer. Criteria that look at data see 512 training images.\n\n"
        "This page is written by `python benchmarks/criteria.py --page docs/compared.md`; the rows are in "
        "`benchmarks/results/criteria.json`."
    )


def _every(rows: Rows) -> str:
    names = list(dict.fromkeys(run.what for run in every() if run.way in ("weights", "channels")))
    keys = [*(f"weights/{{}}/{kept:g}/0" for kept in FEW), "channels/{}/0.25/0"]
    order = sorted(names, key=lambda n: -_score(rows, f"weights/{n}/0.05/0") or -_score(rows, f"channels/{n}/0.25/0"))
    heads = ["", *(f"{100 * (1 - k):g} % zeros" for k in FEW), "a quarter of the MACs"]
    body = [[f"`{n}`", *(_both(rows.get(key.format(n))) for key in keys)] for n in order]
    dense = rows.get("dense/trained/1/0")
    return _table(heads, [["dense", *([_both(dense)] * len(keys))], *body])


def _score(rows: Rows, name: str) -> float:
    return rows[name]["recovered"]["accuracy"] if name in rows else 0.0


def _both(row: dict[str, Any] | None) -> str:
    return " → ".join(f"{100 * row[net]['accuracy']:.1f}" for net in ("cut", "recovered") if net in row) if row else ""


def _differences(differences: Iterable[dict[str, Any]]) -> str:
    body = [
        [
            *(_words(d["of"]), _words(d["against"])),
            *(f"{100 * d[key]:+.2f}" for key in ("drop", "low", "high")),
            str(d["seeds"]),
        ]
        for d in differences
    ]
    return _table(["", "against", "lost, points", "at least", "at most", "seeds"], body)


def _words(name: str) -> str:
    way, what, kept = name.split("/")
    share = "" if kept == "1" else f", {100 * float(kept):g} % left"
    return f"{way}: {what}{share}" if what != "trained" else f"{way}{share}"


def _before(rows: Rows) -> str:
    body: list[list[str]] = []
    for what in ("synflow", "magnitude", "snip", "grasp"):
        each = [rows[n] for s in SEEDS if (n := f"before training/{what}/0.005/{s}") in rows]
        emptied = ", ".join(str(len(row["cut"]["emptied"])) for row in each)
        heads = ", ".join("yes" if "head.weight" in row["cut"]["emptied"] else "no" for row in each)
        body.append([f"`{what}`", _mean(each, "recovered"), emptied, heads])
    return _table(["", "accuracy after training", "emptied of 10 layers, each seed", "the head among them"], body)


def _pushed(rows: Rows) -> str:
    body: list[list[str]] = []
    for what in PUSHES:
        each = [rows[n] for s in SEEDS if (n := f"pushed/{what}/0.25/{s}") in rows]
        body.append([what, *(_mean(each, net) for net in ("whole", "cut", "by layer"))])
    return _table(["", "before the cut", "cut, all layers ranked together", "cut, layer by layer"], body)


def _mean(rows: Sequence[dict[str, Any]], net: str) -> str:
    values = [100 * row[net]["accuracy"] for row in rows]
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else "".join(f"{v:.2f}" for v in values)


def _table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _curves(rows: Rows) -> str:
    def at(name: str) -> list[float]:
        return [100 * row["recovered"]["accuracy"] for seed in SEEDS if (row := rows.get(f"{name}/{seed}"))]

    def line(name: str) -> Line:
        found = {kept: at(f"weights/{name}/{kept:g}") for kept in CURVE}
        return Line(name, [(kept, values) for kept, values in found.items() if values])

    return drawn([line(name) for name in (*BEST, "random")], band=at("dense/trained/1"))
