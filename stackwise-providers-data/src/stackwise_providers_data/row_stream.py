"""Rows of several fields, in a new order each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stackwise import BatchSpec, DataError
from stackwise_providers_data.walk import EpochWalk, WalkedLoader


class RowStream(WalkedLoader):
    """A loader of whole rows; a request may run over the end of an epoch.

    Args:
        fields: field → tensor; all with the same first axis.
        spec: their spec.
        time: fields whose second axis is cut to the length asked for.
        seed: key of the row orders.
        shuffle: False: rows stay where they are.
        fingerprint: what the rows are.
        repeat: False: one epoch only.
        name: the rows, for messages.
    """

    def __init__(
        self,
        fields: Mapping[str, torch.Tensor],
        spec: BatchSpec,
        *,
        time: frozenset[str],
        seed: int,
        shuffle: bool,
        fingerprint: Mapping[str, Any],
        repeat: bool = True,
        name: str = "arrays",
    ) -> None:
        self.rows = len(next(iter(fields.values())))
        walk = EpochWalk(self.rows, seed=seed, shuffle=shuffle, repeat=repeat, unit="rows", name=name)
        super().__init__(walk, spec, fingerprint=fingerprint, name=name)
        self._fields, self._time = dict(fields), time

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        """The next rows; the fields with a time axis cut to `length` entries when it is given.

        Raises:
            DataError: no number of rows, no field that a length could cut, or one that is shorter; or the end, where nothing repeats.
        """
        if self._maps:
            self._hold()
        chosen = torch.from_numpy(self._walk.advance(self._entries(rows, length))[0])
        return self._delivered({name: self._cut(name, length)[chosen] for name in self._fields})

    def _entries(self, rows: int | None, length: int | None) -> int:
        self._check_length(length)
        return super()._entries(rows, length)

    def _cut(self, name: str, length: int | None) -> torch.Tensor:
        tensor = self._fields[name]
        return tensor if length is None or name not in self._time else tensor[:, :length]

    def _check_length(self, length: int | None) -> None:
        if length is None:
            return
        if not self._time:
            raise DataError(
                f"{self.name}: rows of {length} entries are asked for, but no field has a time axis: name one in `time`, or drop seq_len"
            )
        for name in sorted(self._time):
            if self._fields[name].ndim < 2 or self._fields[name].shape[1] < length:
                raise DataError(
                    f"{self.name}.{name}: a shape of {list(self._fields[name].shape)} has no {length} entries along its second axis: "
                    "give longer rows or a shorter seq_len"
                )
