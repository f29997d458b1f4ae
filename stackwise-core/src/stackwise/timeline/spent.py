"""Training FLOPs before each step of a run, from what each of its steps costs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from attrs import frozen


@frozen
class Spent:
    """A sum that grows linearly inside a stretch of equal steps."""

    starts: tuple[int, ...]
    """First step of each stretch."""
    sums: tuple[float, ...]
    """FLOPs before it."""
    rates: tuple[float, ...]
    """FLOPs of one step in it."""

    @classmethod
    def of(cls, stretches: Iterable[tuple[int, float | None]]) -> Spent | None:
        """The sum over stretches in order, each a first step and what a step costs there; None where one is unknown, or there is none."""
        starts, sums, rates = list[int](), list[float](), list[float]()
        for start, rate in stretches:
            if rate is None:
                return None
            sums.append(sums[-1] + (start - starts[-1]) * rates[-1] if starts else 0.0)
            starts.append(start)
            rates.append(rate)
        return cls(tuple(starts), tuple(sums), tuple(rates)) if starts else None

    def before(self, step: float) -> float:
        """FLOPs of all steps before a step, which may lie between two."""
        i = max(bisect_right(self.starts, step) - 1, 0)
        return float(self.sums[i] + (step - self.starts[i]) * self.rates[i])
