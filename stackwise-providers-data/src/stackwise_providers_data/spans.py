"""Stretches of a sequence of tokens."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from stackwise_providers_data.permutation import Indices


@frozen(eq=False)
class Spans:
    """Stretches of a sequence of tokens: where each begins and where the next entry would be."""

    starts: Indices
    stops: Indices

    def __len__(self) -> int:
        return len(self.starts)

    def filled(self) -> Spans:
        """Those that hold a token."""
        nonempty = self.stops > self.starts
        return Spans(self.starts[nonempty], self.stops[nonempty])

    def split(self, length: int) -> Spans:
        """The same stretches, each longer than `length` cut into pieces of `length` and a rest."""
        counts = -(-(self.stops - self.starts) // length)
        owners = np.repeat(np.arange(len(self)), counts)
        nth = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = self.starts[owners] + nth * length
        return Spans(starts, np.minimum(starts + length, self.stops[owners]))
