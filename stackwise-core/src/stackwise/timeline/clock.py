"""The clock: resolves every duration of a run to an integer step, once and in one place.

What a step consumes (tokens, samples, epochs of a source) may change inside a phase; between two changes consumption is linear in the step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Any

from attrs import Factory, define, field, frozen

from stackwise.errors import ScheduleError
from stackwise.timeline.duration import Duration

Rate = Mapping[str, Fraction]
"""Measure (`tokens`, `samples`, `epochs of web`) → what one step consumes of it; a measure that cannot be counted is absent."""

RUN = -1
"""The window of a switch that is the run."""

MAX_INSTANTS = 1_000_000
"""Most instants a cadence may have in one run."""


@frozen(kw_only=True)
class Switch:
    """A value that changes inside a window: from `at` on, `key` is `value`."""

    at: Duration
    window: int
    """Index of the phase whose start it counts from, or `RUN`."""
    key: str
    value: Any


@frozen(kw_only=True)
class Extent:
    """One phase, before it is laid out on the timeline."""

    name: str
    end: Duration
    """Where it ends, counted from the start of the run; a fraction is of the horizon."""
    values: Mapping[str, Any] = Factory(dict)
    """What is in force at its start."""
    switches: tuple[Switch, ...] = ()
    rate: Callable[[Mapping[str, Any]], Rate] = field(default=lambda values: {})
    """Values in force → what a step consumes."""


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
        plain = [(_plain(piece.consumed(piece.start, measure)), _plain(_per_step(piece.rate, measure))) for piece in self.pieces]
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
        return self._step_reaching(*_absolute(duration, self.horizon))

    def instant(self, duration: Duration) -> int:
        """The step of an instant of the run; unlike `step_of` refuses one behind the end, with a ScheduleError."""
        amount, measure = _absolute(duration, self.horizon)
        counted = measure == "steps" or any(measure in piece.rate for piece in self.pieces)
        if counted and amount > self.consumed(self.steps, measure):
            raise ScheduleError(f"{duration} lies behind the end of the run, which has {self.steps:,} steps")
        return self._step_reaching(amount, measure)

    def every(self, duration: Duration) -> tuple[int, ...]:
        """The steps k in (0, T) at which another whole `duration` has passed since the start.

        Raises:
            ScheduleError: a cadence of nothing, or of more than a million instants.
        """
        if duration.value <= 0:
            raise ScheduleError(f"a cadence of {duration} never moves on: give it above zero")
        amount, measure = _absolute(duration, self.horizon)
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
                raise ScheduleError(f"nothing counts {measure} here: {_missing(measure)}")
            return self.steps
        i = bisect_right(self.pieces, amount, key=lambda piece: piece.consumed(piece.start, measure)) - 1
        piece = self.pieces[i]
        stop = self._piece_starts[i + 1] if i + 1 < len(self.pieces) else self.steps
        rest = amount - piece.consumed(piece.start, measure)
        return min(piece.start + ceil(rest / _per_step(piece.rate, measure)), stop) if rest else piece.start


def compile_clock(horizon: Duration, names: Sequence[str], ends: Sequence[Duration], tokens_per_step: Sequence[int | None]) -> Clock:
    """Lay out phases whose steps consume a fixed number of tokens each; None where tokens cannot be counted.

    Raises:
        ScheduleError: see `lay_out`.
    """

    def extent(name: str, end: Duration, tokens: int | None) -> Extent:
        rate = {} if tokens is None else {"tokens": Fraction(tokens)}
        return Extent(name=name, end=end, rate=lambda values: rate)

    return lay_out(horizon, [extent(*each) for each in zip(names, ends, tokens_per_step, strict=True)])


@frozen
class Past:
    """The first `step` steps of a resumed run, on the clock it ran by: later declarations cannot move them."""

    step: int
    clock: Clock

    @property
    def phase_index(self) -> int:
        """The first phase that is not over."""
        return self.clock.phase_index(self.step)


def lay_out(horizon: Duration, extents: Sequence[Extent], past: Past | None = None) -> Clock:
    """Resolve every phase end, and every switch inside a phase, to one integer step.

    Args:
        horizon: the length of the run.
        extents: the phases.
        past: the steps already run: their boundaries and consumption stay, whatever the extents say.

    Raises:
        ScheduleError: an empty or backward phase, a gap or an overrun at the end, an end in the past, or a measure that the data
            does not count. The message draws the timeline.
    """
    if horizon.unit == "fraction" or horizon.value <= 0:
        raise ScheduleError(f"a horizon of {horizon} is not a length: give it in steps, tokens, samples or epochs, above zero")
    layout = _Layout(horizon, extents) if past is None else _Layout.after(past, horizon, extents)
    for index in range(len(layout.starts) - 1, len(extents)):
        layout.lay(index)
    layout.check_end()
    return Clock(horizon, tuple(layout.starts), tuple(layout.pieces))


@define
class _Layout:
    """The timeline under construction, phase by phase."""

    horizon: Duration
    extents: Sequence[Extent]
    starts: list[int] = field(factory=lambda: [0])
    pieces: list[Piece] = field(factory=list)
    step: int = 0
    consumed: dict[str, Fraction] = field(factory=dict)
    marks: list[dict[str, Fraction]] = field(factory=list)
    """The amounts consumed before each phase, `steps` included."""
    inside: bool = False
    """Whether the past ends inside a piece, which goes on: as a piece of its own it would round run time otherwise."""

    @classmethod
    def after(cls, past: Past, horizon: Duration, extents: Sequence[Extent]) -> _Layout:
        """A timeline that is already laid out up to the end of the past."""
        clock = past.clock
        starts = clock.starts[: past.phase_index + 1]
        if len(starts) > len(extents):
            raise ScheduleError(f"step {past.step} is done in phase {len(starts)}, and only {len(extents)} are declared")
        return cls(
            horizon,
            extents,
            starts=list(starts),
            pieces=[piece for piece in clock.pieces if piece.start < past.step],
            step=past.step,
            consumed=clock.consumption(past.step),
            marks=[{**clock.consumption(start), "steps": Fraction(start)} for start in starts],
            inside=all(piece.start != past.step for piece in clock.pieces),
        )

    def lay(self, index: int) -> None:
        """Lay out one phase, as pieces.

        While no value changes, consumption is linear in the step, so the end of the phase and every pending switch are each one
        division away. A piece ends at the nearest of them; the switch is applied, which may change the rate, and all are computed anew.
        """
        extent = self.extents[index]
        if len(self.marks) == index:
            self.marks.append({**self.consumed, "steps": Fraction(self.step)})
        values, pending = dict(extent.values), list(extent.switches)
        end = _absolute(extent.end, self.horizon)
        while True:
            rate = extent.rate(values)
            stop = self._reach(end, rate, extent)
            due = [(self._reach(self._target(switch, index), rate, extent), order) for order, switch in enumerate(pending)]
            nearest = min(due, default=(stop, 0))
            if pending and nearest[0] <= self.step:
                switch = pending.pop(nearest[1])
                values[switch.key] = switch.value
                continue
            if stop <= self.starts[-1]:
                self._refuse_empty(extent, stop)
            if stop < self.step:
                raise ScheduleError(f"phase '{extent.name}' would end at step {stop}, but {self.step} steps are done\n{self._draw()}")
            if stop == self.step:
                self.starts.append(stop)
                return
            goes_on = self.inside and self.starts[-1] < self.step and (self.pieces[-1].rate, self.pieces[-1].values) == (rate, values)
            if not goes_on:
                self.pieces.append(Piece(self.step, dict(self.consumed), rate, dict(values)))
            self.inside = False
            upto = min(nearest[0], stop)
            for measure, share in rate.items():
                self.consumed[measure] = self.consumed.get(measure, Fraction(0)) + (upto - self.step) * share
            self.step = upto
            if upto == stop:
                self.starts.append(stop)
                return

    def check_end(self) -> None:
        last, reached = self.extents[-1], self._now(self.horizon.measure)
        if reached < self.horizon.value:
            fix = "leave its `until` out, or write `until: 100%`"
            message = f"the last phase '{last.name}' ends at {last.end}, before the horizon of {self.horizon}: {fix}"
            raise ScheduleError(f"{message}\n{self._draw()}")
        if reached >= self.horizon.value + _per_step(self.pieces[-1].rate, self.horizon.measure):
            fix = "write `until: 100%`, or raise run.horizon"
            raise ScheduleError(f"phase '{last.name}' ends at {last.end}, after the horizon of {self.horizon}: {fix}\n{self._draw()}")

    def _now(self, measure: str) -> Fraction:
        return Fraction(self.step) if measure == "steps" else self.consumed.get(measure, Fraction(0))

    def _reach(self, target: tuple[Fraction, str], rate: Rate, extent: Extent) -> int:
        """The step at which the current rate reaches an absolute amount; at or before the current step if it lies in the past."""
        amount, measure = target
        share = _per_step(rate, measure)
        if not share:
            raise ScheduleError(f"phase '{extent.name}' is measured in {measure}, which nothing counts there: {_missing(measure)}")
        return self.step + ceil((amount - self._now(measure)) / share)

    def _target(self, switch: Switch, index: int) -> tuple[Fraction, str]:
        if switch.window == RUN:
            return _absolute(switch.at, self.horizon)
        begin = self.marks[switch.window]
        measure = switch.at.measure
        if switch.at.unit != "fraction":
            return begin.get(measure, Fraction(0)) + switch.at.value, measure
        measure = self.horizon.measure
        start = begin.get(measure, Fraction(0))
        if switch.window < index:
            stop = self.marks[switch.window + 1].get(measure, Fraction(0))
        else:
            end = self.extents[switch.window].end
            stop, end_measure = _absolute(end, self.horizon)
            if end_measure != measure:
                raise ScheduleError(
                    f"{switch.at} of phase '{self.extents[switch.window].name}' cannot be found before the phase is laid out, because it "
                    f"ends at {end} and the horizon counts {measure}: give the instant in {end_measure}"
                )
        return start + switch.at.value * (stop - start), measure

    def _refuse_empty(self, extent: Extent, stop: int) -> None:
        what = "ends before it starts" if stop < self.starts[-1] else "has no step"
        raise ScheduleError(f"phase '{extent.name}' {what}: it would run from step {self.starts[-1]} until {extent.end}\n{self._draw()}")

    def _draw(self) -> str:
        return "timeline: 0 " + " ".join(f"├─ {extent.name} ─┤ {extent.end}" for extent in self.extents)


def _absolute(duration: Duration, horizon: Duration) -> tuple[Fraction, str]:
    """A duration from the start of the run, as an amount and its measure."""
    if duration.unit == "fraction":
        return duration.value * horizon.value, horizon.measure
    return duration.value, duration.measure


def _per_step(rate: Rate, measure: str) -> Fraction:
    return Fraction(1) if measure == "steps" else rate.get(measure, Fraction(0))


def _plain(value: Fraction) -> float:
    return int(value) if value.denominator == 1 else float(value)


def _missing(measure: str) -> str:
    if measure == "tokens":
        return "its data declares no seq_len and batch_size to count them by"
    if measure == "samples":
        return "its data declares no batch_size to count them by"
    return "the source does not say its size before it is read, its share is not constant in a phase, or there is no such source"
