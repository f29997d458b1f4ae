"""When a run evaluates and saves: cadences and instants as steps."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from stackwise.config import EvaluateConfig, Experiment
from stackwise.errors import Problem, ScheduleError
from stackwise.timeline.clock import Clock
from stackwise.timeline.duration import Duration


@frozen
class Instants:
    """The steps of everything that a config has happen from time to time.

    Args:
        experiment: what is declared.
        clock: the compiled clock.
        problems: where mistakes are collected.
    """

    experiment: Experiment
    clock: Clock
    problems: list[Problem]

    def of_evaluations(self) -> dict[str, tuple[int, ...]]:
        """Evaluation → its steps."""
        return {each.name: self._of_evaluation(each) for each in self.experiment.evaluate}

    def of_saves(self) -> tuple[int, ...]:
        """Steps before which the state is saved."""
        return self._cadence(self.experiment.run.checkpoint.every, "run.checkpoint.every")

    def of_kept_saves(self) -> tuple[int, ...]:
        """Steps whose saved states stay for good."""
        saving = self.experiment.run.checkpoint
        return (*self._cadence(saving.keep_every, "run.checkpoint.keep_every"), *self._listed(saving.at, "run.checkpoint.at"))

    def _of_evaluation(self, config: EvaluateConfig) -> tuple[int, ...]:
        if config.at is not None:
            if config.every is not None:
                message = "is a cadence, and `at` lists the instants: give one of the two, `every: null` where it is inherited"
                self.problems.append(self.experiment.problem(f"evaluate.{config.name}.every", message))
            return self._listed(config.at, f"evaluate.{config.name}.at")
        return tuple(sorted({*self.clock.starts, *self._cadence(config.every, f"evaluate.{config.name}.every")}))

    def _cadence(self, every: Duration | None, path: str) -> tuple[int, ...]:
        """The steps of a cadence; none if its measure is not counted, with the reason among the problems."""
        try:
            return self.clock.every(every) if every is not None else ()
        except ScheduleError as error:
            self.problems.append(self.experiment.problem(path, str(error)))
            return ()

    def _listed(self, instants: Sequence[Duration], path: str) -> tuple[int, ...]:
        """Their steps; none of one that is not counted or lies after the end, with the reason among the problems."""
        steps = set()
        for instant in instants:
            try:
                steps.add(self.clock.instant(instant))
            except ScheduleError as error:
                self.problems.append(self.experiment.problem(path, str(error)))
        return tuple(sorted(steps))
