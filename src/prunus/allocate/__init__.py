"""How many units go and where, so that a budget is met."""

from prunus.allocate.ahead import check_ahead
from prunus.allocate.choose import Scope, allocate, provenance_of
from prunus.allocate.limit import partway
from prunus.allocate.slices import keep_counts

__all__ = ["Scope", "allocate", "check_ahead", "keep_counts", "partway", "provenance_of"]
