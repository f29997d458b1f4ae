"""Frozen past, editable future: which keys of a run's config changed, and whether they leave the steps already done alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from stackwise.config import Experiment, PhaseConfig
from stackwise.contracts.events import ConfigChanged
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import TrainingState
from stackwise.errors import ConfigError, Problem, ScheduleError
from stackwise.host.registry import Registry
from stackwise.plan import Plan, PriceSteps, make_plan
from stackwise.timeline.clock import Clock
from stackwise.timeline.layout import Past
from stackwise.timeline.schedules import Curve

ABSENT = "(nothing)"
_SHAPE = {"data.batch_size", "data.seq_len", "data.accumulate", "data.step_tokens"}


def amend(
    old: Experiment,
    new: Experiment,
    past: Past,
    registry: Registry,
    tokenizers: Tokenizers | None = None,
    price_steps: PriceSteps | None = None,
) -> tuple[Plan, list[ConfigChanged]]:
    """Plan the rest of a run, and list the changes in its config.

    Args:
        old: the config of the steps already done.
        new: the config for the rest.
        past: the steps already done.
        registry: the components that both may name.
        tokenizers: those that the run has.
        price_steps: says what steps cost, where a duration counts FLOPs.

    Returns:
        The plan of the new config with the past as it was, and every key that changed.

    Raises:
        ConfigError: every mistake in the new config, or every change to steps already done.
    """
    changes = [ConfigChanged(past.step, key, was, now) for key, was, now in differences(old.resolved, new.resolved)]
    if not changes:
        return make_plan(new, registry, past, tokenizers, price_steps), []
    new.check()
    problems = [*_seed_problems(old, new), *_name_problems(old, new, past)]
    if problems:
        raise ConfigError(problems)
    planned, amended = (make_plan(each, registry, past, tokenizers, price_steps) for each in (old, new))
    review = _Review(past, planned, amended, registry, price_steps)
    if problems := list(review.problems()):
        raise ConfigError(problems)
    return review.new, changes


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Key, value before, value after, for every key that differs; maps are compared key by key, lists as wholes."""
    for key in dict.fromkeys((*old, *new)):
        was, now, here = old.get(key, ABSENT), new.get(key, ABSENT), (*path, str(key))
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from differences(was, now, here)
        elif was != now or type(was) is not type(now):
            yield ".".join(here), was, now


def _seed_problems(old: Experiment, new: Experiment) -> Iterator[Problem]:
    if old.run.seed != new.run.seed:
        yield Problem(
            f"was {old.run.seed} for the steps that are done, and decides every stream: it cannot become {new.run.seed}", "run.seed"
        )


def _name_problems(old: Experiment, new: Experiment, past: Past) -> Iterator[Problem]:
    done = [phase.name for phase in old.phases[: past.phase_index + 1]]
    names = [phase.name for phase in new.phases[: past.phase_index + 1]]
    if done != names:
        yield Problem(f"{past.step} steps are done, the last in phase '{done[-1]}': the first phases stay {done}, not {names}", "phases")


@frozen
class _Review:
    """Two plans over one past, compared at the steps already done."""

    past: Past
    old: Plan
    new: Plan
    registry: Registry
    price_steps: PriceSteps | None

    def problems(self) -> Iterator[Problem]:
        """Every change that reaches into the past."""
        begun = [phase.index for phase in self.old.schedule if phase.start < self.past.step]
        for index in begun:
            was, now = self.old.experiment.phases[index], self.new.experiment.phases[index]
            for key, _, _ in differences(was.tree.printable(), now.tree.printable()):
                if (why := self._broken(key, index)) is not None:
                    yield _placed(now, key, why)

    def _broken(self, key: str, index: int) -> str | None:
        """Why a key cannot change in a phase that has begun; None if the change leaves its steps already done alone."""
        done = self._done(index)
        name = self.new.experiment.phases[index].name
        if key == "until" or key.startswith("until."):
            return None if index >= self.past.phase_index else f"phase '{name}' has ended, at step {done.stop}"
        if key == "enter" or key.startswith("enter."):
            return f"phase '{name}' was entered at step {done.start}"
        if is_shape(key):
            return self._moved_shape(key, done)
        was, now = (declared(plan.schedule.phases[index].state) for plan in (self.old, self.new))
        path = next((path for path in was.curves if within(key, path) and path in now.curves), None)
        if path is not None:
            return self._moved_value(was.curves[path], now.curves[path], done)
        path = next((path for path in was.parts if within(key, path) and path in now.parts), None)
        if path is not None and was.parts[path].structure == now.parts[path].structure:
            return None
        return f"phase '{name}' has begun with it at step {done.start}"

    def _done(self, index: int) -> range:
        phase = self.old.schedule.phases[index]
        return range(phase.start, min(phase.stop, self.past.step))

    def _moved_value(self, was: Curve, now: Curve, done: range) -> str | None:
        """A sentence on the first step already done whose value would change; None if there is none."""
        clocks = self.old.schedule.clock, self.new.schedule.clock
        for step in done:
            before, after = was(clocks[0].t(step)), now(clocks[1].t(step))
            if not math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-15):  # t is rounded otherwise where the horizon is another
                return f"it was {before:g} at step {step}, which is done, and would have been {after:g}"
        return None

    def _moved_shape(self, key: str, done: range) -> str | None:
        name = key.split(".")[1]
        alone = self._clock_alone()
        for step in done:
            before = self.past.clock.values(step)[name]
            after = alone.values(step)[name] if alone is not None and step < alone.steps else None
            if before != after:
                return f"it was {before} at step {step}, which is done, and would have been {after}"
        return None

    def _clock_alone(self) -> Clock | None:
        """The clock of the new config without a past; None if its timeline does not hold together."""
        try:
            return make_plan(
                self.new.experiment, self.registry, tokenizers=self.new.tokenizers, price_steps=self.price_steps
            ).schedule.clock
        except (ConfigError, ScheduleError):
            return None


@frozen
class Declared:
    """What a phase declares, by the key it is declared at."""

    parts: Mapping[str, Part]
    curves: Mapping[str, Curve]


def declared(state: TrainingState | None) -> Declared:
    """Parts and curves of a phase by the key they are declared at."""
    assert state is not None  # a plan's phases are declared
    model, data, optimizer = state.model, state.data, state.optimizer
    parts = {"task": state.task, "model.embedding": model.embedding, "model.rack": model.rack, "model.head": model.head}
    parts |= {f"data.sources.{name}": part for name, part in data.sources.items()}
    curves = {f"{path}.{name}": curve for path, part in parts.items() for name, curve in part.curves.items()}
    curves |= {f"data.mix.{name}": curve for name, curve in data.mix.items()}
    curves |= {f"task.auxiliary.{name}": curve for name, curve in state.auxiliary.items()}
    for group in optimizer.groups:
        path = "optimizer" if group.name == "default" else f"optimizer.groups.{group.name}"
        curves |= {f"{path}.{name}": curve for name, curve in group.curves.items()}
    return Declared({**parts, "optimizer": optimizer.part}, curves)


def is_shape(key: str) -> bool:
    """Whether a key says how many rows and positions a step has."""
    return any(within(key, shape) for shape in _SHAPE)


def within(key: str, path: str) -> bool:
    """Whether a dotted key is `path`, or stands below it."""
    return key == path or key.startswith(f"{path}.")


def _placed(phase: PhaseConfig, key: str, why: str) -> Problem:
    advice = "the past stays as it was: write the change into a phase that is still to come, or so that it begins later"
    return phase.problem(key, f"{why}; {advice}")
