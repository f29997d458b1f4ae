"""Rows that hold one document each, padded to a common length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from attrs import frozen

from stackwise import BatchSpec, DataError, EpochSize
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.walk import Walk


@frozen(eq=False)
class Spans:
    """Stretches of a sequence of tokens: where each begins and where the next entry would be."""

    starts: Indices
    stops: Indices

    def __len__(self) -> int:
        return len(self.starts)

    def filled(self) -> Spans:
        """Those that hold a token."""
        held = self.stops > self.starts
        return Spans(self.starts[held], self.stops[held])

    def split(self, length: int) -> Spans:
        """The same stretches, each longer than `length` cut into pieces of `length` and a rest."""
        counts = -(-(self.stops - self.starts) // length)
        owners = np.repeat(np.arange(len(self)), counts)
        nth = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = self.starts[owners] + nth * length
        return Spans(starts, np.minimum(starts + length, self.stops[owners]))


def gather_padded(
    tokens: npt.NDArray[Any], starts: Indices, counts: Indices, length: int, pad: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Rows of at most `length` tokens from each start, int64 [R, length], and which entries are tokens, bool [R, length]."""
    places = np.arange(length)
    mask = places < counts[:, None]
    found = tokens[np.where(mask, starts[:, None] + places, 0)]
    return np.where(mask, found, pad).astype(np.int64, copy=False), mask


class PaddedRows:
    """A loader of one document a row.

    Args:
        tokens: token ids, one axis; may be a memory map.
        spans: the documents (or pieces of them), each with at least one token.
        spec: `tokens` and `mask` of `batch time`.
        pad: id behind the end of a document.
        walk: the way through the documents.
        fingerprint: what the tokens were read from.
        name: the corpus, for messages.
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        spans: Spans,
        spec: BatchSpec,
        *,
        pad: int,
        walk: Walk,
        fingerprint: Mapping[str, Any],
        name: str,
    ) -> None:
        self.name = name
        self.field = next(iter(spec.fields))
        self._tokens, self._spans, self._spec, self._pad = tokens, spans, spec, pad
        self._walk = walk
        self._fingerprint = dict(fingerprint)

    def get_batch_spec(self) -> BatchSpec:
        """Token ids, and which of them are real."""
        return self._spec

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        """The next documents: ids int64 [rows, length], mask bool [rows, length], True on tokens of the document.

        Raises:
            DataError: no number of rows, or no length; or the end, where nothing repeats.
        """
        if not rows or not length:
            raise DataError(f"{self.name}: rows are padded to a declared size: declare data.{'batch_size' if not rows else 'seq_len'}")
        chosen, _ = self._walk.advance(rows)
        starts = self._spans.starts[chosen]
        tokens, mask = gather_padded(self._tokens, starts, self._spans.stops[chosen] - starts, length, self._pad)
        return {self.field: torch.from_numpy(tokens), "mask": torch.from_numpy(mask)}

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Set how much of the data is `exposed`.

        Raises:
            UserError: less than all of it, where no difficulty ranks the documents.
        """
        self._walk.apply_values(values)

    def epoch_size(self) -> EpochSize:
        """Rows of one epoch."""
        return EpochSize(rows=self._walk.entries)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and rows read in it."""
        return self._walk.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_dict` named.

        Raises:
            DataError: no such place in this data.
        """
        self._walk.load_state_dict(state)

    def fingerprint(self) -> dict[str, Any]:
        """What the tokens were read from."""
        return dict(self._fingerprint)
