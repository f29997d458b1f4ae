"""Rows cut from one long sequence of tokens.

The corpus is a virtual stream: it is cut into pages, every epoch reads the pages in an order of its own, and rows follow one another
through that stream. A row may run over the edge of a page or the end of an epoch, each token belongs to exactly one row whatever the
lengths, and the place reached is a few numbers. The last page, when it is not full, is left out of every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stackwise import BatchSpec, DataError
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.targets import LOSS_MASK, NOT_LEARNT, TOO_SHORT, say_without_targets
from stackwise_providers_data.walk import EpochWalk, Walk, WalkedLoader

_PAGE_TOKENS = 1024


def page_size(longest: int | None, tokens: int) -> int:
    """Tokens of a page: the longest row, so that a longest row is one page; 1024, or all there are, when None."""
    return longest or max(1, min(_PAGE_TOKENS, tokens))


class TokenStream(WalkedLoader):
    """A loader of rows of tokens.

    Args:
        tokens: token ids, one axis, any integer dtype; may be a memory map.
        spec: one field of `batch time`; with `starts`, `segments` and `positions` beside it.
        seed: key of the page orders.
        page_tokens: see `page_size`.
        shuffle: False: pages stay where they are.
        repeat: False: one epoch only.
        fingerprint: what the tokens were read from.
        name: the corpus, for messages.
        starts: where each document begins, rising, int64; rows then tell their documents apart.
        walk: the way through the pages, when it is not the ordinary one.
        beside: field → one entry a token, delivered as the tokens are.

    Raises:
        DataError: fewer tokens than one page.
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        spec: BatchSpec,
        *,
        seed: int,
        page_tokens: int | None,
        shuffle: bool,
        fingerprint: Mapping[str, Any],
        name: str,
        repeat: bool = True,
        starts: Indices | None = None,
        walk: Walk | None = None,
        beside: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        page_tokens = page_size(page_tokens, len(tokens))
        if len(tokens) < page_tokens:
            raise DataError(f"{name}: {len(tokens)} tokens are fewer than the {page_tokens} of one row: give more data or shorten seq_len")
        pages = len(tokens) // page_tokens
        ordinary = EpochWalk(pages, size=page_tokens, seed=seed, shuffle=shuffle, repeat=repeat, unit="tokens", name=name)
        super().__init__(walk or ordinary, spec, fingerprint=fingerprint, name=name)
        self.field = next(iter(spec.fields))
        self.page_tokens, self.pages = page_tokens, pages
        self._page_rows = self._paged(tokens)
        self._beside = {name: self._paged(entries) for name, entries in (beside or {}).items()}
        self._starts = starts
        self._lengths: set[int] = set()
        """Lengths of packed rows whose targets have been looked at."""

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        """The next rows × length tokens of the stream, int64 [rows, length].

        Raises:
            DataError: no number of rows, or no length: a stream has neither of its own; or the end, where nothing repeats.
        """
        if self._maps:
            self._hold()
        pages, before = self._walk.advance(self._entries(rows, length))
        assert rows is not None and length is not None
        tokens = self._page_rows[pages].reshape(-1)[before : before + rows * length]
        batch = {self.field: torch.from_numpy(tokens.astype(np.int64, copy=False)).view(rows, length)}
        for name, entries in self._beside.items():
            batch[name] = torch.from_numpy(entries[pages].reshape(-1)[before : before + rows * length]).view(rows, length)
        if self._starts is not None:
            if length not in self._lengths:
                self._lengths.add(length)
                self._say_without_targets(self._starts, length)
            segments, positions = documents_in_rows(pages, before, self._starts, self.page_tokens, (rows, length))
            batch |= {"segments": torch.from_numpy(segments), "positions": torch.from_numpy(positions)}
        return self._delivered(batch)

    def _say_without_targets(self, starts: Indices, length: int) -> None:
        """Say how many packed rows have no target, as the corpus is cut in its order: neither a second token of some document nor, where
        a corpus says which tokens are learnt, one of these."""
        count = self.pages * self.page_tokens // length
        inside = starts[(starts < count * length) & (starts % length > 0)]
        if (learnt := self._beside.get(LOSS_MASK)) is None:
            targets = length - 1 - np.bincount(inside // length, minlength=count)
        else:
            marks = learnt.reshape(-1)[: count * length]
            first = np.bincount(inside // length, weights=marks[inside], minlength=count)  # of a document: predicted from nothing
            targets = marks.reshape(count, length)[:, 1:].sum(axis=1) - first
        why = TOO_SHORT if learnt is None else NOT_LEARNT
        say_without_targets(self.name, int((targets <= 0).sum()), count, "packed rows", why, length)

    def _paged(self, entries: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One entry a token, as pages; a memmap is slower to index."""
        return np.asarray(entries[: self.pages * self.page_tokens]).reshape(self.pages, self.page_tokens)

    def _entries(self, rows: int | None, length: int | None) -> int:
        if not rows or not length:
            missing = "batch_size" if not rows else "seq_len"
            raise DataError(f"{self.name}: a stream of tokens has no rows of its own: declare data.{missing}")
        return rows * length


def documents_in_rows(
    pages: Indices, before: int, starts: Indices, page_tokens: int, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which document each entry of a batch belongs to, and where it stands in it.

    A new segment begins where a document begins, where a page follows that is not the next one of the corpus, and with each row.

    Args:
        pages: pages that the rows were cut from, in order.
        before: tokens of the first page that lie before the first row.
        starts: where each document begins in the corpus, rising.
        page_tokens: tokens of a page.
        shape: rows and length.

    Returns:
        segments, positions: int64 [rows, length]; both count from 0 within a row, positions anew at each segment.
    """
    rows, length = shape
    begins = pages * page_tokens
    breaks = np.zeros(len(pages) * page_tokens, dtype=bool)
    breaks[::page_tokens][1:] = pages[1:] != pages[:-1] + 1
    low, high = np.searchsorted(starts, begins, side="left"), np.searchsorted(starts, begins + page_tokens, side="left")
    counts = high - low
    if total := int(counts.sum()):
        page = np.repeat(np.arange(len(pages)), counts)
        begin = starts[np.arange(total) + np.repeat(low - np.cumsum(counts) + counts, counts)]
        breaks[begin - begins[page] + page * page_tokens] = True
    in_rows = breaks[before : before + rows * length].reshape(rows, length)
    in_rows[:, 0] = False
    segments = np.cumsum(in_rows, axis=1, dtype=np.int64)
    places = np.broadcast_to(np.arange(length, dtype=np.int64), shape)
    return segments, places - np.maximum.accumulate(np.where(in_rows, places, 0), axis=1)
