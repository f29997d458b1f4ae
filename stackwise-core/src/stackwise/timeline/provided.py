"""Schedules that a provider computes: declared by a component's id, and compiled to one value a step."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import Factory, field, frozen

from stackwise.errors import ScheduleError
from stackwise.timeline.clock import Clock
from stackwise.timeline.duration import Duration
from stackwise.timeline.layout import compile_clock
from stackwise.timeline.schedules import Curve, Knot, Over, Window

SHOWN = 256
"""Knots of a curve of one value a step, beside those where it turns."""


@frozen
class ScheduleWindow:
    """The steps that a schedule spans, as a provider sees them: the run, or the phase that declares it."""

    steps: int
    """How many they are; `value` is asked for 0 to `steps`, of which the last holds when they are over."""
    entry: float | None
    """The value that the option had just before the window; None where there is none."""
    _window: Window = field(repr=False)

    @classmethod
    def of(cls, window: Window, entry: float | None) -> ScheduleWindow:
        """The view of a window of the timeline."""
        return cls(window.stop_step - window.start_step, entry, window)

    @classmethod
    def of_steps(cls, steps: int, entry: float | None = None) -> ScheduleWindow:
        """A run of so many steps, to try a schedule alone."""
        clock = compile_clock(Duration.parse(f"{steps} steps"), ["alone"], [Duration.parse("100%")], [None])
        return cls(steps, entry, Window(clock, 0, steps))

    def steps_in(self, duration: str) -> int:
        """Steps that have begun when a duration (`10%` of the window, `500 steps`, `2e6 tokens`) has passed since its start.

        Raises:
            ScheduleError: it is not a duration, or longer than the window.
        """
        window = self._window
        return window.clock.step_at(window.after_start(Duration.parse(duration))) - window.start_step


@frozen(kw_only=True)
class ProvidedSchedule:
    """A schedule of a provider, as a config declares it: `{use: optim.cosine-restarts, peak: 2e-3}`."""

    use: str
    options: Mapping[str, Any] = Factory(dict)
    over: Over = "run"
    rule: Callable[[float], str | None] | None = field(default=None, eq=False, repr=False)
    """What the option that follows it says of a value; None: any will do."""

    def compile(self, window: Window, entry: float | None) -> Curve:
        """Only the plan knows the component.

        Raises:
            ScheduleError: always.
        """
        raise ScheduleError(f"'{self.use}' is a component, and nothing is planned here that could ask it: give a number or a tag")


@frozen
class SampledCurve(Curve):
    """One value a step, held from each step to the next. Its knots are those where it turns and some between, for pictures and bounds."""

    values: array[float]
    start_step: int
    clock: Clock = field(eq=False, repr=False)

    @classmethod
    def of_values(cls, values: Sequence[float], window: Window) -> SampledCurve:
        """The curve whose value before step i of the window is `values[i]`; there is one more for its end."""
        clock, start, last = window.clock, window.start_step, len(values) - 1
        turns = {i for i in range(1, last) if _turns(values[i - 1], values[i], values[i + 1])}
        shown = sorted({0, last, *turns, *(round(last * i / SHOWN) for i in range(SHOWN))})
        knots = tuple(Knot(clock.t(start + i), values[i], "hold") for i in shown)
        return cls(knots, array("d", values), start, clock)

    def __call__(self, t: float) -> float:
        """The value at run time t."""
        step = self.clock.step_at(t)
        step -= step > 0 and self.clock.t(step) > t  # the last step that began before t
        return self.values[min(max(step - self.start_step, 0), len(self.values) - 1)]


def _turns(before: float, here: float, after: float) -> bool:
    """Whether a value stands at a maximum, a minimum, or an end of a piece that stands still."""
    return (here - before) * (after - here) <= 0 and not before == here == after
