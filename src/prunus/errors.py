"""Every error prunus raises on purpose.

    PrunusError
    ├── TraceError      the model could not be captured with these inputs
    ├── GroupError      nothing can be pruned, or a group or pattern does not fit
    ├── CriterionError  a criterion returned wrong keys, wrong shapes or non-finite values
    ├── BudgetError     a budget is malformed, or cannot be reached
    ├── PlanError       a plan does not fit this model
    ├── ProofError      a smaller model could not be proven equal to its reference
    ├── RecoverError    training data, loss or recovery function misbehaved
    ├── MeasureError    a metric is unknown or cannot be measured here
    ├── ArtifactError   a saved directory is missing, damaged or foreign
    ├── ExportError     a file for another runtime could not be written, or computes something else
    └── RecipeError     a command line or recipe entry is wrong

Each message says what was given, what was expected, the likely cause and the next step.
"""


class PrunusError(Exception):
    """The base of every error in this package."""


class TraceError(PrunusError):
    """The model could not be captured with these inputs."""


class GroupError(PrunusError):
    """Nothing can be pruned, or a group or pattern does not fit."""


class CriterionError(PrunusError):
    """A criterion returned wrong keys, wrong shapes or non-finite values."""


class BudgetError(PrunusError):
    """A budget is malformed, or cannot be reached."""


class PlanError(PrunusError):
    """A plan does not fit this model."""


class ProofError(PrunusError):
    """A smaller model could not be proven equal to its reference."""


class RecoverError(PrunusError):
    """Training data, loss or recovery function misbehaved."""


class MeasureError(PrunusError):
    """A metric is unknown or cannot be measured here."""


class ArtifactError(PrunusError):
    """A saved directory is missing, damaged or foreign."""


class ExportError(PrunusError):
    """A file for another runtime could not be written, or computes something else."""


class RecipeError(PrunusError):
    """A command line or recipe entry is wrong."""
