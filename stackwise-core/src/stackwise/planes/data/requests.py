"""What each step asks of each source: known from the schedule alone, and so before anything is read."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from stackwise.curriculum.states import BatchShape, DataState
from stackwise.errors import DataError
from stackwise.planes.data.mixture import Mixture
from stackwise.timeline.duration import Moment

Takes = tuple[tuple[str, int | None], ...]
"""The sources that a micro-batch takes from, and how many rows of each; None: a batch as it comes."""


class StepRequest(NamedTuple):
    """One step before it is read."""

    seq_len: int | None
    """Positions of a row."""
    length: int | None
    """Entries of a row: its positions, and what the task needs beyond them."""
    takes: tuple[Takes, ...]
    """One for each micro-batch."""
    debts: dict[str, int]
    """What the mixture owes each source after this step, in rows / `mixture.UNIT`."""


class Requests:
    """Makes the request of each step, in the order of the steps, from the declared batch shapes and the mixture."""

    def __init__(self) -> None:
        self.only: str | None = None
        """The source, where there is only one."""
        self._mixture = Mixture()
        self._state: DataState | None = None
        self._sources = self._lookahead = 0
        self._last: tuple[BatchShape | None, StepRequest | None] = (None, None)
        """A shape of steps and their request: with only one source, all steps of one shape have the same."""

    @property
    def debts(self) -> dict[str, int]:
        """What the mixture owes each source after the last step that was asked for."""
        return self._mixture.debts

    def owe(self, debts: dict[str, int]) -> None:
        """Go on from what a saved mixture owed."""
        self._mixture.debts, self._last = debts, (None, None)

    def enter(self, state: DataState, sources: Collection[str], lookahead: int) -> None:
        """Follow the declaration of a phase.

        Args:
            state: batch shapes and the weights of the mixture.
            sources: names of those in force.
            lookahead: entries of a row that the task needs beyond its positions.
        """
        self._state, self._sources, self._lookahead = state, len(sources), lookahead
        self.only, self._last = next(iter(sources)) if len(sources) == 1 else None, (None, None)

    def of(self, moment: Moment) -> StepRequest:
        """The request of the next step.

        Raises:
            DataError: several sources and no number of rows, or no source with a weight above zero.
        """
        assert self._state is not None
        shape = self._state.shape(moment.step)
        last, request = self._last
        if request is None or shape is not last or self.only is None:
            takes = tuple([self._deal(self._state, moment, rows) for rows in shape.micro_batches])
            request = StepRequest(shape.seq_len, self.length(shape.seq_len), takes, self._mixture.debts)
            self._last = shape, request
        return request

    def length(self, seq_len: int | None) -> int | None:
        """Entries of a row of so many positions."""
        return None if seq_len is None else seq_len + self._lookahead

    def _deal(self, state: DataState, moment: Moment, rows: int | None) -> Takes:
        """Source → rows of one micro-batch."""
        if self.only is not None:
            return ((self.only, rows),)
        if rows is None:
            raise DataError(f"{self._sources} sources are mixed row by row: declare data.batch_size")
        return tuple(self._mixture.take({name: curve(moment.t) for name, curve in state.mix.items()}, rows).items())
