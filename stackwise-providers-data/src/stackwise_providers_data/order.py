"""The order in which pages or rows are read: a permutation for each epoch, and a cursor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stackwise import DataError
from stackwise_providers_data.permutation import Indices, Permutation

_CHUNK = 4096


class Order:
    """The indices 0..n-1 over and over, in a new order each epoch.

    Only a chunk of the order is held at a time, so that memory does not grow with n.

    Args:
        count: n, at least 1.
        seed: key of the orders.
        shuffle: False: every epoch runs from 0 to n-1.
    """

    def __init__(self, count: int, *, seed: int, shuffle: bool) -> None:
        self.count = count
        self._seed = seed
        self._shuffle = shuffle
        self._held: tuple[int, int] | None = None
        self._chunk: Indices = np.empty(0, dtype=np.int64)

    def pieces(self, epoch: int, first: int, stop: int) -> Iterator[Indices]:
        """The indices at places first..stop-1 of an epoch (stop at most n), in pieces."""
        while first < stop:
            chunk = self._chunk_of(epoch, first // _CHUNK)
            offset = first % _CHUNK
            piece = chunk[offset : offset + stop - first]
            yield piece
            first += len(piece)

    def _chunk_of(self, epoch: int, number: int) -> Indices:
        if self._held != (epoch, number):
            places = np.arange(number * _CHUNK, min((number + 1) * _CHUNK, self.count), dtype=np.int64)
            self._chunk = Permutation(self.count, seed=self._seed, epoch=epoch)(places) if self._shuffle else places
            self._held = (epoch, number)
        return self._chunk


class Cursor:
    """A read position: `position` entries into epoch `epoch`, of `length` entries.

    Args:
        length: entries of an epoch.
        unit: what an entry is, in the plural, for messages.
        repeat: False: reading stops at the end of the first epoch.
        name: the data, for messages.
    """

    def __init__(self, length: int, *, unit: str = "entries", repeat: bool = True, name: str = "data") -> None:
        self.length = length
        self.epoch = 0
        self.position = 0
        self._unit, self._repeat, self._name = unit, repeat, name

    def advance(self, count: int) -> list[tuple[int, int, int]]:
        """Move `count` entries on; (epoch, start, stop) of every epoch crossed.

        Raises:
            DataError: the end is reached and nothing repeats; the position stays as it was.
        """
        left = self.length - self.position if not self.epoch else 0
        if not self._repeat and count > left:
            raise exhausted(self._name, f"its one epoch of {self.length} {self._unit} has {left} left where {count} are asked for")
        crossed = []
        while count:
            stop = min(self.position + count, self.length)
            crossed.append((self.epoch, self.position, stop))
            count -= stop - self.position
            self.position = stop
            if stop == self.length:
                self.epoch, self.position = self.epoch + 1, 0
        return crossed

    def state_dict(self) -> dict[str, int]:
        """Epoch and position."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a `state_dict`.

        Raises:
            DataError: these data have no such position.
        """
        epoch, position = state.get("epoch"), state.get("position")
        if set(state) != {"epoch", "position"} or not isinstance(epoch, int) or not isinstance(position, int):
            raise DataError(f"a read position is an epoch and a position, not {dict(state)!r}")
        if epoch < 0 or not 0 <= position < self.length:
            raise DataError(f"epoch {epoch}, position {position} lies outside data of {self.length} entries an epoch: the data has changed")
        self.epoch, self.position = epoch, position


def exhausted(name: str, how: str) -> DataError:
    """The error of a source that was read once and does not repeat."""
    return DataError(f"{name}: source exhausted: {how}: set repeat: true, give more data or train for fewer steps")
