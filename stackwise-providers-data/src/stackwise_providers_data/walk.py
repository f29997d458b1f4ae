"""Which units of the data are read next: the seam between the orders and the loaders that gather from them.

A unit is a page of tokens, a document or a row; `size` is its number of entries. A request for entries may begin and end inside a unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from stackwise import UserError
from stackwise_providers_data.order import Cursor, Order
from stackwise_providers_data.permutation import Indices


class Walk(Protocol):
    """An endless way through the units, with a cursor."""

    @property
    def entries(self) -> int:
        """Entries of one epoch."""
        ...

    def advance(self, count: int) -> tuple[Indices, int]:
        """The units that hold the next `count` entries, in order, and how many entries of the first lie before them."""
        ...

    def apply_values(self, values: Mapping[str, float]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class EpochWalk:
    """Every unit once an epoch, each epoch in an order of its own.

    Args:
        count: number of units, at least 1.
        size: entries of a unit.
        seed: key of the orders.
        shuffle: False: units stay where they are.
        repeat: False: one epoch only.
        unit: what an entry is, in the plural, for messages.
        name: the data, for messages.
    """

    def __init__(self, count: int, *, size: int = 1, seed: int, shuffle: bool, repeat: bool = True, unit: str, name: str) -> None:
        self._size, self._name = size, name
        self._order = Order(count, seed=seed, shuffle=shuffle)
        self._cursor = Cursor(count * size, unit=unit, repeat=repeat, name=name)

    @property
    def entries(self) -> int:
        """Entries of one epoch."""
        return self._cursor.length

    def advance(self, count: int) -> tuple[Indices, int]:
        """The units that hold the next `count` entries, and how many entries of the first lie before them.

        Raises:
            DataError: nothing repeats and the epoch is over.
        """
        size = self._size
        before = self._cursor.position % size
        pieces = [
            piece
            for epoch, start, stop in self._cursor.advance(count)
            for piece in self._order.pieces(epoch, start // size, -(-stop // size))
        ]
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)), before

    def here(self) -> tuple[int, int]:
        """The unit that reading stands in, and how many of its entries are read."""
        place, offset = divmod(self._cursor.position, self._size)
        (piece,) = self._order.pieces(self._cursor.epoch, place, place + 1)
        return int(piece[0]), offset

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has been read."""
        return self._cursor.epoch == 0 and self._cursor.position == 0

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Everything is exposed always.

        Raises:
            UserError: less is asked for, and there is no ranking to say which.
        """
        if values.get("exposed", 1.0) < 1.0:
            raise UserError(f"{self._name}: exposed is {values['exposed']:g}, but nothing ranks the data: name a difficulty to rank it by")

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and entries read in it."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_dict` named.

        Raises:
            DataError: no such place in this data.
        """
        self._cursor.load_state_dict(state)
