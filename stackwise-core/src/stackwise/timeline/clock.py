"""The clock: the compiled relation between steps, consumption and t. `layout.py` makes it.

What a step consumes (tokens, samples, epochs of a source) may change inside a phase; between two changes consumption is linear in the step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import ceil
from typing import Any

from attrs import field, frozen

from stackwise.errors import ScheduleError
from stackwise.timeline.duration import Duration

Rate = Mapping[str, Fraction]
"""Measure (`tokens`, `samples`, `epochs of web`) → what one step consumes of it; a measure that cannot be counted is absent."""

MAX_INSTANTS = 1_000_000
"""Most instants a cadence may have in one run."""


@frozen
class Piece:
    """The steps from `start` on that all consume the same amounts."""

    start: int
    before: Mapping[str, Fraction]
    """Measure → consumed before `start`."""
    rate: Rate
    values: Mapping[str, Any]

    def consumed(self, step: int, measure: str) -> Fraction:
        """Consumed before step k of this piece."""
        if measure == "steps":
            return Fraction(step)
        return self.before.get(measure, Fraction(0)) + (step - self.start) * self.rate.get(measure, Fraction(0))


@frozen
class Clock:
    """The compiled relation between steps, consumption and t.

    `starts[i]` is the first step of phase i, `starts[-1]` the number of steps T.
    """

    horizon: Duration
    starts: tuple[int, ...]
    pieces: tuple[Piece, ...]
    _piece_starts: tuple[int, ...] = field(init=False, repr=False, eq=False)
    _linear: tuple[tuple[float, float], ...] = field(init=False, repr=False, eq=False)
    """Per piece, in the horizon's measure: consumption before it, and per step; as plain numbers (exact where whole)."""
    _span: float = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        measure = self.horizon.measure
        plain = [(_plain(piece.consumed(piece.start, measure)), _plain(per_step(piece.rate, measure))) for piece in self.pieces]
        object.__setattr__(self, "_piece_starts", tuple(piece.start for piece in self.pieces))
        object.__setattr__(self, "_linear", tuple(plain))
        object.__setattr__(self, "_span", float(self.horizon.value))

    @property
    def steps(self) -> int:
        """T, the number of steps of the run."""
        return self.starts[-1]

    @property
    def phases(self) -> int:
        """Number of phases."""
        return len(self.starts) - 1

    def phase_index(self, step: int) -> int:
        """The phase that step k belongs to; the last one for k = T."""
        return min(bisect_right(self.starts, step), self.phases) - 1

    def values(self, step: int) -> Mapping[str, Any]:
        """The values in force at step k."""
        return self.pieces[self._piece(step)].values

    def tokens(self, step: int) -> int:
        """Scheduled positions consumed before step k, padding included; 0 where they cannot be counted."""
        return int(self.consumed(step, "tokens"))

    def consumed(self, step: int, measure: str) -> Fraction:
        """The amount of a measure consumed before step k."""
        return self.pieces[self._piece(step)].consumed(step, measure)

    def consumption(self, step: int) -> dict[str, Fraction]:
        """The amounts consumed before step k, of every measure but steps."""
        piece = self.pieces[self._piece(step)]
        return {measure: piece.consumed(step, measure) for measure in (*piece.before, *(m for m in piece.rate if m not in piece.before))}

    def t(self, step: int) -> float:
        """Run time before step k, in [0, 1]."""
        if step >= self.starts[-1]:
            return 1.0
        i = self._piece(step)
        before, share = self._linear[i]
        return (before + (step - self._piece_starts[i]) * share) / self._span

    def times(self, start: int, stop: int) -> Iterator[tuple[int, float, int, int]]:
        """Step, run time, tokens consumed before and after it, for steps start..stop-1: `t` and `tokens` at a fraction of their cost."""
        span = self._span
        for i, piece in enumerate(self.pieces):
            first, last = max(start, piece.start), min(stop, self._piece_starts[i + 1] if i + 1 < len(self.pieces) else stop)
            if first >= last:
                continue
            (before, share), begin = self._linear[i], piece.start
            tokens, rate = int(piece.consumed(first, "tokens")), int(piece.rate.get("tokens", 0))
            for step in range(first, last):
                yield step, (before + (step - begin) * share) / span, tokens, tokens + rate
                tokens += rate

    def step_at(self, t: float | Fraction) -> int:
        """The first step that runs at or after t."""
        step = self._step_reaching(Fraction(t) * self.horizon.value, self.horizon.measure)
        return step - 1 if step > 0 and self.t(step - 1) >= t else step  # a float may lie just beside the decimal it was written as

    def step_of(self, duration: Duration) -> int:
        """The step at which a duration counted from the start of the run has passed, rounded up to a step.

        Raises:
            ScheduleError: the data does not count the duration's measure.
        """
        return self._step_reaching(*absolute(duration, self.horizon))

    def instant(self, duration: Duration) -> int:
        """The step of an instant of the run; unlike `step_of` refuses one after the end, with a ScheduleError."""
        amount, measure = absolute(duration, self.horizon)
        counted = measure == "steps" or any(measure in piece.rate for piece in self.pieces)
        if counted and amount > self.consumed(self.steps, measure):
            raise ScheduleError(f"{duration} lies after the end of the run, which has {self.steps:,} steps")
        return self._step_reaching(amount, measure)

    def every(self, duration: Duration) -> tuple[int, ...]:
        """The steps k in (0, T) at which another whole `duration` has passed since the start.

        Raises:
            ScheduleError: a cadence of nothing, or of more than a million instants.
        """
        if duration.value <= 0:
            raise ScheduleError(f"a cadence of {duration} never moves on: give it above zero")
        amount, measure = absolute(duration, self.horizon)
        if self.consumed(self.steps, measure) / amount > MAX_INSTANTS:
            raise ScheduleError(f"a cadence of {duration} comes round more than {MAX_INSTANTS:,} times in the run: give a longer one")
        if measure == "steps" and amount.denominator == 1:
            return tuple(range(int(amount), self.steps, int(amount)))
        steps: list[int] = []
        count = 1
        while (step := self._step_reaching(amount * count, measure)) < self.steps:
            if not steps or step > steps[-1]:
                steps.append(step)
            count += 1
        return tuple(steps)

    def _piece(self, step: int) -> int:
        return bisect_right(self._piece_starts, step) - 1

    def _step_reaching(self, amount: Fraction, measure: str) -> int:
        if amount <= 0:
            return 0
        if measure == "steps":
            return min(ceil(amount), self.steps)
        if amount > self.consumed(self.steps, measure):
            if not any(measure in piece.rate for piece in self.pieces):
                raise ScheduleError(f"nothing counts {measure} here: {missing(measure)}")
            return self.steps
        i = bisect_right(self.pieces, amount, key=lambda piece: piece.consumed(piece.start, measure)) - 1
        piece = self.pieces[i]
        stop = self._piece_starts[i + 1] if i + 1 < len(self.pieces) else self.steps
        rest = amount - piece.consumed(piece.start, measure)
        return min(piece.start + ceil(rest / per_step(piece.rate, measure)), stop) if rest else piece.start


