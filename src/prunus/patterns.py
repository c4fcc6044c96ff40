"""What a unit is: the shapes within tensors that go together."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from prunus.errors import GroupError


@dataclass(frozen=True)
class Channel:
    """Whole slices along the axes of a model: channels, neurons, heads, head dimensions, groups of convolutions.

    Kept counts are multiples of `round_to`, or the whole size. Where a unit is several slices wide (a head of 64
    dimensions), the multiple is that of the slices.
    """

    round_to: int = 1

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise GroupError(f"Channel(round_to={self.round_to}) must be a positive integer; 8 or 16 suit most CPUs.")

    def step(self, width: int) -> int:
        """The multiple that a count of units must be, for units `width` slices wide.

        >>> Channel(round_to=8).step(1), Channel(round_to=8).step(64), Channel(round_to=8).step(4)
        (8, 1, 2)
        """
        return self.round_to // gcd(self.round_to, width)
