"""A model as one file that another runtime reads, checked there against PyTorch before it is kept."""

from prunus.export.exported import Exported
from prunus.export.write import export

__all__ = ["Exported", "export"]
