"""Rows of one document each, padded to a common length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stackwise import BatchSpec, DataError
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.spans import Spans
from stackwise_providers_data.targets import LOSS_MASK, NOT_LEARNT, TOO_SHORT, say_without_targets
from stackwise_providers_data.walk import Walk, WalkedLoader


def gather_padded(
    tokens: npt.NDArray[Any], starts: Indices, counts: Indices, length: int, pad: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Rows of at most `length` tokens from each start, int64 [R, length], and which entries are tokens, bool [R, length]."""
    places = np.arange(length)
    mask = places < counts[:, None]
    ids = tokens[np.where(mask, starts[:, None] + places, 0)]
    return np.where(mask, ids, pad).astype(np.int64, copy=False), mask


def _any_in(marks: npt.NDArray[np.bool_], starts: Indices, stops: Indices) -> npt.NDArray[np.bool_]:
    """Whether each of some stretches, in their order and apart, holds a mark."""
    found = np.zeros(len(starts), dtype=np.bool_)
    filled = np.flatnonzero(stops > starts)
    if len(filled):
        edges = np.stack([starts[filled], stops[filled]], axis=1).ravel()
        edges = edges[:-1] if edges[-1] == len(marks) else edges
        found[filled] = np.logical_or.reduceat(marks, edges)[::2]
    return found


class PaddedRows(WalkedLoader):
    """A loader of one document a row.

    Args:
        tokens: token ids, one axis; may be a memory map.
        spans: the documents (or pieces of them), each with at least one token.
        spec: `tokens` and `mask` of `batch time`.
        pad: id after the end of a document.
        walk: the way through the documents.
        fingerprint: what the tokens were read from.
        name: the corpus, for messages.
        beside: field → one entry a token, delivered as the tokens are, false or 0 after the end.
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
        beside: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        super().__init__(walk, spec, fingerprint=fingerprint, name=name)
        self._beside = beside or {}
        self.field = next(iter(spec.fields))
        self._tokens, self._spans, self._pad = tokens, spans, pad
        self._lengths: set[int] = set()
        """Lengths of rows whose targets have been looked at."""

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        """The next documents: ids int64 [rows, length], mask bool [rows, length], True on tokens of the document.

        Raises:
            DataError: no number of rows, or no length; or the end, where nothing repeats.
        """
        if self._maps:
            self._hold()
        chosen, _ = self._walk.advance(self._entries(rows, length))
        assert length is not None
        if length not in self._lengths:
            self._lengths.add(length)
            self._say_without_targets(length)
        starts = self._spans.starts[chosen]
        tokens, mask = gather_padded(self._tokens, starts, self._spans.stops[chosen] - starts, length, self._pad)
        batch = {self.field: torch.from_numpy(tokens), "mask": torch.from_numpy(mask)}
        places = np.where(mask, starts[:, None] + np.arange(length), 0)
        for name, entries in self._beside.items():
            batch[name] = torch.from_numpy(np.where(mask, entries[places], np.zeros((), dtype=entries.dtype)))
        return self._delivered(batch)

    def _say_without_targets(self, length: int) -> None:
        """Say how many documents hold nothing that a task could predict from what stands before it, in rows of this length."""
        starts, stops = self._spans.starts + 1, np.minimum(self._spans.stops, self._spans.starts + length)
        missing, why = stops <= starts, TOO_SHORT
        learnt = self._beside.get(LOSS_MASK)
        if learnt is not None:
            missing, why = ~_any_in(learnt, starts, stops), NOT_LEARNT
        say_without_targets(self.name, int(missing.sum()), len(missing), "documents", why, length)

    def _entries(self, rows: int | None, length: int | None) -> int:
        if not length:
            raise DataError(f"{self.name}: rows are padded to a declared size: declare data.seq_len")
        return super()._entries(rows, length)
