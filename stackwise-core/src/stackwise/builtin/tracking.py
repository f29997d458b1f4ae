"""What every tracker does with events: names its scalars, keeps both sides of a boundary apart, and survives its own hiccups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from time import sleep
from typing import Any, Protocol
from warnings import warn

from stackwise.contracts.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    PhaseEntered,
    Reacted,
    RunFacts,
    RunFinished,
    RunStarted,
    StepDone,
)
from stackwise.errors import UserError

PAUSES_S = (0.05, 0.25)
"""Between attempts; training stands still for them."""
MOST_WARNINGS = 5


class Backend(Protocol):
    """One tracker's library."""

    def open(self, facts: RunFacts, step: int) -> None:
        """Begin, or go on at a step: what was written of it and later is void."""
        ...

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Some scalars of one step."""
        ...

    def flush(self) -> None:
        """Everything written so far outlives this process."""
        ...

    def close(self) -> None:
        """The run has finished."""
        ...


class Tracker:
    """An observer that hands the scalars of a run to a backend.

    What a backend refuses is tried again, then told once and left out: a tracker never ends a run.

    Args:
        backend: where to.
        every: steps of which one is written; evaluations and boundaries all are.
    """

    def __init__(self, backend: Backend, every: int = 1) -> None:
        self._backend, self._every = backend, every
        self._facts = RunFacts(name="run", directory="", config={}, plan={})
        self._warnings = 0

    def meet(self, facts: RunFacts) -> None:
        """Learn whose events come."""
        self._facts = facts

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if isinstance(event, RunStarted):
            self._attempt(lambda: self._backend.open(self._facts, event.step), "begin")
            return
        for step, scalars in self._scalars(event):
            self._attempt(lambda step=step, scalars=scalars: self._backend.write(step, scalars), f"write step {step}")  # type: ignore[misc]
        if isinstance(event, Evaluated | PhaseEntered | CheckpointSaved):
            self._attempt(self._backend.flush, "flush")
        elif isinstance(event, RunFinished):
            self._attempt(self._backend.close, "finish")

    def _scalars(self, event: Event) -> Iterator[tuple[int, dict[str, float]]]:
        if not isinstance(event, StepDone) or event.step % self._every == 0:
            yield from scalars_of(event)

    def _attempt(self, act: Callable[[], object], what: str) -> None:
        error: Exception | None = None
        for pause in (*PAUSES_S, None):
            try:
                act()
                return
            except Exception as refused:
                error = refused
            if pause is not None:
                sleep(pause)
        self._warnings += 1
        if self._warnings <= MOST_WARNINGS:
            last = "; further ones are not told" if self._warnings == MOST_WARNINGS else ""
            sentence = f"{type(self._backend).__name__} could not {what}: {type(error).__name__}: {error}; the run goes on{last}"
            warn(sentence, RuntimeWarning, stacklevel=3)


def scalars_of(event: Event) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and scalars of one event.

    A training step gives `train/…` and `lr/…`. An evaluation gives `<name>/<metric>`; the one just after a boundary stands apart, as
    `<name> after boundary/<metric>`, so that a curve never mixes both sides. A boundary gives its probe and the size of the model.
    """
    if isinstance(event, StepDone):
        scalars = {
            "train/loss": event.loss,
            "train/grad_norm": event.grad_norm,
            "train/tokens": event.tokens,
            "train/seconds": event.seconds,
        }
        scalars |= {f"train/{name}": value for name, value in event.metrics.items()}
        scalars |= {f"lr/{name}": value for name, value in event.rates.items()} or {"lr/lr": event.lr}
        yield event.step, scalars
    elif isinstance(event, Evaluated):
        where = f"{event.name} after boundary" if event.at == "entry" else event.name
        yield event.step, {f"{where}/{metric}": value for metric, value in event.metrics.items()}
    elif isinstance(event, PhaseEntered):
        probes = {"before": event.probe_loss_before, "after": event.probe_loss_after, "change": event.probe_change}
        sizes = {"boundary/parameters": event.parameters, "boundary/trainable": event.trainable}
        yield event.step, {**sizes, **{f"boundary/probe_{name}": value for name, value in probes.items() if value is not None}}
    elif isinstance(event, Reacted):
        yield event.step, {"lr/factor": event.factor}


def library(module: str, extra: str) -> Any:
    """The library of an extra of the core.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"core.{extra} needs the library '{module}' ({error}): pip install 'stackwise-core[{extra}]'") from error