def absolute(duration: Duration, horizon: Duration) -> tuple[Fraction, str]:
    """A duration from the start of the run, as an amount and its measure.

    Raises:
        ScheduleError: a share of something else than the horizon counts.
    """
    if duration.unit == "fraction":
        return share(duration, horizon) * horizon.value, horizon.measure
    return duration.value, duration.measure


def share(duration: Duration, horizon: Duration) -> Fraction:
    """The value of a share of a run, or of a window in it.

    Raises:
        ScheduleError: it is one of something else than the horizon counts.
    """
    if duration.source not in (None, horizon.measure):
        raise ScheduleError(
            f"{duration} is a share of a horizon in {duration.source}, and run.horizon is {horizon}: give the horizon in "
            f"{duration.source}, or leave the word out"
        )
    return duration.value


def per_step(rate: Rate, measure: str) -> Fraction:
    """What a step consumes of a measure; 0 where that is not counted."""
    return Fraction(1) if measure == "steps" else rate.get(measure, Fraction(0))


def missing(measure: str) -> str:
    """Why a measure is not counted."""
    return _WHY_MISSING.get(measure, _WHY_MISSING["epochs"])


_WHY_MISSING = {
    "tokens": "its data declares no seq_len and batch_size to count them by",
    "samples": "its data declares no batch_size to count them by",
    "flops": "the shapes of its batches are not known before the run, or its optimizer does not say what a step of it costs",
    "seconds": "a length of time is resolved when a run begins, for run.horizon and shares of it alone",
    "epochs": "the source does not say its size before it is read, its share is not constant in a phase, or there is no such source",
}


def _plain(value: Fraction) -> float:
    return int(value) if value.denominator == 1 else float(value)
