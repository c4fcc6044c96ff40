"""Which runs there are: each a name, a way, and what it is given. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prunus import criteria

DENSE_STEPS, RECOVERY, LONG, PUSH = 1718, 200, 2577, 859
"""Two epochs; what every method gets to recover; three, for what prunes while it trains; one, for what pushes."""
SEEDS = (0, 1, 2)
CURVE = (0.5, 0.2, 0.1, 0.05, 0.01)
FEW = (0.2, 0.05, 0.01)
BEST = ("magnitude", "lamp", "obs_diag", "taylor", "snip", "taylor_abs")
"""The best in the held-out images at 95 %, of the runs of seed 0; `obd` ranks as `taylor` does."""
GRADUAL = ("gradual", "gradual, lamp", "one shot")
PUSHES = ("plain", *(f"group lasso {strength:g}" for strength in (0.001, 0.0015, 0.002)))
SCRATCH = ("rigl", "set", "static", "ticket", "random ticket")
OF_UNITS = ("bn_scale", "fpgm", "activation", "apoz", "flap", "hrank")
ROWS = ("wanda", "ria", "obc")
"""Criteria whose papers compare weights within a row."""
CRITERIA = tuple(name for name in criteria.__all__ if name.islower() and name not in ("needing", "magnitude_l2"))


@dataclass(frozen=True)
class Run:
    """`way` names a function of `ways.py`; `what` is the criterion or kind, `kept` the share that is left."""

    way: str
    what: str
    kept: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.way}/{self.what}/{self.kept:g}/{self.seed}"


def every() -> Iterator[Run]:
    """All runs of the benchmark, the short ones first."""
    for seed in SEEDS:
        yield Run("dense", "trained", 1.0, seed)
    for what in (*CRITERIA, "movement"):
        if what not in OF_UNITS:
            yield from (Run("weights", what, kept, 0) for kept in FEW)
        if what != "hrank":
            yield Run("channels", what, 0.25, 0)
    for seed in SEEDS:
        for what in ("random", *BEST):
            yield from (Run("weights", what, kept, seed) for kept in CURVE)
        yield from (Run("layer by layer", what, k, seed) for what in ("random", "magnitude") for k in (0.1, 0.05, 0.01))
        yield from (Run("densities", what, 0.05, seed) for what in ("uniform", "erk", "lamp", "owl", "arithmetic"))
        yield from (Run("before training", what, 0.005, seed) for what in ("magnitude", "synflow", "snip", "grasp"))
    for seed in SEEDS:
        yield Run("dense, longer", "trained", 1.0, seed)
        yield Run("dense, narrow", "trained", 0.25, seed)
        yield from (Run("while training", what, 0.05, seed) for what in GRADUAL)
        yield from (Run("from scratch", what, 0.05, seed) for what in SCRATCH)
        yield from (Run("pushed", what, 0.25, seed) for what in PUSHES)
