"""Rows cut from one long sequence of tokens.

The corpus is a virtual stream: it is cut into pages, every epoch reads the pages in an order of its own, and rows follow one another
through that stream. A row may run over the edge of a page or the end of an epoch, each token belongs to exactly one row whatever the
lengths, and the place reached is two numbers. The last page, when it is not full, is left out of every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stackwise import BatchSpec, DataError
from stackwise_providers_data.order import Cursor, Order

_PAGE_TOKENS = 1024


class TokenStream:
    """A loader of rows of tokens.

    Args:
        tokens: token ids, one axis, any integer dtype; may be a memory map.
        spec: one field of `batch time`.
        seed: key of the page orders.
        page_tokens: tokens of a page: the longest row, so that a longest row is one page; 1024, or all there are, when None.
        shuffle: False: pages stay where they are.
        fingerprint: what the tokens were read from.
        name: the corpus, for messages.

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
    ) -> None:
        page_tokens = page_tokens or max(1, min(_PAGE_TOKENS, len(tokens)))
        if len(tokens) < page_tokens:
            raise DataError(f"{name}: {len(tokens)} tokens are fewer than the {page_tokens} of one row: give more data or shorten seq_len")
        self.name = name
        (self.field,) = spec.fields
        self.page_tokens = page_tokens
        self.pages = len(tokens) // page_tokens
        self._spec = spec
        self._fingerprint = dict(fingerprint)
        self._page_rows = tokens[: self.pages * page_tokens].reshape(self.pages, page_tokens)
        self._order = Order(self.pages, seed=seed, shuffle=shuffle)
        self._cursor = Cursor(self.pages * page_tokens)

    def get_batch_spec(self) -> BatchSpec:
        """One field of token ids."""
        return self._spec

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        """The next rows × length tokens of the stream, int64 [rows, length].

        Raises:
            DataError: no number of rows, or no length: a stream has neither of its own.
        """
        if not rows or not length:
            missing = "batch_size" if not rows else "seq_len"
            raise DataError(f"{self.name}: a stream of tokens has no rows of its own: declare data.{missing}")
        pieces = [piece for epoch, start, stop in self._cursor.advance(rows * length) for piece in self._read(epoch, start, stop)]
        tokens = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return {self.field: torch.from_numpy(tokens.astype(np.int64, copy=False)).view(rows, length)}

    def state_dict(self) -> dict[str, int]:
        """Epoch, and tokens read in it."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_dict` named.

        Raises:
            DataError: no such place in this data.
        """
        self._cursor.load_state_dict(state)

    def fingerprint(self) -> dict[str, Any]:
        """What the tokens were read from."""
        return dict(self._fingerprint)

    def _read(self, epoch: int, start: int, stop: int) -> list[npt.NDArray[Any]]:
        """Tokens start..stop-1 of an epoch: the pages they lie on, gathered whole, less what lies before and after."""
        size = self.page_tokens
        pieces = [self._page_rows[pages].reshape(-1) for pages in self._order.pieces(epoch, start // size, -(-stop // size))]
        before, after = start % size, -stop % size
        pieces[0] = pieces[0][before:]
        pieces[-1] = pieces[-1][: len(pieces[-1]) - after]
        return pieces
