"""The layout of a timeline: every duration of a run becomes an integer step, once and in one place. What comes out is a `Clock`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Any

from attrs import Factory, define, field, frozen

from stackwise.errors import ScheduleError
from stackwise.timeline.clock import Clock, Piece, Rate, absolute, missing, per_step
from stackwise.timeline.clock import share as share_of
from stackwise.timeline.duration import Duration

RUN = -1
"""The window of a switch that is the run."""


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
        raise ScheduleError(f"a horizon of {horizon} is not a length: give it in steps, tokens, samples, epochs or FLOPs, above zero")
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
        end = absolute(extent.end, self.horizon)
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
        if reached >= self.horizon.value + per_step(self.pieces[-1].rate, self.horizon.measure):
            fix = "write `until: 100%`, or raise run.horizon"
            raise ScheduleError(f"phase '{last.name}' ends at {last.end}, after the horizon of {self.horizon}: {fix}\n{self._draw()}")

    def _now(self, measure: str) -> Fraction:
        return Fraction(self.step) if measure == "steps" else self.consumed.get(measure, Fraction(0))

    def _reach(self, target: tuple[Fraction, str], rate: Rate, extent: Extent) -> int:
        """The step at which the current rate reaches an absolute amount; at or before the current step if it lies in the past."""
        amount, measure = target
        share = per_step(rate, measure)
        if not share:
            raise ScheduleError(f"phase '{extent.name}' is measured in {measure}, which nothing counts there: {missing(measure)}")
        return self.step + ceil((amount - self._now(measure)) / share)

    def _target(self, switch: Switch, index: int) -> tuple[Fraction, str]:
        if switch.window == RUN:
            return absolute(switch.at, self.horizon)
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
            stop, end_measure = absolute(end, self.horizon)
            if end_measure != measure:
                raise ScheduleError(
                    f"{switch.at} of phase '{self.extents[switch.window].name}' cannot be found before the phase is laid out, because it "
                    f"ends at {end} and the horizon counts {measure}: give the instant in {end_measure}"
                )
        return start + share_of(switch.at, self.horizon) * (stop - start), measure

    def _refuse_empty(self, extent: Extent, stop: int) -> None:
        what = "ends before it starts" if stop < self.starts[-1] else "has no step"
        raise ScheduleError(f"phase '{extent.name}' {what}: it would run from step {self.starts[-1]} until {extent.end}\n{self._draw()}")

    def _draw(self) -> str:
        return "timeline: 0 " + " ".join(f"├─ {extent.name} ─┤ {extent.end}" for extent in self.extents)
