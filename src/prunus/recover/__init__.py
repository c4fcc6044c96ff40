"""Give back to a network what pruning took: train it again, or only count its batch-norm statistics again."""

from prunus.recover.finetune import MakeOptimizer, adamw, finetune
from prunus.recover.precision import Precision, fastest
from prunus.recover.recalibrate import recalibrate

__all__ = ["MakeOptimizer", "Precision", "adamw", "fastest", "finetune", "recalibrate"]
