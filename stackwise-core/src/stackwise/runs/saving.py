"""When the state of a run is saved: at its cadence, before boundaries, at the end, when it stops by rule, and on a signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any, Protocol

import torch
from attrs import define, field, frozen

from stackwise.config import CheckpointConfig
from stackwise.contracts.events import CheckpointRefused, CheckpointSaved, Evaluated, Event, StepDone, Stopped
from stackwise.curriculum.schedule import PhaseSchedule
from stackwise.machine.machine import TrainingMachine
from stackwise.planes.shards import own
from stackwise.storage.checkpoints.store import name_of


@frozen
class Due:
    """Why the state before a step is saved; `pin` says why it is kept for good, None lets it be pruned."""

    reason: str
    pin: str | None = None


def due_steps(config: CheckpointConfig, schedule: PhaseSchedule) -> dict[int, Due]:
    """Step → why the state before it is saved."""
    clock = schedule.clock
    due = {step: Due("cadence") for step in schedule.save_at}
    if config.at_phases:
        due |= {start: Due("phase") for start in clock.starts[1:-1]}
    due[clock.steps] = Due("end")
    return due | {step: Due(due[step].reason if step in due else "cadence", pin="keep_every") for step in schedule.keep_at}


@define
class _Pending:
    """A state that waits for the evaluations of the same weights, to be saved with their metrics.

    It is taken before them, so a run that resumes there repeats them.
    """

    due: Due
    step: int
    state: Mapping[str, Any] = field(factory=dict)
    built_so: set[str] = field(factory=set)
    """Buffers that may hold infinities, since their module built them so."""
    on_disk: bool = False
    """Already on disk (resume): announce it, do not save again."""
    awaited: set[str] = field(factory=set)
    metrics: dict[str, float] = field(factory=dict)

    @classmethod
    def of(cls, machine: TrainingMachine, due: Due) -> _Pending:
        """The current state with live tensors: nothing changes them before the next step."""
        return cls(due, machine.step, machine.state(), machine.model.built_so())


class Store(Protocol):
    """Where states are saved."""

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        asynchronous: bool = False,
        pin: str | None = None,
    ) -> None:
        """As `CheckpointStore.save`."""


class Saving:
    """Saves the machine's state when it is due. Pass it every event before the machine goes on.

    Args:
        store: where to.
        config: when, and whether asynchronously.
        schedule: the timeline.
        about: what a checkpoint records beside the machine's state.
        sync: flushes the logs to disk, which must never be older than a checkpoint.
        alone: a context of the time in which other processes wait for a save.
        agree: what is wrong with this process's part of a state → what is wrong with the whole of it.
    """

    def __init__(
        self,
        store: Store,
        config: CheckpointConfig,
        schedule: PhaseSchedule,
        about: Callable[[], Mapping[str, Any]],
        sync: Callable[[], None],
        alone: Callable[[], AbstractContextManager[object]] = nullcontext,
        agree: Callable[[str | None], str | None] = lambda fault: fault,
    ) -> None:
        self._alone, self._agree = alone, agree
        self._store, self._asynchronous, self._about, self._sync = store, config.asynchronous, about, sync
        self._due = due_steps(config, schedule)
        self._evaluate_at = {name: frozenset(steps) for name, steps in schedule.evaluate_at.items()}
        self._pending: _Pending | None = None
        self.last_step: int | None = None
        """Step of the newest saved state."""

    def go_on(self, step: int, reason: str) -> None:
        """Begin at a state on disk: it is announced again after the evaluations repeated there."""
        self.last_step = step
        self._wait_for(_Pending(Due(reason), step, on_disk=True))

    def after(self, event: Event, machine: TrainingMachine) -> Iterator[Event]:
        """Save if this event makes a save due; yields the outcome."""
        if isinstance(event, StepDone):
            due = self._due.get(event.step + 1)
            if due is None or self.last_step == machine.step:
                return
            self._wait_for(_Pending.of(machine, due))
        elif isinstance(event, Stopped):
            yield from self.now(machine, "stop")
        elif isinstance(event, Evaluated) and self._pending is not None and event.step == self._pending.step:
            self._pending.awaited.discard(event.name)
            self._pending.metrics |= {f"{event.name}.{metric}": value for metric, value in event.metrics.items()}
        if self._pending is not None and not self._pending.awaited:
            yield self._save(self._pending)

    def now(self, machine: TrainingMachine, reason: str) -> Iterator[Event]:
        """Save at once, unless this state is saved already; call it right after a step or the evaluations after it."""
        if self.last_step != machine.step:
            yield self._save(self._pending if self._pending is not None else _Pending.of(machine, Due(reason)))

    def _wait_for(self, pending: _Pending) -> None:
        pending.awaited |= {name for name, steps in self._evaluate_at.items() if pending.step in steps}
        self._pending = pending

    def _save(self, pending: _Pending) -> Event:
        with self._alone():
            return self._save_alone(pending)

    def _save_alone(self, pending: _Pending) -> Event:
        start = perf_counter()
        if not pending.on_disk:
            self._sync()  # may raise, with the pending state kept
        self._pending = None
        if pending.on_disk:
            return CheckpointSaved(pending.step, name_of(pending.step), 0.0, pending.due.reason)
        model = {name: value for name, value in pending.state["model"].items() if name not in pending.built_so}
        if strange := self._agree(not_finite({"model": model, "optimizer": pending.state["optimizer"]})):
            return CheckpointRefused(pending.step, f"{strange} is not finite: such a state is never saved as a good one")
        self._store.save(
            pending.step,
            pending.state,
            {**self._about(), "reason": pending.due.reason},
            metrics=pending.metrics,
            asynchronous=self._asynchronous,
            pin=pending.due.pin,
        )
        self.last_step = pending.step
        return CheckpointSaved(pending.step, name_of(pending.step), perf_counter() - start, pending.due.reason)


def not_finite(state: Any) -> str | None:
    """The path of the first tensor in a nested state that holds nan or infinity."""
    return next((path for path, tensor in _tensors(state, "") if not bool(torch.isfinite(own(tensor)).all())), None)


def _tensors(state: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(state, torch.Tensor):
        yield path, state
    entries = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    for key, inner in entries:
        yield from _tensors(inner, f"{path}/{key}" if path else str(key))
