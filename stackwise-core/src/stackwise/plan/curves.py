"""Declared schedules → curves. A schedule spans the window of the phase that declares it; later phases continue its curve."""

from __future__ import annotations

from attrs import define, field, frozen

from stackwise.config import PhaseConfig
from stackwise.errors import Problem, ScheduleError
from stackwise.plan.provided import ProvidedSchedules
from stackwise.timeline.clock import Clock
from stackwise.timeline.duration import Duration
from stackwise.timeline.provided import ProvidedSchedule
from stackwise.timeline.schedules import Constant, Curve, Knot, Schedule, Window


@frozen
class _Bound:
    owner: str
    layer: int
    schedule: Schedule
    curve: Curve


@define
class Curves:
    """Follows every scheduled key through the phases, in order.

    Args:
        clock: the compiled clock.
        problems: where mistakes are collected.
    """

    clock: Clock
    problems: list[Problem] = field(factory=list)
    provided: ProvidedSchedules | None = None
    """Asks components that are schedules; None: there are none."""
    _bound: dict[str, _Bound] = field(factory=dict)

    def of(self, phase: PhaseConfig, path: str, owner: str, schedule: Schedule) -> Curve:
        """The curve of the option at `path` in a phase.

        Args:
            phase: the phase being compiled; phases come in order.
            path: dotted key of the option.
            owner: id of the component it belongs to; another owner starts anew.
            schedule: the declaration in force.
        """
        layer = phase.declared_in(path)
        last = self._bound.get(path)
        if last is not None and (last.owner, last.layer, last.schedule) == (owner, layer, schedule):
            return last.curve
        start = self.clock.t(self.clock.starts[phase.index])
        entry = last.curve(start) if last is not None and last.owner == owner and schedule.over == "phase" else None
        try:
            curve = self._compiled(schedule, self._window(schedule, layer, path), entry, path)
        except ScheduleError as error:
            self.problems.append(Problem(str(error), path, phase.locate(path)))
            curve = Curve.constant(0.0)
        self._bound[path] = _Bound(owner, layer, schedule, curve)
        return curve

    def _compiled(self, schedule: Schedule, window: Window, entry: float | None, path: str) -> Curve:
        if isinstance(schedule, ProvidedSchedule) and self.provided is not None:
            return self.provided.curve(schedule, window, entry, path) or Curve.constant(0.0)
        return schedule.compile(window, entry)

    def ramp(self, phase: PhaseConfig, duration: Duration) -> Curve:
        """A factor that rises from 0 at the start of a phase to 1 over a duration."""
        start, stop = self.clock.starts[phase.index], self.clock.starts[phase.index + 1]
        try:
            end = Window(self.clock, start, stop).after_start(duration)
        except ScheduleError as error:
            self.problems.append(Problem(str(error), "enter.rewarm", phase.locate("enter.rewarm")))
            return Curve.constant(1.0)
        return Curve((Knot(self.clock.t(start), 0.0, "linear"), Knot(end, 1.0, "hold")))

    def _window(self, schedule: Schedule, layer: int, path: str) -> Window:
        phases = self.clock.phases
        if schedule.over == "run" or isinstance(schedule, Constant):
            return Window(self.clock, 0, self.clock.steps)
        if layer < 0 and phases > 1:
            raise ScheduleError(
                "`over: phase` spans the phase that declares it, and this is declared outside the phases: "
                "move it into one, or say `over: run`"
            )
        index = max(layer, 0)
        return Window(self.clock, self.clock.starts[index], self.clock.starts[index + 1])
