"""Which units of the data are read next, and what every loader has that gathers them.

A unit is a page of tokens, a document or a row; `size` is its number of entries. A request for entries may begin and end inside a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from stackwise import BatchSpec, DataError, EpochSize, UserError
from stackwise_providers_data.mapped_files import MappedFile
from stackwise_providers_data.order import Cursor, Order
from stackwise_providers_data.permutation import Indices


class Walk(Protocol):
    """An endless way through the units, with a cursor."""

    @property
    def entries(self) -> int:
        """Entries of one epoch."""
        ...

    @property
    def unit(self) -> str:
        """What an entry is: `tokens` or `rows`."""
        ...

    @property
    def repeat(self) -> bool:
        """Whether another epoch follows the first."""
        ...

    def advance(self, count: int) -> tuple[Indices, int]:
        """The units that hold the next `count` entries, in order, and how many entries of the first lie before them."""
        ...

    def skip(self, count: int) -> None:
        """Move on as `advance` does, and gather nothing."""
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
        always_whole: whether an exposure below 1 has no effect, because evaluations see everything.
    """

    def __init__(
        self,
        count: int,
        *,
        size: int = 1,
        seed: int,
        shuffle: bool,
        repeat: bool = True,
        unit: str,
        name: str,
        always_whole: bool = False,
    ) -> None:
        self.unit, self.repeat = unit, repeat
        self._size, self._name, self._always_whole = size, name, always_whole
        self._order = Order(count, seed=seed, shuffle=shuffle)
        self._cursor = Cursor(count * size, unit=unit, repeat=repeat, name=name)

    @property
    def entries(self) -> int:
        """Entries of one epoch."""
        return self._cursor.length

    def advance(self, count: int) -> tuple[Indices, int]:
        """The units that hold the next `count` entries, and how many entries of the first lie before them.

        Raises:
            DataError: the source does not repeat, and the epoch is over.
        """
        size = self._size
        before = self._cursor.position % size
        pieces = [
            piece
            for epoch, start, stop in self._cursor.advance(count)
            for piece in self._order.pieces(epoch, start // size, -(-stop // size))
        ]
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)), before

    def skip(self, count: int) -> None:
        """Move `count` entries on.

        Raises:
            DataError: the source does not repeat, and the epoch is over.
        """
        self._cursor.advance(count)

    def here(self) -> tuple[int, int]:
        """The unit at the read position, and how many of its entries have been read."""
        place, offset = divmod(self._cursor.position, self._size)
        (piece,) = self._order.pieces(self._cursor.epoch, place, place + 1)
        return int(piece[0]), offset

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has been read."""
        return self._cursor.epoch == 0 and self._cursor.position == 0

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Check that all of the data are exposed.

        Raises:
            UserError: an exposure below 1, without a difficulty that ranks the data.
        """
        if values.get("exposed", 1.0) < 1.0 and not self._always_whole:
            raise UserError(f"{self._name}: exposed is {values['exposed']:g}, but nothing ranks the data: name a difficulty to rank it by")

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and entries read in it."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a `state_dict`.

        Raises:
            DataError: these data have no such position.
        """
        self._cursor.load_state_dict(state)


class WalkedLoader:
    """The base of all loaders whose read position is that of a walk.

    Args:
        walk: the way through the data.
        spec: the fields delivered.
        fingerprint: what the data were read from.
        name: the data, for messages.
    """

    def __init__(self, walk: Walk, spec: BatchSpec, *, fingerprint: Mapping[str, Any], name: str) -> None:
        self.name = name
        self._walk, self._spec, self._fingerprint = walk, spec, fingerprint
        self._watched: dict[str, Callable[[torch.Tensor], bool]] = {}
        self._maps: tuple[MappedFile, ...] = ()

    def hold_to(self, maps: Iterable[MappedFile]) -> None:
        """Have files looked at before each batch that is read through maps of them."""
        self._maps = tuple(maps)

    def _hold(self) -> None:
        for each in self._maps:
            each.check()

    def watch(self, checks: Mapping[str, Callable[[torch.Tensor], bool]]) -> None:
        """Check each batch before it is delivered.

        Args:
            checks: field → a function that raises for entries that must not be delivered; returns whether it need not be called again.
        """
        self._watched = dict(checks)

    def _delivered(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._watched:
            self._watched = {field: check for field, check in self._watched.items() if not check(batch[field])}
        return batch

    def get_batch_spec(self) -> BatchSpec:
        """The fields delivered."""
        return self._spec

    def skip(self, rows: int | None, length: int | None) -> None:
        """Move on as `take` of the same rows would, without reading them.

        Raises:
            DataError: whatever `take` refuses.
        """
        self._walk.skip(self._entries(rows, length))

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Set how much of the data is `exposed`.

        Raises:
            UserError: an exposure below 1, without a difficulty that ranks the data.
        """
        self._walk.apply_values(values)

    def epoch_size(self) -> EpochSize:
        """Rows of one epoch, or tokens where rows are cut from a stream of them."""
        count = self._walk.entries
        return (
            EpochSize(entries=count, repeats=self._walk.repeat)
            if self._walk.unit == "tokens"
            else EpochSize(rows=count, repeats=self._walk.repeat)
        )

    def state_dict(self) -> dict[str, Any]:
        """The read position, of the same size wherever it is."""
        return self._walk.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a `state_dict`.

        Raises:
            DataError: these data have no such position.
        """
        self._walk.load_state_dict(state)

    def fingerprint(self) -> Mapping[str, Any]:
        """What the data were read from; a digest that is still being computed is waited for when it is read."""
        return self._fingerprint

    def _entries(self, rows: int | None, length: int | None) -> int:
        """Entries that a request takes; here one a row.

        Raises:
            DataError: no such request can be met.
        """
        if not rows:
            raise DataError(f"{self.name}: rows are asked for by number: declare data.batch_size")
        return rows
