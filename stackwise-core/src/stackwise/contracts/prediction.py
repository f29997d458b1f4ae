"""What a task and a loader implement so that a run can predict new rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

from stackwise.contracts.protocols import Batch


@runtime_checkable
class Predicts(Protocol):
    """A task that can predict rows without targets."""

    def predict(self, model: Callable[[Batch], Mapping[str, torch.Tensor]], batch: Batch) -> Mapping[str, torch.Tensor]:
        """The predictions by name, each with one entry per row: [B] or [B, …].

        Args:
            model: the model in evaluation mode, batch → outputs by name.
            batch: fields as the loader delivers them, without the targets.

        Raises:
            UserError: rows that cannot be predicted.
        """
        ...


@runtime_checkable
class ReadsRows(Protocol):
    """Options of a loader that can read rows without targets from another file, in the way in which the run reads its own."""

    def rows_of(self, file: str, rows: int) -> Iterator[Batch]:
        """The rows of a file in its order, in batches of `rows` rows; fields of targets are left out.

        Raises:
            DataError: a file that cannot be read, or rows without the fields that are needed.
        """
        ...

    def tell(self, predictions: Mapping[str, torch.Tensor]) -> Sequence[Mapping[str, Any]]:
        """Predictions [B, …] as plain values, one map for each row: numbers in the units of the data, classes by their names."""
        ...
