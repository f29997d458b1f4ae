"""Ready-made batches as a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stackwise.contracts.protocols import Batch, Loader
from stackwise.contracts.specs import BatchSpec
from stackwise.errors import DataError
from stackwise.planes.data.batches import rows_of


class IterableLoader:
    """A plain iterable of batches as a loader: each `take` is the next batch, starting over at the end.

    Raises:
        DataError: empty, a generator that ran out, items that are not mappings of tensors, or a size other than asked for.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._iterator: Iterator[Batch] = iter(batches)
        self._one_shot = self._iterator is batches
        self._taken = 0

    def get_batch_spec(self) -> BatchSpec:
        """Nothing is known of the fields before the first batch."""
        return BatchSpec(fields={})

    def take(self, rows: int | None, length: int | None) -> Batch:
        """The next batch as it comes."""
        batch = next(self._iterator, None)
        if batch is None:
            if self._one_shot:
                raise DataError(f"the iterator of batches ran out after {self._taken}: give a list, or an iterable that can start over")
            self._iterator = iter(self._batches)
            batch = next(self._iterator, None)
            if batch is None:
                raise DataError("the iterable of batches is empty: nothing to train on")
        self._taken += 1
        if not isinstance(batch, Mapping):
            raise DataError(f"batch {self._taken - 1} is a {type(batch).__name__}: a batch is a mapping of field name → tensor")
        if rows is not None and (found := rows_of(batch)) != rows:
            raise DataError(
                f"batch {self._taken - 1} has {found} rows where {rows} were asked for: leave data.batch_size out for ready-made batches"
            )
        if length is not None:
            self._check_length(batch, length)
        return batch

    def _check_length(self, batch: Batch, length: int) -> None:
        lengths = {int(tensor.shape[1]) for tensor in batch.values() if tensor.dim() > 1}
        if lengths and length not in lengths:
            raise DataError(
                f"the rows of batch {self._taken - 1} are {' and '.join(map(str, sorted(lengths)))} long where {length} were asked for: "
                "leave data.seq_len out for ready-made batches"
            )

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken."""
        return {"taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Wind forward to the batch after `taken`."""
        if self._one_shot and self._taken > state["taken"]:
            raise DataError("an iterator cannot go back: give a list, or an iterable that can start over")
        if not self._one_shot:
            self._iterator, self._taken = iter(self._batches), 0
        while self._taken < state["taken"]:
            self.take(None, None)


def as_loader(source: object) -> Loader:
    """A loader stays itself; any other iterable is adapted.

    Raises:
        DataError: neither.
    """
    if isinstance(source, Loader):
        return source
    if isinstance(source, Iterable):
        return IterableLoader(source)
    raise DataError(f"a {type(source).__name__} is no data: give a loader (take, state_dict) or an iterable of batches")
