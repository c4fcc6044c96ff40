"""How many units go and where, so that a budget is met."""

from prunus.allocate.choose import Scope, allocate
from prunus.allocate.limit import partway
from prunus.allocate.slices import keep_counts

__all__ = ["Scope", "allocate", "keep_counts", "partway"]
