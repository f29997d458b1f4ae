"""Which micro-batches of a step belong to which process: process r of W makes micro-batches r, r + W, r + 2W, …"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from attrs import frozen

T = TypeVar("T")


@frozen
class Share:
    """One process's share of the micro-batches of every step; all of them where there is one process."""

    rank: int = 0
    ranks: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether there is one process."""
        return self.ranks == 1

    def owns(self, index: int) -> bool:
        """Whether a micro-batch of a step, or a batch of an evaluation, belongs to this process."""
        return index % self.ranks == self.rank

    def index(self, place: int) -> int:
        """The micro-batch that stands at a place of this process's own list."""
        return self.rank + place * self.ranks

    def indices(self, own: Sequence[T]) -> list[tuple[int, T]]:
        """This process's micro-batches with the number that each has in its step."""
        return [(self.index(place), item) for place, item in enumerate(own)]


WHOLE = Share()
