"""Which source each row comes from: the one that is owed most among those present.

Every row adds to each source present its share and then goes to the source owed most, which pays one row for it. Debts (declared rows
less delivered ones) thus sum to zero, and of n sources no debt ever passes (n-1)/2, whatever the weights do and whichever sources come
or go:
any k sources are owed together at most f(k) = k(n-k)/2. For if the row goes outside a set of k, its b members that are present hold at
most b/(b+1) of what they and the receiver are owed, the absent a = k-b at most f(a), and f(a)/(b+1) + b(f(k+1)+1)/(b+1) <= f(k). While
the same sources stay, the same argument with f(k) = k(1/(k+1) + ... + 1/n) gives less than 1/2 + ... + 1/n.
"""

from __future__ import annotations

from collections.abc import Mapping

from stackwise.errors import DataError

UNIT = 1 << 60
"""One row. Shares and debts are whole multiples of 1/UNIT, so that sums of them are exact."""


_MOST_DEALT = 256
"""Results that are kept: weights of a few digits come round within so many steps, and others never do."""


class Mixture:
    """Deals rows out to sources. What it knows is what every source met so far is owed, in rows / UNIT."""

    def __init__(self) -> None:
        self.debts: dict[str, int] = {}
        self._weights: Mapping[str, float] = {}
        self._shares: dict[str, int] = {}
        self._dealt: dict[tuple[int, ...], tuple[dict[str, int], dict[str, int]]] = {}
        """Rows and debts → what was dealt, and the debts then. While weights stay, what is owed soon comes round again."""

    def take(self, weights: Mapping[str, float], rows: int) -> dict[str, int]:
        """Deal out the next rows: source → rows, by name, for those that get any.

        Args:
            weights: weight of every source present; only ratios matter, and zero is absent.
            rows: how many to deal out.

        Raises:
            DataError: no source has a weight above zero.
        """
        if weights != self._weights:
            self._weights, self._shares, self._dealt = dict(weights), _exact_shares(weights), {}
        if len(self._shares) == 1:
            return dict.fromkeys(self._shares, rows)
        owed = {name: self.debts.get(name, 0) for name in self._shares}
        key = (rows, *owed.values())
        if key not in self._dealt:
            if len(self._dealt) >= _MOST_DEALT:
                self._dealt.clear()
            self._dealt[key] = self._deal(owed, rows)
        counts, owed = self._dealt[key]
        self.debts = {**self.debts, **owed}
        return dict(counts)

    def _deal(self, owed: dict[str, int], rows: int) -> tuple[dict[str, int], dict[str, int]]:
        """Source → rows, for those that get any; and what each is owed afterwards."""
        shares, debts, counts = tuple(self._shares.values()), [*owed.values()], [0] * len(owed)
        for _ in range(rows):
            debts = [debt + share for debt, share in zip(debts, shares, strict=True)]
            receiver = debts.index(max(debts))  # the first by name among equals
            debts[receiver] -= UNIT
            counts[receiver] += 1
        names = tuple(owed)
        return {name: count for name, count in zip(names, counts, strict=True) if count}, dict(zip(names, debts, strict=True))


def _exact_shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as whole parts of UNIT that sum to it, by name, none zero; what rounding leaves goes to the largest."""
    total = sum(weights.values())
    if not total > 0:
        raise DataError(f"the weights of data.mix are {dict(weights)}: at least one is above zero")
    shares = {name: int(weight / total * UNIT) for name, weight in sorted(weights.items()) if weight > 0}
    largest = max(shares, key=lambda name: shares[name])
    shares[largest] += UNIT - sum(shares.values())
    return {name: share for name, share in shares.items() if share}
