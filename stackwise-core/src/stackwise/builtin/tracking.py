"""What every tracker does with events: names its scalars, keeps both sides of a boundary apart, attaches files, goes on where a run goes
on, and never ends a run by an error of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any, Protocol, runtime_checkable
from warnings import warn

from stackwise.contracts.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    PhaseEntered,
    Reacted,
    RunFacts,
    RunStarted,
    StepDone,
)
from stackwise.errors import UserError

PAUSES_S = (0.05, 0.25)
"""Seconds between attempts; training waits for them."""
MOST_WARNINGS = 5


IDENTITIES = "trackers.json"
"""File of a run directory: what each tracker calls the run, so that a resumed one is the same there. A branch has none and begins anew."""


class Backend(Protocol):
    """One tracker's library."""

    def open(self, facts: RunFacts, step: int, identity: str | None) -> str | None:
        """Begin, or go on at a step.

        Args:
            facts: whose events come.
            step: the first one; what was written of it and later is void.
            identity: what an earlier process returned; None: a new run.

        Returns:
            What the run is called here; None where its directory says it.
        """
        ...

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write some scalars of one step."""
        ...

    def flush(self) -> None:
        """Make sure that everything written so far outlives this process."""
        ...

    def close(self, status: str) -> None:
        """End the use of the run in this process; `status` is that of `status.json`."""
        ...


@runtime_checkable
class Attaches(Protocol):
    """A backend that takes files."""

    def attach(self, place: Path, kind: str) -> None:
        """Keep a copy of a file or folder; `kind` is `report`, `config`, `plan`, `weights` or `checkpoint`."""
        ...


class Tracker:
    """An observer that hands the scalars of a run to a backend.

    What a backend refuses is tried again, then reported once and left out: a tracker never ends a run.

    Args:
        backend: the library to write to.
        every: write one of so many steps; every evaluation and boundary is written.
        kind: which tracker, and where it keeps the run: the key of its identity in `trackers.json`.
        artifacts: `none`, `report` (config, plan and page), `weights` (the final ones too) or `checkpoints` (these too).
    """

    def __init__(self, backend: Backend, every: int = 1, kind: str = "", artifacts: str = "none") -> None:
        self._backend, self._every, self._kind = backend, every, kind
        self._artifacts = ("none", "report", "weights", "checkpoints").index(artifacts)
        self._facts = RunFacts(name="run", directory="", config={}, plan={})
        self._warnings, self._is_open = 0, False
        self._checkpoints: list[Path] = []
        """Checkpoints that were announced and may not be on disk yet."""

    def meet(self, facts: RunFacts) -> None:
        """Learn whose events come."""
        self._facts = facts

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if isinstance(event, RunStarted):
            self._attempt(lambda: self._open(event.step), "begin")
        if not self._is_open:
            return
        for step, scalars in self._scalars(event):
            self._attempt(partial(self._backend.write, step, scalars), f"write step {step}")
        if isinstance(event, CheckpointSaved):
            self._checkpoints.append(Path(self._facts.directory) / "checkpoints" / event.path)
        if isinstance(event, Evaluated | PhaseEntered | CheckpointSaved):
            self._attempt(self._backend.flush, "flush")
            self._attach_checkpoints()

    def leave(self, status: str) -> None:
        """Attach the files of the run, now that no more are written, and close the backend."""
        if not self._is_open:
            return
        self._attach_checkpoints()
        folder = Path(self._facts.directory)
        if self._artifacts and (folder / "config.yaml").exists():
            with TemporaryDirectory() as scratch:
                page = Path(scratch) / "report.html"
                self._attempt(lambda: page.write_text(_page(folder), encoding="utf-8"), "draw the report")
                self._attach(page, "report")
            self._attach(folder / "config.yaml", "config")
            self._attach(folder / "plan.json", "plan")
        if self._artifacts >= 2:
            self._attach(folder / "final", "weights")
        self._attempt(lambda: self._backend.close(status), "finish")

    def _open(self, step: int) -> None:
        """Begin, under the identity that an earlier process left in the run directory."""
        place = Path(self._facts.directory) / IDENTITIES
        known = json.loads(place.read_text(encoding="utf-8")) if self._facts.directory and place.exists() else {}
        identity = self._backend.open(self._facts, step, known.get(self._kind))
        self._is_open = True
        if self._facts.directory and identity is not None and identity != known.get(self._kind):
            draft = place.with_name(f".{place.name}")
            draft.write_text(json.dumps({**known, self._kind: identity}, indent=1), encoding="utf-8")
            draft.replace(place)

    def _attach_checkpoints(self) -> None:
        """Attach the checkpoints that are on disk by now; one that retention has removed in the meantime is left out."""
        here = [place for place in self._checkpoints if place.exists()]
        self._checkpoints = [place for place in self._checkpoints if place not in here]
        for place in here if self._artifacts >= 3 else ():
            self._attach(place, "checkpoint")

    def _attach(self, place: Path, kind: str) -> None:
        backend = self._backend
        if isinstance(backend, Attaches) and place.exists():
            self._attempt(lambda: backend.attach(place, kind), f"attach {place.name}")

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
            last = "; further ones are not shown" if self._warnings == MOST_WARNINGS else ""
            sentence = f"{type(self._backend).__name__} could not {what}: {type(error).__name__}: {error}; the run goes on{last}"
            warn(sentence, RuntimeWarning, stacklevel=3)


def _page(folder: Path) -> str:
    """The page of a run."""
    from stackwise.reports.page.render import render_page
    from stackwise.reports.record import read_run

    return render_page([read_run(folder)])


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
        scalars |= {"train/flops": event.flops} if event.flops else {}
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
