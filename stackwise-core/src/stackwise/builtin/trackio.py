"""`core.trackio`: scalars and files as trackio keeps them, on this machine or in a Space."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

from stackwise.builtin.provider import TrackioOptions
from stackwise.builtin.tracking import Tracker, library
from stackwise.contracts.components import BuildContext
from stackwise.contracts.events import RunFacts


class Trackio:
    """One run of trackio for one run directory, by a name that no other run has: trackio finds runs by name."""

    def __init__(self, options: TrackioOptions) -> None:
        self._options = options
        self._library = library("trackio", "trackio")
        self._run: Any = None

    def open(self, facts: RunFacts, step: int, identity: str | None) -> str:
        if self._run is not None:
            return str(self._run.name)
        name, o = identity or f"{facts.name}-{uuid4().hex[:6]}", self._options
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        config = {**facts.config, "plan": facts.plan}
        with redirect_stdout(StringIO()):  # standard output is the caller's, as for `--json`
            self._run = self._library.init(o.project, name=name, space_id=o.space or None, config=config, resume="allow", **quiet)
        return name

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def flush(self) -> None:
        """Nothing to do: trackio writes in a thread of its own, twice a second."""

    def attach(self, place: Path, kind: str) -> None:
        self._run.log_artifact(place, name=f"{self._run.name}-{kind}", type=kind)

    def close(self, status: str) -> None:
        if self._run is not None:
            with redirect_stdout(StringIO()):
                self._run.finish()
            self._run = None


def build(options: TrackioOptions, context: BuildContext) -> Tracker:
    """The factory of `core.trackio`."""
    return Tracker(Trackio(options), options.every, f"trackio {options.space}/{options.project}", options.artifacts)
