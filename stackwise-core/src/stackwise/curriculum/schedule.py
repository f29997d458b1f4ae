"""The timeline of declared states: phases compiled to integer steps.

A `PhaseSchedule` is what everything downstream reads: plan, pricing, machine and log share the one object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

from attrs import Factory, field, frozen

from stackwise.contracts.growth import BlockOrigin
from stackwise.curriculum.states import TrainingState
from stackwise.curriculum.transitions import Enter, Transition
from stackwise.timeline.clock import Clock
from stackwise.timeline.duration import Duration, Moment
from stackwise.timeline.layout import compile_clock
from stackwise.timeline.schedules import Curve

UNGATED = Curve.constant(1.0)
"""The gate of a branch that counts in full."""


@frozen(kw_only=True)
class CompiledPhase:
    """A named segment [start, stop) of the run with its complete state."""

    name: str
    index: int
    start: int
    stop: int
    state: TrainingState | None = None
    """None: the machine runs the finished objects that it was built with."""
    enter: Enter = Factory(Enter)
    transition: Transition | None = None
    """None for the first phase."""

    @property
    def blocks(self) -> Mapping[tuple[str, int], BlockOrigin]:
        """Origin of every block of the rack, if its stacks change at the start of the phase."""
        return self.transition.blocks if self.transition is not None else {}

    @property
    def gate(self) -> Curve:
        """The gate on the blocks that the phase grew; 1 if there is none."""
        growth = self.enter.growth
        return UNGATED if growth is None else growth.curves.get("gate", UNGATED)


@frozen
class PhaseSchedule:
    """The compiled timeline: one clock and the phases on it."""

    clock: Clock
    phases: tuple[CompiledPhase, ...]
    evaluate_at: Mapping[str, tuple[int, ...]] = field(factory=dict)
    """Evaluation name → the steps before which it runs, boundaries and both ends included."""
    save_at: tuple[int, ...] = ()
    """The steps before which the cadence of checkpoints saves the state."""
    keep_at: tuple[int, ...] = ()
    """The steps before which a state is saved that stays for good."""

    @classmethod
    def single(cls, *, steps: int, state: TrainingState | None = None) -> PhaseSchedule:
        """One phase over `steps` steps, for machines made of finished objects.

        Raises:
            ScheduleError: fewer than one step.
        """
        whole = Duration(Fraction(1), "fraction")
        clock = compile_clock(Duration(Fraction(steps), "steps"), ["train"], [whole], [None])
        return cls(clock, (CompiledPhase(name="train", index=0, start=0, stop=steps, state=state),))

    @property
    def steps(self) -> int:
        """T, the number of steps of the run."""
        return self.clock.steps

    def phase_at(self, step: int) -> CompiledPhase:
        """The phase that step k belongs to; the last one for k = T."""
        return self.phases[self.clock.phase_index(step)]

    def evaluates(self, name: str, index: int) -> bool:
        """Whether an evaluation runs in a phase, or at one of its edges, where it runs on both sides."""
        phase = self.phases[index]
        return any(phase.start <= step <= phase.stop for step in self.evaluate_at.get(name, ()))

    def at(self, *, step: int | None = None, t: float | None = None) -> Moment:
        """The instant of a step, or of the first step at or after run time t."""
        if step is None:
            if t is None:
                raise TypeError("at() takes a step or a t")
            step = self.clock.step_at(t)
        phase = self.phase_at(step)
        t0, t1 = self.clock.t(phase.start), self.clock.t(phase.stop)
        now = self.clock.t(step)
        return Moment(step, now, phase.name, phase.index, (now - t0) / (t1 - t0), self.clock.tokens(step))

    def moments(self, phase: CompiledPhase, step: int) -> Iterator[Moment]:
        """The instants of a phase from `step` on; what `at` says of each, at a fraction of the cost."""
        return (moment for moment, _ in self.walk(phase, step))

    def walk(self, phase: CompiledPhase, step: int) -> Iterator[tuple[Moment, int]]:
        """The instants of a phase from `step` on, each with the tokens consumed after its step."""
        t0, t1 = self.clock.t(phase.start), self.clock.t(phase.stop)
        width, name, index = t1 - t0, phase.name, phase.index
        for k, t, tokens, after in self.clock.times(step, phase.stop):
            yield Moment(k, t, name, index, (t - t0) / width, tokens), after

    def __iter__(self) -> Iterator[CompiledPhase]:
        return iter(self.phases)
