"""What predictions for new rows ask of a task and of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

from stackwise.contracts.protocols import Batch


@runtime_checkable
class Predicts(Protocol):
    """A task whose model says something of rows that have no targets."""

    def predict(self, model: Callable[[Batch], Mapping[str, torch.Tensor]], batch: Batch) -> Mapping[str, torch.Tensor]:
        """What is predicted, by name, an entry a row: [B] or [B, …].

        Args:
            model: in evaluation mode, batch → outputs by name.
            batch: fields as the loader delivers them, without those of targets.

        Raises:
            UserError: rows of which nothing can be said.
        """
        ...


@runtime_checkable
class ReadsRows(Protocol):
    """The options of a loader that read rows without targets from another file, as the run reads its own."""

    def rows_of(self, file: str, rows: int) -> Iterator[Batch]:
        """The rows of a file in its order, so many at a time; fields of targets are left out.

        Raises:
            DataError: a file that cannot be read, or rows that do not hold what is asked.
        """
        ...

    def tell(self, predictions: Mapping[str, torch.Tensor]) -> Sequence[Mapping[str, Any]]:
        """Predictions [B, …] as plain values, a map a row: numbers in the units of the data, classes by their names."""
        ...
