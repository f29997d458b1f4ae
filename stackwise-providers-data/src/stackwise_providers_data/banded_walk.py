"""A walk through data that opens up from easy to hard.

Units are ranked once by difficulty and grouped in bands of equal size (±1). At exposure x the ceil(x × bands) easiest bands are visible,
at least one. Every draw picks a visible unit's band with the probability of its share of the visible units, and takes that band's next
unit; a band is read through before any unit of it comes again. This is sampling from the examples whose difficulty quantile lies below
the learner's competence (Platanios et al., arXiv 1903.09848, section 3), with the exposure as the competence, made deterministic.

As long as everything has been visible from the start, the walk is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np

from stackwise import DataError
from stackwise_providers_data.order import Order, exhausted
from stackwise_providers_data.permutation import Indices, Words, scramble
from stackwise_providers_data.walk import EpochWalk

BANDS = 64
"""Most bands; data of fewer units has a band for each."""

_GOLDEN = 0x9E3779B97F4A7C15


class BandedWalk:
    """Draws from the exposed bands only; its state is the ordinary cursor, a counter a band, and the place inside a unit.

    Args:
        ranked: the units, easiest first.
        size: entries of a unit.
        seed: key of the draws and of the orders within bands.
        shuffle: False: a band is read from its easiest unit to its hardest.
        repeat: False: no unit comes twice.
        exposed: share of the bands that is visible at first.
        unit, name: for messages.
    """

    def __init__(
        self, ranked: Indices, *, size: int = 1, seed: int, shuffle: bool, repeat: bool = True, exposed: float = 1.0, unit: str, name: str
    ) -> None:
        count = len(ranked)
        self.bands = min(BANDS, count)
        self._ordinary = EpochWalk(count, size=size, seed=seed, shuffle=shuffle, repeat=repeat, unit=unit, name=name)
        self._ranked = ranked
        self._size, self._seed, self.repeat, self._name = size, seed, repeat, name
        self._edges = np.array([band * count // self.bands for band in range(self.bands + 1)], dtype=np.int64)
        widths = np.diff(self._edges).tolist()
        self._orders = [Order(n, seed=(seed + _GOLDEN * (b + 1)) % 2**64, shuffle=shuffle) for b, n in enumerate(widths)]
        self._counts = [0] * self.bands
        self._begun: int | None = None
        self._offset = 0
        self.apply_values({"exposed": exposed})

    @property
    def entries(self) -> int:
        """Entries of all bands together."""
        return self._ordinary.entries

    @property
    def unit(self) -> str:
        """What an entry is."""
        return self._ordinary.unit

    @property
    def visible(self) -> int:
        """How many of the easiest bands are visible: ceil(exposed × bands), at least one."""
        return max(1, ceil(self._exposed * self.bands - 1e-9))

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Set how much is visible from the next draw on."""
        self._exposed = float(values.get("exposed", 1.0))

    def advance(self, count: int) -> tuple[Indices, int]:
        """The units that hold the next `count` entries, and how many entries of the first lie before them.

        The rest of a unit that was begun comes first, even if the unit is no longer visible, so that every entry is read once.

        Raises:
            DataError: the source does not repeat, and the visible bands are exhausted.
        """
        if self._begun is None and self.visible == self.bands:
            return self._ordinary.advance(count)
        begun, offset = self._inside()
        rest = self._size - offset if offset else 0
        draws = self._draw(-(-max(0, count - rest) // self._size))
        units = np.concatenate([np.array([begun], dtype=np.int64), draws]) if offset else draws
        last = int(units[-1])
        self._offset = (offset + count) % self._size
        self._begun = last if self._offset else -1
        return units, offset

    def skip(self, count: int) -> None:
        """Move `count` entries on.

        Raises:
            DataError: the source does not repeat, and the visible bands are exhausted.
        """
        self.advance(count)

    def state_dict(self) -> dict[str, Any]:
        """The ordinary cursor, the draws from each band, the unit that is partly read, and how many of its entries are.

        The unit is -1 where none is, and None as long as everything was visible.
        """
        return {**self._ordinary.state_dict(), "bands": list(self._counts), "unit": self._begun, "offset": self._offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a `state_dict`.

        Raises:
            DataError: these data have no such position.
        """
        counts, unit, offset = state.get("bands"), state.get("unit"), state.get("offset")
        whole = isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts) and len(counts) == self.bands
        begun = unit is None or (isinstance(unit, int) and -1 <= unit < len(self._ranked))
        inside = begun and isinstance(offset, int) and 0 <= offset < self._size
        if not whole or not inside:
            raise DataError(f"{self._name}: {dict(state)!r} is no place in data of {self.bands} bands of difficulty: the data has changed")
        self._ordinary.load_state_dict({key: state[key] for key in ("epoch", "position") if key in state})
        self._counts, self._begun, self._offset = list(state["bands"]), unit, int(state["offset"])

    def _inside(self) -> tuple[int, int]:
        if self._begun is not None:
            return self._begun, self._offset
        if not self._ordinary.is_fresh and not self.repeat:
            raise DataError(f"{self._name}: exposed fell after reading began: with repeat: false let it only rise")
        return self._ordinary.here() if not self._ordinary.is_fresh else (-1, 0)

    def _draw(self, count: int) -> Indices:
        """The next `count` units, each from a visible band."""
        draws = np.empty(count, dtype=np.int64)
        bands = self._bands_of_draws(count)
        for band in np.unique(bands).tolist():
            places = np.flatnonzero(bands == band)
            draws[places] = self._ranked[self._next_of(band, len(places)) + self._edges[band]]
        return draws

    def _bands_of_draws(self, count: int) -> Indices:
        """The band of each of the next `count` draws; a pure function of (seed, draws so far, exposure) where data repeats."""
        numbers = np.arange(count, dtype=np.uint64) + np.uint64(sum(self._counts))
        words: Words = scramble(numbers * np.uint64(_GOLDEN), np.uint64(self._seed % 2**64))
        edges = self._edges[: self.visible + 1]
        places = ((words >> np.uint64(11)).astype(np.float64) * (2.0**-53 * int(edges[-1]))).astype(np.int64)
        bands = np.searchsorted(edges, places, side="right") - 1
        return bands if self.repeat else self._with_unread(bands)

    def _with_unread(self, bands: Indices) -> Indices:
        """The same bands, but a draw from an exhausted band moves on to the next visible one that is not."""
        unread = [order.count - read for order, read in zip(self._orders[: self.visible], self._counts, strict=False)]
        if len(bands) > sum(unread):
            total = int(self._edges[self.visible])
            raise exhausted(self._name, f"its {total} visible pages or documents have {sum(unread)} left, {len(bands)} are asked for")
        for i, band in enumerate(bands.tolist()):
            while not unread[band]:
                band = (band + 1) % self.visible
            unread[band] -= 1
            bands[i] = band
        return bands

    def _next_of(self, band: int, count: int) -> Indices:
        """The next `count` places within a band."""
        order = self._orders[band]
        pieces: list[Indices] = []
        while count:
            epoch, first = divmod(self._counts[band], order.count)
            stop = min(first + count, order.count)
            pieces += order.pieces(epoch, first, stop)
            self._counts[band] += stop - first
            count -= stop - first
        return np.concatenate(pieces)
