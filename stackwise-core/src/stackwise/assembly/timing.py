"""How long the phases of a plan take here, by a few steps of each in a machine that is thrown away."""

from __future__ import annotations

from itertools import islice, pairwise
from statistics import median
from time import perf_counter

import attrs
from attrs import frozen

from stackwise.assembly.machine import assemble
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.host.registry import blaming
from stackwise.machine.machine import TrainingMachine
from stackwise.machine.observers import Observers
from stackwise.machine.step import Step
from stackwise.plan import Plan


@frozen(kw_only=True)
class PhaseTime:
    """Seconds of a phase, estimated from a few of its steps."""

    name: str
    entering: float
    """The boundary and the first step, which compiles where asked and touches memory for the first time."""
    step: float
    """One step: the median of those measured after the first; nan where the phase has only one step."""
    steps: float
    """All its steps; where the shape of batches changes within the phase, in proportion to their tokens."""
    evaluations: float
    """All its evaluations, estimated from one batch of each."""

    @property
    def seconds(self) -> float:
        """Of the whole phase."""
        return self.entering + self.steps + self.evaluations


def measure(plan: Plan, steps: int) -> tuple[PhaseTime, ...]:
    """Take a few steps of every phase, crossing all boundaries, and time them; data are read, and nothing that is trained is kept.

    Args:
        plan: the compiled experiment.
        steps: how many to take of each phase after its first.

    Raises:
        UserError, DataError, ProviderError: as training does.
    """
    machine = assemble(plan, observers=Observers())
    try:
        with blaming(plan.providers):
            return tuple(_timed(machine, phase, steps) for phase in machine.schedule)
    finally:
        machine.data.end()


def _timed(machine: TrainingMachine, phase: CompiledPhase, steps: int) -> PhaseTime:
    start, live, schedule = perf_counter(), machine.live, machine.schedule
    live.enter(phase)
    step = Step(live, machine.settings.seed)
    step.get_ready()
    moments = list(islice(schedule.moments(phase, phase.start), steps + 1))
    live.data.open(iter(moments))
    marks = [start]
    for moment in moments:
        live.apply_values(moment.t)
        step.seed(moment.step)
        with step.draws:
            step.run(live.data.batches(moment), moment)
        machine.placement.synchronize()
        marks.append(perf_counter())
    entering, *rest = (after - before for before, after in pairwise(marks))
    each = median(rest) if rest else float("nan")
    tokens = [schedule.clock.tokens(at) for at in (phase.start, phase.start + 1, phase.stop)]
    of_first = tokens[1] - tokens[0]
    left = (tokens[2] - tokens[1]) / of_first if of_first else phase.stop - phase.start - 1
    return PhaseTime(
        name=phase.name, entering=entering, step=each, steps=each * left if rest else 0.0, evaluations=_evaluations(machine, phase)
    )


def _evaluations(machine: TrainingMachine, phase: CompiledPhase) -> float:
    """Seconds of the evaluations of a phase, those at both of its ends included."""
    total, moment = 0.0, machine.schedule.at(step=phase.start)
    for name, evaluation in machine.evaluations.items():
        due = sum(phase.start <= step <= phase.stop for step in machine.schedule.evaluate_at.get(name, ()))
        if not due:
            continue
        start = perf_counter()
        with machine.optimizer.evaluating(evaluation.weights):
            attrs.evolve(evaluation, batches=1).run(machine.model.model, machine.objective, machine.placement, moment)
        total += due * evaluation.batches * (perf_counter() - start)
    return total
